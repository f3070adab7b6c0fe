//! The error of starting, controlling or reading a machine.

use std::io;
use std::path::PathBuf;

use crate::kvm_error::Error as KvmError;

/// A machine could not be started, reached or read.
///
/// What the guest does, including a panic, is never an error but an [`Event`](crate::Event).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The [`VmConfig`](crate::VmConfig) does not describe a possible machine.
    #[error("cannot build the machine: {0}")]
    Config(String),
    /// The program of the engine could not be executed.
    #[error("{0}; install QEMU, or set KTSTR_QEMU to its path")]
    Spawn(ktstr_core::linux::process::Error),
    /// The cgroup or process group of the engine failed.
    #[error("cannot control the engine's processes: {0}")]
    Contain(#[from] ktstr_core::linux::process::Error),
    /// The engine exited before the machine ran: a bad option, or a kernel that it cannot load.
    #[error("the engine exited before the machine ran ({status}): {}", or_no_message(stderr))]
    Start {
        /// Exit status or signal, as text for reports.
        status: String,
        /// The end of its standard error.
        stderr: String,
    },
    /// A system call failed.
    #[error("failed to {operation}: {source}")]
    Io {
        /// The operation.
        operation: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A system call on a file failed.
    #[error("failed to {operation} `{}`: {source}", path.display())]
    File {
        /// The operation.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file of a saved machine is missing, or has changed since it was written.
    #[error(
        "cannot restore the machine: `{}` {reason}; delete its directory and save a machine again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with the file.
        reason: String,
    },
    /// A directory has another machine than the one to restore.
    #[error("cannot restore the machine: `{}` has another one: {difference}", dir.display())]
    OtherMachine {
        /// The directory.
        dir: PathBuf,
        /// The first difference.
        difference: String,
    },
    /// The engine failed to write or load the state of a machine.
    #[error("the engine failed to {operation} the machine: {reason}")]
    Migrate {
        /// `save` or `restore`.
        operation: &'static str,
        /// The engine's description of the error.
        reason: String,
    },
    /// The engine answered a command with an error.
    #[error("the engine refused `{command}`: {reason}")]
    Refused {
        /// The QMP command.
        command: &'static str,
        /// The engine's description of the error.
        reason: String,
    },
    /// The engine did not answer in time.
    #[error("timed out waiting for `{command}` ({seconds} s): the host may be overloaded")]
    Timeout {
        /// The QMP command.
        command: &'static str,
        /// How long this process waited.
        seconds: u64,
    },
    /// The engine violated its control protocol.
    #[error("unexpected data from the engine: {0}")]
    Protocol(String),
    /// An address range is not guest memory.
    #[error("guest-physical range {gpa:#x} + {len:#x} is not memory of this machine")]
    OutsideMemory {
        /// Its first address.
        gpa: u64,
        /// Its length in bytes.
        len: usize,
    },
    /// [`VmConfig::ports`](crate::VmConfig::ports) does not have this port.
    #[error("the machine has no port {0}")]
    NoPort(usize),
    /// More data waits for its reader than this crate keeps.
    #[error("more than {limit_mib} MiB are waiting {direction}")]
    Overflow {
        /// The limit.
        limit_mib: usize,
        /// Which reader the data waits for.
        direction: &'static str,
    },
    /// KVM failed, or the memory of a machine for KVM could not be set up.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The CPU is running, or the machine does not have it.
    #[error("cannot read the registers of CPU {cpu}: it is not paused, or does not exist")]
    NotPaused {
        /// The CPU's number.
        cpu: usize,
    },
    /// No page is mapped at a guest-virtual address.
    #[error("guest-virtual address {gva:#x} is not mapped")]
    NotMapped {
        /// The address.
        gva: u64,
    },
    /// The machine does not support an operation.
    #[error("this machine cannot {operation}")]
    Unsupported {
        /// The operation.
        operation: &'static str,
    },
    /// The machine has exited.
    #[error("cannot {operation}: the machine has exited")]
    Gone {
        /// The operation.
        operation: &'static str,
    },
}

impl Error {
    /// Wraps the error of a system call; for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { operation, source: source.into() }
    }

    /// Wraps the error of a system call on a file; for `map_err`.
    pub(crate) fn file<E: Into<io::Error>>(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::File { operation, path: path.into(), source: source.into() }
    }
}

fn or_no_message(stderr: &str) -> &str {
    match stderr.trim() {
        "" => "no error message",
        text => text,
    }
}
