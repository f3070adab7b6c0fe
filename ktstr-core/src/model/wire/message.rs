//! The messages of the wire.

use std::ffi::OsString;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::exit::ExitKind;
use crate::model::machine::MachineSpec;
use crate::model::measurement::Measurement;
use crate::model::snapshot::{CgroupProcsSnapshot, Snapshot};
use crate::model::text::cut;
use crate::model::verdict::AssertResult;

/// A message from the host to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Run one test of the binary.
    Run(RunRequest),
    /// Run a program and send its output in [`GuestMessage::Log`].
    Shell(ShellRequest),
    /// Input for the program of [`Request::Shell`]; no bytes are the end of the input.
    Input(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The terminal of the program of [`Request::Shell`] now has these rows and columns.
    Resize(u16, u16),
    /// Kill the program of [`Request::Shell`].
    Kill,
}

/// A program to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShellRequest {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Variables to set for it.
    pub env: Vec<(OsString, OsString)>,
    /// Rows and columns of its terminal; `None` gives it pipes.
    pub terminal: Option<(u16, u16)>,
    /// The machine that the guest is expected to be; on any other, nothing is run.
    pub machine: MachineSpec,
}

/// A test to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRequest {
    /// The test, as libtest names it.
    pub test: String,
    /// The machine that the guest is expected to be; on any other, the body is not run.
    pub machine: MachineSpec,
    /// Variables to set for the body, such as `RUST_LOG`.
    pub env: Vec<(OsString, OsString)>,
    /// What the guest needs if it was restored from a saved one; `None` if it was booted.
    pub restored: Option<Restored>,
}

/// What PID 1 applies to a restored guest before the body starts: its copies have all else in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// The host's wall-clock time, since the epoch.
    pub wall_clock: Duration,
    /// Random bytes that no other guest receives.
    #[serde(with = "serde_bytes")]
    pub entropy: Vec<u8>,
}

impl Restored {
    /// The length of [`Restored::entropy`]: twice what seeds the kernel's generator.
    pub const ENTROPY: usize = 64;
}

/// A message from the guest to the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum GuestMessage {
    /// PID 1 is ready for a request.
    Hello(Hello),
    /// The machine is the requested one; the body starts now.
    BodyStarted {
        /// Nanoseconds since the guest booted.
        at_ns: u64,
    },
    /// PID 1 is alive.
    Heartbeat {
        /// Nanoseconds since the guest booted.
        at_ns: u64,
    },
    /// Output of the body or of its descendants.
    Log {
        /// The stream that was written to.
        stream: Stream,
        /// The bytes that were written; lines may be split anywhere.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// An operation of the scenario.
    Event(ScenarioEvent),
    /// A capture, sent when it was taken.
    Capture(CgroupProcsSnapshot),
    /// A snapshot, sent when it was taken.
    Snapshot(Snapshot),
    /// What the body measured, sent when it was measured.
    Measurements(Vec<Measurement>),
    /// The body panicked. It may still catch the panic and return.
    Panic {
        /// Message and location, as the panic hook received them.
        message: String,
    },
    /// A file will follow [`GuestMessage::End`], in pieces.
    File {
        /// Its purpose.
        kind: FileKind,
        /// Its length in bytes.
        length: u64,
    },
    /// The run is over. Nothing follows except the file that was announced.
    End(End),
    /// The next piece of the file that was announced.
    FilePiece(#[serde(with = "serde_bytes")] Vec<u8>),
}

/// The purpose of a file that the guest sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// The profile of an instrumented body, as LLVM's runtime writes it.
    Profile,
}

/// An output stream of a process.
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
    /// When the code of PID 1 began, in nanoseconds since the guest booted.
    pub init_ns: u64,
    /// When PID 1 was ready, in nanoseconds since the guest booted.
    pub ready_ns: u64,
}

/// An operation of the scenario.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScenarioEvent {
    /// Nanoseconds since the guest booted.
    pub at_ns: u64,
    /// The phase of the scenario: `backdrop`, or `step 2`.
    pub phase: String,
    /// The operation that was done, or began.
    pub what: String,
}

/// How a run ended, as seen by PID 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum End {
    /// The body returned a verdict.
    Verdict(AssertResult),
    /// The body returned an error: the chain of its causes.
    Error(String),
    /// The body panicked: message and location.
    Panicked(String),
    /// The body's process ended without a verdict.
    Exited {
        /// How it ended.
        kind: ExitKind,
        /// Message and location of its last panic, which it may have caught long before.
        last_panic: Option<String>,
    },
    /// The body's process sent PID 1 a message that a body must not send: which.
    ProtocolViolation(String),
    /// The machine is not the requested one; the body did not run. One line per difference.
    WrongTopology(Vec<String>),
    /// The guest cannot carry out the request: the reason.
    Refused(String),
    /// The program of [`Request::Shell`] ended with this status, as a shell shows it.
    ShellExited(u8),
}

impl End {
    /// Bounds its size, so that it fits a frame of the wire whatever the body reports, and a report
    /// whatever the guest sends.
    pub fn shorten(&mut self) {
        const TEXT: usize = 8 << 10;
        const LINES: usize = 100;
        match self {
            Self::Verdict(verdict) => verdict.shorten(),
            Self::Error(text)
            | Self::Panicked(text)
            | Self::ProtocolViolation(text)
            | Self::Refused(text) => cut(text, TEXT),
            Self::Exited { last_panic, .. } => {
                last_panic.iter_mut().for_each(|text| cut(text, TEXT))
            }
            Self::WrongTopology(lines) => {
                lines.truncate(LINES);
                lines.iter_mut().for_each(|line| cut(line, TEXT / 8));
            }
            Self::ShellExited(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::wire::Payload;

    #[test]
    fn shorten_makes_every_end_small() {
        let long = || "\u{20ac}".repeat(1 << 20);
        let kind = ExitKind::Exited(1);
        for mut end in [
            End::Verdict(AssertResult::fail_msg(long())),
            End::Error(long()),
            End::Panicked(long()),
            End::Exited { kind, last_panic: Some(long()) },
            End::ProtocolViolation(long()),
            End::WrongTopology(vec![long(); 110]),
            End::Refused(long()),
        ] {
            end.shorten();
            Payload::encode(&end).unwrap();
            let json = serde_json::to_string(&end).unwrap();
            assert!(json.len() < 256 << 10, "{} bytes", json.len());
        }
    }
}
