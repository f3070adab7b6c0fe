//! What one phase of a scenario has made, and how that is undone.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;

use super::{CgroupKnob, hotplug};
use crate::assert::{CgroupAsked, CgroupSample, CpuQuota};
use crate::cgroup::{CgroupOps, CgroupStats};
use crate::sys::since_boot_ns;
use crate::workload::{Worker, WorkerReport};

/// What one phase made.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) phase: String,
    pub(super) cgroups: Vec<Made>,
    pub(super) workers: Vec<PlacedWorker>,
    /// CPUs as they were before they were switched first, in that order.
    pub(super) cpus: Vec<(u32, bool)>,
}

/// A worker, and what its cgroups have asked of it since its release.
#[derive(Debug)]
pub(super) struct PlacedWorker {
    pub(super) worker: Worker,
    pub(super) cgroup: String,
    /// Of the scenario, counted from 0.
    pub(super) spawn: u32,
    /// The CPUs that cpusets allowed it at any time; `None` if there was a time without one.
    pub(super) cpuset: Option<BTreeSet<u32>>,
    pub(super) oom_kill_expected: bool,
    pub(super) was_frozen: bool,
}

impl PlacedWorker {
    /// Its cgroups allow it these CPUs from now on.
    pub(super) fn note_cpuset(&mut self, now: Option<&BTreeSet<u32>>) {
        self.cpuset = self.cpuset.take().zip(now).map(|(before, now)| &before | now);
    }

    pub(super) fn is_in(&self, cgroup: &str) -> bool {
        is_in(&self.cgroup, cgroup)
    }

    pub(super) fn report(&self) -> WorkerReport {
        WorkerReport {
            spawn: self.spawn,
            cpuset: self.cpuset.iter().flatten().copied().collect(),
            oom_kill_expected: self.oom_kill_expected,
            was_frozen: self.was_frozen,
            ..self.worker.report(&self.cgroup)
        }
    }
}

/// Whether a group is another one or below it.
pub(super) fn is_in(group: &str, other: &str) -> bool {
    group.strip_prefix(other).is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

/// A cgroup that an operation made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) name: String,
    /// The CPUs it has now; `None` for those of the group above.
    pub(super) cpuset: Option<BTreeSet<usize>>,
    asked: CgroupAsked,
    pub(super) is_frozen: bool,
    /// What the kernel had counted when the first of the workers there are now was spawned.
    before: Option<(u64, CgroupStats)>,
}

impl Layer {
    pub(super) fn new(phase: String) -> Self {
        Self { phase, cgroups: Vec::new(), workers: Vec::new(), cpus: Vec::new() }
    }

    /// Removes the cgroups, the last first, and switches CPUs back. All of it, whatever fails; the
    /// first error is told.
    pub(super) fn take_down(self, cgroups: &dyn CgroupOps) -> Result<()> {
        let mut undone = Ok(());
        for cgroup in self.cgroups.iter().rev() {
            undone = undone.and(cgroups.remove_cgroup(&cgroup.name).map_err(anyhow::Error::from));
        }
        for (cpu, online) in self.cpus.into_iter().rev() {
            undone = undone.and(hotplug::switch(cpu, online).map(drop));
        }
        undone
    }
}

impl Made {
    pub(super) fn new(name: &str) -> Self {
        let name = name.to_owned();
        Self { name, cpuset: None, asked: CgroupAsked::default(), is_frozen: false, before: None }
    }

    pub(super) fn expect_oom_kill(&mut self) {
        self.asked.oom_kill_expected = true;
    }

    pub(super) fn expects_oom_kill(&self) -> bool {
        self.asked.oom_kill_expected
    }

    /// Takes note of what the checks have to know of a knob.
    pub(super) fn note(&mut self, knob: &CgroupKnob) {
        match knob {
            CgroupKnob::CpuMax(quota_us, period_us) => {
                self.asked.quota = quota_us.map(|quota_us| CpuQuota {
                    quota: Duration::from_micros(quota_us),
                    period: Duration::from_micros(*period_us),
                });
            }
            CgroupKnob::CpuWeight(weight) => self.asked.weight = Some(*weight),
            _ => {}
        }
    }

    /// Begins to count, unless it has.
    pub(super) fn begin(&mut self, cgroups: &dyn CgroupOps) -> Result<()> {
        if self.before.is_none() {
            self.before = Some((since_boot_ns(), cgroups.stats(&self.name)?));
        }
        Ok(())
    }

    /// Ends counting: what was asked for, and what the kernel has counted since. `None` if nobody
    /// worked in it.
    pub(super) fn end(
        &mut self,
        cgroups: &dyn CgroupOps,
        cpuset: Option<&BTreeSet<u32>>,
    ) -> Result<Option<CgroupSample>> {
        let Some((began_ns, before)) = self.before.take() else { return Ok(None) };
        let wall = Duration::from_nanos(since_boot_ns().saturating_sub(began_ns));
        let after = cgroups.stats(&self.name)?;
        let cpuset = cpuset.into_iter().flatten().copied().collect();
        let asked = CgroupAsked { cpuset, ..self.asked.clone() };
        Ok(Some(CgroupSample { name: self.name.clone(), asked, began_ns, before, after, wall }))
    }
}
