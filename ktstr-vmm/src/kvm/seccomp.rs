//! The system calls of a vCPU's thread, the only thread that handles data of the guest.
//!
//! Any other call fails with `EPERM`. It does not kill the process, which runs other tests, too:
//! their results must not be lost. The thread is confined either way.
//!
//! So the thread must not log by `tracing`, because a subscriber may write to any descriptor. The
//! machine's owner logs its state changes, see [`hub`](super::hub).

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// The system calls that are allowed with any arguments: locks, memory, signals, the time, the
/// thread's end. Those that are allowed with some arguments are in [`filter`].
const ALLOWED: [libc::c_long; 18] = [
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
];

/// The ioctls that the thread uses, by number.
const IOCTLS: [u32; 6] = [
    0xae80,      // KVM_RUN
    0x4008_ae61, // KVM_IRQ_LINE
    0x4020_aea5, // KVM_SIGNAL_MSI
    0x8090_ae81, // KVM_GET_REGS
    0x8138_ae83, // KVM_GET_SREGS
    0xaead,      // KVM_KVMCLOCK_CTRL
];

/// Compiles the filter.
pub(super) fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let argument = |index, len, value| {
        let condition = SeccompCondition::new(index, len, SeccompCmpOp::Eq, value)?;
        SeccompRule::new(vec![condition])
    };
    let mut rules: Vec<(libc::c_long, Vec<SeccompRule>)> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let ioctls = IOCTLS.iter().map(|number| argument(1, SeccompCmpArgLen::Dword, (*number).into()));
    rules.push((libc::SYS_ioctl, ioctls.collect::<Result<_, _>>()?));
    // The message of a panic on standard error.
    rules.push((libc::SYS_write, vec![argument(0, SeccompCmpArgLen::Dword, 2)?]));
    // Signals to its own process only.
    let own = std::process::id().into();
    rules.push((libc::SYS_tgkill, vec![argument(0, SeccompCmpArgLen::Dword, own)?]));
    // Memory that is not executable.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let is_code = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
        let condition = SeccompCondition::new(2, SeccompCmpArgLen::Dword, is_code, 0)?;
        rules.push((call, vec![SeccompRule::new(vec![condition])?]));
    }
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(
        rules.into_iter().collect(),
        denied,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?
    .try_into()
}

/// Confines the calling thread; this cannot be undone.
pub(super) fn confine(filter: &BpfProgram) -> Result<(), seccompiler::Error> {
    seccompiler::apply_filter(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executable_page() -> std::io::Result<()> {
        let prot = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::EXEC;
        let flags = rustix::mm::MapFlags::PRIVATE;
        // SAFETY: without a fixed address the mapping replaces no other.
        let page = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), 4096, prot, flags) };
        Ok(page.map(drop)?)
    }

    #[test]
    fn confine_allows_a_panic() {
        let filter = filter().unwrap();
        let thread = std::thread::spawn(move || {
            confine(&filter).unwrap();
            assert!(rustix::process::test_kill_process(rustix::process::Pid::INIT).is_err());
            panic!("{}", String::from("a reason").repeat(1000));
        });
        let payload = thread.join().unwrap_err();
        assert!(payload.downcast::<String>().unwrap().starts_with("a reason"));
    }

    #[test]
    fn confine_denies_other_system_calls() {
        let filter = filter().unwrap();
        std::thread::spawn(move || {
            confine(&filter).unwrap();
            let memory = vec![1_u8; 8 << 20];
            assert_eq!(memory.iter().map(|byte| u64::from(*byte)).sum::<u64>(), 8 << 20);
            for result in [
                std::fs::File::open("/dev/null").map(drop),
                std::net::UdpSocket::bind("127.0.0.1:0").map(drop),
                std::process::Command::new("/bin/true").spawn().map(drop),
                executable_page(),
            ] {
                assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EPERM));
            }
        })
        .join()
        .unwrap();
        std::fs::File::open("/dev/null").unwrap();
    }
}
