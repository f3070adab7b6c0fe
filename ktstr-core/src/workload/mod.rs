//! Workers: processes that load the machine in a stated way.
//!
//! A worker starts in two phases: it is forked and waits, it is placed in its cgroup, and only
//! then released, so that none of its load runs in the wrong group. What it did is counted in
//! memory it shares with its parent, which can read it even if the worker dies.

mod histogram;
mod report;

pub use histogram::Histogram;
pub use report::{Gap, WorkerReport};

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Pid, PidfdFlags, Signal, WaitIdOptions, WaitIdStatus};

use crate::sys::{self, Shared};

/// What a worker does with its CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WorkType {
    /// Spins without a system call: always runnable, never sleeps.
    #[default]
    SpinWait,
    /// Gives the CPU back after each short burst, and is runnable again at once.
    YieldHeavy,
}

/// A group of equal workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkSpec {
    pub(crate) workers: Option<u32>,
    pub(crate) comm: String,
    pub(crate) work_type: WorkType,
}

impl Default for WorkSpec {
    fn default() -> Self {
        Self { workers: None, comm: "ktstr-worker".to_owned(), work_type: WorkType::default() }
    }
}

impl WorkSpec {
    /// Sets how many workers there are; if not set, 1, or what their cgroup's definition says.
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Sets how many workers there are if it does not say itself.
    pub(crate) fn or_workers(mut self, workers: u32) -> Self {
        self.workers = self.workers.or(Some(workers));
        self
    }

    /// How many workers there are.
    pub(crate) fn count(&self) -> u32 {
        self.workers.unwrap_or(1)
    }

    /// Sets the workers' command name, at most 15 bytes.
    pub fn comm(mut self, comm: impl Into<String>) -> Self {
        self.comm = comm.into();
        self
    }

    /// Sets what the workers do.
    pub fn work_type(mut self, work_type: WorkType) -> Self {
        self.work_type = work_type;
        self
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        match (self.count(), self.comm.as_str()) {
            (0, _) => Err("a spawn of no workers loads nothing".to_owned()),
            (_, comm) if comm.is_empty() || comm.len() > 15 || comm.contains(['\0', '\n']) => {
                Err(format!("`{comm}` is no command name: 1 to 15 bytes, no NUL, no line break"))
            }
            _ => Ok(()),
        }
    }
}

/// `2 x spin (SpinWait)`.
impl std::fmt::Display for WorkSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {} ({:?})", self.count(), self.comm, self.work_type)
    }
}

/// A worker process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Worker {
    pid: Pid,
    pidfd: OwnedFd,
    gate: Option<OwnedFd>,
    progress: Shared<AtomicU64>,
    comm: String,
}

impl Worker {
    /// Forks a worker that waits to be released.
    pub(crate) fn fork(spec: &WorkSpec) -> io::Result<Self> {
        let progress = Shared::new(AtomicU64::new(0))?;
        let (gate, opener) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let comm = std::ffi::CString::new(spec.comm.as_str())?;
        let parent = rustix::process::getpid();
        let child = || {
            // A parent that is gone by now will never be told of by a signal.
            let prepared = sys::die_with_parent().is_ok()
                && rustix::process::getppid() == Some(parent)
                && rustix::thread::set_name(&comm).is_ok();
            match prepared && matches!(rustix::io::read(&gate, &mut [0_u8; 1]), Ok(1)) {
                true => run(spec.work_type, &progress),
                false => 1,
            }
        };
        // SAFETY: the child makes system calls and counts in an atomic; it allocates nothing and
        // takes no lock.
        let pid = unsafe { sys::fork(child) }?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { pid, pidfd, gate: Some(opener), progress, comm: spec.comm.clone() })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    pub(crate) fn comm(&self) -> &str {
        &self.comm
    }

    /// Readable once the worker has ended.
    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Lets the worker begin.
    pub(crate) fn release(&mut self) -> io::Result<()> {
        if let Some(gate) = self.gate.take() {
            rustix::io::write(&gate, &[1])?;
        }
        Ok(())
    }

    /// Turns of the work loop so far.
    pub(crate) fn iterations(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// How the worker ended; `None` while it runs.
    pub(crate) fn ended(&self) -> io::Result<Option<String>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = rustix::process::waitid(
            rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&self.pidfd)),
            options,
        )?;
        Ok(status.as_ref().map(describe_status))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both can only fail if the worker is gone and reaped, which nobody else does.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = rustix::process::waitid(
            rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&self.pidfd)),
            WaitIdOptions::EXITED,
        );
    }
}

/// The load itself. Runs until the worker is killed.
fn run(work_type: WorkType, progress: &AtomicU64) -> i32 {
    loop {
        for _ in 0..1000 {
            std::hint::spin_loop();
        }
        progress.fetch_add(1, Ordering::Relaxed);
        match work_type {
            WorkType::SpinWait => {}
            WorkType::YieldHeavy => rustix::thread::sched_yield(),
        }
    }
}

/// The signals that end a process by default, as signal(7) names them.
const SIGNALS: [(i32, &str); 18] = [
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGTRAP, "SIGTRAP"),
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGKILL, "SIGKILL"),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGPIPE, "SIGPIPE"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGXCPU, "SIGXCPU"),
    (libc::SIGXFSZ, "SIGXFSZ"),
    (libc::SIGSYS, "SIGSYS"),
];

/// `exit status 1`, `signal 9 (SIGKILL)`.
pub(crate) fn describe_status(status: &WaitIdStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(signal)) => match SIGNALS.iter().find(|(number, _)| *number == signal) {
            Some((_, name)) => format!("signal {signal} ({name})"),
            None => format!("signal {signal}"),
        },
        _ => "an unknown status".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_for_end(worker: &Worker) -> String {
        let mut fds = [rustix::event::PollFd::new(worker.pidfd(), rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
        worker.ended().unwrap().unwrap()
    }

    #[test]
    fn a_worker_does_nothing_before_its_release_and_something_after() {
        let mut worker = Worker::fork(&WorkSpec::default().comm("spin")).unwrap();
        assert_eq!(worker.iterations(), 0);
        worker.release().unwrap();
        while worker.iterations() == 0 {
            std::thread::yield_now();
        }
        assert_eq!(worker.ended().unwrap(), None);
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", worker.pid())).unwrap();
        assert_eq!(comm, "spin\n");
    }

    #[test]
    fn the_end_of_a_worker_is_told() {
        let worker = Worker::fork(&WorkSpec::default()).unwrap();
        rustix::process::pidfd_send_signal(worker.pidfd(), Signal::KILL).unwrap();
        assert_eq!(wait_for_end(&worker), "signal 9 (SIGKILL)");
    }

    #[test]
    fn impossible_specs_are_refused() {
        let spec = WorkSpec::default;
        for (bad, why) in [
            (spec().workers(0), "no workers"),
            (spec().comm(""), "command name"),
            (spec().comm("sixteen bytes xx"), "command name"),
        ] {
            assert!(bad.check().unwrap_err().contains(why));
        }
        assert_eq!(spec().comm("fifteen bytes x").check(), Ok(()));
    }
}
