//! What each operation does.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::execute::Scenario;
use super::layer::{Made, PlacedWorker};
use super::ops::{Op, SpawnPlacement};
use super::{CgroupDef, CgroupKnob, hotplug};
use crate::snapshot::{self, CgroupProcsSnapshot, ProcIdentity};
use crate::sys::since_boot_ns;
use crate::wire::Report;
use crate::workload::{WorkSpec, Worker};

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
            Op::MoveAllTasks { from, to } => self.move_all_tasks(from, to),
            Op::FreezeCgroup { cgroup } => self.freeze(cgroup, true),
            Op::UnfreezeCgroup { cgroup } => self.freeze(cgroup, false),
            Op::CaptureCgroupProcs { tag, cgroup } => self.capture(tag, cgroup),
            Op::HotplugCpu { cpu, online } => self.hotplug(*cpu, *online),
        }
    }

    fn add_cgroup(&mut self, cgroup: &str) -> Result<()> {
        // Whoever made it removes it; a second owner would remove it from under the first.
        ensure!(!self.made().any(|name| name == cgroup), "`{cgroup}` is there already");
        for (end, _) in cgroup.match_indices('/') {
            let above = &cgroup[..end];
            // Made on the way, so it is to be removed as well; one that was there stays.
            if self.ctx.cgroups.read_procs(above).is_err_and(|error| error.is_missing()) {
                self.layer_mut().cgroups.push(Made { name: above.to_owned(), cpuset: None });
            }
        }
        self.ctx.cgroups.create_cgroup(cgroup)?;
        self.layer_mut().cgroups.push(Made { name: cgroup.to_owned(), cpuset: None });
        Ok(())
    }

    fn add_def(&mut self, def: &CgroupDef) -> Result<()> {
        let works = def.works(self.ctx.topo)?;
        self.add_cgroup(&def.name)?;
        def.knobs.iter().try_for_each(|knob| self.set_knob(&def.name, knob))?;
        works.iter().try_for_each(|work| self.spawn(&def.name, work))
    }

    fn remove_cgroup(&mut self, cgroup: &str) -> Result<()> {
        self.known(cgroup)?;
        self.stop_cgroup(cgroup)?;
        for layer in &mut self.layers {
            layer.cgroups.retain(|made| made.name != cgroup);
        }
        Ok(self.ctx.cgroups.remove_cgroup(cgroup)?)
    }

    fn stop_cgroup(&mut self, cgroup: &str) -> Result<()> {
        self.known(cgroup)?;
        for index in 0..self.layers.len() {
            self.stop_workers(index, |worker| worker.cgroup == cgroup);
        }
        Ok(())
    }

    fn set_knob(&mut self, cgroup: &str, knob: &CgroupKnob) -> Result<()> {
        self.known(cgroup)?;
        knob.apply(self.ctx.cgroups, cgroup, self.ctx.topo)?;
        if let CgroupKnob::Cpuset(cpus) = knob {
            let cpus = cpus.as_ref().map(|cpus| cpus.resolve(self.ctx.topo)).transpose()?;
            self.note_cpuset(cgroup, cpus);
        }
        Ok(())
    }

    fn note_cpuset(&mut self, cgroup: &str, cpus: Option<BTreeSet<usize>>) {
        let made = self.layers.iter_mut().flat_map(|layer| &mut layer.cgroups);
        if let Some(made) = made.into_iter().find(|made| made.name == cgroup) {
            made.cpuset = cpus;
        }
    }

    fn swap_cpusets(&mut self, a: &str, b: &str) -> Result<()> {
        let (of_a, of_b) = (self.cpuset_of(a)?, self.cpuset_of(b)?);
        for (cgroup, cpus) in [(a, of_b), (b, of_a)] {
            self.ctx.cgroups.set_cpuset(cgroup, &cpus)?;
            self.note_cpuset(cgroup, Some(cpus));
        }
        Ok(())
    }

    fn cpuset_of(&self, cgroup: &str) -> Result<BTreeSet<usize>> {
        self.known(cgroup)?;
        let made = self.layers.iter().flat_map(|layer| &layer.cgroups);
        let cpus = made.filter(|made| made.name == cgroup).find_map(|made| made.cpuset.clone());
        cpus.with_context(|| format!("no cpuset was set for `{cgroup}`"))
    }

    fn spawn(&mut self, cgroup: &str, work: &WorkSpec) -> Result<()> {
        self.known(cgroup)?;
        work.check().map_err(anyhow::Error::msg)?;
        let mut workers = Vec::new();
        for _ in 0..work.count() {
            let worker = Worker::fork(work).context("cannot fork a worker")?;
            self.ctx.cgroups.place_task_during_handshake(cgroup, worker.pid())?;
            workers.push(worker);
        }
        for mut worker in workers {
            worker.release().context("cannot release a worker")?;
            let released = Instant::now();
            let placed = PlacedWorker { worker, cgroup: cgroup.to_owned(), released };
            self.layer_mut().workers.push(placed);
        }
        Ok(())
    }

    fn move_all_tasks(&mut self, from: &str, to: &str) -> Result<()> {
        self.known(from)?;
        self.known(to)?;
        let pids = self.ctx.cgroups.read_procs(from)?;
        self.ctx.cgroups.move_tasks(to, &pids)?;
        for placed in self.layers.iter_mut().flat_map(|layer| &mut layer.workers) {
            if placed.cgroup == from {
                placed.cgroup = to.to_owned();
            }
        }
        Ok(())
    }

    fn freeze(&mut self, cgroup: &str, frozen: bool) -> Result<()> {
        self.known(cgroup)?;
        Ok(self.ctx.cgroups.set_freeze(cgroup, frozen)?)
    }

    fn capture(&self, tag: &str, cgroup: &str) -> Result<()> {
        ensure!(!tag.is_empty(), "a capture needs a tag: nobody could find it again");
        self.known(cgroup)?;
        let pids = self.ctx.cgroups.read_procs(cgroup)?;
        let capture = CgroupProcsSnapshot {
            tag: tag.to_owned(),
            cgroup: cgroup.to_owned(),
            procs: pids.iter().filter_map(|pid| ProcIdentity::read(*pid)).collect(),
            pids,
            at_ns: since_boot_ns(),
        };
        (self.ctx.report)(Report::Capture(capture.clone()));
        snapshot::collect(capture);
        Ok(())
    }

    fn hotplug(&mut self, cpu: u32, online: bool) -> Result<()> {
        let before = hotplug::switch(cpu, online)?;
        let known =
            self.layers.iter().flat_map(|layer| &layer.cpus).any(|(known, _)| *known == cpu);
        if !known {
            self.layer_mut().cpus.push((cpu, before));
        }
        Ok(())
    }

    /// Refuses a cgroup that no operation has made: a typo must not pass silently.
    fn known(&self, cgroup: &str) -> Result<()> {
        ensure!(!cgroup.is_empty(), "the cgroup has no name");
        if !self.made().any(|name| name == cgroup) {
            let made: Vec<_> = self.made().collect();
            bail!("no operation has made cgroup `{cgroup}`; there are {made:?}");
        }
        Ok(())
    }

    fn made(&self) -> impl Iterator<Item = &str> {
        self.layers.iter().flat_map(|layer| &layer.cgroups).map(|made| &*made.name)
    }

    pub(super) fn workers(&self) -> impl Iterator<Item = &PlacedWorker> {
        self.layers.iter().flat_map(|layer| &layer.workers)
    }

    pub(super) fn stop_workers(&mut self, layer: usize, which: impl Fn(&PlacedWorker) -> bool) {
        let workers = std::mem::take(&mut self.layers[layer].workers);
        let (stop, keep): (Vec<_>, _) = workers.into_iter().partition(which);
        self.layers[layer].workers = keep;
        // Judged while all still run, and only then stopped: the last must not be measured alone.
        let details: Vec<_> = stop.iter().filter_map(PlacedWorker::judge).collect();
        drop(stop);
        details.into_iter().for_each(|detail| self.fail(detail));
    }
}
