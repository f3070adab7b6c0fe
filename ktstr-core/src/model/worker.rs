//! What a worker has done, as measured.

use std::fmt;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::exit::ExitKind;
use super::histogram::Histogram;

/// What one worker did between its release and its stop, or its end if that was earlier.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Its pid.
    pub pid: i32,
    /// Its command name.
    pub comm: String,
    /// Its cgroup; empty for none.
    pub cgroup: String,
    /// The number of its spawn in the scenario: workers of one spawn and role did the same work.
    pub spawn: u32,
    /// Its role in its group, for types with different workers in a group.
    pub role: u32,
    /// The cpusets that were in effect for it, in order. The times without one, or in which one changed,
    /// are left out.
    pub cpuset_periods: Vec<CpusetPeriod>,
    /// The number of cpusets before those: only the last 64 are kept.
    pub cpuset_periods_dropped: u32,
    /// The test expected OOM kills in its cgroup or in an ancestor.
    pub oom_kill_expected: bool,
    /// Its cgroup or an ancestor had a `memory.high`. The kernel may have throttled it for up to two
    /// seconds at each allocation.
    ///
    /// Source: Linux 6.12, mm/memcontrol.c, `MEMCG_MAX_HIGH_DELAY_JIFFIES`.
    pub is_memory_throttled: bool,
    /// The longest time for which a fair scheduler may delay its first 20 ms of CPU time, given its weight,
    /// the weights and quotas of its cgroups, and all workers that may have competed with it.
    pub fair_wait_bound: Duration,
    /// Its iterations depend on other tasks or wait for the kernel.
    pub needs_others: bool,
    /// The times in which the scenario had its cgroup or an ancestor frozen, in order.
    pub frozen_periods: Vec<FrozenPeriod>,
    /// The CPUs that its cgroup and its affinity allowed at its stop.
    pub allowed_cpus: Vec<u32>,
    /// How it ended before it was stopped; `None` if it ran until then.
    pub ended: Option<WorkerEnd>,
    /// The time from its release until SIGKILL, or until its own end.
    pub active: Duration,
    /// The end of `active`, in nanoseconds since boot.
    pub active_until_ns: u64,
    /// The time from its release to its end. On a busy CPU, a killed worker waits for the CPU to exit.
    pub wall: Duration,
    /// The end of `wall`, in nanoseconds since boot.
    pub until_ns: u64,
    /// Time on a CPU, by the kernel's `schedstat`.
    pub cpu: Duration,
    /// Time in which it was runnable and waited for a CPU, by the kernel's `schedstat`.
    pub run_delay: Duration,
    /// The number of times that the kernel put it on a CPU.
    pub timeslices: u64,
    /// Iterations of its work loop.
    pub iterations: u64,
    /// Units of work, which depend on its type: bursts, bytes, wake-ups, pages.
    pub work_units: u64,
    /// The longest time without the end of an iteration: between two, from its release to the first, or
    /// from the last to its stop. `None` if it made no iteration.
    pub longest_gap: Option<IterationGap>,
    /// The number of iterations that ended on another CPU than the one before.
    pub migrations: u64,
    /// The CPUs on which its iterations ended, sorted.
    pub cpus_used: Vec<u32>,
    /// The CPU of its last iteration; `None` before the first.
    pub last_cpu: Option<u32>,
    /// Workers of its type, of all roles, record their wake-ups.
    pub measures_wakeups: bool,
    /// The times from a possible wake-up to the actual one, in nanoseconds, for types that sleep.
    pub wake_latency_ns: Histogram,
    /// Pages of its memory by NUMA node, for types that measure it.
    pub numa_pages: Vec<u64>,
}

impl WorkerReport {
    /// Returns the time on no CPU, whether it slept, waited for a CPU, or was frozen.
    pub fn off_cpu(&self) -> Duration {
        self.wall.saturating_sub(self.cpu)
    }
}

/// How a worker ended before it was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerEnd {
    /// Exit status or signal; `None` if it is lost because another part of the process reaped the
    /// worker.
    pub kind: Option<ExitKind>,
    /// The error number with which its work loop failed, or with which the kernel refused to report
    /// the status.
    pub errno: Option<i32>,
}

impl WorkerEnd {
    /// Returns whether SIGKILL ended the worker, whatever error it had recorded before.
    pub fn is_sigkill(&self) -> bool {
        self.kind.is_some_and(ExitKind::is_sigkill)
    }
}

/// `signal 9 (SIGKILL)`, `exit status 1: No such file or directory (os error 2)`.
impl fmt::Display for WorkerEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Some(kind) => write!(f, "{kind}")?,
            None => f.write_str("unknown exit status")?,
        }
        match self.errno {
            Some(errno) => write!(f, ": {}", io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}

/// A time without an iteration of a work loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IterationGap {
    /// Its length.
    pub length: Duration,
    /// The CPU on which the iteration that ended it was.
    pub cpu: u32,
    /// Its end, in nanoseconds since boot.
    pub at_ns: u64,
}

/// A time in which one cpuset was in effect for a worker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpusetPeriod {
    /// The CPUs in the cpusets of its cgroup and all ancestors, sorted.
    pub cpuset: Vec<u32>,
    /// The CPUs on which its iterations ended, sorted; empty if it made none.
    pub cpus_used: Vec<u32>,
}

/// A time in which a worker was frozen: from before `cgroup.freeze` was written until the thaw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenPeriod {
    /// Its begin, in nanoseconds since boot.
    pub from_ns: u64,
    /// Its end, in nanoseconds since boot.
    pub until_ns: u64,
}

impl WorkerReport {
    /// Returns how long it was frozen in the time of this length that ended at `until_ns`.
    pub(crate) fn frozen_within(&self, length: Duration, until_ns: u64) -> Duration {
        let from_ns = until_ns.saturating_sub(length.as_nanos() as u64);
        let within = self.frozen_periods.iter().map(|frozen| {
            frozen.until_ns.min(until_ns).saturating_sub(frozen.from_ns.max(from_ns))
        });
        Duration::from_nanos(within.sum())
    }
}

/// `worker 77 (spin) in cg_0`.
impl fmt::Display for WorkerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {} ({})", self.pid, self.comm)?;
        if self.cgroup.is_empty() { Ok(()) } else { write!(f, " in {}", self.cgroup) }
    }
}
