//! The errors of KVM, and of setting up a machine for it.
//!
//! They are not in the module `kvm`: [`crate::Error`] contains them, and `kvm` uses that.

use std::io;
use std::path::{Path, PathBuf};

/// A machine could not be created or run on KVM.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An ioctl failed.
    #[error("{ioctl} failed: {source}{}", advice.map(|advice| format!(": {advice}")).unwrap_or_default())]
    Ioctl {
        /// The ioctl's name in the kernel's documentation.
        ioctl: &'static str,
        /// The kernel's answer.
        source: io::Error,
        /// How to fix it, if that is known.
        advice: Option<&'static str>,
    },
    /// KVM lacks a capability that every machine needs.
    #[error(
        "KVM does not support {capability}, which {needed_for}; set KTSTR_ENGINE=qemu to emulate \
         the CPUs"
    )]
    Capability {
        /// The capability's name in the kernel's documentation.
        capability: &'static str,
        /// What it is needed for.
        needed_for: &'static str,
    },
    /// Guest memory could not be set up.
    #[error("failed to {operation} guest memory: {reason}")]
    Memory {
        /// The operation.
        operation: &'static str,
        /// The object of the operation, and why it failed.
        reason: String,
    },
    /// The kernel, its initramfs or its command line cannot be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A thread could not be started or confined.
    #[error("failed to {operation} the thread of vCPU {cpu}: {reason}")]
    Thread {
        /// The operation.
        operation: &'static str,
        /// The number of the vCPU.
        cpu: usize,
        /// Why it failed.
        reason: String,
    },
    /// KVM does not accept the saved value of a register.
    #[error(
        "cannot set MSR {index:#x} of vCPU {cpu} to {value:#x}, its saved value: KVM refuses it"
    )]
    Msr {
        /// The number of the vCPU.
        cpu: usize,
        /// The address of the register.
        index: u32,
        /// The saved value.
        value: u64,
    },
}

impl Error {
    /// Wraps the error of an ioctl; for `map_err`.
    pub(crate) fn ioctl(ioctl: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
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

/// The kernel, its initramfs or its command line cannot be loaded into guest memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// A file cannot be read.
    #[error("failed to read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file is not a kernel that this engine can boot.
    #[error("cannot boot `{}`: {reason}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The field that is wrong, and its expected value.
        reason: String,
    },
    /// Kernel and initramfs do not fit.
    #[error("{memory_mib} MiB of memory are not enough for {what}, which needs {need_mib} MiB")]
    NoRoom {
        /// Kernel or initramfs.
        what: &'static str,
        /// The size that is needed.
        need_mib: u64,
        /// The memory below the hole for devices.
        memory_mib: u64,
    },
    /// The command line is longer than kernels take.
    #[error("the kernel's command line has {len} bytes (maximum {max})")]
    CmdlineTooLong {
        /// Its length.
        len: usize,
        /// The maximum.
        max: usize,
    },
    /// The command line contains a NUL, at which kernels end it.
    #[error("the kernel's command line contains a NUL byte")]
    CmdlineNul,
}

impl BootError {
    /// Wraps the error of reading `path`; for `map_err`.
    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Read { path: path.to_owned(), source }
    }

    /// Returns the error for `what`, which ends at `end`, in memory that ends at `memory_end`.
    pub(crate) fn no_room(what: &'static str, end: u64, memory_end: u64) -> Self {
        Self::NoRoom { what, need_mib: end.div_ceil(1 << 20), memory_mib: memory_end >> 20 }
    }
}
