//! What the host knows of a run once the guest is gone.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::model::snapshot::{CgroupProcsSnapshot, Snapshot};
use crate::model::verdict::AssertResult;
use crate::model::wire::ScenarioEvent;

pub use super::exit::ExitKind;

/// Everything the host learned from one run in a virtual machine.
#[derive(Debug, Clone, Serialize)]
pub struct VmResult {
    /// The test, as libtest names it.
    pub test: String,
    /// How the run ended.
    pub end: RunEnd,
    /// What the guest's kernel complained about, in the order of the console.
    pub kernel_events: Vec<KernelEvent>,
    /// The captures that arrived, the oldest first.
    pub captures: Vec<CgroupProcsSnapshot>,
    /// The snapshots that arrived, the oldest first.
    pub snapshots: Vec<Snapshot>,
    /// What the scenario did, the oldest first.
    pub events: Vec<ScenarioEvent>,
    /// The guest's console: the kernel's messages and those of PID 1. An artefact of its own.
    #[serde(skip)]
    pub console: String,
    /// What the body and its children wrote to their standard output and error. An artefact of
    /// its own.
    #[serde(skip)]
    pub log: String,
    /// What ran where.
    pub machine: Machine,
    /// How long each phase took.
    pub timings: Timings,
    /// The part, 0.0 to 1.0, of the body's time for which the host kept each of the guest's CPUs
    /// from running; empty if the body did not run or the host does not count it. CPUs that share a
    /// thread of the emulator have the same.
    pub stolen: Vec<f64>,
}

/// How a run ended. Each variant is a class of failure but for a passing [`RunEnd::Verdict`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "class", content = "details", rename_all = "snake_case")]
#[non_exhaustive]
pub enum RunEnd {
    /// The body returned a verdict, which arrived whole.
    Verdict(AssertResult),
    /// The body returned an error.
    BodyError(String),
    /// The body panicked.
    BodyPanicked(String),
    /// The body's process ended without a verdict.
    BodyExited {
        /// How it ended.
        kind: ExitKind,
        /// Message and place of its last panic, which it may have caught long before.
        last_panic: Option<String>,
    },
    /// The body's process sent something other than the messages of a body, or too many: what.
    ProtocolViolation(String),
    /// The body ran longer than its duration and the watchdog allow.
    BodyOverran {
        /// How long it had run.
        ran: Duration,
        /// How long it might.
        allowed: Duration,
    },
    /// The guest's kernel panicked while the body ran: its words.
    GuestPanicked(String),
    /// PID 1 was silent for too long.
    GuestHung {
        /// How long it was silent.
        silent: Duration,
        /// What had been reached before.
        phase: &'static str,
    },
    /// The guest went away without a verdict: how.
    GuestGone(String),
    /// The body was not reached, or PID 1 failed beside it: why.
    InitFailed(String),
    /// The machine was not what the test asked for; the body did not run.
    WrongTopology(Vec<String>),
    /// The guest's clock did not run at the rate of the host's, so that nothing that depends on
    /// time is true: durations, timeouts, rates.
    WrongClock {
        /// What both clocks measured.
        span: ClockSpan,
        /// How long it was by the guest's clock.
        guest: Duration,
        /// How long it was by the host's clock.
        host: Duration,
    },
    /// The wire broke: why.
    WireBroken(String),
    /// The engine failed: why.
    EngineFailed(String),
}

impl RunEnd {
    /// Whether the fault lies with the machinery and says nothing about what was tested.
    ///
    /// Such a run fails the test whatever it expects.
    pub fn is_infrastructure(&self) -> bool {
        matches!(
            self,
            Self::InitFailed(_)
                | Self::WrongTopology(_)
                | Self::WrongClock { .. }
                | Self::WireBroken(_)
                | Self::EngineFailed(_)
        )
    }
}

impl fmt::Display for RunEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verdict(verdict) => write!(f, "{}", verdict.outcome),
            Self::BodyError(error) => write!(f, "the body returned an error: {error}"),
            Self::BodyPanicked(message) => write!(f, "the body panicked: {message}"),
            Self::BodyExited { kind, last_panic } => {
                write!(f, "the body's process ended without a verdict: {kind}")?;
                match last_panic {
                    Some(panic) => write!(f, "; its last panic was: {panic}"),
                    None => Ok(()),
                }
            }
            Self::ProtocolViolation(why) => {
                write!(f, "the body's process violated the result protocol: {why}")
            }
            Self::BodyOverran { ran, allowed } => {
                write!(f, "the body overran: {ran:.1?} passed, {allowed:.1?} were allowed")
            }
            Self::GuestPanicked(message) => write!(f, "the guest's kernel panicked: {message}"),
            Self::GuestHung { silent, phase } => {
                write!(f, "the guest hung: no sign of life for {silent:.1?} {phase}")
            }
            Self::GuestGone(how) => write!(f, "the guest went away without a verdict: {how}"),
            Self::InitFailed(why) => write!(f, "the guest failed before or beside the body: {why}"),
            Self::WrongTopology(differences) => {
                write!(f, "the guest is not the machine asked for: {}", differences.join("; "))
            }
            Self::WrongClock { span, guest, host } => write!(
                f,
                "the guest's clock is wrong: {guest:.1?} {span}, {host:.1?} by the host's clock"
            ),
            Self::WireBroken(why) => write!(f, "the wire from the guest broke: {why}"),
            Self::EngineFailed(why) => write!(f, "the engine failed: {why}"),
        }
    }
}

/// A span of time that both guest and host measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClockSpan {
    /// Since the guest's boot; on the host, since the engine's start.
    Boot,
    /// Since the body's start.
    Body,
}

impl fmt::Display for ClockSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Boot => "since its boot",
            Self::Body => "since the body started",
        })
    }
}

/// A complaint of the guest's kernel, read from its console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KernelEvent {
    /// What kind of complaint.
    pub kind: KernelEventKind,
    /// The line that says so, without its time stamp.
    pub line: String,
}

/// Kinds of kernel complaints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KernelEventKind {
    /// The kernel gave up.
    Panic,
    /// A bug was caught in kernel code.
    Oops,
    /// A `WARN_ON` fired.
    Warning,
    /// A task sat in uninterruptible sleep for too long.
    HungTask,
    /// RCU waited for a CPU for too long.
    RcuStall,
    /// A CPU did not reschedule for too long.
    Lockup,
    /// A process was killed for want of memory.
    OomKill,
}

impl fmt::Display for KernelEventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Panic => "panic",
            Self::Oops => "oops",
            Self::Warning => "WARN",
            Self::HungTask => "hung task",
            Self::RcuStall => "RCU stall",
            Self::Lockup => "lockup",
            Self::OomKill => "OOM kill",
        })
    }
}

/// What a run used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The engine, with its version.
    pub engine: String,
    /// Why this engine.
    pub engine_reason: String,
    /// The engine, as `KTSTR_ENGINE` names it.
    pub engine_name: String,
    /// The kernel, as `KTSTR_KERNEL` names it.
    pub kernel_spec: String,
    /// The kernel's release.
    pub kernel_version: String,
    /// CPUs, caches and nodes, in short form.
    pub topology: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The initramfs, in the cache.
    #[serde(serialize_with = "path_as_text")]
    pub initramfs: PathBuf,
    /// The kernel's command line.
    pub cmdline: String,
    /// Whether the kernel was booted without page-table isolation, which is the default where
    /// software emulates the CPUs.
    pub pti_disabled: bool,
}

/// Serializes a path that may not be UTF-8. serde refuses these, and would lose the whole record.
fn path_as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// How long each phase of a run took. A phase that was not reached is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Timings {
    /// Finding kernel and engine, building the initramfs or finding it in the cache.
    pub prepare: Duration,
    /// Waiting until other guests of this host had left as many of its CPUs as this one has.
    /// `None` if they were free at once.
    pub queue: Option<Duration>,
    /// From the engine's start to the kernel's first line.
    pub first_line: Option<Duration>,
    /// From the engine's start until the kernel ran `/init`, by its own message.
    pub init: Option<Duration>,
    /// The guest's own uptime when PID 1 began.
    pub uptime_at_init: Option<Duration>,
    /// From the engine's start until PID 1 took orders.
    pub boot: Option<Duration>,
    /// From there until the body started: the truth check.
    pub ready: Option<Duration>,
    /// From there until the verdict, or until the run ended without one.
    pub body: Option<Duration>,
    /// The part of `body` after the scenario's last event, which is its last step's hold, arrived.
    /// `None` if there was no event, or no verdict.
    pub last_event_to_verdict: Option<Duration>,
    /// From the end of `body` until the machine was gone.
    pub teardown: Duration,
    /// How many times slower than hardware this machine booted; scales the watchdogs.
    pub slowness: f64,
}
