//! What a worker has done, as it was measured.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Histogram;

/// What one worker has done between its release and its stop, or its end if that was earlier.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Its number.
    pub pid: i32,
    /// Its command name.
    pub comm: String,
    /// The cgroup it was placed in; empty for none.
    pub cgroup: String,
    /// The CPUs it was allowed at its stop, by its cgroup and its affinity.
    pub allowed_cpus: Vec<u32>,
    /// How it ended before it was stopped: `exit status 1`; `None` if it did not.
    pub ended: Option<String>,
    /// From its release to its stop or end.
    pub wall: Duration,
    /// Time on a CPU, by the kernel's `schedstat`.
    pub cpu: Duration,
    /// Time it was runnable and waited for a CPU, by the kernel's `schedstat`.
    pub run_delay: Duration,
    /// How many times the kernel put it on a CPU.
    pub timeslices: u64,
    /// Turns of its work loop.
    pub iterations: u64,
    /// Units of work, whatever its type counts: loop turns, bytes, wake-ups, pages.
    pub work_units: u64,
    /// The longest time between two turns of its work loop; `None` before the second.
    pub longest_gap: Option<Gap>,
    /// How many times it found itself on another CPU than at its last turn.
    pub migrations: u64,
    /// The CPUs it found itself on, sorted.
    pub cpus_used: Vec<u32>,
    /// From when it could have run again to when it did, in nanoseconds, for types that sleep.
    pub wake_latency_ns: Histogram,
    /// Pages of its memory by NUMA node, for types that look.
    pub numa_pages: Vec<u64>,
}

/// A time without a turn of a work loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// How long it was.
    pub length: Duration,
    /// The CPU on which the worker was when it ended.
    pub cpu: u32,
    /// When it ended, in nanoseconds since boot.
    pub at_ns: u64,
}

/// `worker 77 (spin) in cg_0`: who it was.
impl fmt::Display for WorkerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {} ({})", self.pid, self.comm)?;
        if self.cgroup.is_empty() { Ok(()) } else { write!(f, " in {}", self.cgroup) }
    }
}
