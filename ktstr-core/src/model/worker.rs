//! What a worker has done, as it was measured.

use std::fmt;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::exit::ExitKind;
use super::histogram::Histogram;

/// What one worker has done between its release and its stop, or its end if that was earlier.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WorkerReport {
    /// Its number.
    pub pid: i32,
    /// Its command name.
    pub comm: String,
    /// The cgroup it was placed in; empty for none.
    pub cgroup: String,
    /// Which spawn of its scenario it is of: workers of one spawn and role did the same work.
    pub spawn: u32,
    /// Its part in the group that it works in, for types whose workers do different things.
    pub role: u32,
    /// The cpusets that confined it, one after the other. None for the times in which it had none,
    /// or in which one changed.
    pub cpuset_periods: Vec<CpusetPeriod>,
    /// How many more it had before those: only the last 64 are told apart.
    pub cpuset_periods_dropped: u32,
    /// Processes of its cgroup, or one above, were expected to be killed for want of memory.
    pub oom_kill_expected: bool,
    /// Its cgroup, or one above, had a `memory.high`. The kernel may have held it up for up to two
    /// seconds each time it took memory.
    ///
    /// Source: Linux 6.12, mm/memcontrol.c, `MEMCG_MAX_HIGH_DELAY_JIFFIES`.
    pub is_memory_throttled: bool,
    /// How long a fair scheduler may have kept it from its first 20 ms of CPU time: by its weight, the
    /// weights and quotas of its cgroups, and all workers that may have competed with it.
    pub fair_wait_bound: Duration,
    /// Its iterations depend on other tasks, or wait for the kernel.
    pub needs_others: bool,
    /// When the scenario had its cgroup, or one above, frozen; in order.
    pub frozen_periods: Vec<FrozenPeriod>,
    /// The CPUs it was allowed at its stop, by its cgroup and its affinity.
    pub allowed_cpus: Vec<u32>,
    /// How it ended before it was stopped; `None` if it ran until then.
    pub ended: Option<WorkerEnd>,
    /// From its release until its stop was requested, or until its own end.
    pub active: Duration,
    /// When that was, in nanoseconds since boot.
    pub active_until_ns: u64,
    /// From its release to its end: on a busy CPU, it takes a while to end.
    pub wall: Duration,
    /// When that was, in nanoseconds since boot.
    pub until_ns: u64,
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
    /// The longest time without the end of a turn of its work loop: between two, from its release to
    /// the first, or from the last to its stop. `None` if it made no turn.
    pub longest_gap: Option<IterationGap>,
    /// How many times it found itself on another CPU than at its last turn.
    pub migrations: u64,
    /// The CPUs it found itself on, sorted.
    pub cpus_used: Vec<u32>,
    /// The one of the last turn; `None` before the first.
    pub last_cpu: Option<u32>,
    /// Workers of its type, whatever their role, count their wake-ups.
    pub measures_wakeups: bool,
    /// From when it could have run again to when it did, in nanoseconds, for types that sleep.
    pub wake_latency_ns: Histogram,
    /// Pages of its memory by NUMA node, for types that look.
    pub numa_pages: Vec<u64>,
}

impl WorkerReport {
    /// Time on no CPU, be it that it slept, waited for one, or was frozen.
    pub fn off_cpu(&self) -> Duration {
        self.wall.saturating_sub(self.cpu)
    }
}

/// How a worker ended that was not stopped.
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

/// A time without a turn of a work loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IterationGap {
    /// How long it was.
    pub length: Duration,
    /// The CPU on which the worker was when it ended.
    pub cpu: u32,
    /// When it ended, in nanoseconds since boot.
    pub at_ns: u64,
}

/// A time in which a worker was confined to the same CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpusetPeriod {
    /// The CPUs that the cpusets asked for its cgroup, and those above, left it; sorted.
    pub cpuset: Vec<u32>,
    /// Those on which it found itself, sorted; empty if it made no turn.
    pub cpus_used: Vec<u32>,
}

/// A time in which a worker was frozen and could do nothing, from before the kernel was told to
/// freeze it until it had thawed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenPeriod {
    /// When it began, in nanoseconds since boot.
    pub from_ns: u64,
    /// When it ended, in nanoseconds since boot.
    pub until_ns: u64,
}

impl WorkerReport {
    /// How long it was frozen within a time.
    pub(crate) fn frozen_within(&self, length: Duration, until_ns: u64) -> Duration {
        let from_ns = until_ns.saturating_sub(length.as_nanos() as u64);
        let within = self.frozen_periods.iter().map(|frozen| {
            frozen.until_ns.min(until_ns).saturating_sub(frozen.from_ns.max(from_ns))
        });
        Duration::from_nanos(within.sum())
    }
}

/// `worker 77 (spin) in cg_0`: who it was.
impl fmt::Display for WorkerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {} ({})", self.pid, self.comm)?;
        if self.cgroup.is_empty() { Ok(()) } else { write!(f, " in {}", self.cgroup) }
    }
}
