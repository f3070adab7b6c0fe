//! The engine trait: how a caller runs a machine independently of what runs it.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use ktstr_core::machine::Timing;

use crate::config::VmConfig;
use crate::error::Error;

/// A program or an interface of the kernel that boots virtual machines.
pub trait Engine: fmt::Debug + Send + Sync {
    /// Returns the engine's name and version for reports: `QEMU 11.1.3 (TCG)`.
    fn describe(&self) -> String;

    /// Returns what executes the guest's instructions, on which the meaning of durations depends.
    fn timing(&self) -> Timing;

    /// Boots a machine and returns as soon as its CPUs run.
    ///
    /// The machine may be killed when the calling *thread* ends (not just its process), so that
    /// nothing survives a killed test. Keep that thread until the machine has exited.
    fn boot(&self, config: &VmConfig) -> Result<Box<dyn Vm>, Error>;

    /// Starts a machine from the files that [`Vm::save`] wrote into `dir`, and returns as soon as its
    /// CPUs run. It continues where the saved machine was paused.
    ///
    /// Any number of machines can be restored from a directory, also at the same time. None of them
    /// changes its files, and the directory may be deleted while they run. The files must not be written
    /// or truncated: machines map them, and a page that a file no longer has ends QEMU or, with KVM,
    /// the machine or this process (SIGBUS). On tmpfs a machine allocates the holes of the files that it
    /// accesses, so a full tmpfs has the same effect. The guest's monotonic clock continues from the
    /// save; its wall clock is late by the time that has passed since. All of them start with the same
    /// state of the random number generator, and have the same kernel addresses.
    ///
    /// The calling thread must outlive the machine, as for [`Engine::boot`].
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if a file is missing or has changed, [`Error::OtherMachine`] if another
    /// configuration or another version of the engine was saved: both are fixed by a new save.
    /// [`Error::Unsupported`] if the engine cannot restore machines.
    fn restore(&self, _config: &VmConfig, _dir: &Path) -> Result<Box<dyn Vm>, Error> {
        Err(Error::Unsupported { operation: "be restored: its engine does not support it" })
    }
}

/// A running machine. Dropping it stops the machine and frees all its resources.
pub trait Vm: fmt::Debug {
    /// Waits until `deadline` for the next event of the machine.
    ///
    /// All data that the guest's devices held at its end is delivered before [`Event::Exited`].
    /// After that event every further call returns it again.
    ///
    /// Output can still be lost in the guest's kernel if the caller reads slowly: a write to a port
    /// returns once it is queued, and newer kernels (7.2 does, 6.12 does not) reset virtio devices
    /// with their queues before they power off. A guest that must not lose its last output waits
    /// before it powers off, until the host has answered or stopped it.
    fn next_event(&mut self, deadline: Instant) -> Result<Event, Error>;

    /// Sends bytes to a port, without waiting until the guest reads them.
    ///
    /// Bytes sent before the guest has opened the port are kept for it; bytes that it has not read
    /// when it closes the port are lost. What does not fit into the stream is sent during later
    /// calls. More than 64 MiB of waiting bytes are an error.
    fn send(&mut self, port: usize, bytes: &[u8]) -> Result<(), Error>;

    /// Stops all CPUs until [`Vm::resume`].
    fn pause(&mut self) -> Result<(), Error>;

    /// Resumes the CPUs of a paused machine.
    fn resume(&mut self) -> Result<(), Error>;

    /// Returns the registers of a CPU of a paused machine.
    fn registers(&mut self, cpu: usize) -> Result<Registers, Error>;

    /// Fills `buf` from guest-physical address `gpa`, all of it or nothing.
    ///
    /// The CPUs may run, but several reads are consistent with each other only between
    /// [`Vm::pause`] and [`Vm::resume`]. After the machine has exited, its memory can still be
    /// read, except that of a restored machine whose engine died or that [`Vm::stop`] stopped.
    fn read_memory(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), Error>;

    /// Returns the total time that each CPU's thread was runnable but did not run on the host
    /// (steal time), ordered by CPU. CPUs that share a thread have the same value.
    ///
    /// Source: Linux 6.12, scheduler/sched-stats.rst (`/proc/<pid>/schedstat`).
    fn run_delays(&mut self) -> Result<Vec<Duration>, Error>;

    /// Writes the machine's memory and state into files in `dir`, an empty directory, from which
    /// [`Engine::restore`] starts copies of it.
    ///
    /// The machine is paused meanwhile. Afterwards it runs if it ran before, whether or not it was
    /// saved. Its own memory is separate from the files. Bytes that were sent to a port and that the
    /// guest has not read may not be saved, and output that the caller has not yet read as events is
    /// not: save a machine whose guest waits for a request.
    ///
    /// # Errors
    ///
    /// After an error the files that this call created are deleted. [`Error::Unsupported`] if the
    /// engine cannot save machines, or not those that were themselves restored (QEMU).
    fn save(&mut self, _dir: &Path) -> Result<(), Error> {
        Err(Error::Unsupported { operation: "be saved: its engine does not support it" })
    }

    /// Stops the machine, whatever it does, and returns once it has exited.
    fn stop(&mut self) -> Result<(), Error>;
}

/// Registers of a paused CPU: its position, and how it translates addresses.
///
/// Source: Intel SDM vol. 3A, 2.5 (control registers), 2.2.1 (EFER).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the manual")]
pub struct Registers {
    pub rip: u64,
    pub rsp: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    /// In kernel mode, the base of the CPU's own variables.
    pub gs_base: u64,
}

/// An event of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest wrote to its serial console.
    Console(Vec<u8>),
    /// The guest wrote to a port.
    Port {
        /// Index into [`VmConfig::ports`].
        port: usize,
        /// The bytes; message boundaries are not kept.
        bytes: Vec<u8>,
    },
    /// The machine has exited.
    Exited(ExitReason),
    /// The deadline of the call has passed while the machine runs.
    Deadline,
}

/// Why a machine has exited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest powered off.
    PowerOff,
    /// The guest requested a reset, as a kernel does after a panic with `panic=-1`, or caused a
    /// triple fault.
    Reset,
    /// [`Vm::stop`] stopped it.
    Stopped,
    /// The engine ended although the guest ran.
    EngineDied {
        /// Exit status or signal, as text for reports.
        status: String,
        /// The end of its standard error, or other details.
        stderr: String,
    },
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => write!(f, "the guest powered off"),
            Self::Reset => write!(f, "the guest reset itself"),
            Self::Stopped => write!(f, "the runner stopped the guest"),
            Self::EngineDied { status, stderr } if stderr.trim().is_empty() => {
                write!(f, "the engine exited ({status}) without an error message")
            }
            Self::EngineDied { status, stderr } => {
                write!(f, "the engine exited ({status}): {}", stderr.trim())
            }
        }
    }
}
