//! What captures hold: plain data that the guest sends to the host.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cgroup_stats::CgroupStats;
use crate::model::worker::WorkerReport;

/// The processes of one cgroup at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupProcsSnapshot {
    /// The name that the test gave this capture.
    pub tag: String,
    /// The cgroup, as the test names it.
    pub cgroup: String,
    /// The contents of `cgroup.procs`, in its order.
    pub pids: Vec<i32>,
    /// The identities of the processes, without those that exited between the two reads.
    pub procs: Vec<ProcIdentity>,
    /// When it was taken, in nanoseconds since the guest booted.
    pub at_ns: u64,
}

/// Identifies a process: a later process with the same pid has another start time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcIdentity {
    /// The pid.
    pub pid: i32,
    /// The command name, at most 15 bytes. Bytes that are not UTF-8 are shown as U+FFFD.
    pub comm: String,
    /// Start time in clock ticks after boot.
    ///
    /// Source: proc_pid_stat(5), field 22.
    pub start_ticks: u64,
}

/// The members and counters of a scenario's cgroups at one moment, and the reports of its workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The name that the test gave it.
    pub name: String,
    /// When it was begun, in nanoseconds since the guest booted.
    pub at_ns: u64,
    /// All cgroups that the scenario has created and not removed.
    pub cgroups: Vec<CgroupSnapshot>,
    /// All workers that have not been stopped.
    pub workers: Vec<WorkerReport>,
    /// The kernel values that the callback of the test's `SnapshotBridge` returned.
    pub kernel: Option<KernelSnapshot>,
}

/// The members and counters of one cgroup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CgroupSnapshot {
    /// The cgroup, as the test names it.
    pub cgroup: String,
    /// The processes in it, without those of its descendants.
    pub procs: Vec<ProcIdentity>,
    /// The kernel's counters of it and its descendants since it was created.
    pub stats: CgroupStats,
}

/// Values of the guest's kernel at one moment, as a `CaptureCallback` reads them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KernelSnapshot {
    /// The values by name.
    pub values: BTreeMap<String, u64>,
}

impl KernelSnapshot {
    /// Creates a snapshot without values.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a value; replaces an earlier one of the same name.
    #[must_use = "the snapshot is consumed and returned"]
    pub fn with_value(mut self, name: impl Into<String>, value: u64) -> Self {
        self.values.insert(name.into(), value);
        self
    }
}
