//! What one phase of a scenario has made, and how that is undone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{CgroupKnob, hotplug};
use crate::assert::{CgroupAsked, CgroupSample, CpuQuota};
use crate::cgroup::{CgroupOps, CgroupStats};
use crate::workload::Worker;

/// What one phase made.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) phase: String,
    pub(super) cgroups: Vec<Made>,
    pub(super) workers: Vec<PlacedWorker>,
    /// CPUs as they were before they were switched first, in that order.
    pub(super) cpus: Vec<(u32, bool)>,
}

#[derive(Debug)]
pub(super) struct PlacedWorker {
    pub(super) worker: Worker,
    pub(super) cgroup: String,
}

/// A cgroup that an operation made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) name: String,
    /// The CPUs it has now; `None` for those of the group above.
    pub(super) cpuset: Option<BTreeSet<usize>>,
    asked: CgroupAsked,
    /// At some time its workers had other CPUs than its own.
    is_open: bool,
    /// What the kernel had counted when its first workers were spawned.
    before: Option<(Instant, CgroupStats)>,
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
        Self {
            name: name.to_owned(),
            cpuset: None,
            asked: CgroupAsked::default(),
            is_open: false,
            before: None,
        }
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
                self.count_anew();
            }
            CgroupKnob::CpuWeight(weight) => {
                self.asked.weight = Some(*weight);
                self.count_anew();
            }
            _ => {}
        }
    }

    /// What was counted under another quota or weight says nothing of this one.
    fn count_anew(&mut self) {
        self.before = None;
    }

    pub(super) fn note_cpuset(&mut self, cpus: Option<BTreeSet<usize>>) {
        // Who was here before was where it was allowed to be then.
        let is_used = self.before.is_some();
        self.is_open |= cpus.is_none() || is_used && self.cpuset.is_none();
        let all = self.asked.cpuset.iter().copied();
        let more = cpus.iter().flatten().map(|cpu| *cpu as u32);
        self.asked.cpuset = all.chain(more).collect::<BTreeSet<_>>().into_iter().collect();
        self.cpuset = cpus;
    }

    /// Processes come in from elsewhere, with the CPUs they had there.
    pub(super) fn note_arrival(&mut self) {
        self.is_open = true;
    }

    /// Begins to count.
    pub(super) fn begin(&mut self, cgroups: &dyn CgroupOps) -> Result<()> {
        if self.before.is_none() {
            self.before = Some((Instant::now(), cgroups.stats(&self.name)?));
        }
        Ok(())
    }

    /// What was asked for and what the kernel has counted since; `None` if nobody worked in it.
    pub(super) fn sample(&self, cgroups: &dyn CgroupOps) -> Result<Option<CgroupSample>> {
        let Some((began, before)) = &self.before else { return Ok(None) };
        let (wall, after) = (began.elapsed(), cgroups.stats(&self.name)?);
        let mut asked = self.asked.clone();
        if self.is_open {
            asked.cpuset.clear();
        }
        Ok(Some(CgroupSample {
            name: self.name.clone(),
            asked,
            before: before.clone(),
            after,
            wall,
        }))
    }
}
