//! Begins the record of a run with what is known before its machine is prepared.

use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ktstr_core::record::{HostFacts, RunRecord};
use ktstr_core::registry::TestEntry;
use ktstr_core::result::{RunEnd, Timings};
use ktstr_core::snapshot::ProcIdentity;
use rustix::process::Pid;

use super::parent;

/// Returns the record of a run of `entry` that begins now.
pub(crate) fn begin(entry: &TestEntry) -> RunRecord {
    let requested = (!entry.host_only).then(|| entry.machine.clone());
    RunRecord {
        schema: RunRecord::SCHEMA,
        run: run_id().to_owned(),
        test: entry.test_name(),
        ktstr: env!("CARGO_PKG_VERSION").to_owned(),
        started: SystemTime::now(),
        host: host_facts(),
        requested,
        machine: None,
        expect_err: entry.expect_err.into_owned(),
        allow_inconclusive: entry.allow_inconclusive,
        start: None,
        forked: None,
        end: RunEnd::Running,
        hook_errors: Vec::new(),
        passed: None,
        kernel_events: Vec::new(),
        kernel_events_dropped: 0,
        captures: Vec::new(),
        snapshots: Vec::new(),
        measurements: Vec::new(),
        measurements_truncated: false,
        events: Vec::new(),
        timings: Timings { slowness: 1.0, ..Timings::default() },
        stolen: Vec::new(),
        artifacts: None,
        rerun: None,
        console: String::new(),
        log: String::new(),
    }
}

/// Returns the id of this run, `<seconds since 1970>-<pid>`: the start and the pid of the cargo
/// that started this process, or else of this process.
fn run_id() -> &'static str {
    static RUN: OnceLock<String> = OnceLock::new();
    RUN.get_or_init(|| {
        let pid = parent::cargo().unwrap_or_else(rustix::process::getpid);
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        format!("{}-{pid}", start_of(pid).unwrap_or_else(now).as_secs())
    })
}

/// Returns when a process was started. All processes compute the same time, unless the clock is
/// set in between.
fn start_of(pid: Pid) -> Option<Duration> {
    // USER_HZ is 100 on x86.
    const TICKS_PER_SECOND: u64 = 100;
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot: u64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
    let process = ProcIdentity::read(pid.as_raw_pid()).ok()??;
    Some(Duration::from_secs(boot + process.start_ticks / TICKS_PER_SECOND))
}

fn host_facts() -> HostFacts {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let nr_cpus = std::thread::available_parallelism().map_or(0, |cpus| cpus.get() as u32);
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    HostFacts { cpu_model: cpu_model(&cpuinfo).to_owned(), nr_cpus, kernel }
}

fn cpu_model(cpuinfo: &str) -> &str {
    let mut lines = cpuinfo.lines();
    let value = lines.find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    value.map_or("", |(_, model)| model.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_model_is_that_of_the_first_cpu() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Xeon: Gold\n\nmodel name\t: other\n";
        assert_eq!(cpu_model(cpuinfo), "Xeon: Gold");
        assert_eq!(cpu_model("processor : 0\n"), "");
    }

    #[test]
    fn start_of_this_process_is_not_later_than_now() {
        let started = start_of(rustix::process::getpid()).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(started <= now + Duration::from_secs(2), "{started:?} {now:?}");
        assert!(now - started.min(now) < Duration::from_secs(24 * 3600), "{started:?} {now:?}");
    }
}
