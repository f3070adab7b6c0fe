//! How a run ended, and what was measured of the run itself.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use super::exit::ExitKind;
use super::verdict::AssertResult;

/// How a run ended. Each variant is a class of failure except a passing [`RunEnd::Verdict`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "class", content = "details", rename_all = "snake_case")]
#[non_exhaustive]
pub enum RunEnd {
    /// The run has not ended. A record that stays so belongs to a run that was killed.
    Running,
    /// The machine could not be prepared, so nothing was booted: why.
    PreparationFailed(String),
    /// The body returned a verdict, which arrived complete.
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
        /// How long it was allowed to run.
        allowed: Duration,
    },
    /// The guest's kernel panicked while the body ran: the kernel's message.
    GuestPanicked(String),
    /// PID 1 sent nothing for too long.
    GuestHung {
        /// Since when nothing had arrived.
        silent: Duration,
        /// The phase that had been reached.
        phase: RunPhase,
    },
    /// The guest exited without a verdict.
    GuestGone {
        /// How it exited.
        exit: GuestExit,
        /// The phase that had been reached.
        phase: RunPhase,
        /// How many bytes of an incomplete message had arrived.
        unread_bytes: usize,
    },
    /// The body was not reached, or PID 1 failed while the body ran.
    InitFailed(InitFailure),
    /// The guest does not have the requested machine; the body did not run.
    WrongTopology(Vec<String>),
    /// The guest's clock did not run at the rate of the host's, so that everything that depends on
    /// time is wrong: durations, timeouts, rates.
    WrongClock {
        /// What both clocks measured.
        span: ClockSpan,
        /// How long it was by the guest's clock.
        guest: Duration,
        /// How long it was by the host's clock.
        host: Duration,
    },
    /// The guest's messages could not be decoded, or came in an order that PID 1 does not send: why.
    WireBroken(String),
    /// The engine failed: why.
    EngineFailed(String),
}

impl RunEnd {
    /// Returns whether the failure is the framework's or the host's, not that of what was tested.
    ///
    /// Such a run fails the test whatever it expects.
    pub fn is_infrastructure(&self) -> bool {
        matches!(
            self,
            Self::Running
                | Self::PreparationFailed(_)
                | Self::InitFailed(_)
                | Self::WrongTopology(_)
                | Self::WrongClock { .. }
                | Self::WireBroken(_)
                | Self::EngineFailed(_)
        )
    }
}

impl fmt::Display for RunEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = Duration::as_secs_f64;
        match self {
            Self::Running => write!(f, "the run has not ended"),
            Self::PreparationFailed(why) => write!(f, "cannot prepare the machine: {why}"),
            Self::Verdict(verdict) => write!(f, "{}", verdict.outcome),
            Self::BodyError(error) => write!(f, "test body returned an error: {error}"),
            Self::BodyPanicked(message) => write!(f, "test body panicked: {message}"),
            Self::BodyExited { kind, last_panic } => {
                write!(f, "test body exited without reporting a result: {kind}")?;
                match last_panic {
                    Some(panic) => write!(f, "; its last panic was: {panic}"),
                    None => Ok(()),
                }
            }
            Self::ProtocolViolation(why) => {
                write!(f, "test body violated the result protocol: {why}")
            }
            Self::BodyOverran { ran, allowed } => {
                let (ran, allowed) = (seconds(ran), seconds(allowed));
                write!(f, "test body timed out after {ran:.1} s (limit {allowed:.1} s)")
            }
            Self::GuestPanicked(message) => write!(f, "guest kernel panicked: {message}"),
            Self::GuestHung { silent, phase } => {
                write!(f, "guest hung: no message for {:.1} s {phase}", seconds(silent))
            }
            Self::GuestGone { exit, phase, unread_bytes } => {
                write!(f, "guest exited without reporting a result: {exit} {phase}")?;
                match unread_bytes {
                    0 => Ok(()),
                    bytes => write!(f, ", {bytes} bytes into an incomplete message"),
                }
            }
            Self::InitFailed(why) => write!(f, "guest setup failed: {why}"),
            Self::WrongTopology(differences) => {
                write!(f, "guest is not the requested machine: {}", differences.join("; "))
            }
            Self::WrongClock { span, guest, host } => {
                let (guest, host) = (seconds(guest), seconds(host));
                write!(
                    f,
                    "guest clock is wrong: {guest:.1} s {span}, {host:.1} s by the host's clock"
                )
            }
            Self::WireBroken(why) => write!(f, "guest broke the wire protocol: {why}"),
            Self::EngineFailed(why) => write!(f, "engine failed: {why}"),
        }
    }
}

named_enum! {
    /// How a guest exits.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum GuestExit {
        /// It powered off.
        PoweredOff => "it powered off",
        /// It reset itself, or crashed by a triple fault.
        Reset => "it reset itself",
        /// The runner stopped it.
        Stopped => "the runner stopped it",
    }
}

/// Why a guest did not run the body, or PID 1 failed while the body ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitFailure {
    /// A message of PID 1, of the dynamic loader or of the kernel.
    Reported(String),
    /// PID 1 exited with status 0: libtest found none of the requested tests.
    NoTestRun {
        /// The arguments of PID 1.
        arguments: Vec<String>,
        /// The tests in the registry of the binary.
        registered: Vec<String>,
    },
    /// The kernel printed nothing.
    NoOutput {
        /// For how long.
        silent: Duration,
    },
    /// The guest exited before its kernel printed anything.
    ExitedSilently(GuestExit),
    /// The boot took too long.
    NotReady {
        /// The longest boot that is allowed.
        limit: Duration,
    },
    /// The run ended in this way before the body started.
    BeforeBody(Box<RunEnd>),
}

impl fmt::Display for InitFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NO_OUTPUT_HINT: &str =
            "the kernel image may be damaged or for another machine, or the memory too small";
        match self {
            Self::Reported(message) => f.write_str(message),
            Self::NoTestRun { arguments, registered } => write!(
                f,
                "PID 1 exited with status 0: its program runs none of the tests that it was asked \
                 for. Its arguments were {arguments:?}; the registry of this binary has {registered:?}"
            ),
            Self::NoOutput { silent } => write!(
                f,
                "its kernel printed nothing for {:.0} s; {NO_OUTPUT_HINT}",
                silent.as_secs_f64()
            ),
            Self::ExitedSilently(exit) => {
                write!(f, "{exit} {}; {NO_OUTPUT_HINT}", RunPhase::Silent)
            }
            Self::NotReady { limit } => {
                write!(f, "it is not ready after {:.0} s", limit.as_secs_f64())
            }
            Self::BeforeBody(end) => write!(f, "{end}"),
        }
    }
}

named_enum! {
    /// The phases of a run, each named by what has been reached.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum RunPhase {
        /// Nothing has arrived from the guest.
        Silent => "before its kernel printed anything",
        /// The kernel has written to the console.
        Booting => "while it booted",
        /// PID 1 has its request.
        Ready => "before the body started",
        /// The body runs.
        Body => "while the body ran",
    }
}

named_enum! {
    /// A span of time that both guest and host measure.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum ClockSpan {
        /// Since the guest's boot; on the host, since the engine's start.
        Boot => "since its boot",
        /// Since the body's start.
        Body => "since the test body started",
    }
}

/// A problem that the guest's kernel reported on its console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelEvent {
    /// The kind of problem.
    pub kind: KernelEventKind,
    /// The line of the console, without its time stamp.
    pub line: String,
}

named_enum! {
    /// Kinds of problems that a kernel reports.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    #[non_exhaustive]
    pub enum KernelEventKind {
        /// The kernel panicked.
        Panic => "panic",
        /// A bug was caught in kernel code.
        Oops => "oops",
        /// A `WARN_ON` fired.
        Warning => "WARN",
        /// A task was in uninterruptible sleep for too long.
        HungTask => "hung task",
        /// RCU waited for a CPU for too long.
        RcuStall => "RCU stall",
        /// A CPU did not reschedule for too long.
        Lockup => "lockup",
        /// A process was killed because memory ran out.
        OomKill => "OOM kill",
    }
}

/// How long each phase of a run took. A phase that was not reached is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Finding kernel and engine, building the initramfs or finding it in the cache.
    pub prepare: Duration,
    /// Waiting while the guest of another test booted, to fork this one from it. `None` if that was not
    /// necessary.
    #[serde(default)]
    pub template: Option<Duration>,
    /// Waiting until other guests of this host had released as many of its CPUs as this one has.
    /// `None` if they were free at once.
    pub queue: Option<Duration>,
    /// From the engine's start to the kernel's first line.
    pub first_line: Option<Duration>,
    /// From the engine's start until the kernel ran `/init`, by its own message.
    pub init: Option<Duration>,
    /// The guest's own uptime when PID 1 began.
    pub uptime_at_init: Option<Duration>,
    /// From the engine's start until PID 1 was ready for requests; `None` for a forked guest.
    pub boot: Option<Duration>,
    /// From the engine's start until a forked guest continued.
    #[serde(default)]
    pub restore: Option<Duration>,
    /// From there until the body started: the checks of the machine.
    pub ready: Option<Duration>,
    /// From there until the verdict, or until the run ended without one.
    pub body: Option<Duration>,
    /// The part of `body` after the scenario's last event, which is its last step's hold, arrived.
    /// `None` if there was no event, or no verdict.
    pub last_event_to_verdict: Option<Duration>,
    /// From the end of `body` until the machine had stopped.
    pub teardown: Duration,
    /// How many times slower than hardware this machine booted, or a forked one began the body; scales the
    /// watchdogs.
    pub slowness: f64,
}
