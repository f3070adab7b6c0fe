//! The counters of a cgroup: plain data that the cgroup manager reads and snapshots carry.
//!
//! In a file of its own because `linux` and `model` do not depend on each other.

use serde::{Deserialize, Serialize};

/// The kernel's counters of a cgroup. A part is `None` if its files do not exist: the controller is not
/// enabled, or the kernel was built or booted without pressure accounting.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CgroupStats {
    /// `cpu.stat`.
    pub cpu: CpuStat,
    /// The files of the memory controller.
    pub memory: Option<MemoryStats>,
    /// The files of the pids controller.
    pub pids: Option<PidsStats>,
    /// `cpu.pressure`.
    pub cpu_pressure: Option<Pressure>,
    /// `memory.pressure`.
    pub memory_pressure: Option<Pressure>,
    /// `io.pressure`.
    pub io_pressure: Option<Pressure>,
    /// `cgroup.events`: the cgroup or a descendant contains processes.
    pub populated: bool,
    /// `cgroup.events`: the cgroup is frozen.
    pub frozen: bool,
}

/// `cpu.stat`. The last three are zero without the cpu controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuStat {
    /// Total CPU time, in microseconds.
    pub usage_usec: u64,
    /// CPU time in user space, in microseconds.
    pub user_usec: u64,
    /// CPU time in the kernel, in microseconds.
    pub system_usec: u64,
    /// Periods of `cpu.max` that have passed while the cgroup was runnable.
    pub nr_periods: u64,
    /// Periods in which the quota ran out.
    pub nr_throttled: u64,
    /// The time that the cgroup was throttled, summed over CPUs, in microseconds.
    pub throttled_usec: u64,
}

/// The files of the memory controller, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryStats {
    /// `memory.current`.
    pub current: u64,
    /// `memory.peak`; Linux 5.19 and later.
    pub peak: Option<u64>,
    /// `memory.events`.
    pub events: MemoryEvents,
    /// `memory.stat`.
    pub stat: MemoryStat,
}

/// `memory.events`: the number of events in the cgroup and its descendants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryEvents {
    /// Reclaimed although below `memory.low`.
    pub low: u64,
    /// Throttled above `memory.high`.
    pub high: u64,
    /// About to go above `memory.max`.
    pub max: u64,
    /// The limit was reached and an allocation was about to fail.
    pub oom: u64,
    /// Processes killed by the OOM killer.
    pub oom_kill: u64,
}

/// The usual fields of `memory.stat`, in bytes, and its faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryStat {
    /// Anonymous memory.
    pub anon: u64,
    /// Page cache, tmpfs and shared memory included.
    pub file: u64,
    /// Memory of the kernel; zero before Linux 5.18.
    pub kernel: u64,
    /// Slab of the kernel.
    pub slab: u64,
    /// Shared memory and tmpfs.
    pub shmem: u64,
    /// Page faults.
    pub pgfault: u64,
    /// Page faults that needed input.
    pub pgmajfault: u64,
}

/// The files of the pids controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PidsStats {
    /// `pids.current`.
    pub current: u64,
    /// `pids.events`: forks that a `pids.max` refused. Since Linux 6.11 they are counted in the cgroup of
    /// the limit, before that only in the cgroup of the forking process.
    ///
    /// Source: Linux 6.12, admin-guide/cgroup-v2.rst, `pids_localevents`.
    pub max_events: u64,
}

/// A pressure file: how much time tasks lost to a resource.
///
/// Source: Linux 6.12, accounting/psi.rst.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks waited; `cpu.pressure` has it since Linux 5.13.
    pub full: Stall,
}

/// One line of a pressure file: percent of the time lost, over three windows, and the total.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Stall {
    /// Over 10 s.
    pub avg10: f64,
    /// Over 60 s.
    pub avg60: f64,
    /// Over 300 s.
    pub avg300: f64,
    /// Microseconds.
    pub total_usec: u64,
}
