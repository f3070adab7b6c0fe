//! What people read of a run: the failing check first, then what it ran on, then how to go on.

mod judge;
mod style;
mod timeline;

use std::fmt::{self, Write as _};
use std::path::Path;

use ktstr_core::registry::TestEntry;
use ktstr_core::result::{RunEnd, VmResult};

pub(crate) use judge::{Passed, Reasons, concerns_post_vm, judge};
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
pub(crate) use crate::provision::say as notice;

/// The report of a run.
pub(crate) fn run(
    entry: &TestEntry,
    result: &VmResult,
    verdict: &Result<Passed, Reasons>,
    artifacts: Result<&Path, &anyhow::Error>,
    command: Option<&str>,
) -> String {
    let style = Style::from_env();
    let mut text = String::new();
    headline(&mut text, &style, &result.test, verdict);
    // Those of a failure or a skip stand in its headline.
    if let (RunEnd::Verdict(decided), Ok(Passed::AsExpected)) = (&result.end, verdict) {
        for detail in &decided.details {
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
    let verdict = Err(vec![format!("infrastructure: cannot prepare the machine: {error:#}")]);
    headline(&mut text, &Style::from_env(), &entry.test_name(), &verdict);
    line(&mut text, "help", "`cargo ktstr doctor` tells what is missing and how to get it");
    text
}

fn headline(text: &mut String, style: &Style, test: &str, verdict: &Result<Passed, Reasons>) {
    let (word, reasons) = match verdict {
        Ok(Passed::AsExpected) => (style.good("PASS"), &[][..]),
        Ok(Passed::Skipped(reason)) => (style.warn("SKIP"), std::slice::from_ref(reason)),
        Err(reasons) => (style.bad("FAIL"), &reasons[..]),
    };
    let _ = writeln!(text, "{word} {test}");
    for reason in reasons {
        let _ = writeln!(text, "  {reason}");
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
    let mut set = |name: &str, value: &str| {
        let quote = if value.contains(|c: char| c.is_whitespace() || "'\"$&;()*".contains(c)) {
            "'"
        } else {
            ""
        };
        let _ = write!(command, "{name}={quote}{value}{quote} ");
    };
    if !machine.kernel_spec.is_empty() {
        set("KTSTR_ENGINE", &machine.engine_name);
        set("KTSTR_KERNEL", &machine.kernel_spec);
    }
    for name in ["KTSTR_QEMU", "KTSTR_CACHE_DIR"] {
        if let Ok(value) = std::env::var(name) {
            set(name, &value);
        }
    }
    if let Some(by) = by {
        return command + by;
    }
    let filter = format!("--exact {} --include-ignored --nocapture", result.test);
    let program = std::env::current_exe().unwrap_or_default();
    // Cargo names a test's program after its target, and adds a hash.
    let stem = program.file_stem().unwrap_or_default().to_string_lossy();
    let target = stem.rsplit_once('-').map_or(&*stem, |(target, _)| target);
    let var = |name| std::env::var(name).unwrap_or_default();
    let is_file = Path::new(&var("CARGO_MANIFEST_DIR")).join(format!("tests/{target}.rs")).exists();
    let _ = match std::env::var("CARGO_PKG_NAME") {
        Ok(package) if is_file => {
            write!(command, "cargo test -p {package} --test {target} -- {filter}")
        }
        Ok(package) => write!(command, "cargo test -p {package} --lib --bins -- {filter}"),
        // Started by hand, without Cargo.
        Err(_) => write!(command, "{} {filter}", program.display()),
    };
    command
}
