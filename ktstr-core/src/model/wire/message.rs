//! The messages of the wire.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use crate::model::exit::ExitKind;
use crate::model::machine::MachineSpec;
use crate::model::snapshot::{CgroupProcsSnapshot, Snapshot};
use crate::model::verdict::AssertResult;

/// From the host to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Run one test of the binary.
    Run(RunOrder),
    /// Run a program, its output in [`Report::Log`].
    Shell(ShellOrder),
    /// Input for the program of [`Order::Shell`]; nothing means that there will be no more.
    Input(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The terminal of the program of [`Order::Shell`] now has these rows and columns.
    Resize(u16, u16),
    /// Kill the program of [`Order::Shell`].
    Kill,
}

/// Which program to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShellOrder {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Variables to set for it.
    pub env: Vec<(OsString, OsString)>,
    /// Rows and columns of the terminal it gets; `None` gives it pipes.
    pub terminal: Option<(u16, u16)>,
    /// The machine that the guest is expected to be; on any other, nothing is run.
    pub machine: MachineSpec,
}

/// Which test to run, and what the guest cannot know by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunOrder {
    /// The test, as libtest names it.
    pub test: String,
    /// The machine that the guest is expected to be; on any other, the body is not run.
    pub machine: MachineSpec,
    /// Variables to set for the body, such as `RUST_LOG`.
    pub env: Vec<(OsString, OsString)>,
}

/// From the guest to the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Report {
    /// PID 1 is up and takes orders.
    Hello(Hello),
    /// The machine is what the test asked for; its body starts now.
    BodyStarted {
        /// Nanoseconds since the guest booted.
        at_ns: u64,
    },
    /// PID 1 lives.
    Heartbeat {
        /// Nanoseconds since the guest booted.
        at_ns: u64,
    },
    /// Something the body, or what it started, wrote.
    Log {
        /// Where it wrote.
        stream: Stream,
        /// What it wrote; lines may be split anywhere.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// A step of the scenario.
    Event(ScenarioEvent),
    /// A capture, sent as it was taken.
    Capture(CgroupProcsSnapshot),
    /// A snapshot, sent as it was taken.
    Snapshot(Snapshot),
    /// The body panicked. It may still catch the panic and end well.
    Panic {
        /// Message and place, as the panic hook was told.
        message: String,
    },
    /// A file will follow [`Report::End`], in pieces.
    File {
        /// What it is.
        kind: FileKind,
        /// Its length in bytes.
        length: u64,
    },
    /// The run is over. Nothing follows but the file that was announced.
    End(End),
    /// The next piece of the file that was announced.
    FilePiece(#[serde(with = "serde_bytes")] Vec<u8>),
}

/// What a file of the guest is to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// The profile of an instrumented body, as LLVM's runtime writes it.
    Profile,
}

/// Which of its streams a process wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The first message of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// `uname -r`.
    pub release: String,
    /// When PID 1's own code began, in nanoseconds since the guest booted.
    pub init_ns: u64,
    /// When it was ready, in nanoseconds since the guest booted.
    pub ready_ns: u64,
}

/// Something the scenario did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScenarioEvent {
    /// Nanoseconds since the guest booted.
    pub at_ns: u64,
    /// Where in the scenario: `backdrop`, or `step 2`.
    pub phase: String,
    /// What was done, or began.
    pub what: String,
}

/// How a run ended, as PID 1 saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum End {
    /// The body returned a verdict.
    Verdict(AssertResult),
    /// The body returned an error: the chain of its causes.
    Error(String),
    /// The body panicked: message and place.
    Panicked(String),
    /// The body's process ended without a verdict.
    Exited {
        /// How it ended.
        kind: ExitKind,
        /// Message and place of its last panic, which it may have caught long before.
        last_panic: Option<String>,
    },
    /// The body's process sent PID 1 something other than the messages of a body: what.
    ProtocolViolation(String),
    /// The machine is not what the test asked for; the body did not run. One line per difference.
    WrongTopology(Vec<String>),
    /// The guest cannot carry out the order: why.
    Refused(String),
    /// The program of [`Order::Shell`] ended with this status, as a shell reports it.
    ShellExited(u8),
}
