//! The keeper: a process that waits for its owner's end, and then ends what the owner left.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, pidfd_open, pidfd_send_signal, waitid,
};

use crate::sys;

/// What a keeper does before it waits, and at its owner's end.
pub(super) trait Duty {
    /// Where the keeper lives: in a session or a process group of its own.
    fn settle(&self) -> io::Result<()>;

    /// Ends everything. There is no owner any more, nothing is logged, no thread may be started.
    fn end(&self);
}

/// A running keeper, ended when dropped.
#[derive(Debug)]
pub(super) struct Keeper {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Keeper {
    /// Forks a keeper for this process; returns when it has settled.
    pub(super) fn start(duty: &impl Duty) -> io::Result<Self> {
        let owner = pidfd_open(getpid(), PidfdFlags::empty())?;
        let (settled, says_so) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // SAFETY: the child allocates, which glibc keeps usable, and makes system calls. It starts
        // no thread and logs nothing (see `Duty::end`), so it takes no lock of other threads.
        let pid = unsafe { sys::fork(|| keep(&owner, &says_so, duty)) }?;
        let keeper = Self { pid, pidfd: pidfd_open(pid, PidfdFlags::empty())? };
        drop(says_so);
        let mut answer = [0_u8; 4];
        match rustix::io::read(&settled, &mut answer)? {
            4 if answer == [0; 4] => Ok(keeper),
            4 => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(answer))),
            _ => Err(io::Error::other("it was killed at its start")),
        }
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Both fail only if it is gone and reaped, which nobody else does.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

/// The keeper's process.
fn keep(owner: &OwnedFd, says_so: &OwnedFd, duty: &impl Duty) -> i32 {
    let settled = sys::block_signals()
        .and_then(|()| duty.settle())
        .and_then(|()| Ok(rustix::thread::set_name(c"ktstr-keeper")?))
        .and_then(|()| let_go_of_everything_but(&[owner, says_so]));
    let answer =
        settled.as_ref().map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0);
    let told = rustix::io::write(says_so, &answer.to_ne_bytes());
    if settled.is_err() || told.is_err() {
        return 1;
    }
    loop {
        match poll(&mut [PollFd::new(owner, PollFlags::IN)], None) {
            Ok(1) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return 1,
        }
    }
    // Whoever logs takes locks that other threads of the owner may have held at the fork.
    let silence = tracing::subscriber::NoSubscriber::default();
    tracing::subscriber::with_default(silence, || duty.end());
    0
}

/// Closes what was inherited, so that nobody waits in vain for the end of a pipe.
fn let_go_of_everything_but(kept: &[&OwnedFd]) -> io::Result<()> {
    rustix::process::chdir("/")?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    sys::close_all_but(kept)
}
