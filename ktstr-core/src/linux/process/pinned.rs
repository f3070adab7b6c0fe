//! Processes pinned by a pidfd, so that a reused pid cannot be mistaken for them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::Error;
use super::procfs::{Process, proc_is_ours};

/// A process and a pidfd of it. The pidfd refers to this process even after its pid is reused.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) process: Process,
    pub(super) pidfd: OwnedFd,
}

/// Opens a pidfd of a process; `None` if it has ended, or if `is_meant` then returns false.
///
/// Reads from the pidfd whether it has ended. The state in /proc is not enough: it is `Z` once the
/// first thread has ended, even while other threads run.
///
/// # Errors
///
/// If no descriptors are left or /proc cannot be read: the process may exist and must not be
/// skipped.
pub(super) fn pin(
    number: i32,
    is_meant: impl FnOnce(i32) -> Result<bool, Error>,
) -> Result<Option<Pinned>, Error> {
    let Some(pid) = Pid::from_raw(number.max(0)) else { return Ok(None) };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        // ENOENT and EINVAL: the number is a thread that does not lead a process.
        Err(Errno::SRCH | Errno::NOENT | Errno::INVAL) => return Ok(None),
        Err(errno) => return Err(Error::system(format!("open a pidfd of process {pid}"))(errno)),
    };
    if has_ended(&pidfd) || !is_meant(number)? {
        return Ok(None);
    }
    let process = Process::read(number).map_err(Error::system(format!("read process {pid}")))?;
    Ok(process.map(|process| Pinned { process, pidfd }))
}

/// Returns whether the process of a pidfd has ended. Makes one system call.
pub(super) fn has_ended(pidfd: impl AsFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    !matches!(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&now)), Ok(0))
}

/// Fails if /proc does not show the pid namespace of this process.
pub(super) fn check_proc() -> Result<(), Error> {
    let fail = || Error::system("find processes in /proc");
    if proc_is_ours().map_err(fail())? {
        return Ok(());
    }
    let why = "it is not mounted or shows another pid namespace: `mount -t proc proc /proc`";
    Err(fail()(io::Error::other(why)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_takes_running_processes_that_are_meant() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        assert!(!has_ended(&pin(own, |_| Ok(true)).unwrap().unwrap().pidfd));
        assert!(pin(own, |_| Ok(false)).unwrap().is_none());
        assert!(
            [0, -1, i32::MAX].into_iter().all(|none| pin(none, |_| Ok(true)).unwrap().is_none())
        );
    }
}
