//! The host's side of a run: from a [`TestEntry`] to a verdict.

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
pub(crate) use session::{Limits, Live};

/// What a generated `#[test]` returns.
pub type TestResult = Result<(), Failure>;

/// Runs a test: on the host, the virtual machine and the report; as PID 1, the guest's side.
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
/// `command` is what a person types to run it.
pub fn run_without_libtest(entry: &TestEntry, command: &str) -> TestResult {
    match run_in_vm(entry, Program::this_program()) {
        Ok(result) => conclude(entry, &result, Some(command)),
        Err(error) => Err(Failure::new(report::preparation_failed(entry, &error))),
    }
}

/// Does the guest's side and never returns if this process is PID 1 of a machine of ours. On the host,
/// prepares this process for waiting for its children.
pub fn init_if_guest() {
    if agent::is_init() {
        agent::init();
    }
    process::stop_ignoring_sigchld();
}

/// The engine that tests of this environment run on, and why. Fetches QEMU if that is to be it.
///
/// # Errors
///
/// If `KTSTR_ENGINE` asks for what there is not, or no engine can be had.
pub fn engine() -> Result<(String, String)> {
    let choice = engine::choose(&Cache::from_env()?)?;
    Ok((choice.engine.describe(), choice.reason.clone()))
}

/// Runs the body of `entry`, which `program` has, in a virtual machine and returns what is known of the run, whatever
/// its verdict. Neither `post_vm` nor `expect_err` is looked at.
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
    let limits = Limits { duration, watchdog: entry.watchdog_timeout };
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
        end: judged_on(&machine, entry, &outcome.stolen, outcome.timings.body, outcome.end),
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

/// The least part of a CPU's time whose theft by the host explains a failure that depends on time: in
/// a second that is a gap of 10 ms. A quiet host takes less than a tenth of it.
const EXPLAINS: f64 = 0.01;

/// Returns what the end of a run is worth on this machine.
///
/// Where the CPUs are emulated in software, what depends on time is reported and not judged, unless the
/// test wants it to be. Where the host kept CPUs from running, a failure that this explains is
/// inconclusive. `body` is the time in which the parts of `stolen` were taken.
fn judged_on(
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
    // Whichever CPU it was: a task that was held up may have gone on elsewhere.
    let most = stolen.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    let Some((cpu, part)) = most else { return RunEnd::Verdict(verdict) };
    let body = body.unwrap_or_default();
    let taken = body.mul_f64(*part);
    let percent = part * 100.0;
    RunEnd::Verdict(verdict.excuse(|detail| match detail.explained_by {
        // The whole of it may have been taken from the time in question.
        Some(needed) => (taken >= needed && *part >= EXPLAINS).then(|| {
            format!(
                "vCPU {cpu} did not run for {taken:.1?} of the body's {body:.1?} because the host was \
                 busy (steal time, {percent:.0} %), {needed:.1?} explain it"
            )
        }),
        None if is_waived => None,
        None => (*part >= EXPLAINS).then(|| format!("host stole {percent:.0} % of vCPU {cpu}")),
    }))
}

/// Runs the body of a `host_only` test in this process.
fn run_on_host(entry: &TestEntry) -> Result<VmResult> {
    let began = Instant::now();
    let topology = TestTopology::read()?;
    let heard = std::cell::RefCell::new((Vec::new(), Vec::new(), Vec::new()));
    let end = agent::run_body(entry, &topology, &|report| match report {
        wire::Report::Event(event) => heard.borrow_mut().0.push(event),
        wire::Report::Capture(capture) => heard.borrow_mut().1.push(capture),
        wire::Report::Snapshot(snapshot) => heard.borrow_mut().2.push(snapshot),
        _ => {}
    });
    let (events, captures, snapshots) = heard.into_inner();
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

/// Judges a run: its hooks, then what the test expects. Reports it.
fn conclude(entry: &TestEntry, result: &VmResult, command: Option<&str>) -> TestResult {
    let verdict = report::judge(entry, &result.end, complaints_of_hooks(entry, result));
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

/// Calls the hooks of the test that apply to how the run ended, and returns what they complain about.
fn complaints_of_hooks(entry: &TestEntry, result: &VmResult) -> Vec<String> {
    let post_vm = entry.post_vm.filter(|_| report::concerns_post_vm(&result.end));
    let hooks = [("post_vm", post_vm), ("post_vm_unconditional", entry.post_vm_unconditional)];
    let complaints = hooks.into_iter().filter_map(|(key, hook)| {
        let hook = hook?;
        // A panic there must not take the report along.
        let called = catch_unwind(AssertUnwindSafe(|| hook(result))).unwrap_or_else(|payload| {
            Err(anyhow::anyhow!("it panicked: {}", agent::panic_message(&*payload)))
        });
        called.err().map(|error| format!("{key}: {error:#}"))
    });
    complaints.collect()
}
