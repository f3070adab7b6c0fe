//! The host side of a run: from a [`TestEntry`] to a verdict.

mod artifacts;
mod clocks;
mod console;
mod echo;
mod engine;
mod environment;
#[doc(hidden)]
pub mod fuzzing;
mod host_cpus;
mod initramfs;
pub mod nested;
mod parent;
mod payloads;
mod prepare;
mod profile;
mod program;
pub(crate) mod record;
mod rerun;
mod session;
pub mod shell;
mod template;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use ktstr_core::guest::agent::{self, Harness};
use ktstr_core::process;
use ktstr_core::record::{BoundedMeasurements, Hook, HookError, RunRecord, Start, VmResult};
use ktstr_core::registry::TestEntry;
use ktstr_core::result::{RunEnd, Timings};
use ktstr_core::topology::TestTopology;
use ktstr_core::wire::{GuestMessage, Request, RunRequest};

use crate::notice::notice;
use crate::provision::cache::Cache;
use crate::report::{self, Failure, Style};
use echo::Echo;
#[doc(hidden)]
pub use initramfs::bare as bare_initramfs;
pub use ktstr_vmm::probe;
pub(crate) use prepare::{MachineRequest, Prepared};
pub use program::Program;
use session::RunOutcome;
pub(crate) use session::{Live, RunLimits};
pub use template::{TemplateUsage, usage as template_usage};

/// The return type of a generated `#[test]`.
pub type TestResult = Result<(), Failure>;

/// Runs a test; the generated `#[test]` calls this. On the host, boots the virtual machine and judges the run.
/// In a guest, becomes the agent or the body and never returns.
pub fn run(entry: &'static TestEntry) -> TestResult {
    agent::run_if_guest(Harness::Libtest);
    ktstr_core::guest::logging::init();
    process::stop_ignoring_sigchld();
    parent::end_with_cargo();
    run_and_judge(entry, Program::this_test_binary, None)
}

/// Runs a test of a program without libtest. Its `main` must begin with [`init_if_guest`].
/// `command` is the command that runs it again.
pub fn run_without_libtest(entry: &TestEntry, command: &str) -> TestResult {
    run_and_judge(entry, || Ok(Program::this_program()), Some(command))
}

/// Becomes the agent or the body, and never returns, in a guest. On the host, prepares this process for
/// waiting for its children.
pub fn init_if_guest() {
    agent::run_if_guest(Harness::Main);
    process::stop_ignoring_sigchld();
}

/// Returns the engine that tests of this environment run on, and the reason for the choice. Fetches QEMU if
/// that is the engine.
///
/// # Errors
///
/// If `KTSTR_ENGINE` requests an engine that this host does not have, or no engine works.
pub fn engine() -> Result<(String, String)> {
    let choice = engine::choose(&Cache::from_env()?)?;
    Ok((choice.engine.describe(), choice.reason.clone()))
}

/// Runs the body of `entry`, which is in `program`, in a virtual machine that it boots, and returns the
/// record of the run, whatever its verdict. Calls no hooks, ignores `expect_err`, and writes no files.
///
/// # Errors
///
/// If the machine cannot be prepared: no kernel, no engine, no initramfs.
pub fn run_in_vm(entry: &TestEntry, program: Program) -> Result<VmResult> {
    let mut record = record::begin(entry);
    fill_in_vm(entry, program, false, &mut record)?;
    Ok(record)
}

/// A machine that is ready to boot, for programs that measure an engine without the runner.
#[doc(hidden)]
#[derive(Debug)]
pub struct UnbootedMachine {
    pub engine: &'static dyn ktstr_vmm::Engine,
    pub config: ktstr_vmm::VmConfig,
    /// Runs the test on this machine after it has booted.
    pub request: RunRequest,
}

/// Prepares the machine of `entry`, whose body is in `program`, as a run does.
#[doc(hidden)]
pub fn prepare_unbooted(entry: &TestEntry, program: Program) -> Result<UnbootedMachine> {
    let prepared = Prepared::new(&MachineRequest {
        program,
        spec: &entry.machine,
        env: &[],
        contents: payloads::contents(entry.payloads)?,
        nests: false,
        forks: false,
    })?;
    let (test, machine) = (record::begin(entry).test, prepared.spec);
    let request = RunRequest { test, machine, env: Vec::new(), restored: None };
    Ok(UnbootedMachine { engine: &*prepared.choice.engine, config: prepared.config, request })
}

/// Returns whether the guest of a test may be forked from one that was booted before.
fn may_fork(entry: &TestEntry) -> Result<bool> {
    Ok(environment::forks()? && !entry.fresh)
}

/// Runs the body of `entry` in a virtual machine and fills the record of the run.
fn fill_in_vm(
    entry: &TestEntry,
    program: Program,
    forks: bool,
    record: &mut RunRecord,
) -> Result<()> {
    tracing::debug!("{}: prepare the machine", record.test);
    // Prepare: find kernel and engine, build the initramfs.
    let began = Instant::now();
    let env = environment::passed_on(entry.env)?;
    let prepared = Prepared::new(&MachineRequest {
        program,
        spec: &entry.machine,
        env: &env,
        contents: payloads::contents(entry.payloads)?,
        nests: false,
        forks,
    })?;
    let test = record.test.clone();
    let request = RunRequest { test, machine: prepared.spec.clone(), env, restored: None };
    let duration = Some(entry.duration + entry.settle);
    let limits = RunLimits { duration, watchdog: entry.watchdog_timeout };
    record.machine = Some(prepared.machine());
    // A run that is killed from here on leaves a record with its machine.
    artifacts::save(record);
    let prepare = began.elapsed();
    // Run: wait for CPUs of the host, boot, send the request, and collect what the guest sends.
    let mut echo = Echo::default();
    let outcome = prepared.run(Request::Run(request), limits, &mut |live| {
        if let Live::Output(_, bytes) = live {
            echo.print(bytes);
        }
        None
    });
    echo.finish();
    let outcome = outcome?;
    if agent::is_instrumented()
        && let Err(error) = profile::keep(outcome.profile.as_ref())
    {
        let test = &record.test;
        notice(&format!("{test}: no coverage profile of the test body: {error:#}"));
    }
    keep_outcome(outcome, prepare, record);
    report::excuse_steal(record, entry.assert.judge_emulated_time);
    Ok(())
}

/// Moves all facts of a run to its record. Nothing is judged by the test's expectation yet.
fn keep_outcome(outcome: RunOutcome, prepare: Duration, record: &mut RunRecord) {
    (record.kernel_events, record.kernel_events_dropped) = console::kernel_events(&outcome.console);
    record.start = Some(outcome.start);
    record.end = outcome.end;
    record.captures = outcome.captures;
    record.snapshots = outcome.snapshots;
    keep_measurements(outcome.measurements, record);
    record.events = outcome.events;
    record.console = outcome.console;
    record.log = outcome.log;
    record.timings = Timings { prepare, ..outcome.timings };
    record.stolen = outcome.stolen;
}

/// Runs the body of a `host_only` test in this process and fills the record of the run.
fn fill_on_host(entry: &TestEntry, record: &mut RunRecord) -> Result<()> {
    let began = Instant::now();
    let topology = TestTopology::read()?;
    let messages = Rc::new(RefCell::new(Vec::new()));
    let received = messages.clone();
    let send: Rc<dyn Fn(GuestMessage)> =
        Rc::new(move |message| received.borrow_mut().push(message));
    let end = agent::run_body(entry, &topology, &send);
    record.end = session::end_of_body(end);
    record.timings.body = Some(began.elapsed());
    let mut measurements = BoundedMeasurements::default();
    for message in messages.take() {
        match message {
            GuestMessage::Event(event) => record.events.push(event),
            GuestMessage::Capture(capture) => record.captures.push(capture),
            GuestMessage::Snapshot(snapshot) => record.snapshots.push(snapshot),
            GuestMessage::Measurements(list) => {
                list.into_iter().for_each(|measured| measurements.add(measured));
            }
            _ => {}
        }
    }
    keep_measurements(measurements, record);
    Ok(())
}

fn keep_measurements(measurements: BoundedMeasurements, record: &mut RunRecord) {
    record.measurements_truncated = measurements.is_truncated();
    record.measurements = measurements.into_vec();
}

/// Runs a test, calls its hooks, judges the run by what the test expects, and reports it. The record
/// of the run is in its directory from the beginning.
fn run_and_judge(
    entry: &TestEntry,
    program: fn() -> Result<Program>,
    command: Option<&str>,
) -> TestResult {
    let mut record = record::begin(entry);
    // A program without libtest may run in any directory: it leaves files there only if it fails.
    if command.is_none() {
        artifacts::begin(&mut record);
    }
    fill(entry, program, may_fork(entry), &mut record);
    if matches!(record.start, Some(Start::Forked { .. }))
        && (report::judge(&record).is_err() || !is_from_body(&record.end))
    {
        record = repeat(entry, program, record);
    }
    record.rerun = Some(rerun::rerun(&record, command));
    let verdict = report::judge(&record);
    record.passed = Some(verdict.is_ok());
    if record.artifacts.is_none() && verdict.is_err() {
        artifacts::begin(&mut record);
    }
    artifacts::finish(&mut record);
    let text = report::render(&record, Style::from_env());
    let Ok(passed) = verdict else { return Err(Failure::new(text)) };
    println!("{text}");
    for line in report::notices(&record, &passed) {
        notice(&line);
    }
    Ok(())
}

/// Runs the test, calls its hooks, and fills the record of the run.
fn fill(
    entry: &TestEntry,
    program: fn() -> Result<Program>,
    forks: Result<bool>,
    record: &mut RunRecord,
) {
    let outcome = if entry.host_only {
        fill_on_host(entry, record)
    } else {
        forks.and_then(|forks| fill_in_vm(entry, program()?, forks, record))
    };
    match outcome {
        Ok(()) => record.hook_errors = hook_errors(entry, record),
        Err(error) => record.end = RunEnd::PreparationFailed(format!("{error:#}")),
    }
}

/// Returns whether a body has ended the run itself. Any other end may be a fault of the fork, also if the test
/// expects an error.
fn is_from_body(end: &RunEnd) -> bool {
    matches!(end, RunEnd::Verdict(_) | RunEnd::BodyError(_) | RunEnd::BodyPanicked(_))
}

/// Repeats a run that failed in a forked guest, in one that is booted for it. Returns the record of both.
///
/// A fork must not fail a test that passes after a boot, so the second run decides.
fn repeat(entry: &TestEntry, program: fn() -> Result<Program>, forked: RunRecord) -> RunRecord {
    let why = "its forked guest may have caused this end";
    notice(&format!("{}: repeating the test in a booted guest, because {why}", forked.test));
    let mut record = record::begin(entry);
    record.artifacts = forked.artifacts.clone();
    record.started = forked.started;
    record.forked = Some(Box::new(forked));
    fill(entry, program, Ok(false), &mut record);
    record
}

/// Calls the hooks of the test that apply to this end of the run, and returns their errors.
fn hook_errors(entry: &TestEntry, record: &RunRecord) -> Vec<HookError> {
    let post_vm = entry.post_vm.filter(|_| report::concerns_post_vm(&record.end));
    let hooks = [(Hook::PostVm, post_vm), (Hook::PostVmUnconditional, entry.post_vm_unconditional)];
    let errors = hooks.into_iter().filter_map(|(hook, function)| {
        let function = function?;
        tracing::debug!("{}: call {hook:?}", record.test);
        // A panic of a hook must not prevent the report.
        let (panicked, message) = match catch_unwind(AssertUnwindSafe(|| function(record))) {
            Ok(returned) => (false, format!("{:#}", returned.err()?)),
            Err(payload) => (true, agent::panic_message(&*payload).to_owned()),
        };
        Some(HookError { hook, panicked, message })
    });
    errors.collect()
}
