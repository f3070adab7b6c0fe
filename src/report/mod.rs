//! What people read of a run: the failing check first, then what it ran on, then how to go on.

mod judge;
mod printable;
mod rerun;
mod style;
mod timeline;

use std::fmt::{self, Write as _};

use ktstr_core::registry::TestEntry;
use ktstr_core::result::{RunEnd, VmResult};

use crate::runner::artifacts::Artifacts;
pub(crate) use judge::{Passed, Reasons, concerns_post_vm, judge};
pub(crate) use printable::printable;
pub use style::Style;

/// How many of the console's last lines a failure shows.
const CONSOLE_LINES: usize = 12;

/// What the host has to keep from a CPU to be named in a report.
const WORTH_TELLING: f64 = 0.05;

/// How many CPUs a line names.
const MOST_CPUS: usize = 8;

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

/// The report of a run.
pub(crate) fn run(
    entry: &TestEntry,
    result: &VmResult,
    verdict: &Result<Passed, Reasons>,
    artifacts: &Artifacts,
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
    if let RunEnd::Verdict(decided) = &result.end {
        for note in &decided.notes {
            line(&mut text, "note", &note.to_string());
        }
    }
    for event in &result.kernel_events {
        line(&mut text, &event.kind.to_string(), &event.line);
    }
    machine(&mut text, entry, result);
    text.push_str(&timeline::draw(result));
    if verdict.is_err() {
        tail(&mut text, "console", &result.console);
        line(&mut text, "artefacts", &artifacts.folder().display().to_string());
        for error in artifacts.errors() {
            line(&mut text, "", &format!("incomplete: {error:#}"));
        }
        let rerun = rerun::rerun(result, command);
        line(&mut text, "rerun", &rerun.command);
        if let Some(caveat) = rerun.caveat {
            line(&mut text, "", caveat);
        }
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
        Ok(Passed::Inconclusive(reasons)) => (style.warn("INCONCLUSIVE"), &reasons[..]),
        Err(reasons) => (style.bad("FAIL"), &reasons[..]),
    };
    let _ = writeln!(text, "{word} {test}");
    for reason in reasons {
        let _ = writeln!(text, "  {}", printable(reason));
    }
}

fn machine(text: &mut String, entry: &TestEntry, result: &VmResult) {
    let machine = &result.machine;
    if entry.host_only {
        return line(text, "engine", &machine.engine);
    }
    line(text, "engine", &format!("{}: {}", machine.engine, machine.engine_reason));
    let pti = if machine.pti_disabled { ", page-table isolation off" } else { "" };
    line(text, "kernel", &format!("{} {}{pti}", machine.kernel_spec, machine.kernel_version));
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
    if result.stolen.iter().any(|part| *part >= WORTH_TELLING) {
        line(text, "host", &stolen(&result.stolen));
    }
}

/// `kept from running while the body ran: CPU 0 38 %, CPU 2 6 %`: noise of the host.
fn stolen(parts: &[f64]) -> String {
    let cpus = parts.iter().enumerate().filter(|(_, part)| **part >= WORTH_TELLING);
    let mut told: Vec<_> =
        cpus.map(|(cpu, part)| format!("CPU {cpu} {:.0} %", part * 100.0)).collect();
    let rest = told.len().saturating_sub(MOST_CPUS);
    if rest > 0 {
        told.truncate(MOST_CPUS);
        told.push(format!("{rest} more CPUs"));
    }
    format!("kept from running while the body ran: {}", told.join(", "))
}

pub(crate) fn tail(text: &mut String, name: &str, whole: &str) {
    let lines: Vec<_> = whole.lines().collect();
    if lines.is_empty() {
        return;
    }
    let shown = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
    line(text, name, &format!("the last {} of {} lines", shown.len(), lines.len()));
    for shown in shown {
        let _ = writeln!(text, "    | {}", printable(shown.trim_end()));
    }
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "  {name:<9} {}", printable(value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_kept_is_told_by_cpu() {
        let told = |parts: &[f64]| stolen(parts).split_once(": ").unwrap().1.to_owned();
        assert_eq!(told(&[0.384, 0.01, 0.06]), "CPU 0 38 %, CPU 2 6 %");
        assert!(told(&[0.5; 10]).ends_with("CPU 7 50 %, 2 more CPUs"));
    }
}
