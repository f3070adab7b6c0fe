//! What each operation does.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::def::CgroupDef;
use super::execute::Scenario;
use super::knob::CgroupKnob;
use super::layer::{Made, PlacedWorker};
use super::op::{Op, SpawnPlacement};
use crate::guest::assert::is_in;
use crate::guest::snapshot::{
    self, Capture, CgroupProcsSnapshot, CgroupSnapshot, ProcIdentity, Snapshot,
};
use crate::guest::workload::{AffinityIntent, WorkSpec, Worker, Workers};
use crate::linux::cgroup::check_name;
use crate::linux::sys::since_boot_ns;
use crate::model::wire::{MAX_PAYLOAD, Report};

/// What a frame of the wire takes, and some room for what else is in it.
const LARGEST_SNAPSHOT: usize = MAX_PAYLOAD - 64;

impl Scenario<'_> {
    pub(super) fn apply(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::AddCgroup { cgroup } => self.add_cgroup(cgroup),
            Op::AddCgroupDef { def } => self.add_def(def),
            Op::RemoveCgroup { cgroup } => self.remove_cgroup(cgroup),
            Op::StopCgroup { cgroup } => self.stop_cgroup(cgroup),
            Op::SetKnob { cgroup, knob } => self.set_knob(cgroup, knob),
            Op::SwapCpusets { a, b } => self.swap_cpusets(a, b),
            Op::Spawn { placement: SpawnPlacement::Cgroup(cgroup), work } => {
                self.spawn(cgroup, work)
            }
            Op::SetAffinity { cgroup, affinity } => self.set_affinity(cgroup, affinity),
            Op::MoveAllTasks { from, to } => self.move_all_tasks(from, to),
            Op::FreezeCgroup { cgroup } => self.freeze(cgroup, true),
            Op::UnfreezeCgroup { cgroup } => self.freeze(cgroup, false),
            Op::CaptureCgroupProcs { tag, cgroup } => self.capture(tag, cgroup),
            Op::CaptureSnapshot { name } => self.capture_snapshot(name),
            Op::HotplugCpu { cpu, online } => self.hotplug(*cpu, *online),
            Op::RunPayload { run, cgroup } => self.run_payload(run, cgroup.as_deref()),
            Op::WaitPayload { name, timeout } => self.wait_payload(name, *timeout),
            Op::KillPayload { name } => self.kill_payload(name),
        }
    }

    fn add_cgroup(&mut self, cgroup: &str) -> Result<()> {
        // Before its ancestors are looked up: an error about one of those would name that, not it.
        check_name(cgroup)?;
        // Whoever made it removes it; a second owner would remove it from under the first.
        ensure!(!self.made().any(|made| made.name == cgroup), "`{cgroup}` is there already");
        for (end, _) in cgroup.match_indices('/') {
            let above = &cgroup[..end];
            // Made on the way, so it is to be removed as well; one that was there stays.
            match self.ctx.cgroups.read_procs(above) {
                Ok(_) => {}
                Err(error) if error.is_missing() => {
                    self.layer_mut().cgroups.push(Made::new(above));
                }
                // Whether it is there is not known, so neither is who has to remove it.
                Err(error) => return Err(error.into()),
            }
        }
        self.ctx.cgroups.create_cgroup(cgroup)?;
        self.layer_mut().cgroups.push(Made::new(cgroup));
        Ok(())
    }

    fn add_def(&mut self, def: &CgroupDef) -> Result<()> {
        let works = def.works(self.ctx.topo)?;
        self.add_cgroup(&def.name)?;
        if def.oom_kill_expected {
            self.made_mut(&def.name).for_each(|made| made.oom_kill_expected = true);
        }
        def.knobs.iter().try_for_each(|knob| self.set_knob(&def.name, knob))?;
        let placement = || SpawnPlacement::cgroup(&def.name);
        works.into_iter().try_for_each(|work| self.carry_out(&Op::spawn(placement(), work)))?;
        let runs = def.payloads.iter().cloned();
        runs.map(|run| Op::run_payload(run, &*def.name)).try_for_each(|op| self.carry_out(&op))
    }

    fn remove_cgroup(&mut self, cgroup: &str) -> Result<()> {
        self.stop_cgroup(cgroup)?;
        self.note_oom_kills(cgroup)?;
        self.ctx.cgroups.remove_cgroup(cgroup)?;
        // Not before it is gone: what could not be removed now is tried again at the end.
        for layer in &mut self.layers {
            layer.cgroups.retain(|made| made.name != cgroup);
        }
        Ok(())
    }

    fn stop_cgroup(&mut self, cgroup: &str) -> Result<()> {
        self.known(cgroup)?;
        let how = format!("stopped with {cgroup}");
        self.stop_payloads(&how, |_, payload| payload.cgroup() == cgroup)?;
        self.stop_workers(|_, placed| placed.cgroup == cgroup)
    }

    fn set_knob(&mut self, cgroup: &str, knob: &CgroupKnob) -> Result<()> {
        self.known(cgroup)?;
        let (cgroups, topo) = (self.ctx.cgroups, self.ctx.topo);
        if let CgroupKnob::Cpuset(cpus) = knob {
            let cpus = cpus.as_ref().map(|cpus| cpus.resolve(topo)).transpose()?;
            return self.set_cpuset(cgroup, cpus, || knob.apply(cgroups, cgroup, topo));
        }
        knob.apply(cgroups, cgroup, topo)?;
        self.made_mut(cgroup).for_each(|made| made.note(knob));
        self.note_waits();
        if self.slows(cgroup) {
            let workers = self.layers.iter_mut().flat_map(|layer| &mut layer.workers);
            workers
                .filter(|placed| placed.is_in(cgroup))
                .for_each(|placed| placed.is_memory_throttled = true);
        }
        Ok(())
    }

    /// Whether a group, or one above it, slows down who takes memory.
    fn slows(&self, cgroup: &str) -> bool {
        self.made().any(|made| made.slows && is_in(cgroup, &made.name))
    }

    /// The CPUs that workers of a group may use.
    fn cpus_of(&self, cgroup: &str) -> BTreeSet<u32> {
        self.cpuset_asked(cgroup).unwrap_or_else(|| self.ctx.topo.cpus.iter().copied().collect())
    }

    fn swap_cpusets(&mut self, a: &str, b: &str) -> Result<()> {
        let (of_a, of_b) = (self.cpuset_of(a)?, self.cpuset_of(b)?);
        for (cgroup, cpus) in [(a, of_b), (b, of_a)] {
            let cgroups = self.ctx.cgroups;
            let set = || Ok(cgroups.set_cpuset(cgroup, &cpus)?);
            self.set_cpuset(cgroup, Some(cpus.clone()), set)?;
        }
        Ok(())
    }

    fn cpuset_of(&self, cgroup: &str) -> Result<BTreeSet<usize>> {
        self.known(cgroup)?;
        let mut made = self.made().filter(|made| made.name == cgroup);
        let cpus = made.find_map(|made| made.cpuset.clone());
        cpus.with_context(|| format!("no cpuset was set for `{cgroup}`"))
    }

    fn spawn(&mut self, cgroup: &str, work: &WorkSpec) -> Result<()> {
        self.known(cgroup)?;
        let from_ns = since_boot_ns();
        let workers = Workers::fork(work, self.ctx.topo, &self.cpus_of(cgroup))?;
        let mut pids = workers.iter().map(Worker::pid);
        let cgroups = self.ctx.cgroups;
        if let Err(error) =
            pids.try_for_each(|pid| cgroups.place_task_during_handshake(cgroup, pid))
        {
            drop(pids);
            Workers::discard(workers);
            return Err(error.into());
        }
        let moves_itself = work.work_type.moves_itself();
        let oom_kill_expected = self.expects_oom_kill(cgroup);
        let is_memory_throttled = self.slows(cgroup);
        let frozen_since_ns = self.is_frozen(cgroup).then_some(from_ns);
        let spawn = self.spawns;
        self.spawns += 1;
        let placed = workers.into_iter().map(|worker| PlacedWorker {
            worker,
            cgroup: cgroup.to_owned(),
            spawn,
            moves_itself,
            oom_kill_expected,
            is_memory_throttled,
            is_pinned: false,
            fair_wait_bound: Duration::ZERO,
            frozen_periods: Vec::new(),
            frozen_since_ns,
        });
        let cpuset = self.period(cgroup);
        let layer = self.layer_mut();
        let first = layer.workers.len();
        layer.workers.extend(placed);
        for placed in &mut layer.workers[first..] {
            placed.confine(cpuset.as_ref());
            placed.worker.release().context("cannot release a worker")?;
        }
        self.note_waits();
        Ok(())
    }

    fn set_affinity(&mut self, cgroup: &str, affinity: &AffinityIntent) -> Result<()> {
        self.known(cgroup)?;
        let workers: Vec<_> = self.workers().filter(|placed| placed.cgroup == cgroup).collect();
        ensure!(!workers.is_empty(), "`{cgroup}` has no workers to pin");
        let workers = workers.into_iter().map(|placed| &placed.worker);
        Workers::set_affinity(workers, affinity, self.ctx.topo, &self.cpus_of(cgroup))?;
        for placed in self.layers.iter_mut().flat_map(|layer| &mut layer.workers) {
            placed.is_pinned |= placed.cgroup == cgroup;
        }
        Ok(())
    }

    fn move_all_tasks(&mut self, from: &str, to: &str) -> Result<()> {
        self.known(from)?;
        self.known(to)?;
        self.check_no_payload_moves(from)?;
        let pids = self.ctx.cgroups.read_procs(from)?;
        let moves = self.workers().any(|placed| placed.cgroup == from);
        ensure!(moves || !pids.is_empty(), "`{from}` has no task to move");
        let from_ns = since_boot_ns();
        let is_frozen = self.is_frozen(to);
        let oom_kill_expected = self.expects_oom_kill(to);
        let is_memory_throttled = self.slows(to);
        self.reconfine(
            |placed| placed.cgroup == from,
            |scenario| {
                scenario.ctx.cgroups.move_tasks(to, &pids)?;
                let workers = scenario.layers.iter_mut().flat_map(|layer| &mut layer.workers);
                for placed in workers.filter(|placed| placed.cgroup == from) {
                    placed.cgroup = to.to_owned();
                    placed.oom_kill_expected = oom_kill_expected;
                    placed.is_memory_throttled |= is_memory_throttled;
                    placed.note_frozen(is_frozen, from_ns);
                }
                scenario.note_waits();
                Ok(())
            },
        )
    }

    fn freeze(&mut self, cgroup: &str, frozen: bool) -> Result<()> {
        self.known(cgroup)?;
        let from_ns = since_boot_ns();
        let done = self.ctx.cgroups.set_freeze(cgroup, frozen);
        // A freeze that failed may have frozen some.
        if frozen || done.is_ok() {
            self.made_mut(cgroup).for_each(|made| made.is_frozen = frozen);
            self.note_frozen(cgroup, from_ns);
        }
        Ok(done?)
    }

    /// Notes a change to the freezing of a group that began at `from_ns`, for who is in it or
    /// below.
    fn note_frozen(&mut self, cgroup: &str, from_ns: u64) {
        for layer in 0..self.layers.len() {
            for index in 0..self.layers[layer].workers.len() {
                let placed = &self.layers[layer].workers[index];
                if placed.is_in(cgroup) {
                    let is_frozen = self.is_frozen(&placed.cgroup);
                    self.layers[layer].workers[index].note_frozen(is_frozen, from_ns);
                }
            }
        }
    }

    /// Whether a group, or one above it, is frozen.
    fn is_frozen(&self, cgroup: &str) -> bool {
        self.made().any(|made| made.is_frozen && is_in(cgroup, &made.name))
    }

    fn capture(&self, tag: &str, cgroup: &str) -> Result<()> {
        ensure!(!tag.is_empty(), "a capture needs a tag: nobody could find it again");
        self.known(cgroup)?;
        let pids = self.pids_of(cgroup)?;
        let capture = CgroupProcsSnapshot {
            tag: tag.to_owned(),
            cgroup: cgroup.to_owned(),
            procs: identities(&pids)?,
            pids,
            at_ns: since_boot_ns(),
        };
        (self.ctx.report)(Report::Capture(capture.clone()));
        snapshot::collect(Capture::CgroupProcs(capture));
        Ok(())
    }

    /// The processes of a group, and those of its payloads, which are in groups below that are not the
    /// scenario's own.
    fn pids_of(&self, cgroup: &str) -> Result<Vec<i32>> {
        let mut pids = self.ctx.cgroups.read_procs(cgroup)?;
        for payload in self.payloads().filter(|payload| payload.cgroup() == cgroup) {
            pids.extend(payload.pids()?);
        }
        Ok(pids)
    }

    fn capture_snapshot(&self, name: &str) -> Result<()> {
        ensure!(!name.is_empty(), "a snapshot needs a name: nobody could find it again");
        let at_ns = since_boot_ns();
        let of = |made: &Made| -> Result<CgroupSnapshot> {
            let procs = identities(&self.pids_of(&made.name)?)?;
            let stats = self.ctx.cgroups.stats(&made.name)?;
            Ok(CgroupSnapshot { cgroup: made.name.clone(), procs, stats })
        };
        let snapshot = Snapshot {
            name: name.to_owned(),
            at_ns,
            cgroups: self.made().map(of).collect::<Result<_>>()?,
            workers: self.workers().map(PlacedWorker::report).collect(),
            kernel: snapshot::kernel_snapshot(name),
        };
        let bytes = postcard::to_allocvec(&snapshot)?.len();
        ensure!(
            bytes <= LARGEST_SNAPSHOT,
            "a snapshot of {} cgroups and {} workers takes {bytes} bytes, the most is {LARGEST_SNAPSHOT}",
            snapshot.cgroups.len(),
            snapshot.workers.len()
        );
        (self.ctx.report)(Report::Snapshot(snapshot.clone()));
        snapshot::collect(Capture::Snapshot(snapshot));
        Ok(())
    }

    fn hotplug(&mut self, cpu: u32, online: bool) -> Result<()> {
        let before = self.switch_cpu(cpu, online)?;
        let cpus = &mut self.layer_mut().cpus;
        if !cpus.iter().any(|(known, _)| *known == cpu) {
            cpus.push((cpu, before));
        }
        Ok(())
    }

    /// Refuses a cgroup that no operation has made: a typo must not pass silently.
    pub(super) fn known(&self, cgroup: &str) -> Result<()> {
        ensure!(!cgroup.is_empty(), "the cgroup has no name");
        if !self.made().any(|made| made.name == cgroup) {
            let made: Vec<_> = self.made().map(|made| &made.name).collect();
            bail!("no operation has made cgroup `{cgroup}`; there are {made:?}");
        }
        Ok(())
    }

    pub(super) fn made(&self) -> impl Iterator<Item = &Made> {
        self.layers.iter().flat_map(|layer| &layer.cgroups)
    }

    pub(super) fn made_mut(&mut self, cgroup: &str) -> impl Iterator<Item = &mut Made> {
        let made = self.layers.iter_mut().flat_map(|layer| &mut layer.cgroups);
        made.filter(move |made| made.name == cgroup)
    }

    pub(super) fn workers(&self) -> impl Iterator<Item = &PlacedWorker> {
        self.layers.iter().flat_map(|layer| &layer.workers)
    }
}

/// Reads the identities of those processes that are still there.
fn identities(pids: &[i32]) -> Result<Vec<ProcIdentity>> {
    let read = pids.iter().filter_map(|pid| ProcIdentity::read(*pid).transpose());
    read.collect::<Result<_, _>>().context("cannot identify the processes of a cgroup")
}
