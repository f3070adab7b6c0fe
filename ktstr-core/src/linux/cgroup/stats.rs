//! What the kernel counts for a group.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::files;

/// What the kernel counts for a group. A part is `None` if its files are not there: the controller
/// is not enabled, or the kernel was built or booted without pressure accounting.
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
    /// `cgroup.events`: processes are in the group or below it.
    pub populated: bool,
    /// `cgroup.events`: the group is frozen.
    pub frozen: bool,
}

/// `cpu.stat`. The last three are zero without the cpu controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuStat {
    /// CPU time in all, in microseconds.
    pub usage_usec: u64,
    /// CPU time in user space.
    pub user_usec: u64,
    /// CPU time in the kernel.
    pub system_usec: u64,
    /// Periods of `cpu.max` that have passed while the group was runnable.
    pub nr_periods: u64,
    /// Periods in which the quota ran out.
    pub nr_throttled: u64,
    /// How long the group's CPUs were held up by that.
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

/// `memory.events`: how often what happened, in the group and below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryEvents {
    /// Reclaimed although below `memory.low`.
    pub low: u64,
    /// Throttled above `memory.high`.
    pub high: u64,
    /// About to go above `memory.max`.
    pub max: u64,
    /// The limit was reached and an allocation was about to fail.
    pub oom: u64,
    /// Processes killed for it.
    pub oom_kill: u64,
}

/// The usual fields of `memory.stat`, in bytes, and its faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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
    /// `pids.events`: forks that a `pids.max` refused; since Linux 6.11 those below the group count
    /// where the limit is, before that only where the forking process is.
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

impl CgroupStats {
    pub(super) fn read(group: &Path) -> Result<Self, Error> {
        // The one file that every group but the root has; it tells a missing group.
        let events = keyed(&files::read(&group.join("cgroup.events"))?);
        let cpu = keyed(&optional(&group.join("cpu.stat"))?.unwrap_or_default());
        let pressure = |file: &str| Ok(optional(&group.join(file))?.map(|text| pressure(&text)));
        Ok(Self {
            cpu: CpuStat {
                usage_usec: cpu.of("usage_usec"),
                user_usec: cpu.of("user_usec"),
                system_usec: cpu.of("system_usec"),
                nr_periods: cpu.of("nr_periods"),
                nr_throttled: cpu.of("nr_throttled"),
                throttled_usec: cpu.of("throttled_usec"),
            },
            memory: memory(group)?,
            pids: pids(group)?,
            cpu_pressure: pressure("cpu.pressure")?,
            memory_pressure: pressure("memory.pressure")?,
            io_pressure: pressure("io.pressure")?,
            populated: events.of("populated") == 1,
            frozen: events.of("frozen") == 1,
        })
    }
}

fn memory(group: &Path) -> Result<Option<MemoryStats>, Error> {
    let Some(current) = number(&group.join("memory.current"))? else { return Ok(None) };
    let events = keyed(&optional(&group.join("memory.events"))?.unwrap_or_default());
    let stat = keyed(&optional(&group.join("memory.stat"))?.unwrap_or_default());
    Ok(Some(MemoryStats {
        current,
        peak: number(&group.join("memory.peak"))?,
        events: MemoryEvents {
            low: events.of("low"),
            high: events.of("high"),
            max: events.of("max"),
            oom: events.of("oom"),
            oom_kill: events.of("oom_kill"),
        },
        stat: MemoryStat {
            anon: stat.of("anon"),
            file: stat.of("file"),
            kernel: stat.of("kernel"),
            slab: stat.of("slab"),
            shmem: stat.of("shmem"),
            pgfault: stat.of("pgfault"),
            pgmajfault: stat.of("pgmajfault"),
        },
    }))
}

fn pids(group: &Path) -> Result<Option<PidsStats>, Error> {
    let Some(current) = number(&group.join("pids.current"))? else { return Ok(None) };
    let events = keyed(&optional(&group.join("pids.events"))?.unwrap_or_default());
    Ok(Some(PidsStats { current, max_events: events.of("max") }))
}

fn pressure(text: &str) -> Pressure {
    let line = |kind: &str| {
        let words = text.lines().find_map(|line| line.strip_prefix(kind)).unwrap_or_default();
        let value = |key: &str| {
            words.split_whitespace().find_map(|word| word.strip_prefix(key)).unwrap_or_default()
        };
        Stall {
            avg10: value("avg10=").parse().unwrap_or_default(),
            avg60: value("avg60=").parse().unwrap_or_default(),
            avg300: value("avg300=").parse().unwrap_or_default(),
            total_usec: value("total=").parse().unwrap_or_default(),
        }
    };
    Pressure { some: line("some "), full: line("full ") }
}

/// Lines of a key and a number. Kernels add keys, so unknown ones are nobody's error.
struct Keyed(BTreeMap<String, u64>);

impl Keyed {
    fn of(&self, key: &str) -> u64 {
        self.0.get(key).copied().unwrap_or_default()
    }
}

fn keyed(text: &str) -> Keyed {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    Keyed(pairs.filter_map(|(key, value)| Some((key.into(), value.parse().ok()?))).collect())
}

fn number(path: &Path) -> Result<Option<u64>, Error> {
    let Some(text) = optional(path)? else { return Ok(None) };
    let parsed = text.trim().parse().map_err(io::Error::other);
    parsed.map(Some).map_err(|cause| Error::io("parse", path, None, cause))
}

/// The content of a file that need not be there. Pressure that is switched off is not supported.
fn optional(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {
            Ok(None)
        }
        Err(cause) => Err(Error::io("read", path, None, cause)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_group_are_read() {
        let group = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("cgroup.events", "populated 1\nfrozen 0\n"),
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnew_key 5\nnr_throttled 2\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.events", "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 0\n"),
            ("memory.stat", "anon 100\nfile 200\npgfault 7\n"),
            (
                "io.pressure",
                "some avg10=1.50 avg60=0.10 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
            ),
        ] {
            fs::write(group.path().join(file), text).unwrap();
        }
        let stats = CgroupStats::read(group.path()).unwrap();
        assert!(stats.populated && !stats.frozen);
        assert_eq!((stats.cpu.usage_usec, stats.cpu.nr_throttled), (30, 2));
        let memory = stats.memory.unwrap();
        assert_eq!((memory.current, memory.peak, memory.events.oom_kill), (4096, None, 4));
        assert_eq!((memory.stat.anon, memory.stat.pgfault), (100, 7));
        assert_eq!((stats.pids, stats.cpu_pressure), (None, None));
        let io = stats.io_pressure.unwrap();
        assert_eq!((io.some.avg10, io.some.total_usec, io.full.total_usec), (1.5, 77, 5));
    }

    #[test]
    fn a_missing_group_is_an_error() {
        let error = CgroupStats::read(Path::new("/nonexistent/cg")).unwrap_err().to_string();
        assert!(error.contains("there is no such group"), "{error}");
    }
}
