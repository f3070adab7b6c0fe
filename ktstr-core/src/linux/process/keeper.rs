//! The keeper: a forked process that waits for its owner to end, and then kills what is left.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, kill_process, pidfd_open,
    pidfd_send_signal, waitid,
};

use crate::linux::sys;

/// The mechanism-specific part of a keeper. Both functions run in the keeper's process.
pub(super) trait KeeperTask {
    /// Moves the keeper to a session or process group of its own. Returns the pid of the process
    /// that it keeps as a zombie for its owner, if any.
    fn start(&self) -> io::Result<Option<Pid>>;

    /// Kills the job after the owner has ended; `kept` is what [`start`](Self::start) returned.
    ///
    /// It must not log or start a thread: other threads of the owner may have held the locks that
    /// those take at the time of the fork.
    fn clean_up(&self, kept: Option<Pid>);
}

/// A running keeper. Dropping it kills it without cleaning up.
#[derive(Debug)]
pub(super) struct Keeper {
    pidfd: OwnedFd,
}

impl Keeper {
    /// Forks a keeper for this process. Returns it, and the result of [`KeeperTask::start`].
    pub(super) fn start(task: &impl KeeperTask) -> io::Result<(Self, Option<Pid>)> {
        let owner = pidfd_open(getpid(), PidfdFlags::empty())?;
        let (started, report) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // SAFETY: the child allocates, which glibc keeps usable, and makes system calls. It starts
        // no thread and does not log (see `KeeperTask::clean_up`), so it takes no lock that another
        // thread may hold.
        let pid = unsafe { sys::fork(|| run(&owner, &report, task)) }?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).inspect_err(|_| {
            // It has not been waited for, so the pid is still its own.
            let _ = kill_process(pid, Signal::KILL);
            let _ = sys::reap(pid);
        })?;
        let keeper = Self { pidfd };
        // Only the keeper has the writing end from here on, so the read ends if it dies.
        drop(report);
        let mut message = [0_u8; 8];
        let count = retry_on_intr(|| rustix::io::read(&started, &mut message))?;
        let [errno, kept] = [0, 4].map(|at| {
            i32::from_ne_bytes(message[at..at + 4].try_into().expect("the slice has four bytes"))
        });
        match (count, errno) {
            (8, 0) => Ok((keeper, Pid::from_raw(kept))),
            (8, errno) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::Error::other("the keeper was killed before it had started")),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Both fail only if other code of the owner, which waits for any child, has reaped it.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

/// Runs the keeper's process; returns its exit status.
fn run(owner: &OwnedFd, report: &OwnedFd, task: &impl KeeperTask) -> i32 {
    // 1. Detach from the owner: signals, terminal, descriptors, working directory.
    let started = sys::block_signals()
        .and_then(|()| Ok(rustix::thread::set_name(c"ktstr-keeper")?))
        .and_then(|()| close_fds_except(&[owner, report]))
        .and_then(|()| task.start());

    // 2. Report to the owner: an error number, and the pid that is kept.
    let (errno, kept) = match &started {
        Ok(kept) => (0, kept.map_or(0, |kept| kept.as_raw_nonzero().get())),
        Err(error) => (error.raw_os_error().unwrap_or(libc::EIO), 0),
    };
    let message = [errno.to_ne_bytes(), kept.to_ne_bytes()].concat();
    let reported = rustix::io::write(report, &message);
    if started.is_err() || reported.is_err() || close_fds_except(&[owner]).is_err() {
        return 1;
    }

    // 3. Wait for the owner to end.
    loop {
        match poll(&mut [PollFd::new(owner, PollFlags::IN)], None) {
            Ok(1) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return 1,
        }
    }
    task.clean_up(started.unwrap_or_default());
    0
}

/// Closes all descriptors except `kept`, so that the keeper holds no pipe of its owner open.
/// Redirects the standard streams to /dev/null and leaves the working directory.
fn close_fds_except(kept: &[&OwnedFd]) -> io::Result<()> {
    rustix::process::chdir("/")?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    // SAFETY: this process runs no code of the owner any more, including its destructors.
    unsafe { sys::close_fds_except(kept) }
}
