//! The keeper: a process that waits for its owner's end, and then ends what the owner left.

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

/// What a keeper does before it waits, and at its owner's end.
pub(super) trait Duty {
    /// Where the keeper lives: in a session or a process group of its own. Returns the process that
    /// it keeps for its owner, if there is one.
    fn settle(&self) -> io::Result<Option<Pid>>;

    /// Ends everything; `kept` is what `settle` returned. There is no owner any more.
    ///
    /// Nothing may be logged and no thread be started: other threads of the owner may have held the
    /// locks for that at the fork.
    fn end(&self, kept: Option<Pid>);
}

/// A running keeper, ended when dropped.
#[derive(Debug)]
pub(super) struct Keeper {
    pidfd: OwnedFd,
}

impl Keeper {
    /// Forks a keeper for this process; returns when it has settled, with the process it keeps.
    pub(super) fn start(duty: &impl Duty) -> io::Result<(Self, Option<Pid>)> {
        let owner = pidfd_open(getpid(), PidfdFlags::empty())?;
        let (settled, says_so) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // SAFETY: the child allocates, which glibc keeps usable, and makes system calls. It starts
        // no thread and logs nothing (see `Duty::end`), so it takes no lock of other threads.
        let pid = unsafe { sys::fork(|| keep(&owner, &says_so, duty)) }?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).inspect_err(|_| {
            // Nobody has waited for it, so the number is its own.
            let _ = kill_process(pid, Signal::KILL);
            let _ = sys::reap(pid);
        })?;
        let keeper = Self { pidfd };
        drop(says_so);
        let mut answer = [0_u8; 8];
        let count = retry_on_intr(|| rustix::io::read(&settled, &mut answer))?;
        let [error, kept] = [0, 4].map(|at| {
            i32::from_ne_bytes(answer[at..at + 4].try_into().expect("a number has four bytes"))
        });
        match (count, error) {
            (8, 0) => Ok((keeper, Pid::from_raw(kept))),
            (8, error) => Err(io::Error::from_raw_os_error(error)),
            _ => Err(io::Error::other("it was killed at its start")),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Both fail only if it is gone and reaped, by an owner that waits for any child.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

/// The keeper's process.
fn keep(owner: &OwnedFd, says_so: &OwnedFd, duty: &impl Duty) -> i32 {
    let settled = sys::block_signals()
        .and_then(|()| Ok(rustix::thread::set_name(c"ktstr-keeper")?))
        .and_then(|()| detach_except(&[owner, says_so]))
        .and_then(|()| duty.settle());
    let (error, kept) = match &settled {
        Ok(kept) => (0, kept.map_or(0, |kept| kept.as_raw_nonzero().get())),
        Err(error) => (error.raw_os_error().unwrap_or(libc::EIO), 0),
    };
    let answer = [error.to_ne_bytes(), kept.to_ne_bytes()].concat();
    let told = rustix::io::write(says_so, &answer);
    if settled.is_err() || told.is_err() || detach_except(&[owner]).is_err() {
        return 1;
    }
    loop {
        match poll(&mut [PollFd::new(owner, PollFlags::IN)], None) {
            Ok(1) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return 1,
        }
    }
    duty.end(settled.unwrap_or_default());
    0
}

/// Closes what was inherited, so that nobody waits in vain for the end of a pipe.
fn detach_except(kept: &[&OwnedFd]) -> io::Result<()> {
    rustix::process::chdir("/")?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    // SAFETY: nothing of the owner runs on in this process, its destructors neither.
    unsafe { sys::close_fds_except(kept) }
}
