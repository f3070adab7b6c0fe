//! What can go wrong between this engine and KVM.

use std::io;
use std::path::{Path, PathBuf};

use super::layout::CMDLINE_SIZE;

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
        source: io::Error,
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
    Boot(#[from] BootError),
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
            let source = io::Error::from_raw_os_error(errno.errno());
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

/// Something that has to be in memory before the first instruction cannot be put there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// A file cannot be read.
    #[error("failed to read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is no kernel that this engine can boot.
    #[error("cannot boot `{}`: {reason}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The field that is wrong, and what would be right.
        reason: String,
    },
    /// Kernel and initramfs do not fit.
    #[error("{memory_mib} MiB of memory are too little for {what} of {need_mib} MiB")]
    NoRoom {
        /// Kernel or initramfs.
        what: &'static str,
        /// What it takes.
        need_mib: u64,
        /// What there is below the hole for devices.
        memory_mib: u64,
    },
    /// The command line is longer than kernels take.
    #[error("the kernel's command line has {len} bytes of at most {}", CMDLINE_SIZE - 1)]
    CmdlineTooLong {
        /// Its length.
        len: usize,
    },
    /// The command line would end in its middle.
    #[error("the kernel's command line holds a NUL byte")]
    CmdlineNul,
}

impl BootError {
    /// Wraps the error of reading `path`; for `map_err`.
    pub(super) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Read { path: path.to_owned(), source }
    }

    /// Returns the error for `what`, which ends at `end`, in memory that ends at `memory_end`.
    pub(super) fn no_room(what: &'static str, end: u64, memory_end: u64) -> Self {
        Self::NoRoom { what, need_mib: end.div_ceil(1 << 20), memory_mib: memory_end >> 20 }
    }
}
