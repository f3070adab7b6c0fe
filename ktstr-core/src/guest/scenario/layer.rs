//! What one phase of a scenario has made, and how that is undone.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;

use super::knob::CgroupKnob;
use crate::guest::assert::{CgroupAsked, CpuQuota, is_in};
use crate::guest::payload::Running;
use crate::guest::workload::{FrozenPeriod, Worker, WorkerReport};
use crate::linux::cgroup::CgroupOps;
use crate::linux::sys::since_boot_ns;

/// What one phase made.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) phase: String,
    pub(super) cgroups: Vec<Made>,
    pub(super) workers: Vec<PlacedWorker>,
    pub(super) payloads: Vec<Running>,
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
    /// It leaves its cgroup by itself, and with it the cpuset.
    pub(super) moves_itself: bool,
    pub(super) oom_kill_expected: bool,
    /// It is, or was, where the kernel slows down who takes memory.
    pub(super) is_memory_throttled: bool,
    /// By an operation.
    pub(super) is_pinned: bool,
    /// How long a fair scheduler may have kept it waiting, at most.
    pub(super) fair_wait_bound: Duration,
    /// When it was frozen and thawed again.
    pub(super) frozen_periods: Vec<FrozenPeriod>,
    pub(super) frozen_since_ns: Option<u64>,
}

impl PlacedWorker {
    /// Its cgroups leave it these CPUs from now on; `None` if nothing is known of that.
    pub(super) fn confine(&mut self, cpuset: Option<&BTreeSet<u32>>) {
        match cpuset {
            Some(cpuset) if !self.moves_itself => self.worker.confine(cpuset),
            _ => self.worker.unconfine(),
        }
    }

    pub(super) fn is_in(&self, cgroup: &str) -> bool {
        is_in(&self.cgroup, cgroup)
    }

    /// A change that began at `from_ns` and is over now has left it frozen, or not.
    pub(super) fn note_frozen(&mut self, is_frozen: bool, from_ns: u64) {
        if is_frozen {
            self.frozen_since_ns.get_or_insert(from_ns);
        } else if let Some(from_ns) = self.frozen_since_ns.take() {
            self.frozen_periods.push(FrozenPeriod { from_ns, until_ns: since_boot_ns() });
        }
    }

    pub(super) fn report(&self) -> WorkerReport {
        let until_ns = since_boot_ns();
        let open = self.frozen_since_ns.map(|from_ns| FrozenPeriod { from_ns, until_ns });
        WorkerReport {
            spawn: self.spawn,
            oom_kill_expected: self.oom_kill_expected,
            is_memory_throttled: self.is_memory_throttled,
            fair_wait_bound: self.fair_wait_bound,
            frozen_periods: self.frozen_periods.iter().copied().chain(open).collect(),
            ..self.worker.report(&self.cgroup)
        }
    }
}

/// A cgroup that an operation made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) name: String,
    /// When it was made, in nanoseconds since boot.
    pub(super) made_ns: u64,
    /// The CPUs it has now; `None` for those of the group above.
    pub(super) cpuset: Option<BTreeSet<usize>>,
    /// All CPUs that cpusets leave it were switched off since the last one was set, so that the
    /// kernel lets its tasks run on others.
    pub(super) has_fallen_back: bool,
    /// What the checks have to know of its knobs; but for its cpuset, which is not all its own.
    pub(super) asked: CgroupAsked,
    pub(super) is_frozen: bool,
    /// It has a `memory.high`, above which the kernel slows its tasks down.
    pub(super) slows: bool,
    pub(super) oom_kill_expected: bool,
    /// How many processes were killed for want of memory in groups below that are gone.
    pub(super) oom_kills_below: u64,
}

impl Layer {
    pub(super) fn new(phase: String) -> Self {
        Self {
            phase,
            cgroups: Vec::new(),
            workers: Vec::new(),
            payloads: Vec::new(),
            cpus: Vec::new(),
        }
    }

    /// Removes the cgroups, the last first. All of them, whatever fails; the first error is told.
    pub(super) fn take_down(&self, cgroups: &dyn CgroupOps) -> Result<()> {
        let mut undone = Ok(());
        for cgroup in self.cgroups.iter().rev() {
            undone = undone.and(cgroups.remove_cgroup(&cgroup.name).map_err(anyhow::Error::from));
        }
        undone
    }
}

impl Made {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            made_ns: since_boot_ns(),
            cpuset: None,
            has_fallen_back: false,
            asked: CgroupAsked::default(),
            is_frozen: false,
            slows: false,
            oom_kill_expected: false,
            oom_kills_below: 0,
        }
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
            CgroupKnob::MemoryHigh(bytes) => self.slows = bytes.is_some(),
            _ => {}
        }
    }
}
