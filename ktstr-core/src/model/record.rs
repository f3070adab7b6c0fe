//! The record of a run: every fact that the host has about it, in one value.
//!
//! The host writes it to `run.json` when the run begins, with [`RunEnd::Running`], and again at
//! the end, so that a run which was killed leaves a record too. Reports are made from it alone.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize, Serializer};

use super::machine::MachineSpec;
use super::measurement::Measurement;
use super::result::{KernelEvent, RunEnd, Timings};
use super::snapshot::{CgroupProcsSnapshot, Snapshot};
use super::wire::ScenarioEvent;

pub use super::machine::Timing;
pub use super::measurement::BoundedMeasurements;

/// The argument of `post_vm`: all facts that the host has about the run.
pub type VmResult = RunRecord;

/// The facts of one run of a test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The version of this form: [`RunRecord::SCHEMA`] when it was written.
    pub schema: u32,
    /// Identifies the `cargo test` that the run is a part of; the same in all of its processes.
    pub run: String,
    /// The test, as libtest names it.
    pub test: String,
    /// The version of ktstr.
    pub ktstr: String,
    /// When the run began.
    pub started: SystemTime,
    /// The host.
    pub host: HostFacts,
    /// The requested machine; `None` if it runs on the host.
    pub requested: Option<MachineSpec>,
    /// The machine as it was booted; `None` before that, and if the test runs on the host.
    pub machine: Option<MachineFacts>,
    /// Whether the test is expected to fail, and how.
    pub expect_err: ExpectErr<String>,
    /// Whether an inconclusive verdict passes.
    pub allow_inconclusive: bool,
    /// Whether the guest was booted; `None` before that is known, and if the test runs on
    /// the host.
    #[serde(default)]
    pub start: Option<Start>,
    /// The run in a forked guest that failed, if this is its repetition in a guest that was booted for it.
    #[serde(default)]
    pub forked: Option<Box<RunRecord>>,
    /// How the run ended.
    pub end: RunEnd,
    /// The errors of `post_vm` and `post_vm_unconditional`.
    pub hook_errors: Vec<HookError>,
    /// Whether the test passed, by its end, its expectation and its hooks. `None` before that is
    /// known.
    pub passed: Option<bool>,
    /// The first problems that the guest's kernel reported, in the order of the console.
    pub kernel_events: Vec<KernelEvent>,
    /// How many more problems the console has.
    #[serde(default)]
    pub kernel_events_dropped: usize,
    /// The captures that arrived, the oldest first.
    pub captures: Vec<CgroupProcsSnapshot>,
    /// The snapshots that arrived, the oldest first.
    pub snapshots: Vec<Snapshot>,
    /// What the checks, claims and payloads measured, the oldest first, whether or not there was a
    /// limit and whatever the end of the run.
    pub measurements: Vec<Measurement>,
    /// Whether measurements are missing because there were too many:
    /// [`BoundedMeasurements::MAX_SIZE`].
    pub measurements_truncated: bool,
    /// The operations of the scenario, the oldest first.
    pub events: Vec<ScenarioEvent>,
    /// How long each phase took.
    pub timings: Timings,
    /// The steal time of each of the guest's CPUs as a part, 0.0 to 1.0, of the body's time; empty
    /// if the body did not run or the host does not count it. CPUs that share a thread of the
    /// emulator have the same.
    pub stolen: Vec<f64>,
    /// The files that were written; `None` if there are none.
    pub artifacts: Option<Artifacts>,
    /// The command that runs the test again.
    pub rerun: Option<Rerun>,
    /// The guest's console: the messages of the kernel and of PID 1. In a file of its own.
    #[serde(skip)]
    pub console: String,
    /// What the body and its children wrote to standard output and error. In a file of its own.
    #[serde(skip)]
    pub log: String,
}

impl RunRecord {
    /// The current version of the form. It grows when a field is removed or changes its meaning.
    pub const SCHEMA: u32 = 1;
}

/// Whether a guest was booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// It was booted.
    Booted {
        /// How long it took to save it, so that other guests can be forked from it; `None` if it was not
        /// saved.
        saved_in: Option<Duration>,
    },
    /// It was forked: restored from a guest that was booted and then saved.
    Forked {
        /// The time from the save until now.
        template_age: Duration,
        /// How many guests had been forked from it before.
        uses: u64,
    },
}

/// The host of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The model of its first CPU, as in `/proc/cpuinfo`.
    pub cpu_model: String,
    /// The CPUs that this process may use.
    pub nr_cpus: u32,
    /// The release of its kernel.
    pub kernel: String,
}

/// A machine as it was booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineFacts {
    /// The engine.
    pub engine: EngineFacts,
    /// The kernel.
    pub kernel: KernelFacts,
    /// The requested machine with the kernel that was chosen, more memory if the guest could not boot
    /// with the requested one, and the kernel arguments of `KTSTR_KARGS` too.
    pub spec: MachineSpec,
    /// The kernel's command line.
    pub cmdline: String,
    /// Whether the kernel was booted without page-table isolation, which is the default where
    /// software emulates the CPUs.
    pub pti_disabled: bool,
    /// The initramfs, in the cache.
    #[serde(serialize_with = "path_as_text")]
    pub initramfs: PathBuf,
}

/// An engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFacts {
    /// The value of `KTSTR_ENGINE` that selects it.
    pub name: String,
    /// Its full name with the version: `QEMU 11.1.3 (TCG)`.
    pub version: String,
    /// What executes the guest's instructions.
    pub timing: Timing,
    /// Why it was selected.
    pub reason: String,
}

/// A kernel that was booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelFacts {
    /// Its release, as `uname -r` prints it in the guest.
    pub version: String,
    /// Identifies its image.
    pub image: ImageId,
}

/// Identifies a kernel image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageId {
    /// The SHA-256 of the package that the image was fetched in, as apt verified it.
    PackageSha256(String),
    /// The file that was given.
    File {
        /// Its path.
        #[serde(serialize_with = "path_as_text")]
        path: PathBuf,
        /// The SHA-256 of its content.
        sha256: String,
    },
}

/// Whether a test is expected to fail, and how. `S` is the type of its texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpectErr<S = &'static str> {
    /// It is expected to pass.
    No,
    /// It is expected to fail in any way.
    Any,
    /// It is expected to fail with a description that contains this text.
    Containing(S),
    /// It is expected to fail with a description that this regular expression matches. An invalid
    /// one matches nothing; the attribute refuses it.
    Matching(S),
}

impl<S> ExpectErr<S> {
    /// Returns whether a failure is expected.
    pub fn is_expected(&self) -> bool {
        !matches!(self, Self::No)
    }
}

impl ExpectErr {
    /// Returns the same expectation with texts of its own.
    pub fn into_owned(self) -> ExpectErr<String> {
        match self {
            Self::No => ExpectErr::No,
            Self::Any => ExpectErr::Any,
            Self::Containing(text) => ExpectErr::Containing(text.to_owned()),
            Self::Matching(pattern) => ExpectErr::Matching(pattern.to_owned()),
        }
    }
}

/// An error of a function that examines a run on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookError {
    /// The function.
    pub hook: Hook,
    /// Whether it panicked.
    pub panicked: bool,
    /// Its error, or the message of its panic.
    pub message: String,
}

/// The functions that examine a run on the host, by their keys in the attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// `post_vm`.
    PostVm,
    /// `post_vm_unconditional`.
    PostVmUnconditional,
}

/// The files of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifacts {
    /// Their directory, which has the record as `run.json`.
    #[serde(serialize_with = "path_as_text")]
    pub directory: PathBuf,
    /// The names of the other files in it: the console and the log of a run that failed.
    pub files: Vec<String>,
    /// Why some could not be written.
    pub errors: Vec<String>,
}

/// A command for a shell that runs a test again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rerun {
    /// The command.
    pub command: String,
    /// What keeps it from running the same test.
    pub caveat: Option<RerunCaveat>,
}

/// What keeps a command from running the same test again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RerunCaveat {
    /// The program was unpacked from an archive of nextest with an unknown path.
    UnknownArchive,
    /// Another program has its path now.
    ProgramReplaced,
    /// The program was removed.
    ProgramRemoved,
}

/// Serializes a path that may not be UTF-8. serde refuses these, and would lose the whole record.
fn path_as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::detail::{AssertDetail, DetailKind};
    use crate::model::measurement::Limit;
    use crate::model::result::{
        ClockSpan, ExitKind, GuestExit, InitFailure, KernelEventKind, RunPhase,
    };
    use crate::model::snapshot::ProcIdentity;
    use crate::model::verdict::AssertResult;

    fn record(end: RunEnd, part: f64, text: &str, time: Duration) -> RunRecord {
        let procs = vec![ProcIdentity { pid: 7, comm: text.to_owned(), start_ticks: 9 }];
        let (tag, cgroup) = (text.to_owned(), "cg".to_owned());
        let at_ns = time.as_nanos() as u64;
        RunRecord {
            schema: RunRecord::SCHEMA,
            run: "1-2".to_owned(),
            test: text.to_owned(),
            ktstr: "0.1.0".to_owned(),
            started: SystemTime::UNIX_EPOCH + time,
            host: HostFacts { cpu_model: text.to_owned(), nr_cpus: 4, kernel: "6.1".to_owned() },
            requested: Some(MachineSpec::DEFAULT),
            machine: Some(MachineFacts {
                engine: EngineFacts {
                    name: "kvm".to_owned(),
                    version: text.to_owned(),
                    timing: Timing::Native,
                    reason: text.to_owned(),
                },
                kernel: KernelFacts {
                    version: "6.1".to_owned(),
                    image: ImageId::File { path: text.into(), sha256: text.to_owned() },
                },
                spec: MachineSpec { kargs: text.to_owned().into(), ..MachineSpec::DEFAULT },
                cmdline: text.to_owned(),
                pti_disabled: true,
                initramfs: text.into(),
            }),
            expect_err: ExpectErr::Matching(text.to_owned()),
            allow_inconclusive: true,
            start: Some(Start::Forked { template_age: time, uses: 3 }),
            forked: None,
            end,
            hook_errors: vec![HookError {
                hook: Hook::PostVm,
                panicked: true,
                message: text.to_owned(),
            }],
            passed: Some(false),
            kernel_events: vec![KernelEvent {
                kind: KernelEventKind::OomKill,
                line: text.to_owned(),
            }],
            captures: vec![CgroupProcsSnapshot { tag, cgroup, pids: vec![7], procs, at_ns }],
            snapshots: Vec::new(),
            measurements: vec![Measurement::new(text, part, text).limit(Some(Limit::AtMost(part)))],
            measurements_truncated: true,
            kernel_events_dropped: 3,
            events: vec![ScenarioEvent { at_ns, phase: text.to_owned(), what: text.to_owned() }],
            timings: Timings { body: Some(time), slowness: 1.0 + part, ..Timings::default() },
            stolen: vec![part, 0.0],
            artifacts: Some(Artifacts {
                directory: text.into(),
                files: vec![text.to_owned()],
                errors: vec![text.to_owned()],
            }),
            rerun: Some(Rerun {
                command: text.to_owned(),
                caveat: Some(RerunCaveat::UnknownArchive),
            }),
            console: String::new(),
            log: String::new(),
        }
    }

    fn ends(text: &str, time: Duration) -> Vec<RunEnd> {
        let text = || text.to_owned();
        let (exit, phase) = (GuestExit::Reset, RunPhase::Ready);
        let (arguments, registered) = (vec![text()], vec![text(), text()]);
        let mut ends = vec![
            RunEnd::Running,
            RunEnd::PreparationFailed(text()),
            RunEnd::Verdict(AssertResult::fail(AssertDetail::new(DetailKind::Gap, text()))),
            RunEnd::BodyError(text()),
            RunEnd::BodyPanicked(text()),
            RunEnd::BodyExited { kind: ExitKind::Signaled(9), last_panic: Some(text()) },
            RunEnd::ProtocolViolation(text()),
            RunEnd::BodyOverran { ran: time, allowed: Duration::MAX },
            RunEnd::GuestPanicked(text()),
            RunEnd::GuestHung { silent: time, phase },
            RunEnd::GuestGone { exit, phase, unread_bytes: 3 },
            RunEnd::InitFailed(InitFailure::Reported(text())),
            RunEnd::InitFailed(InitFailure::NoTestRun { arguments, registered }),
            RunEnd::InitFailed(InitFailure::NoOutput { silent: time }),
            RunEnd::InitFailed(InitFailure::ExitedSilently(exit)),
            RunEnd::InitFailed(InitFailure::NotReady { limit: time }),
            RunEnd::WrongTopology(vec![text()]),
            RunEnd::WrongClock { span: ClockSpan::Body, guest: time, host: time },
            RunEnd::WireBroken(text()),
            RunEnd::EngineFailed(text()),
        ];
        let early = ends.iter().map(|end| InitFailure::BeforeBody(Box::new(end.clone())));
        let early: Vec<_> = early.map(RunEnd::InitFailed).collect();
        ends.extend(early);
        ends
    }

    proptest! {
        #[test]
        fn record_survives_json(part in 0.0..=1.0, text in ".{0,9}", nanos in any::<u64>()) {
            let time = Duration::from_nanos(nanos);
            for end in ends(&text, time) {
                let mut record = record(end, part, &text, time);
                record.forked = Some(Box::new(record.clone()));
                record.start = Some(Start::Booted { saved_in: Some(time) });
                let json = serde_json::to_vec(&record).unwrap();
                prop_assert_eq!(serde_json::from_slice::<RunRecord>(&json).unwrap(), record);
            }
        }
    }
}
