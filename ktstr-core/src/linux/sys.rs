//! The system calls that no safe crate offers, each behind a safe function.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::os::unix::thread::JoinHandleExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitStatus;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Pid;
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot.
pub(crate) fn since_boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Runs `child` in a forked process, which ends with the status it returns (101 if it panics).
///
/// # Safety
///
/// Only the calling thread goes on in the child. `child` must not wait for anything that another
/// thread of this process may hold at the time of the fork; glibc keeps its allocator usable.
pub(crate) unsafe fn fork(child: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the child never returns into the caller's frames: it runs `child` and exits, also
    // when `child` panics. What that may touch is the caller's promise.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let status = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: `_exit` takes any status; no destructor of the parent's state may run here.
            unsafe { libc::_exit(status) }
        }
        pid => Ok(Pid::from_raw(pid).expect("fork returns a positive pid to the parent")),
    }
}

/// Of linux/sched.h; libc's is a 32-bit number, into which it does not fit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Copies this process into a cgroup, as another child of its parent. `None` in the copy.
///
/// # Safety
///
/// Only the calling thread goes on in the copy, where no fork handlers have run and glibc believes
/// that thread to have its old number: it may make system calls and exec, as after vfork.
///
/// Source: clone(2), CLONE_INTO_CGROUP (Linux 5.7), CLONE_PARENT.
pub(crate) unsafe fn clone_into_cgroup(group: BorrowedFd<'_>) -> io::Result<Option<Pid>> {
    // SAFETY: all of `clone_args` is plain data, for which zeros are valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    // With CLONE_PARENT the copy has the exit signal of this process.
    args.flags = CLONE_INTO_CGROUP | libc::CLONE_PARENT as u64;
    args.cgroup = group.as_raw_fd() as u64;
    // SAFETY: without CLONE_VM the copy has memory of its own and goes on with a stack of its own,
    // as after fork; `args` is valid for the size that is given.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Pid::from_raw(pid as i32)),
    }
}

/// Whether this process leads its session, and whether it leads its process group.
///
/// rustix takes these numbers to be positive; of a leader outside the pid namespace the kernel says 0.
///
/// Source: `pid_nr_ns` in the kernel's kernel/pid.c; getsid(2), getpgrp(2).
pub(crate) fn leads() -> (bool, bool) {
    // SAFETY: the three calls take no memory.
    let (own, session, group) = unsafe { (libc::getpid(), libc::getsid(0), libc::getpgrp()) };
    (session == own, group == own)
}

/// Ends this process at once, without anything that would run at its end.
pub(crate) fn exit_now() -> ! {
    // SAFETY: `_exit` takes any status.
    unsafe { libc::_exit(0) }
}

/// Waits for a child and returns its status, its CPU time and that of the children it has waited for.
pub(crate) fn reap(pid: Pid) -> io::Result<(ExitStatus, Duration)> {
    let mut status = 0;
    // SAFETY: all of `rusage` is plain data, for which zeros are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both are valid places for the kernel's answer.
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

/// Has the kernel keep the exit statuses of this process's children if whoever started it left
/// SIGCHLD ignored, which outlives `execve`. A handler of this process stays.
///
/// Source: sigaction(2), wait(2).
pub(crate) fn heed_children() {
    // SAFETY: all of `sigaction` is plain data, for which zeros are valid, and the kernel fills it in;
    // the default action of SIGCHLD runs no code.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGCHLD, std::ptr::null(), &mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
        {
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        }
    }
}

/// The unit of CPU times in /proc. rustix panics here before Linux 6.4 in a process that has changed
/// its user, which may not read /proc/self/auxv.
pub(crate) fn ticks_per_second() -> u64 {
    // SAFETY: `sysconf` takes any name.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).ok().filter(|ticks| *ticks > 0).expect("Linux has a tick")
}

/// Blocks every signal that can be blocked.
pub(crate) fn block_signals() -> io::Result<()> {
    // SAFETY: all of `sigset_t` is plain data, and `sigfillset` fills it; both calls get valid sets.
    let blocked = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &all, std::ptr::null_mut())
    };
    if blocked == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes every descriptor from 3 on but those in `kept`.
///
/// # Safety
///
/// Nothing may use or close the others any more: neither code nor the drop of a value that owns one.
pub(crate) unsafe fn close_all_but(kept: &[&OwnedFd]) -> io::Result<()> {
    let kept: Vec<_> = kept.iter().map(|fd| fd.as_raw_fd()).collect();
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<i32>().ok();
    let open = std::fs::read_dir("/proc/self/fd")?.map(|entry| entry.map(number));
    // Nothing of the listing is left after this: an entry keeps the directory open.
    let open = open.collect::<io::Result<Vec<_>>>()?.into_iter().flatten();
    let unwanted: Vec<_> = open.filter(|fd| *fd > 2 && !kept.contains(fd)).collect();
    for fd in unwanted {
        // SAFETY: the caller promises that nobody uses it any more. The one that listed the folder
        // is closed already, which is no harm.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Has the kernel kill this process when the thread that forked it ends.
pub(crate) fn die_with_parent() -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Of linux/sched.h; libc has no constant for it.
const SCHED_FLAG_RESET_ON_FORK: u64 = 0x01;

/// Runs this thread before everything else on its CPU; its children start as ordinary ones.
///
/// Not by `sched_setscheduler`: the one of musl changes nothing and returns ENOSYS.
pub(crate) fn run_first() -> io::Result<()> {
    let policy = libc::SCHED_FIFO as u32;
    let flags = SCHED_FLAG_RESET_ON_FORK;
    sched_setattr(None, SchedAttr { policy, flags, priority: 99, ..SchedAttr::default() })
}

/// Brings the interface `lo` up. The kernel gives it 127.0.0.1/8 and ::1 then.
///
/// Source: netdevice(7); `inetdev_event` in the kernel's net/ipv4/devinet.c.
pub(crate) fn bring_up_loopback() -> io::Result<()> {
    use rustix::ioctl::{Setter, Updater, ioctl};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

    /// Of linux/sockios.h.
    const SIOCGIFFLAGS: u32 = 0x8913;
    const SIOCSIFFLAGS: u32 = 0x8914;

    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all of `ifreq` is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = from as libc::c_char;
    }
    // SAFETY: SIOCGIFFLAGS reads the name in the `ifreq` that it is given, and writes the flags.
    unsafe { ioctl(&socket, Updater::<SIOCGIFFLAGS, _>::new(&mut request)) }?;
    // SAFETY: the call above has written this field of the union, all bytes of which are plain data.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads the name and the flags of the `ifreq` that it is given.
    unsafe { ioctl(&socket, Setter::<SIOCSIFFLAGS, _>::new(request)) }?;
    Ok(())
}

/// Puts another thread of this process before everything but what [`run_first`] has put there.
pub(crate) fn raise<T>(thread: &JoinHandle<T>) -> io::Result<()> {
    // SAFETY: all of `sched_param` is plain data; musl's has more fields than the kernel's.
    let mut param: libc::sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = 98;
    // std has a number for the handle, and so has glibc; musl has a pointer of the same value.
    let handle = thread.as_pthread_t() as libc::pthread_t;
    // SAFETY: the thread was neither joined nor detached, as `thread` would be gone then; `param` is
    // a valid `sched_param` for the duration of the call.
    match unsafe { libc::pthread_setschedparam(handle, libc::SCHED_FIFO, &param) } {
        // A thread that has ended by itself has no use for it.
        0 | libc::ESRCH => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// LLVM's profiling runtime, which only an instrumented program is linked with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProfileRuntime {
    set_filename: unsafe extern "C" fn(*const libc::c_char),
    write_file: unsafe extern "C" fn() -> libc::c_int,
}

impl ProfileRuntime {
    /// Returns the runtime of this program, if it has one.
    ///
    /// Source: LLVM, compiler-rt/lib/profile/InstrProfiling.h.
    pub(crate) fn linked() -> Option<Self> {
        type SetFilename = unsafe extern "C" fn(*const libc::c_char);
        type WriteFile = unsafe extern "C" fn() -> libc::c_int;
        let (set_filename, write_file): (*const (), *const ());
        // Rust has no weak symbols yet. The linker puts zeros in place of those that are not defined.
        // SAFETY: the code reads two words of its own.
        unsafe {
            std::arch::asm!(
                ".weak __llvm_profile_set_filename",
                ".weak __llvm_profile_write_file",
                ".pushsection .data.rel.ro.ktstr,\"aw\",@progbits",
                ".balign 8",
                "2:",
                ".quad __llvm_profile_set_filename",
                ".quad __llvm_profile_write_file",
                ".popsection",
                "mov {0}, qword ptr [rip + 2b]",
                "mov {1}, qword ptr [rip + 2b + 8]",
                out(reg) set_filename,
                out(reg) write_file,
                options(nostack, readonly, preserves_flags),
            );
        }
        // SAFETY: each word is zero, which is `None`, or the address of the function with that signature.
        let (set_filename, write_file) = unsafe {
            (
                std::mem::transmute::<*const (), Option<SetFilename>>(set_filename),
                std::mem::transmute::<*const (), Option<WriteFile>>(write_file),
            )
        };
        Some(Self { set_filename: set_filename?, write_file: write_file? })
    }

    /// Writes the counters of this process to a file, and returns 0 or an error number.
    pub(crate) fn write(self, path: &'static CStr) -> i32 {
        // SAFETY: the runtime keeps the pointer, which is valid for ever, and has no other condition.
        unsafe {
            (self.set_filename)(path.as_ptr());
            (self.write_file)()
        }
    }
}

/// Has this thread run first, and on drop as it did before.
#[derive(Debug)]
pub(crate) struct RunningFirst {
    before: SchedAttr,
}

impl RunningFirst {
    pub(crate) fn begin() -> io::Result<Self> {
        let before = sched_getattr()?;
        run_first()?;
        Ok(Self { before })
    }
}

impl Drop for RunningFirst {
    fn drop(&mut self) {
        // Who may run first may run as before.
        let _ = sched_setattr(None, self.before);
    }
}

/// Makes `terminal` the controlling terminal of this process, which leads its session.
pub(crate) fn take_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer and touches no memory; the descriptor is borrowed.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reaps the children that have ended, up to `except`, whose status somebody else wants.
pub(crate) fn reap_orphans(except: Option<Pid>) -> io::Result<()> {
    loop {
        // SAFETY: all of `siginfo_t` is plain data, for which zeros are valid.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: `info` is a valid place for the kernel's answer.
        if unsafe { libc::waitid(libc::P_ALL, 0, &mut info, options) } != 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ECHILD) { Ok(()) } else { Err(error) };
        }
        // SAFETY: waitid fills `si_pid`; it stays zero when no child has ended.
        let pid = unsafe { info.si_pid() };
        match Pid::from_raw(pid) {
            Some(pid) if Some(pid) != except => {
                rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG)?;
            }
            _ => return Ok(()),
        }
    }
}

/// A value that this process and the children it forks later share.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    value: NonNull<T>,
}

// SAFETY: `Shared` only hands out `&T`, from any thread or process.
unsafe impl<T: Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Shared<T> {}

impl<T: Sync> Shared<T> {
    /// Maps fresh shared memory and moves `value` into it. `T` must not own anything that only
    /// one process may free, for it is never dropped.
    pub(crate) fn new(value: T) -> io::Result<Self> {
        assert!(align_of::<T>() <= 4096, "a mapping is aligned to a page");
        // SAFETY: an anonymous mapping at an address of the kernel's choice aliases nothing.
        let address = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                size_of::<T>(),
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::SHARED,
            )
        }?;
        let pointer = NonNull::new(address.cast::<T>()).expect("mmap never returns null");
        // SAFETY: the mapping is fresh, writable, large enough and page-aligned.
        unsafe { pointer.write(value) };
        Ok(Self { value: pointer })
    }
}

impl<T> std::ops::Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` initialised the value, and the mapping lives as long as `self`. Other
        // processes reach it only through `&T`, too, and `T: Sync`.
        unsafe { self.value.as_ref() }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this size, and no reference outlives `self`.
        // A failure would mean that it is not mapped, which `new` rules out.
        let _ = unsafe { rustix::mm::munmap(self.value.as_ptr().cast(), size_of::<T>()) };
    }
}

/// What `sched_setattr` takes, of Linux 4.13 on.
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

/// The scheduling policy of this thread.
fn sched_getattr() -> io::Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    let size = size_of::<SchedAttr>();
    // SAFETY: the kernel writes no more than `size` bytes to `attr`, all of which is plain data.
    match unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) } {
        0 => Ok(attr),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the scheduling policy of a thread, `None` for this one. glibc has no wrapper before 2.41.
pub(crate) fn sched_setattr(pid: Option<Pid>, attr: SchedAttr) -> io::Result<()> {
    let attr = SchedAttr { size: size_of::<SchedAttr>() as u32, ..attr };
    let pid = Pid::as_raw(pid);
    // SAFETY: the kernel reads `attr`, which is as long as it says.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attr, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets where this process gets its memory from; `nodes` has one bit per node.
///
/// Source: set_mempolicy(2).
pub(crate) fn set_mempolicy(mode: i32, nodes: u64) -> io::Result<()> {
    // The kernel reads one bit less than it is told, and takes none from a null pointer only.
    let (mask, bits) = match nodes {
        0 => (std::ptr::null(), 0),
        _ => (&raw const nodes, u64::BITS + 1),
    };
    // SAFETY: the kernel reads `nodes`, 64 bits in whole words, or nothing.
    match unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Forks a process that ends at once, and reaps it.
pub(crate) fn fork_and_reap() -> io::Result<()> {
    // SAFETY: the child does nothing.
    let child = unsafe { fork(|| 0) }?;
    reap(child).map(|_| ())
}

static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_one(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// Makes this process count the SIGUSR1 it gets, see [`signals_counted`], instead of ending by one.
pub(crate) fn count_signals() -> io::Result<()> {
    // SAFETY: all of `sigaction` is plain data, for which zeros are valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = count_one as extern "C" fn(libc::c_int) as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler only adds to an atomic, which a signal handler may do at any time. The set
    // is plain data that `sigemptyset` fills.
    let counting = unsafe {
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut signals);
        libc::sigaddset(&mut signals, libc::SIGUSR1);
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()) == 0
            && libc::sigprocmask(libc::SIG_UNBLOCK, &signals, std::ptr::null_mut()) == 0
    };
    if counting { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How many signals this process has counted.
pub(crate) fn signals_counted() -> u64 {
    SIGNALS.load(Ordering::Relaxed)
}

/// Private memory in whole pages, which can be given back and taken anew.
#[derive(Debug)]
pub(crate) struct Region {
    bytes: NonNull<AtomicU8>,
    len: usize,
}

impl Region {
    pub(crate) const PAGE: usize = 4096;

    /// Maps `pages` pages. The kernel finds memory for each when it is first written to.
    pub(crate) fn new(pages: usize) -> io::Result<Self> {
        let len = pages * Self::PAGE;
        // SAFETY: an anonymous mapping at an address of the kernel's choice aliases nothing.
        let address = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::PRIVATE,
            )
        }?;
        let region = Self { bytes: NonNull::new(address.cast()).expect("mmap is not null"), len };
        region.advise(rustix::mm::Advice::LinuxNoHugepage).or_else(|error| {
            // A kernel without huge pages does not know the advice and does not need it.
            if error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) }
        })?;
        Ok(region)
    }

    /// Writes to each page.
    pub(crate) fn touch(&self) {
        for page in self.bytes().chunks(Self::PAGE) {
            page[0].store(1, Ordering::Relaxed);
        }
    }

    /// Gives the memory back; the bytes are zeros again.
    pub(crate) fn discard(&self) -> io::Result<()> {
        self.advise(rustix::mm::Advice::LinuxDontNeed)
    }

    fn advise(&self, advice: rustix::mm::Advice) -> io::Result<()> {
        // SAFETY: the range is the live mapping of `self`. Its bytes are only reached as atomics,
        // for which a change to zeros is one like any other.
        Ok(unsafe { rustix::mm::madvise(self.bytes.as_ptr().cast(), self.len, advice) }?)
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: `new` mapped `len` bytes, which live as long as `self`; zeros are valid.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr(), self.len) }
    }

    /// The NUMA node of each page, negative (an error number) for one without memory.
    ///
    /// Source: move_pages(2).
    pub(crate) fn nodes(&self) -> io::Result<Vec<i32>> {
        let pages: Vec<_> = self.bytes().chunks(Self::PAGE).map(<[_]>::as_ptr).collect();
        let mut nodes = vec![-libc::ENOENT; pages.len()];
        let none = std::ptr::null::<i32>();
        // SAFETY: both lists are as long as is said. Without a list of nodes nothing is moved: the
        // kernel only writes what it finds.
        let status = unsafe {
            libc::syscall(
                libc::SYS_move_pages,
                0,
                pages.len(),
                pages.as_ptr(),
                none,
                nodes.as_mut_ptr(),
                0,
            )
        };
        if status == 0 { Ok(nodes) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this length, and no reference outlives `self`.
        // A failure would mean that it is not mapped, which `new` rules out.
        let _ = unsafe { rustix::mm::munmap(self.bytes.as_ptr().cast(), self.len) };
    }
}

/// Has the kernel kill this process at its next system call, by SIGSYS. Not by the strict mode of
/// seccomp, which also takes the time stamp counter away, and with it the vDSO's clock.
#[cfg(test)]
pub(crate) fn forbid_system_calls() -> io::Result<()> {
    let kill = libc::SECCOMP_RET_KILL_PROCESS;
    let code = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut always = libc::sock_filter { code, jt: 0, jf: 0, k: kill };
    let program = libc::sock_fprog { len: 1, filter: &mut always };
    // SAFETY: the kernel copies the program, which is as long as it says.
    match unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{WaitOptions, waitpid};

    use super::*;

    #[test]
    fn a_child_writes_what_the_parent_reads() {
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
    fn a_panicking_child_never_returns_into_its_parent() {
        // SAFETY: the child only unwinds.
        let pid = unsafe { fork(|| std::panic::resume_unwind(Box::new(()))) }.unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(101));
    }
}
