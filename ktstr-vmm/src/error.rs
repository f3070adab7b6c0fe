//! What can go wrong between a caller and its machine.

use std::io;

use crate::kvm::error::Error as KvmError;

/// A machine could not be started, reached or read.
///
/// What the guest does, its panics included, is never an error but an [`Event`](crate::Event).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The [`VmConfig`](crate::VmConfig) describes no machine.
    #[error("cannot build the machine: {0}")]
    Config(String),
    /// The program of the engine could not be executed.
    #[error("{0}: install QEMU, or name its program")]
    Spawn(ktstr_core::linux::process::Error),
    /// The engine's processes could not be held together.
    #[error("cannot hold the engine's processes: {0}")]
    Contain(#[from] ktstr_core::linux::process::Error),
    /// The engine ended before the machine ran: a bad option, or a kernel it cannot load.
    #[error("the engine ended before the machine ran ({status}): {}", or_nothing(stderr))]
    Start {
        /// Exit status or signal, for people.
        status: String,
        /// The end of its standard error.
        stderr: String,
    },
    /// A system call failed.
    #[error("failed to {operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The engine answered a command with an error.
    #[error("the engine refused `{command}`: {reason}")]
    Refused {
        /// The QMP command.
        command: &'static str,
        /// The engine's words.
        reason: String,
    },
    /// The engine did not answer in time.
    #[error("no answer to `{command}` after {seconds} s: the host may be overloaded")]
    Timeout {
        /// The QMP command.
        command: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The engine broke the rules of its control protocol.
    #[error("cannot understand the engine: {0}")]
    Protocol(String),
    /// An address range that is not guest memory.
    #[error("guest-physical range {gpa:#x} + {len:#x} is not memory of this machine")]
    OutsideMemory {
        /// Its first address.
        gpa: u64,
        /// Its length in bytes.
        len: usize,
    },
    /// A port that [`VmConfig::ports`](crate::VmConfig::ports) does not have.
    #[error("the machine has no port {0}")]
    NoPort(usize),
    /// More data than this crate is willing to hold for a reader that does not read.
    #[error("over {limit_mib} MiB wait {direction}")]
    Overflow {
        /// The bound.
        limit_mib: usize,
        /// Whose reading they wait for.
        direction: &'static str,
    },
    /// KVM, or what is put into a machine for it.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Registers of a CPU that runs, or that the machine does not have.
    #[error("cannot read the registers of CPU {cpu}: it is not paused, or there is no such CPU")]
    NotPaused {
        /// The CPU's number.
        cpu: usize,
    },
    /// A guest-virtual address behind which there is nothing.
    #[error("guest-virtual address {gva:#x} is not mapped")]
    NotMapped {
        /// The address.
        gva: u64,
    },
    /// It cannot be done on this machine.
    #[error("this machine cannot {operation}")]
    Unsupported {
        /// What was asked of it.
        operation: &'static str,
    },
    /// The machine has ended.
    #[error("cannot {operation}: the machine is gone")]
    Gone {
        /// What was asked of it.
        operation: &'static str,
    },
}

impl Error {
    /// Wraps the error of a system call; for `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { operation, source: source.into() }
    }
}

fn or_nothing(stderr: &str) -> &str {
    match stderr.trim() {
        "" => "it said nothing",
        text => text,
    }
}
