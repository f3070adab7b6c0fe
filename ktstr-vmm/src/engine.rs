//! The engine trait: how a caller runs a machine without knowing what runs it.

use std::fmt;
use std::time::{Duration, Instant};

use crate::config::VmConfig;
use crate::error::Error;

/// Something that boots virtual machines.
pub trait Engine: fmt::Debug + Send + Sync {
    /// What it is, for people: `QEMU 11.1.3 (TCG)`.
    fn describe(&self) -> String;

    /// Returns what executes the guest's instructions, on which the meaning of durations depends.
    fn timing(&self) -> Timing;

    /// Starts a machine; returns as soon as it runs.
    ///
    /// The machine may die with the calling *thread* (not just its process), so that nothing
    /// survives a killed test: keep that thread until the machine is gone.
    fn boot(&self, config: &VmConfig) -> Result<Box<dyn Vm>, Error>;
}

/// What executes the instructions of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    /// CPUs of the host: durations in the guest are those of hardware.
    Native,
    /// Software: code runs many times slower, and unevenly so.
    Emulated,
}

/// A running machine. Dropping it stops it and leaves nothing behind.
pub trait Vm: fmt::Debug {
    /// Waits for the next thing the machine does, until `deadline`.
    ///
    /// Everything the guest's devices held at its end is delivered before [`Event::Exited`]; once
    /// that was returned, it is returned again by every later call.
    ///
    /// A slow reader of a port can still lose its end to the guest's kernel: a write returns once
    /// it is queued, and newer kernels (7.2 does, 6.12 does not) reset virtio devices, queues and
    /// all, before they switch off. A guest to which the end matters waits, before it switches
    /// off, until the host has answered or stopped it.
    fn next_event(&mut self, deadline: Instant) -> Result<Event, Error>;

    /// Sends bytes into a port, without waiting for anybody to read them.
    ///
    /// Bytes sent before the guest has opened the port wait for it; what it leaves unread when it
    /// closes the port is lost. What does not fit into the wires goes on during the other calls;
    /// over 64 MiB of it are an error.
    fn send(&mut self, port: usize, bytes: &[u8]) -> Result<(), Error>;

    /// Stops all CPUs until [`Vm::resume`].
    fn pause(&mut self) -> Result<(), Error>;

    /// Lets the CPUs of a paused machine go on.
    fn resume(&mut self) -> Result<(), Error>;

    /// The registers of a CPU of a paused machine.
    fn registers(&mut self, cpu: usize) -> Result<Registers, Error>;

    /// Fills `buf` from guest-physical address `gpa`, all of it or nothing.
    ///
    /// The CPUs may run, but only between [`Vm::pause`] and [`Vm::resume`] do several reads fit
    /// together. Once the machine is gone its memory is still there as the guest left it.
    fn read_memory(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), Error>;

    /// For how long the host has kept each CPU from running so far, in the order of the CPUs: the
    /// time its thread was runnable and waited. CPUs that share a thread have the same.
    ///
    /// Source: Linux 6.12, scheduler/sched-stats.rst (`/proc/<pid>/schedstat`).
    fn run_delays(&mut self) -> Result<Vec<Duration>, Error>;

    /// Ends the machine now, whatever it does. Returns when it is gone.
    fn stop(&mut self) -> Result<(), Error>;
}

/// Registers of a paused CPU: where it is, and how its addresses are translated.
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
    /// In the kernel, where the CPU's own variables are.
    pub gs_base: u64,
}

/// What a machine did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest wrote to its serial console.
    Console(Vec<u8>),
    /// The guest wrote to a port.
    Port {
        /// Index into [`VmConfig::ports`].
        port: usize,
        /// What it wrote; message boundaries are not kept.
        bytes: Vec<u8>,
    },
    /// The machine is gone.
    Exited(ExitReason),
    /// The deadline of the call has passed; the machine still runs.
    Deadline,
}

/// Why a machine is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset, as a kernel does after a panic with `panic=-1`, or crashed by
    /// a triple fault.
    Reset,
    /// [`Vm::stop`] ended it.
    Stopped,
    /// The engine itself died: how, and the last it said.
    EngineDied {
        /// Exit status or signal, for people.
        status: String,
        /// The end of its standard error.
        stderr: String,
    },
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => write!(f, "the guest switched itself off"),
            Self::Reset => write!(f, "the guest reset itself"),
            Self::Stopped => write!(f, "the runner stopped the guest"),
            Self::EngineDied { status, stderr } if stderr.trim().is_empty() => {
                write!(f, "the engine died ({status}) and said nothing")
            }
            Self::EngineDied { status, stderr } => {
                write!(f, "the engine died ({status}): {}", stderr.trim())
            }
        }
    }
}
