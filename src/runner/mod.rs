//! The host side of a run: from a [`TestEntry`] to a verdict.

pub(crate) mod artifacts;
mod clocks;
mod console;
mod echo;
mod engine;
pub(crate) mod environment;
mod host_cpus;
mod initramfs;
pub mod nested;
mod parent;
mod payloads;
mod prepare;
mod profile;
mod program;
mod session;
pub mod shell;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::Result;
use ktstr_core::guest::agent;
use ktstr_core::process;
use ktstr_core::registry::TestEntry;
use ktstr_core::result::{Machine, RunEnd, Timings, VmResult};
use ktstr_core::topology::TestTopology;
use ktstr_core::wire::{self, Order, RunOrder};

use crate::notice::notice;
use crate::provision::cache::Cache;
use crate::report::{self, Failure};
use artifacts::Artifacts;
use echo::Echo;
#[doc(hidden)]
pub use initramfs::bare as bare_initramfs;
pub use ktstr_vmm::probe;
pub(crate) use prepare::{Prepared, Wanted};
pub use program::Program;
pub(crate) use session::{Live, RunLimits};

/// The return type of a generated `#[test]`.
pub type TestResult = Result<(), Failure>;

/// Runs a test: on the host, boots the virtual machine and judges the run; as PID 1, carries out the request.
pub fn run(entry: &'static TestEntry) -> TestResult {
    if agent::is_init() {
        agent::init();
    }
    ktstr_core::guest::logging::init();
    process::stop_ignoring_sigchld();
    parent::end_with_cargo();
    let outcome = if entry.host_only { run_on_host(entry) } else { run_this_binary(entry) };
    match outcome {
        Ok(result) => conclude(entry, &result, None),
        Err(error) => Err(Failure::new(report::preparation_failed(entry, &error))),
    }
}

fn run_this_binary(entry: &TestEntry) -> Result<VmResult> {
    run_in_vm(entry, Program::this_test_binary()?)
}

/// Runs a test of a program without libtest, whose `main` begins with [`init_if_guest`].
/// `command` is what a user types to run it.
pub fn run_without_libtest(entry: &TestEntry, command: &str) -> TestResult {
    match run_in_vm(entry, Program::this_program()) {
        Ok(result) => conclude(entry, &result, Some(command)),
        Err(error) => Err(Failure::new(report::preparation_failed(entry, &error))),
    }
}

/// Runs the guest agent and never returns if this process is PID 1 of a guest. On the host, prepares this
/// process for waiting for its children.
pub fn init_if_guest() {
    if agent::is_init() {
        agent::init();
    }
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

/// Runs the body of `entry`, which `program` contains, in a virtual machine, and returns the facts of the run for any
/// verdict. Neither `post_vm` nor `expect_err` is considered.
///
/// # Errors
///
/// If the machine cannot be prepared: no kernel, no engine, no initramfs.
pub fn run_in_vm(entry: &TestEntry, program: Program) -> Result<VmResult> {
    let began = Instant::now();
    let test = entry.test_name();
    let env = environment::passed_on(entry.env)?;
    let prepared = Prepared::new(&Wanted {
        program,
        kernel: entry.kernel,
        topology: entry.topology,
        memory_mib: entry.memory_mib,
        kaslr: entry.kaslr,
        mitigations: entry.mitigations,
        env: &env,
        contents: payloads::contents(entry.payloads)?,
        nests: false,
    })?;
    let order = RunOrder { test: test.clone(), memory_mib: prepared.config.memory_mib, env };
    let duration = Some(entry.duration + entry.settle);
    let limits = RunLimits { duration, watchdog: entry.watchdog_timeout };
    let prepare = began.elapsed();
    let mut echo = Echo::default();
    let outcome = prepared.run(Order::Run(order), limits, &mut |live| {
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
        notice(&format!("{test}: no coverage profile of the test body: {error:#}"));
    }
    let machine = prepared.machine();
    Ok(VmResult {
        test,
        kernel_events: console::kernel_events(&outcome.console),
        end: judge_on(&machine, entry, &outcome.stolen, outcome.timings.body, outcome.end),
        captures: outcome.captures,
        snapshots: outcome.snapshots,
        events: outcome.events,
        console: outcome.console,
        log: outcome.log,
        machine,
        timings: Timings { prepare, ..outcome.timings },
        stolen: outcome.stolen,
    })
}

/// The least steal time of a vCPU, as a part of the body's time, that explains a failure that depends on time:
/// in a second that is a gap of 10 ms. A quiet host takes less than a tenth of it.
const MIN_STEAL: f64 = 0.01;

/// Returns the end of a run as it counts on this machine.
///
/// With emulated CPUs, a failure that depends on time is reported and not judged, unless the test requests
/// that. A failure that steal time explains is inconclusive. `body` is the time of which `stolen` has the
/// parts.
fn judge_on(
    machine: &Machine,
    entry: &TestEntry,
    stolen: &[f64],
    body: Option<Duration>,
    end: RunEnd,
) -> RunEnd {
    let RunEnd::Verdict(verdict) = end else { return end };
    let is_waived = machine.engine_name == "qemu" && !entry.assert.judge_emulated_time;
    let verdict = match is_waived {
        true => verdict.waive_time_based("the CPUs are emulated"),
        false => verdict,
    };
    // The worst CPU counts: a task that was delayed on it may have continued on another one.
    let most = stolen.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    let Some((cpu, part)) = most else { return RunEnd::Verdict(verdict) };
    let body = body.unwrap_or_default();
    let taken = body.mul_f64(*part);
    let percent = part * 100.0;
    RunEnd::Verdict(verdict.excuse(|detail| match detail.explained_by {
        // All of it may have been taken from the time in question.
        Some(needed) => (taken >= needed && *part >= MIN_STEAL).then(|| {
            format!(
                "vCPU {cpu} did not run for {taken:.1?} of the body's {body:.1?} because the host was \
                 busy (steal time {percent:.0} %); {needed:.1?} explain the failure"
            )
        }),
        None if is_waived => None,
        None => (*part >= MIN_STEAL).then(|| format!("steal time of vCPU {cpu}: {percent:.0} %")),
    }))
}

/// Runs the body of a `host_only` test in this process.
fn run_on_host(entry: &TestEntry) -> Result<VmResult> {
    let began = Instant::now();
    let topology = TestTopology::read()?;
    let received = std::cell::RefCell::new((Vec::new(), Vec::new(), Vec::new()));
    let end = agent::run_body(entry, &topology, &|report| match report {
        wire::Report::Event(event) => received.borrow_mut().0.push(event),
        wire::Report::Capture(capture) => received.borrow_mut().1.push(capture),
        wire::Report::Snapshot(snapshot) => received.borrow_mut().2.push(snapshot),
        _ => {}
    });
    let (events, captures, snapshots) = received.into_inner();
    Ok(VmResult {
        test: entry.test_name(),
        end: session::end_of_body(end),
        kernel_events: Vec::new(),
        captures,
        snapshots,
        events,
        console: String::new(),
        log: String::new(),
        machine: Machine {
            engine: "this host, no virtual machine".to_owned(),
            ..Machine::default()
        },
        timings: Timings { body: Some(began.elapsed()), slowness: 1.0, ..Timings::default() },
        stolen: Vec::new(),
    })
}

/// Calls the hooks of a run, judges it, writes its artefacts and prints its report.
fn conclude(entry: &TestEntry, result: &VmResult, command: Option<&str>) -> TestResult {
    let verdict = report::judge(entry, &result.end, hook_errors(entry, result));
    let artifacts = Artifacts::write(result, &verdict);
    let text = report::run(entry, result, &verdict, &artifacts, command);
    match verdict {
        Err(_) => Err(Failure::new(text)),
        Ok(passed) => {
            println!("{text}");
            match passed {
                report::Passed::AsExpected => {}
                report::Passed::Skipped(reason) => {
                    notice(&format!("{}: SKIPPED: {reason}", result.test));
                }
                report::Passed::Inconclusive(reasons) => {
                    let reasons = reasons.join("; ");
                    notice(&format!("{}: passed; {reasons}", result.test));
                }
            }
            let unexpected =
                result.kernel_events.iter().filter(|_| !entry.expect_err.is_expected());
            for event in unexpected {
                notice(&format!("{}: passed; {}: {}", result.test, event.kind, event.line));
            }
            artifacts.discard();
            Ok(())
        }
    }
}

/// Calls the hooks of the test that apply to this end of the run, and returns their errors.
fn hook_errors(entry: &TestEntry, result: &VmResult) -> Vec<String> {
    let post_vm = entry.post_vm.filter(|_| report::concerns_post_vm(&result.end));
    let hooks = [("post_vm", post_vm), ("post_vm_unconditional", entry.post_vm_unconditional)];
    let errors = hooks.into_iter().filter_map(|(key, hook)| {
        let hook = hook?;
        tracing::debug!("{}: call {key}", result.test);
        // A panic of a hook must not prevent the report.
        let called = catch_unwind(AssertUnwindSafe(|| hook(result))).unwrap_or_else(|payload| {
            Err(anyhow::anyhow!("panicked: {}", agent::panic_message(&*payload)))
        });
        called.err().map(|error| format!("{key}: {error:#}"))
    });
    errors.collect()
}
