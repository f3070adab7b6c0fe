//! The kick: a signal that makes a vCPU leave the guest.
//!
//! The thread of a vCPU blocks all signals from its start; only `KVM_RUN` unblocks this one. So it
//! is never delivered (it needs no handler, and the process may have one), and it is never lost:
//! sent before the thread enters the guest, it stays pending and `KVM_RUN` returns at once. It is
//! not a real-time signal: those are queued, for which other processes of the user may have used up
//! the limit.
//!
//! Source: Linux 6.12, Documentation/virt/kvm/api.rst, 4.20 (`KVM_SET_SIGNAL_MASK`).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;

/// The signal. Neither the kernel nor other programs send it.
const KICK: libc::c_int = libc::SIGSTKFLT;
/// Bytes of the kernel's `sigset_t`; libc's is longer.
const KERNEL_SIGSET: usize = 8;
/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`
const KVM_SET_SIGNAL_MASK: libc::Ioctl = 0x4004_ae8b_u32 as libc::Ioctl;

/// `struct kvm_signal_mask` with its set.
#[repr(C)]
struct SignalMask {
    len: u32,
    sigset: [u8; KERNEL_SIGSET],
}

/// Runs `action` with all signals blocked in the calling thread. Threads that it starts inherit
/// that.
pub(super) fn while_blocked<T>(action: impl FnOnce() -> T) -> T {
    let mut all = MaybeUninit::uninit();
    let mut old = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigfillset` initialises the set, `pthread_sigmask` reads it and writes the other
    // one, and neither keeps a pointer. It cannot fail, because the operation is valid.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr());
    }
    let result = action();
    // SAFETY: the set was written by the call above, and a null pointer means that the current mask
    // is not returned.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, old.as_ptr(), ptr::null_mut()) };
    result
}

/// Sets the signal mask of `KVM_RUN` of this vCPU: only a pending kick ends it.
pub(super) fn let_kick_through(vcpu: &VcpuFd) -> io::Result<()> {
    let bits = !(1_u64 << (KICK - 1));
    let mask = SignalMask { len: KERNEL_SIGSET as u32, sigset: bits.to_ne_bytes() };
    // SAFETY: the ioctl reads the struct with this layout, including `len` bytes of the set, and
    // does not keep the pointer.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, &raw const mask) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the vCPU of `thread` leave the guest, now or as soon as it enters it.
pub(super) fn kick<T>(thread: &JoinHandle<T>) {
    // A number in std and glibc, in musl a pointer with the same value.
    let handle = thread.as_pthread_t() as libc::pthread_t;
    // SAFETY: the handle is valid until the thread is joined, which consumes it. The call fails
    // only for a thread that has ended, which needs no kick.
    unsafe { libc::pthread_kill(handle, KICK) };
}

/// Removes pending kicks of the calling thread.
pub(super) fn take_kicks() {
    let mut set = MaybeUninit::uninit();
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `sigemptyset` initialises the set before it is read, all pointers are valid during
    // the calls, and a null pointer means that no details are returned.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), KICK);
        while libc::sigtimedwait(set.as_ptr(), ptr::null_mut(), &raw const now) > 0 {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::*;

    fn pending() -> bool {
        let mut set = MaybeUninit::uninit();
        // SAFETY: the set is written before it is read.
        unsafe {
            libc::sigpending(set.as_mut_ptr());
            libc::sigismember(set.as_ptr(), KICK) == 1
        }
    }

    #[test]
    fn kick_stays_pending_without_a_signal_queue() {
        let limit = getrlimit(Resource::Sigpending);
        setrlimit(Resource::Sigpending, Rlimit { current: Some(0), ..limit }).unwrap();
        let (go, gone) = channel();
        // Kicked before it has done anything.
        let thread = while_blocked(|| {
            std::thread::spawn(move || {
                gone.recv().unwrap();
                let before = pending();
                take_kicks();
                (before, pending())
            })
        });
        (0..100_000).for_each(|_| kick(&thread));
        go.send(()).unwrap();
        assert_eq!(thread.join().unwrap(), (true, false));
        setrlimit(Resource::Sigpending, limit).unwrap();
    }

    #[test]
    fn while_blocked_restores_the_signal_mask() {
        let mask = || {
            let mut set = MaybeUninit::<libc::sigset_t>::uninit();
            // SAFETY: a null pointer changes nothing, and the set is written before it is read.
            unsafe {
                libc::pthread_sigmask(libc::SIG_SETMASK, ptr::null(), set.as_mut_ptr());
                (1..32).map(|signal| libc::sigismember(set.as_ptr(), signal)).collect::<Vec<_>>()
            }
        };
        let before = mask();
        assert_ne!(while_blocked(mask), before);
        assert_eq!(mask(), before);
    }
}
