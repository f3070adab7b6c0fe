//! The processes that the owner itself has started in a job.

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

/// A process that was started in a [`Job`](super::Job). Dropping this does nothing to it: it ends
/// with its job.
pub struct Child {
    /// What it reads, if its standard input was piped.
    pub stdin: Option<ChildStdin>,
    /// What it writes, if its standard output was piped.
    pub stdout: Option<ChildStdout>,
    /// What it complains of, if its standard error was piped.
    pub stderr: Option<ChildStderr>,
    leader: Arc<Leader>,
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child").field("pid", &self.pid()).finish_non_exhaustive()
    }
}

impl Child {
    pub(super) fn new(mut child: std::process::Child, leader: Arc<Leader>) -> Self {
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        Self { stdin, stdout, stderr: child.stderr.take(), leader }
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.leader.pid()
    }

    /// Waits for its end and says how it ended. Closes its standard input first, if that was piped.
    ///
    /// # Errors
    ///
    /// If somebody else has waited for it, or SIGCHLD is ignored: its status is lost then.
    pub fn wait(&mut self) -> Result<ExitStatus, Error> {
        drop(self.stdin.take());
        loop {
            if let Some(status) = self.leader.wait_until(None)? {
                return Ok(status);
            }
        }
    }

    /// As [`wait`](Self::wait), but no longer than `within`; `None` if it still runs then. Leaves its
    /// standard input open.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait).
    pub fn wait_timeout(&mut self, within: Duration) -> Result<Option<ExitStatus>, Error> {
        // A time too far for the clock is none.
        self.leader.wait_until(Some(Instant::now().checked_add(within)).flatten())
    }
}

/// A descriptor that is readable once the process has ended, to be polled.
impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.leader.pidfd.as_fd()
    }
}

/// A process that this one has started, and must reap.
#[derive(Debug)]
pub(super) struct Leader {
    pid: Pid,
    pidfd: OwnedFd,
    ended: Mutex<Option<Ended>>,
}

#[derive(Debug, Clone, Copy)]
struct Ended {
    status: ExitStatus,
    cpu: Duration,
}

impl Leader {
    /// Takes charge of a child that nobody has waited for.
    pub(super) fn new(pid: Pid) -> io::Result<Self> {
        Ok(Self { pid, pidfd: pidfd_open(pid, PidfdFlags::empty())?, ended: Mutex::default() })
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Its CPU time and that of the children it has waited for, once it has been reaped.
    pub(super) fn cpu(&self) -> Option<Duration> {
        self.lock().map(|ended| ended.cpu)
    }

    /// Waits for its end, until `deadline` if there is one.
    pub(super) fn wait_until(
        &self,
        deadline: Option<Instant>,
    ) -> Result<Option<ExitStatus>, Error> {
        if let Some(ended) = *self.lock() {
            return Ok(Some(ended.status));
        }
        let fail =
            |error: io::Error| Error::system(format!("wait for process {}", self.pid()))(error);
        match wait_for(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], deadline) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(errno) => return Err(fail(errno.into())),
        }
        // Another thread may have been faster.
        let mut ended = self.lock();
        if ended.is_none() {
            let (status, cpu) = sys::reap(self.pid).map_err(fail)?;
            *ended = Some(Ended { status, cpu });
        }
        Ok(ended.map(|ended| ended.status))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Ended>> {
        lock(&self.ended)
    }
}

/// Waits until one of the descriptors is ready; false if that takes until `deadline`.
pub(crate) fn wait_for(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<bool, Errno> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // A time too long for the kernel's clock is none.
        let timeout = left.and_then(|left| left.try_into().ok());
        match poll(fds, timeout.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
