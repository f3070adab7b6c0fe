//! What people read of a run: the failing check first, then what it ran on, then how to go on.

mod judge;
mod style;
mod timeline;

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::path::Path;

use ktstr_core::registry::TestEntry;
use ktstr_core::result::{RunEnd, VmResult};

pub(crate) use judge::{Passed, judge};
pub use style::Style;

/// How many of the console's last lines a failure shows.
const CONSOLE_LINES: usize = 12;

/// Why a test failed, as libtest prints it.
pub struct Failure {
    text: String,
}

impl Failure {
    pub(crate) fn new(text: String) -> Self {
        Self { text }
    }
}

/// libtest shows the error of a test by its `Debug` form: here, the report itself.
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Writes a line to standard error past libtest, which captures only what a test prints itself.
pub(crate) fn notice(text: &str) {
    // A closed standard error is the reader's choice.
    let _ = writeln!(std::io::stderr().lock(), "ktstr: {text}");
}

/// The report of a run.
pub(crate) fn run(
    entry: &TestEntry,
    result: &VmResult,
    verdict: &Result<Passed, String>,
    artifacts: Result<&Path, &anyhow::Error>,
    command: Option<&str>,
) -> String {
    let style = Style::from_env();
    let mut text = String::new();
    headline(&mut text, &style, &result.test, verdict);
    if let RunEnd::Verdict(decided) = &result.end {
        // Of a failure or a skip, the headline has the first.
        let told = usize::from(!matches!(verdict, Ok(Passed::AsExpected)));
        for detail in decided.details.iter().skip(told) {
            line(&mut text, "detail", &detail.to_string());
        }
    }
    for event in &result.kernel_events {
        line(&mut text, &event.kind.to_string(), &event.line);
    }
    machine(&mut text, entry, result);
    text.push_str(&timeline::draw(result));
    if verdict.is_err() {
        tail(&mut text, "console", &result.console);
        match artifacts {
            Ok(folder) => line(&mut text, "artefacts", &folder.display().to_string()),
            Err(error) => line(&mut text, "artefacts", &format!("none: {error:#}")),
        }
        line(&mut text, "rerun", &rerun(result, command));
    }
    text.truncate(text.trim_end().len());
    text
}

/// The report of a test that could not even be tried.
pub(crate) fn preparation_failed(entry: &TestEntry, error: &anyhow::Error) -> String {
    let mut text = String::new();
    let verdict = Err(format!("infrastructure: cannot prepare the machine: {error:#}"));
    headline(&mut text, &Style::from_env(), &entry.test_name(), &verdict);
    line(&mut text, "help", "`cargo ktstr doctor` tells what is missing and how to get it");
    text
}

fn headline(text: &mut String, style: &Style, test: &str, verdict: &Result<Passed, String>) {
    let (word, why) = match verdict {
        Ok(Passed::AsExpected) => (style.good("PASS"), None),
        Ok(Passed::Skipped(reason)) => (style.warn("SKIP"), Some(reason)),
        Err(why) => (style.bad("FAIL"), Some(why)),
    };
    let _ = writeln!(text, "{word} {test}");
    if let Some(why) = why {
        let _ = writeln!(text, "  {why}");
    }
}

fn machine(text: &mut String, entry: &TestEntry, result: &VmResult) {
    let machine = &result.machine;
    if entry.host_only {
        return line(text, "engine", &machine.engine);
    }
    line(text, "engine", &format!("{}: {}", machine.engine, machine.engine_reason));
    line(text, "kernel", &format!("{} {}", machine.kernel_spec, machine.kernel_version));
    let raised = if machine.memory_mib > entry.memory_mib {
        format!(", raised from the {} MiB asked for: it could not boot with less", entry.memory_mib)
    } else {
        String::new()
    };
    let cpus = entry.topology.nr_cpus();
    line(
        text,
        "machine",
        &format!("{}, {cpus} CPUs, {} MiB{raised}", machine.topology, machine.memory_mib),
    );
    let slowness = result.timings.slowness;
    if result.timings.boot.is_some() && slowness > 1.0 {
        line(text, "slowness", &format!("{slowness:.1} x hardware; watchdogs are stretched by it"));
    }
}

pub(crate) fn tail(text: &mut String, name: &str, whole: &str) {
    let lines: Vec<_> = whole.lines().collect();
    if lines.is_empty() {
        return;
    }
    let shown = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
    line(text, name, &format!("the last {} of {} lines", shown.len(), lines.len()));
    for shown in shown {
        let _ = writeln!(text, "    | {}", shown.trim_end());
    }
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "  {name:<9} {value}");
}

/// One command that does exactly this again: `by`, or that of libtest.
fn rerun(result: &VmResult, by: Option<&str>) -> String {
    let machine = &result.machine;
    let mut command = String::new();
    if !machine.kernel_spec.is_empty() {
        let _ = write!(
            command,
            "KTSTR_ENGINE={} KTSTR_KERNEL={} ",
            machine.engine_name, machine.kernel_spec
        );
    }
    if let Some(by) = by {
        return command + by;
    }
    let filter = format!("--exact {} --include-ignored --nocapture", result.test);
    match std::env::var("CARGO_PKG_NAME") {
        Ok(package) => {
            let _ = write!(command, "cargo test -p {package} -- {filter}");
        }
        // Started by hand, without Cargo.
        Err(_) => {
            let program = std::env::current_exe().unwrap_or_default();
            let _ = write!(command, "{} {filter}", program.display());
        }
    }
    command
}
