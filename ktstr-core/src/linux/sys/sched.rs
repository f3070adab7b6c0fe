//! Scheduling policies of threads.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

use rustix::process::Pid;

/// From linux/sched.h; libc has no constant for it.
const SCHED_FLAG_RESET_ON_FORK: u64 = 0x01;

/// Gives this thread the highest real-time priority. Its children start with the default policy.
///
/// Not by `sched_setscheduler`: that of musl changes nothing and returns ENOSYS.
pub(crate) fn set_highest_priority() -> io::Result<()> {
    let policy = libc::SCHED_FIFO as u32;
    let flags = SCHED_FLAG_RESET_ON_FORK;
    sched_setattr(None, SchedAttr { policy, flags, priority: 99, ..SchedAttr::default() })
}

/// Gives another thread of this process a real-time priority just below that of
/// [`set_highest_priority`].
pub(crate) fn raise_priority<T>(thread: &JoinHandle<T>) -> io::Result<()> {
    // SAFETY: all fields of `sched_param` are plain data; musl has more of them than the kernel.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = 98;
    // std and glibc have a number as the handle; musl has a pointer of the same value.
    let handle = thread.as_pthread_t() as libc::pthread_t;
    // SAFETY: the thread was neither joined nor detached, because both would consume `thread`;
    // `param` is a valid `sched_param` for the duration of the call.
    match unsafe { libc::pthread_setschedparam(handle, libc::SCHED_FIFO, &param) } {
        // ESRCH: the thread has ended and does not need it.
        0 | libc::ESRCH => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Gives this thread the highest real-time priority until it is dropped.
#[derive(Debug)]
pub(crate) struct HighestPriority {
    before: SchedAttr,
}

impl HighestPriority {
    pub(crate) fn begin() -> io::Result<Self> {
        let before = sched_getattr()?;
        set_highest_priority()?;
        Ok(Self { before })
    }
}

impl Drop for HighestPriority {
    fn drop(&mut self) {
        // Lowering the own priority needs no privilege, so this does not fail.
        let _ = sched_setattr(None, self.before);
    }
}

/// The argument of `sched_setattr`, as of Linux 4.13.
///
/// Source: sched_setattr(2), `struct sched_attr`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct SchedAttr {
    /// Set by [`sched_setattr`].
    pub(crate) size: u32,
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    pub(crate) runtime_ns: u64,
    pub(crate) deadline_ns: u64,
    pub(crate) period_ns: u64,
}

/// Returns the scheduling policy of this thread.
fn sched_getattr() -> io::Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    let size = size_of::<SchedAttr>();
    // SAFETY: the kernel writes at most `size` bytes to `attr`, all of which is plain data.
    match unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) } {
        0 => Ok(attr),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the scheduling policy of a thread; `None` is the calling thread. glibc has no wrapper
/// before 2.41.
pub(crate) fn sched_setattr(tid: Option<Pid>, attr: SchedAttr) -> io::Result<()> {
    let attr = SchedAttr { size: size_of::<SchedAttr>() as u32, ..attr };
    let tid = Pid::as_raw(tid);
    // SAFETY: the kernel reads as many bytes of `attr` as its field `size` states.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attr, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
