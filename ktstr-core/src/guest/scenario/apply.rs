//! Carries out operations.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::def::CgroupDef;
use super::knob::CgroupKnob;
use super::layer::Resource;
use super::op::{Op, SpawnPlacement};
use super::placed::PlacedWorker;
use super::state::Scenario;
use crate::guest::workload::{AffinityIntent, WorkSpec, Worker, Workers};
use crate::linux::cgroup::check_name;
use crate::linux::sys::since_boot_ns;

impl Scenario<'_> {
    /// Carries out an operation of a phase. An error names the phase and the operation.
    pub(super) fn carry_out(&mut self, op: &Op) -> Result<()> {
        self.send_event(op.to_string());
        self.apply(op).with_context(|| format!("{}: failed to {op}", self.layers.phase()))
    }

    /// Carries out an operation that is part of another one. An error names the operation only.
    fn carry_out_part(&mut self, op: &Op) -> Result<()> {
        self.send_event(op.to_string());
        self.apply(op).with_context(|| format!("failed to {op}"))
    }

    fn apply(&mut self, op: &Op) -> Result<()> {
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
        // First, so that an error names this cgroup and not an ancestor of it.
        check_name(cgroup)?;
        // One owner: two would both remove it.
        ensure!(self.layers.cgroup(cgroup).is_none(), "cgroup `{cgroup}` exists already");
        // The ancestors that do not exist yet are created with it and removed with it; the others stay.
        for (end, _) in cgroup.match_indices('/') {
            let ancestor = &cgroup[..end];
            match self.ctx.cgroups.read_procs(ancestor) {
                Ok(_) => {}
                Err(error) if error.is_missing() => self.own_cgroup(ancestor),
                // If it is unknown whether it exists, it is unknown whether to remove it.
                Err(error) => return Err(error.into()),
            }
        }
        self.ctx.cgroups.create_cgroup(cgroup)?;
        self.own_cgroup(cgroup);
        Ok(())
    }

    fn add_def(&mut self, def: &CgroupDef) -> Result<()> {
        let works = def.works(self.ctx.topo)?;
        self.add_cgroup(&def.name)?;
        if def.oom_kill_expected {
            self.oom.expect(&def.name);
        }
        def.knobs.iter().try_for_each(|knob| self.set_knob(&def.name, knob))?;
        let placement = || SpawnPlacement::cgroup(&def.name);
        let mut spawns = works.into_iter().map(|work| Op::spawn(placement(), work));
        spawns.try_for_each(|op| self.carry_out_part(&op))?;
        let runs = def.payloads.iter().cloned();
        runs.map(|run| Op::run_payload(run, &*def.name)).try_for_each(|op| self.carry_out_part(&op))
    }

    fn remove_cgroup(&mut self, cgroup: &str) -> Result<()> {
        self.stop_cgroup(cgroup)?;
        let oom_kills = self.read_oom_kills(cgroup)?;
        self.ctx.cgroups.remove_cgroup(cgroup)?;
        // Only now: the teardown of its layer removes a cgroup that could not be removed here.
        self.disown_cgroup(cgroup, oom_kills);
        Ok(())
    }

    fn stop_cgroup(&mut self, cgroup: &str) -> Result<()> {
        self.check_known(cgroup)?;
        let how = format!("stopped with {cgroup}");
        self.stop_payloads(&how, |_, payload| payload.cgroup() == cgroup)?;
        self.stop_workers(|_, placed| placed.cgroup == cgroup)
    }

    fn set_knob(&mut self, cgroup: &str, knob: &CgroupKnob) -> Result<()> {
        self.check_known(cgroup)?;
        let (cgroups, topo) = (self.ctx.cgroups, self.ctx.topo);
        if let CgroupKnob::Cpuset(cpus) = knob {
            let cpus = cpus.as_ref().map(|cpus| cpus.resolve(topo)).transpose()?;
            return self.set_cpuset(cgroup, cpus.as_ref(), || knob.apply(cgroups, cgroup, topo));
        }
        knob.apply(cgroups, cgroup, topo)?;
        if let Some(state) = self.layers.cgroup_mut(cgroup) {
            state.record(knob);
        }
        self.update_waits();
        if self.has_memory_high(cgroup) {
            let workers = self.layers.workers_mut().filter(|placed| placed.is_in(cgroup));
            workers.for_each(|placed| placed.is_memory_throttled = true);
        }
        Ok(())
    }

    /// Returns the CPUs that workers of a cgroup may use.
    fn cpus_of(&self, cgroup: &str) -> BTreeSet<u32> {
        self.cpusets.asked(cgroup).unwrap_or_else(|| self.ctx.topo.cpus.iter().copied().collect())
    }

    fn swap_cpusets(&mut self, a: &str, b: &str) -> Result<()> {
        let (of_a, of_b) = (self.cpuset_of(a)?, self.cpuset_of(b)?);
        for (cgroup, cpus) in [(a, of_b), (b, of_a)] {
            let cgroups = self.ctx.cgroups;
            let set = || Ok(cgroups.set_cpuset(cgroup, &cpus)?);
            self.set_cpuset(cgroup, Some(&cpus), set)?;
        }
        Ok(())
    }

    fn cpuset_of(&self, cgroup: &str) -> Result<BTreeSet<usize>> {
        self.check_known(cgroup)?;
        self.cpusets.own(cgroup).with_context(|| format!("no cpuset was set for `{cgroup}`"))
    }

    fn spawn(&mut self, cgroup: &str, work: &WorkSpec) -> Result<()> {
        self.check_known(cgroup)?;
        let from_ns = since_boot_ns();
        // Step 1: fork and place. Workers that are not all in the cgroup are killed before they run.
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
        let oom_kill_expected = self.oom.is_expected(cgroup);
        let is_memory_throttled = self.has_memory_high(cgroup);
        let frozen_since_ns = self.is_frozen(cgroup).then_some(from_ns);
        let spawn = self.spawns;
        self.spawns += 1;
        // Step 2: the scenario owns them before the first release: if one fails, the teardown stops all.
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
        self.layers.push(Resource::Workers(placed.collect()));
        // Step 3: release them, now that all are in the cgroup.
        let cpuset = self.cpusets.confinement(cgroup);
        for placed in self.layers.workers_mut().filter(|placed| placed.spawn == spawn) {
            placed.confine(cpuset.as_ref());
            placed.worker.release().context("failed to release a worker")?;
        }
        self.update_waits();
        Ok(())
    }

    fn set_affinity(&mut self, cgroup: &str, affinity: &AffinityIntent) -> Result<()> {
        self.check_known(cgroup)?;
        let own = |placed: &&PlacedWorker| placed.cgroup == cgroup;
        let workers: Vec<_> = self.layers.workers().filter(own).collect();
        ensure!(!workers.is_empty(), "`{cgroup}` has no workers to pin");
        let workers = workers.into_iter().map(|placed| &placed.worker);
        Workers::set_affinity(workers, affinity, self.ctx.topo, &self.cpus_of(cgroup))?;
        for placed in self.layers.workers_mut() {
            placed.is_pinned |= placed.cgroup == cgroup;
        }
        Ok(())
    }

    fn move_all_tasks(&mut self, from: &str, to: &str) -> Result<()> {
        self.check_known(from)?;
        self.check_known(to)?;
        self.check_no_payload(from)?;
        let pids = self.ctx.cgroups.read_procs(from)?;
        let moves = self.layers.workers().any(|placed| placed.cgroup == from);
        ensure!(moves || !pids.is_empty(), "`{from}` has no task to move");
        let from_ns = since_boot_ns();
        let is_frozen = self.is_frozen(to);
        let oom_kill_expected = self.oom.is_expected(to);
        let is_memory_throttled = self.has_memory_high(to);
        self.reconfine(
            |placed| placed.cgroup == from,
            |scenario| {
                scenario.ctx.cgroups.move_tasks(to, &pids)?;
                let workers = scenario.layers.workers_mut();
                for placed in workers.filter(|placed| placed.cgroup == from) {
                    placed.cgroup = to.to_owned();
                    placed.oom_kill_expected = oom_kill_expected;
                    placed.is_memory_throttled |= is_memory_throttled;
                    placed.record_freeze(is_frozen, from_ns);
                }
                scenario.update_waits();
                Ok(())
            },
        )
    }

    fn freeze(&mut self, cgroup: &str, frozen: bool) -> Result<()> {
        self.check_known(cgroup)?;
        let from_ns = since_boot_ns();
        let done = self.ctx.cgroups.set_freeze(cgroup, frozen);
        // A freeze that failed may have frozen some tasks.
        if frozen || done.is_ok() {
            if let Some(state) = self.layers.cgroup_mut(cgroup) {
                state.is_frozen = frozen;
            }
            self.record_freezes(cgroup, from_ns);
        }
        Ok(done?)
    }

    /// Records a freeze or thaw that began at `from_ns` for the workers in a cgroup and its descendants.
    fn record_freezes(&mut self, cgroup: &str, from_ns: u64) {
        let frozen = self.layers.cgroups().filter(|cgroup| cgroup.is_frozen);
        let frozen: Vec<_> = frozen.map(|cgroup| cgroup.name.clone()).collect();
        for placed in self.layers.workers_mut().filter(|placed| placed.is_in(cgroup)) {
            placed.record_freeze(frozen.iter().any(|cgroup| placed.is_in(cgroup)), from_ns);
        }
    }

    fn hotplug(&mut self, cpu: u32, online: bool) -> Result<()> {
        let was_online = self.set_cpu_online(cpu, online)?;
        // The teardown restores the state before the layer's first change.
        let is_it = |resource: &Resource| match resource {
            Resource::Cpu { cpu: other, .. } => *other == cpu,
            _ => false,
        };
        if !self.layers.of_innermost().iter().any(is_it) {
            self.layers.push(Resource::Cpu { cpu, was_online });
        }
        Ok(())
    }
}
