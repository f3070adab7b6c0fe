//! What one phase of a scenario has made, and how that is undone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::hotplug;
use crate::assert::{AssertDetail, DetailKind};
use crate::cgroup::CgroupOps;
use crate::workload::Worker;

/// A worker without progress is only called stuck when it had this long; shorter steps prove
/// nothing on a busy host.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// What one phase made.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) phase: String,
    pub(super) cgroups: Vec<Made>,
    pub(super) workers: Vec<PlacedWorker>,
    /// CPUs as they were before they were switched first, in that order.
    pub(super) cpus: Vec<(u32, bool)>,
}

/// A cgroup that an operation made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) name: String,
    /// What was last set; `None` if it has the CPUs of the group above.
    pub(super) cpuset: Option<BTreeSet<usize>>,
}

#[derive(Debug)]
pub(super) struct PlacedWorker {
    pub(super) worker: Worker,
    pub(super) cgroup: String,
    pub(super) released: Instant,
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

impl PlacedWorker {
    /// What speaks against the worker, while it has not been stopped yet.
    pub(super) fn judge(&self) -> Option<AssertDetail> {
        let ran = self.released.elapsed();
        let who =
            format!("worker {} ({}) in {}", self.worker.pid(), self.worker.comm(), self.cgroup);
        match self.worker.ended() {
            Ok(None) if self.worker.iterations() > 0 || ran < STUCK_AFTER => None,
            Ok(None) => Some(AssertDetail::new(
                DetailKind::WorkerStuck,
                format!("{who} did no work in the {ran:.1?} after its release"),
            )),
            Ok(Some(status)) => Some(AssertDetail::new(
                DetailKind::WorkerDied,
                format!("{who} ended by {status} within {ran:.1?} of its release"),
            )),
            Err(error) => {
                Some(AssertDetail::new(DetailKind::WorkerDied, format!("{who} is lost: {error}")))
            }
        }
    }
}
