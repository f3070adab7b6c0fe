//! Processes that the owner of a job has started itself.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::Error;
use crate::linux::sync::lock;
use crate::linux::sys;

/// A process that was started in a [`Job`](super::Job). Dropping it does not affect the process,
/// which ends with its job.
pub struct Child {
    /// The pipe to the standard input, if that was piped.
    pub stdin: Option<ChildStdin>,
    /// The pipe from the standard output, if that was piped.
    pub stdout: Option<ChildStdout>,
    /// The pipe from the standard error, if that was piped.
    pub stderr: Option<ChildStderr>,
    process: Arc<SpawnedProcess>,
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child").field("pid", &self.pid()).finish_non_exhaustive()
    }
}

impl Child {
    pub(super) fn new(mut child: std::process::Child, process: Arc<SpawnedProcess>) -> Self {
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        Self { stdin, stdout, stderr: child.stderr.take(), process }
    }

    /// Returns the pid.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Waits for the process to end and returns its exit status. Closes its standard input first, if
    /// that was piped.
    ///
    /// # Errors
    ///
    /// If other code has waited for the process, or SIGCHLD is ignored: the status is lost then.
    pub fn wait(&mut self) -> Result<ExitStatus, Error> {
        drop(self.stdin.take());
        loop {
            if let Some(status) = self.process.wait_until(None)? {
                return Ok(status);
            }
        }
    }

    /// Waits like [`wait`](Self::wait) with a timeout; `None` if the process still runs then. Leaves
    /// its standard input open.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    pub fn wait_timeout(&mut self, within: Duration) -> Result<Option<ExitStatus>, Error> {
        // Beyond the range of the clock, wait without a deadline.
        self.process.wait_until(Some(Instant::now().checked_add(within)).flatten())
    }
}

/// A pidfd, which polls as readable once the process has ended.
impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.pidfd.as_fd()
    }
}

/// A child of this process, which reaps it.
#[derive(Debug)]
pub(super) struct SpawnedProcess {
    pid: Pid,
    pidfd: OwnedFd,
    /// Set once it was reaped.
    reaped: Mutex<Option<Reaped>>,
}

#[derive(Debug, Clone, Copy)]
struct Reaped {
    status: ExitStatus,
    cpu_time: Duration,
}

impl SpawnedProcess {
    /// Takes charge of a child that has not been waited for.
    pub(super) fn new(pid: Pid) -> io::Result<Self> {
        Ok(Self { pid, pidfd: pidfd_open(pid, PidfdFlags::empty())?, reaped: Mutex::default() })
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Returns the CPU time of the process and the children it has waited for; `None` until it was
    /// reaped.
    pub(super) fn cpu_time(&self) -> Option<Duration> {
        lock(&self.reaped).map(|reaped| reaped.cpu_time)
    }

    /// Waits for the process to end and reaps it; `None` if it still runs at `deadline`.
    pub(super) fn wait_until(
        &self,
        deadline: Option<Instant>,
    ) -> Result<Option<ExitStatus>, Error> {
        if let Some(reaped) = *lock(&self.reaped) {
            return Ok(Some(reaped.status));
        }
        let fail =
            |error: io::Error| Error::system(format!("wait for process {}", self.pid()))(error);
        match wait_for(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], deadline) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(errno) => return Err(fail(errno.into())),
        }
        // Another thread may have reaped it meanwhile.
        let mut reaped = lock(&self.reaped);
        if reaped.is_none() {
            let (status, cpu_time) = sys::reap(self.pid).map_err(fail)?;
            *reaped = Some(Reaped { status, cpu_time });
        }
        Ok(reaped.map(|reaped| reaped.status))
    }
}

/// Waits until one of the descriptors is ready; returns false if none is at `deadline`.
pub(crate) fn wait_for(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<bool, Errno> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // Beyond the range of the kernel, wait without a timeout.
        let timeout = left.and_then(|left| left.try_into().ok());
        match poll(fds, timeout.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
