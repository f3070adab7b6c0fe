//! Reads the counters of a cgroup.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::de::value::{self, MapDeserializer};

use super::{Error, Operation, files};
pub use crate::cgroup_stats::{
    CgroupStats, CpuStat, MemoryEvents, MemoryStat, MemoryStats, PidsStats, Pressure, Stall,
};

impl CgroupStats {
    pub(super) fn read(cgroup: &Path) -> Result<Self, Error> {
        // Required: every cgroup but the root has it, so ENOENT means that the cgroup is missing.
        let events: BTreeMap<String, u64> = keyed(&files::read(&cgroup.join("cgroup.events"))?);
        let is_set = |key: &str| events.get(key) == Some(&1);
        let pressure = |file: &str| Ok(optional(&cgroup.join(file))?.map(|text| pressure(&text)));
        Ok(Self {
            cpu: counters(&cgroup.join("cpu.stat"))?,
            memory: memory(cgroup)?,
            pids: pids(cgroup)?,
            cpu_pressure: pressure("cpu.pressure")?,
            memory_pressure: pressure("memory.pressure")?,
            io_pressure: pressure("io.pressure")?,
            populated: is_set("populated"),
            frozen: is_set("frozen"),
        })
    }
}

fn memory(cgroup: &Path) -> Result<Option<MemoryStats>, Error> {
    let Some(current) = number(&cgroup.join("memory.current"))? else { return Ok(None) };
    Ok(Some(MemoryStats {
        current,
        peak: number(&cgroup.join("memory.peak"))?,
        events: counters(&cgroup.join("memory.events"))?,
        stat: counters(&cgroup.join("memory.stat"))?,
    }))
}

fn pids(cgroup: &Path) -> Result<Option<PidsStats>, Error> {
    let Some(current) = number(&cgroup.join("pids.current"))? else { return Ok(None) };
    let events: BTreeMap<String, u64> = counters(&cgroup.join("pids.events"))?;
    let max_events = events.get("max").copied().unwrap_or_default();
    Ok(Some(PidsStats { current, max_events }))
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

/// Reads a file of [`keyed`] numbers, which need not exist.
fn counters<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    Ok(keyed(&optional(path)?.unwrap_or_default()))
}

/// Reads lines of a key and a number into the fields of these names. Unknown keys are ignored, because newer
/// kernels add some.
fn keyed<T: DeserializeOwned>(text: &str) -> T {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    let pairs = pairs.filter_map(|(key, value)| Some((key, value.parse::<u64>().ok()?)));
    let pairs: BTreeMap<&str, u64> = pairs.collect();
    let read = T::deserialize(MapDeserializer::<_, value::Error>::new(pairs.into_iter()));
    read.expect("all fields are numbers that may be missing")
}

fn number(path: &Path) -> Result<Option<u64>, Error> {
    let Some(text) = optional(path)? else { return Ok(None) };
    let parsed = text.trim().parse().map_err(io::Error::other);
    parsed.map(Some).map_err(|cause| Error::io(Operation::Parse, path, None, cause))
}

/// Reads a file that need not exist. EOPNOTSUPP: pressure accounting is disabled.
fn optional(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {
            Ok(None)
        }
        Err(cause) => Err(Error::io(Operation::Read, path, None, cause)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_read_parses_every_file() {
        let cgroup = tempfile::tempdir().unwrap();
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
            fs::write(cgroup.path().join(file), text).unwrap();
        }
        let stats = CgroupStats::read(cgroup.path()).unwrap();
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
    fn stats_read_fails_for_a_missing_cgroup() {
        let error = CgroupStats::read(Path::new("/nonexistent/cg")).unwrap_err().to_string();
        assert!(error.contains("there is no such cgroup"), "{error}");
    }
}
