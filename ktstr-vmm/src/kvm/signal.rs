//! The signal that gets a vCPU out of the guest.
//!
//! Every thread of a vCPU blocks all signals; `KVM_RUN` alone lets this one through. So it is never
//! delivered (it needs no handler, and the process keeps its own), and it cannot be lost: sent
//! before the thread enters the guest, it stays pending and `KVM_RUN` returns at once.
//!
//! Source: Linux 6.12, Documentation/virt/kvm/api.rst, 4.20 (`KVM_SET_SIGNAL_MASK`).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::ptr;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN};

/// Bytes of the kernel's `sigset_t`; that of libc is longer.
const KERNEL_SIGSET: usize = 8;
/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`
const KVM_SET_SIGNAL_MASK: libc::Ioctl = 0x4004_ae8b_u32 as libc::Ioctl;

/// `struct kvm_signal_mask` with its set.
#[repr(C)]
struct SignalMask {
    len: u32,
    sigset: [u8; KERNEL_SIGSET],
}

/// Blocks all signals in the calling thread.
pub(super) fn block_all() -> io::Result<()> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigfillset` initialises the set it is given, and `pthread_sigmask` reads it; neither
    // keeps the pointer. A null pointer means that the old mask is not wanted.
    let error = unsafe {
        libc::sigfillset(set.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut())
    };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Has `KVM_RUN` of this vCPU return when the kick is pending, and for no other signal.
pub(super) fn let_kick_through(vcpu: &VcpuFd) -> io::Result<()> {
    let bits = !(1_u64 << (SIGRTMIN() - 1));
    let mask = SignalMask { len: KERNEL_SIGSET as u32, sigset: bits.to_ne_bytes() };
    // SAFETY: the ioctl reads the struct of this layout, `len` bytes of the set included, and does
    // not keep the pointer.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK, &raw const mask) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gets the vCPU of `thread` out of the guest, now or as soon as it enters it.
pub(super) fn kick(thread: &impl Killable) {
    // It only fails for a thread that has ended, which needs no kick.
    let _ = thread.kill(SIGRTMIN());
}

/// Takes the kicks that are pending for this thread.
pub(super) fn take_kicks() {
    let mut set = MaybeUninit::uninit();
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the set is initialised by `sigemptyset` before it is read, all pointers live through
    // the calls, and a null pointer means that no details are wanted.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), SIGRTMIN());
        while libc::sigtimedwait(set.as_ptr(), ptr::null_mut(), &raw const now) > 0 {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kick_waits_until_it_is_taken() {
        let (ready, wait) = std::sync::mpsc::channel();
        let (go, gone) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            block_all().unwrap();
            ready.send(()).unwrap();
            gone.recv().unwrap();
            take_kicks();
        });
        wait.recv().unwrap();
        kick(&thread);
        kick(&thread);
        go.send(()).unwrap();
        thread.join().unwrap();
    }
}
