//! Helpers of the tests of workers.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use super::affinity::cpu_list;
use super::{WorkSpec, WorkType, Worker, WorkerEnd, WorkerReport, Workers};
use crate::guest::topology::TestTopology;

/// Workers that have been released, on the CPUs of this process.
#[derive(Debug)]
pub(super) struct Running(pub(super) Vec<Worker>);

impl Running {
    pub(super) fn start(spec: WorkSpec) -> Self {
        Self::try_start(spec).unwrap_or_else(|error| panic!("{error:#}"))
    }

    pub(super) fn of(work: WorkType, workers: u32) -> Self {
        Self::start(WorkSpec::default().work_type(work).workers(workers))
    }

    pub(super) fn try_start(spec: WorkSpec) -> anyhow::Result<Self> {
        let mut workers = Workers::fork(&spec, &TestTopology::read()?, &own_cpus())?;
        workers.iter_mut().try_for_each(Worker::release)?;
        Ok(Self(workers))
    }

    pub(super) fn pid(&self, index: usize) -> i32 {
        self.0[index].pid()
    }

    pub(super) fn report(&self, index: usize) -> WorkerReport {
        self.0[index].report("")
    }

    /// Waits until `done`; a worker that ends is a failure.
    pub(super) fn wait_until(&self, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !done(self) {
            for worker in &self.0 {
                assert_eq!(worker.ended().unwrap(), None, "{worker:?}");
            }
            assert!(Instant::now() < deadline, "{:#?}", self.reports());
            std::thread::yield_now();
        }
    }

    /// Waits until each has done this many units.
    pub(super) fn wait_for_units(&self, units: u64) {
        self.wait_until(|running| running.0.iter().all(|it| it.report("").work_units >= units));
    }

    pub(super) fn reports(&self) -> Vec<WorkerReport> {
        self.0.iter().map(|worker| worker.report("")).collect()
    }

    /// Stops them and returns their reports.
    pub(super) fn stop(mut self) -> Vec<WorkerReport> {
        Workers::stop(&mut self.0.iter_mut().collect::<Vec<_>>()).unwrap();
        self.reports()
    }
}

/// Waits until a worker has ended; returns how it did.
pub(super) fn wait_for_end(worker: &Worker) -> WorkerEnd {
    let bound = Timespec { tv_sec: 30, tv_nsec: 0 };
    let mut ended = [PollFd::new(worker.pidfd(), PollFlags::IN)];
    assert_eq!(poll(&mut ended, Some(&bound)).unwrap(), 1, "{worker:?} does not end");
    worker.ended().unwrap().unwrap()
}

pub(super) fn own_cpus() -> BTreeSet<u32> {
    cpu_list(rustix::thread::sched_getaffinity(None).unwrap()).into_iter().collect()
}

/// Reads a number of `/proc/PID/stat`, counted as proc_pid_stat(5) does.
pub(super) fn stat_field(pid: i32, field: usize) -> i64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').nth(field - 3).unwrap().parse().unwrap()
}

/// Reads the number after `name:` in a file of `/proc/PID`.
pub(super) fn proc_number(pid: i32, file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()).unwrap().parse().unwrap()
}

/// Returns the number of times that a process has gone to sleep.
pub(super) fn sleeps(pid: i32) -> u64 {
    proc_number(pid, "status", "voluntary_ctxt_switches")
}
