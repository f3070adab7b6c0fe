//! What can go wrong between this engine and KVM.

use super::boot;

/// A machine could not be made or run on KVM.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// KVM refused.
    #[error("{ioctl} failed: {source}{}", advice.map(|advice| format!(": {advice}")).unwrap_or_default())]
    Ioctl {
        /// The ioctl's name in the kernel's documentation.
        ioctl: &'static str,
        /// Why.
        source: std::io::Error,
        /// What to do about it, where that is known.
        advice: Option<&'static str>,
    },
    /// KVM lacks what every machine here needs.
    #[error("the KVM here lacks {capability}, which {needed_for}; use KTSTR_ENGINE=qemu")]
    Capability {
        /// Its name in the kernel's documentation.
        capability: &'static str,
        /// What for.
        needed_for: &'static str,
    },
    /// Guest memory could not be set up.
    #[error("failed to {operation} guest memory: {reason}")]
    Memory {
        /// What was tried.
        operation: &'static str,
        /// On what, and why it failed.
        reason: String,
    },
    /// The kernel, its initramfs or its command line cannot be put into the machine.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// A thread could not be started or confined.
    #[error("failed to {operation} the thread of vCPU {cpu}: {reason}")]
    Thread {
        /// What was tried.
        operation: &'static str,
        /// The CPU's number.
        cpu: usize,
        /// Why it failed.
        reason: String,
    },
}

impl Error {
    /// Wraps the error of an ioctl; for `map_err`.
    pub(super) fn ioctl(ioctl: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |errno| {
            let source = std::io::Error::from_raw_os_error(errno.errno());
            let advice = match errno.errno() {
                libc::ENOMEM => {
                    Some("the host is out of memory, or the limit of this cgroup is reached")
                }
                libc::EMFILE => Some("too many open files: raise `ulimit -n`"),
                _ => None,
            };
            Self::Ioctl { ioctl, source, advice }
        }
    }
}
