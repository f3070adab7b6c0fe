//! Creating, leaving and reaping processes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Pid;

/// Runs `child` in a forked process, which exits with the status it returns (101 if it panics).
///
/// # Safety
///
/// Only the calling thread continues in the child. `child` must not wait for a resource that another
/// thread of this process may hold at the time of the fork. glibc keeps its allocator usable.
pub(crate) unsafe fn fork(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the child never returns into the caller's frames: it runs `child` and exits, also
    // when `child` panics. The caller promises what `child` does.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let status = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: `_exit` accepts any status, and runs no destructor of the parent's state.
            unsafe { libc::_exit(status) }
        }
        pid => Ok(Pid::from_raw(pid).expect("fork returns a positive pid to the parent")),
    }
}

/// From linux/sched.h. libc declares it as a 32-bit number, which is too small for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Clones this process into a cgroup as a sibling: its parent is the parent of this process.
/// Returns `None` in the clone.
///
/// # Safety
///
/// Only the calling thread continues in the clone. No fork handlers have run there, and glibc still
/// caches the old thread id, so it may only make system calls and exec, as after vfork.
///
/// Source: clone(2), CLONE_INTO_CGROUP (Linux 5.7), CLONE_PARENT.
pub(crate) unsafe fn clone_into_cgroup(cgroup: BorrowedFd<'_>) -> io::Result<Option<Pid>> {
    // SAFETY: all fields of `clone_args` are plain data, for which zeros are valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // With CLONE_PARENT, the clone gets the exit signal of this process.
    args.flags = CLONE_INTO_CGROUP | libc::CLONE_PARENT as u64;
    args.cgroup = cgroup.as_raw_fd() as u64;
    // SAFETY: without CLONE_VM the clone has its own memory and continues on its own copy of the
    // stack, as after fork; `args` is valid for the given size.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Pid::from_raw(pid as i32)),
    }
}

/// Returns whether this process leads its session, and whether it leads its process group.
///
/// Not from rustix, which expects positive numbers: the kernel returns 0 for a leader outside the
/// pid namespace.
///
/// Source: `pid_nr_ns` in the kernel's kernel/pid.c; getsid(2), getpgrp(2).
pub(crate) fn is_session_and_group_leader() -> (bool, bool) {
    // SAFETY: the three calls access no memory.
    let (own, session, group) = unsafe { (libc::getpid(), libc::getsid(0), libc::getpgrp()) };
    (session == own, group == own)
}

/// Exits with status 0, without running destructors or exit handlers.
pub(crate) fn exit_now() -> ! {
    // SAFETY: `_exit` accepts any status.
    unsafe { libc::_exit(0) }
}

/// Waits for a child; returns its exit status and the CPU time of it and the children it waited for.
pub(crate) fn reap(pid: Pid) -> io::Result<(ExitStatus, Duration)> {
    let mut status = 0;
    // SAFETY: all fields of `rusage` are plain data, for which zeros are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are valid for the kernel to write to.
        match unsafe { libc::wait4(pid.as_raw_nonzero().get(), &mut status, 0, &mut usage) } {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return Err(io::Error::last_os_error()),
            _ => break,
        }
    }
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    Ok((ExitStatus::from_raw(status), time(usage.ru_utime) + time(usage.ru_stime)))
}

/// Reaps children that have ended, until there are none or the next one is `except`, which another
/// caller reaps.
pub(crate) fn reap_orphans(except: Option<Pid>) -> io::Result<()> {
    loop {
        // SAFETY: all fields of `siginfo_t` are plain data, for which zeros are valid.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: `info` is valid for the kernel to write to.
        if unsafe { libc::waitid(libc::P_ALL, 0, &mut info, options) } != 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ECHILD) { Ok(()) } else { Err(error) };
        }
        // SAFETY: waitid sets `si_pid`; it stays zero if no child has ended.
        let pid = unsafe { info.si_pid() };
        match Pid::from_raw(pid) {
            Some(pid) if Some(pid) != except => {
                rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG)?;
            }
            _ => return Ok(()),
        }
    }
}

/// Forks a process that exits at once, and reaps it.
pub(crate) fn fork_and_reap() -> io::Result<()> {
    // SAFETY: the child does nothing.
    let child = unsafe { fork(|| 0) }?;
    reap(child).map(|_| ())
}

/// Closes every descriptor from 3 on except those in `kept`.
///
/// # Safety
///
/// No code, including the drop of a value that owns one, may use the other descriptors afterwards.
pub(crate) unsafe fn close_fds_except(kept: &[&OwnedFd]) -> io::Result<()> {
    let kept: Vec<_> = kept.iter().map(|fd| fd.as_raw_fd()).collect();
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<i32>().ok();
    let open = std::fs::read_dir("/proc/self/fd")?.map(|entry| entry.map(number));
    // Collected, so that the directory is closed before the loop: each entry keeps it open.
    let open = open.collect::<io::Result<Vec<_>>>()?.into_iter().flatten();
    let unwanted: Vec<_> = open.filter(|fd| *fd > 2 && !kept.contains(fd)).collect();
    for fd in unwanted {
        // SAFETY: the caller promises that the descriptor is not used any more. The descriptor of
        // the listed directory is closed already; closing it again only returns EBADF.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Has the kernel send SIGKILL to this process when the thread that forked it ends.
pub(crate) fn die_with_parent() -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and accesses no memory.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{WaitOptions, waitpid};

    use super::super::Shared;
    use super::*;

    #[test]
    fn fork_shares_memory_with_the_child() {
        let shared = Shared::new(AtomicU64::new(1)).unwrap();
        let child = || {
            shared.fetch_add(41, Ordering::Relaxed);
            7
        };
        // SAFETY: the child only adds to an atomic.
        let pid = unsafe { fork(child) }.unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(7));
        assert_eq!(shared.load(Ordering::Relaxed), 42);
    }

    #[test]
    fn fork_exits_with_101_if_the_child_panics() {
        // SAFETY: the child only unwinds.
        let pid = unsafe { fork(|| std::panic::resume_unwind(Box::new(()))) }.unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(101));
    }
}
