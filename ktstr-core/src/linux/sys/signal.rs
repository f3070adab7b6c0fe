//! Signals.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// Restores the default action of SIGCHLD if it is ignored.
///
/// While SIGCHLD is ignored, the kernel discards the exit statuses of children. A parent process may
/// have left it ignored, which `execve` preserves. A handler of this process stays installed.
///
/// Source: sigaction(2), wait(2).
pub fn stop_ignoring_sigchld() {
    // SAFETY: all fields of `sigaction` are plain data, for which zeros are valid, and the kernel
    // fills it in; the default action of SIGCHLD runs no code.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGCHLD, std::ptr::null(), &mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
        {
            libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        }
    }
}

/// Blocks every signal that can be blocked.
pub(crate) fn block_signals() -> io::Result<()> {
    // SAFETY: `sigset_t` is plain data that `sigfillset` initialises; both calls get valid sets.
    let blocked = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &all, std::ptr::null_mut())
    };
    if blocked == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_one(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// Installs a handler that counts SIGUSR1 instead of terminating; see [`signals_counted`].
pub(crate) fn count_signals() -> io::Result<()> {
    // SAFETY: all fields of `sigaction` are plain data, for which zeros are valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = count_one as extern "C" fn(libc::c_int) as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler only adds to an atomic, which is async-signal-safe. `sigset_t` is plain
    // data that `sigemptyset` initialises.
    let counting = unsafe {
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut signals);
        libc::sigaddset(&mut signals, libc::SIGUSR1);
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()) == 0
            && libc::sigprocmask(libc::SIG_UNBLOCK, &signals, std::ptr::null_mut()) == 0
    };
    if counting { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns how many signals this process has counted.
pub(crate) fn signals_counted() -> u64 {
    SIGNALS.load(Ordering::Relaxed)
}

/// Has the kernel kill this process with SIGSYS at its next system call.
///
/// Not by the strict mode of seccomp, which also disables the time stamp counter and with it the
/// clock of the vDSO.
#[cfg(test)]
pub(crate) fn forbid_system_calls() -> io::Result<()> {
    let kill = libc::SECCOMP_RET_KILL_PROCESS;
    let code = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut always = libc::sock_filter { code, jt: 0, jf: 0, k: kill };
    let program = libc::sock_fprog { len: 1, filter: &mut always };
    // SAFETY: the kernel copies `len` instructions of the program.
    match unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
