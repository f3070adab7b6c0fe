//! A worker in a cgroup.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::guest::assert::is_in;
use crate::guest::workload::{FrozenPeriod, Worker, WorkerReport};
use crate::linux::sys::since_boot_ns;

/// A worker, and the restrictions that its cgroups have put on it since its release.
#[derive(Debug)]
pub(super) struct PlacedWorker {
    pub(super) worker: Worker,
    pub(super) cgroup: String,
    /// The index of its spawn in the scenario, from 0.
    pub(super) spawn: u32,
    /// Its work type leaves its cgroup, and with it the cpuset.
    pub(super) moves_itself: bool,
    pub(super) oom_kill_expected: bool,
    /// It is, or was, below a `memory.high`, where the kernel slows down tasks that allocate memory.
    pub(super) is_memory_throttled: bool,
    /// An operation has changed its affinity.
    pub(super) is_pinned: bool,
    /// The longest time that a fair scheduler may have kept it waiting.
    pub(super) fair_wait_bound: Duration,
    /// The times in which it was frozen and that are over.
    pub(super) frozen_periods: Vec<FrozenPeriod>,
    /// When the freeze that still lasts began.
    pub(super) frozen_since_ns: Option<u64>,
}

impl PlacedWorker {
    /// Records the CPUs that its cgroups leave it from now on; `None` if they are unknown.
    pub(super) fn confine(&mut self, cpuset: Option<&BTreeSet<u32>>) {
        match cpuset {
            Some(cpuset) if !self.moves_itself => self.worker.confine(cpuset),
            _ => self.worker.unconfine(),
        }
    }

    pub(super) fn is_in(&self, cgroup: &str) -> bool {
        is_in(&self.cgroup, cgroup)
    }

    /// Records whether a change that began at `from_ns` and is complete now has left it frozen.
    pub(super) fn record_freeze(&mut self, is_frozen: bool, from_ns: u64) {
        if is_frozen {
            self.frozen_since_ns.get_or_insert(from_ns);
        } else if let Some(from_ns) = self.frozen_since_ns.take() {
            self.frozen_periods.push(FrozenPeriod { from_ns, until_ns: since_boot_ns() });
        }
    }

    /// Returns the worker's report with what the scenario knows of its cgroups.
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
