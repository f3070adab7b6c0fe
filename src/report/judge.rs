//! Judges a run from its record.

use std::time::Duration;

use ktstr_core::assert::{AssertResult, Outcome};
use ktstr_core::record::{ExpectErr, Hook, HookError, RunRecord, Timing};
use ktstr_core::result::RunEnd;
use regex_lite::Regex;

/// The ways in which a test can pass.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    AsExpected,
    Skipped(String),
    /// The test allows this; with the reasons.
    Inconclusive(Reasons),
}

/// Why a test fails, the most severe reason first.
pub(crate) type Reasons = Vec<String>;

/// Returns whether a run with this end is examined by `post_vm`: not after a failure of the
/// infrastructure, nor after a skip, because then there is nothing to examine.
pub(crate) fn concerns_post_vm(end: &RunEnd) -> bool {
    let skipped = matches!(end, RunEnd::Verdict(verdict) if verdict.outcome == Outcome::Skip);
    !end.is_infrastructure() && !skipped
}

/// The smallest steal time, as a part of the body's time, that explains a failure which depends on
/// time: in a second that is a gap of 10 ms. A quiet host takes less than a tenth of it.
const MIN_STEAL: f64 = 0.01;

/// Adjusts the verdict of a run to the machine it ran on.
///
/// Where the CPUs are emulated in software, details that depend on time are reported and not judged,
/// unless `judge_emulated_time`. Where steal time explains a failure, it becomes inconclusive.
pub(crate) fn excuse_steal(record: &mut RunRecord, judge_emulated_time: bool) {
    let RunEnd::Verdict(verdict) = &mut record.end else { return };
    let emulated = |timing| timing == Timing::Emulated;
    let timing = record.machine.as_ref().map(|machine| machine.engine.timing);
    let is_waived = timing.is_some_and(emulated) && !judge_emulated_time;
    let own = std::mem::replace(verdict, AssertResult::pass());
    *verdict = if is_waived { own.waive_time_based("the CPUs are emulated") } else { own };
    // The worst CPU, whichever it was: a task that was held up may have continued on another.
    let worst = record.stolen.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    let Some((cpu, part)) = worst else { return };
    let body = record.timings.body.unwrap_or_default();
    let stolen = body.mul_f64(*part);
    let percent = part * 100.0;
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    let own = std::mem::replace(verdict, AssertResult::pass());
    *verdict = own.excuse(|detail| match detail.explained_by {
        // All of it may have been taken from the time in question.
        Some(needed) => (stolen >= needed && *part >= MIN_STEAL).then(|| {
            format!(
                "vCPU {cpu} did not run for {} of the body's {} because the host was busy (steal \
                 time {percent:.0} %); {} explain the failure",
                seconds(stolen),
                seconds(body),
                seconds(needed)
            )
        }),
        None if is_waived => None,
        None => (*part >= MIN_STEAL).then(|| format!("steal time of vCPU {cpu}: {percent:.0} %")),
    });
}

/// Judges a run: whether the test passes, or why not.
///
/// A failure of the infrastructure is never what a test expected, and no verdict compensates for an
/// error of a hook.
pub(crate) fn judge(record: &RunRecord) -> Result<Passed, Reasons> {
    let own = judge_end(record);
    if record.hook_errors.is_empty() {
        return own;
    }
    let end = &record.end;
    let errors: Reasons = record.hook_errors.iter().map(hook_error).collect();
    let is_plain_pass = matches!(end, RunEnd::Verdict(verdict) if verdict.is_pass());
    Err(match own {
        Ok(_) if is_plain_pass => errors,
        Ok(Passed::Inconclusive(reasons)) => [errors, reasons].concat(),
        Ok(_) => [errors, vec![format!("the run itself ended as expected: {end}")]].concat(),
        Err(reasons) => [reasons, errors].concat(),
    })
}

fn hook_error(error: &HookError) -> String {
    let HookError { hook, panicked, message } = error;
    let key = match hook {
        Hook::PostVm => "post_vm",
        Hook::PostVmUnconditional => "post_vm_unconditional",
    };
    let panicked = if *panicked { "panicked: " } else { "" };
    format!("{key}: {panicked}{message}")
}

fn judge_end(record: &RunRecord) -> Result<Passed, Reasons> {
    let RunRecord { expect_err, end, .. } = record;
    let verdict = match end {
        RunEnd::Verdict(verdict) => verdict,
        end if end.is_infrastructure() => return Err(vec![format!("infrastructure: {end}")]),
        end => return judge_failure(expect_err, &[end.to_string()], vec![end.to_string()]),
    };
    match (verdict.outcome, expect_err.is_expected()) {
        (Outcome::Skip, _) => {
            let reasons: Vec<_> = verdict.details.iter().map(|detail| &*detail.message).collect();
            Ok(Passed::Skipped(reasons.join("; ")))
        }
        (Outcome::Pass, false) => Ok(Passed::AsExpected),
        (Outcome::Pass | Outcome::Inconclusive, true) => {
            let expected = expected(expect_err);
            let mut reasons = vec![format!("{expected}, but its verdict is {end}")];
            if verdict.outcome == Outcome::Inconclusive {
                reasons.extend(reasons_of(verdict, end));
            }
            Err(reasons)
        }
        (Outcome::Inconclusive, false) if record.allow_inconclusive => {
            Ok(Passed::Inconclusive(reasons_of(verdict, end)))
        }
        (Outcome::Inconclusive, false) => Err(reasons_of(verdict, end)),
        (Outcome::Fail, _) => {
            let failures: Vec<_> = verdict.failure_details().map(ToString::to_string).collect();
            judge_failure(expect_err, &failures, reasons_of(verdict, end))
        }
    }
}

/// Judges whether one of the `failures` is the expected one; `reasons` has everything that was wrong.
fn judge_failure(
    expect_err: &ExpectErr<String>,
    failures: &[String],
    reasons: Reasons,
) -> Result<Passed, Reasons> {
    let is_it = match expect_err {
        ExpectErr::No => return Err(reasons),
        ExpectErr::Any => true,
        ExpectErr::Containing(text) => failures.iter().any(|failure| failure.contains(text)),
        ExpectErr::Matching(pattern) => Regex::new(pattern)
            .is_ok_and(|pattern| failures.iter().any(|failure| pattern.is_match(failure))),
    };
    if is_it {
        return Ok(Passed::AsExpected);
    }
    let other = format!("{}, but its failure is another one:", expected(expect_err));
    Err([vec![other], reasons].concat())
}

fn expected(expect_err: &ExpectErr<String>) -> String {
    let how = match expect_err {
        ExpectErr::Containing(text) => format!(" with {text:?}"),
        ExpectErr::Matching(pattern) => format!(" with a match of `{pattern}`"),
        ExpectErr::No | ExpectErr::Any => String::new(),
    };
    format!("the test is expected to fail{how} (`expect_err`)")
}

/// Returns each detail with its outcome; without details, the verdict's outcome.
fn reasons_of(verdict: &AssertResult, end: &RunEnd) -> Reasons {
    let details = verdict.details.iter().map(|detail| format!("{}: {detail}", detail.outcome));
    let reasons: Vec<_> = details.collect();
    if reasons.is_empty() { vec![end.to_string()] } else { reasons }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ktstr_core::assert::{AssertDetail, DetailKind};
    use ktstr_core::registry::TestEntry;
    use ktstr_core::result::{ClockSpan, ExitKind, InitFailure};

    use super::*;

    fn detail(text: &str) -> AssertDetail {
        AssertDetail::new(DetailKind::Other, text)
    }

    /// Judges a run of a test with this entry that ended so, after errors of `post_vm`.
    fn judge(entry: &TestEntry, end: &RunEnd, errors: &[&str]) -> Result<Passed, Reasons> {
        let mut record = crate::runner::record::begin(entry);
        record.end = end.clone();
        let error = |message: &&str| HookError {
            hook: Hook::PostVm,
            panicked: false,
            message: (*message).to_owned(),
        };
        record.hook_errors = errors.iter().map(error).collect();
        super::judge(&record)
    }

    fn texts(reasons: &[&str]) -> Result<Passed, Reasons> {
        Err(reasons.iter().map(|reason| (*reason).to_owned()).collect())
    }

    #[test]
    fn judge_passes_only_what_was_expected() {
        let died = RunEnd::BodyExited { kind: ExitKind::Exited(0), last_panic: None };
        let second = Duration::from_secs(1);
        let wrong_clock =
            RunEnd::WrongClock { span: ClockSpan::Boot, guest: 6 * second, host: second };
        for (end, alone, with_expect_err) in [
            (RunEnd::Verdict(AssertResult::pass()), true, false),
            (RunEnd::Verdict(AssertResult::fail(detail("why"))), false, true),
            (RunEnd::Verdict(AssertResult::inconclusive(detail("why"))), false, false),
            (RunEnd::Verdict(AssertResult::skip("why")), true, true),
            (died.clone(), false, true),
            (RunEnd::GuestPanicked("why".to_owned()), false, true),
            (RunEnd::InitFailed(InitFailure::Reported("why".to_owned())), false, false),
            (RunEnd::WireBroken("why".to_owned()), false, false),
            (wrong_clock, false, false),
            (RunEnd::Running, false, false),
            (RunEnd::PreparationFailed("why".to_owned()), false, false),
            (RunEnd::EngineFailed("why".to_owned()), false, false),
            (RunEnd::WrongTopology(vec!["why".to_owned()]), false, false),
        ] {
            for (expect_err, wanted) in [
                (ExpectErr::No, alone),
                (ExpectErr::Any, with_expect_err),
                (ExpectErr::Containing(""), with_expect_err),
                (ExpectErr::Matching(""), with_expect_err),
            ] {
                let entry = TestEntry { expect_err, ..TestEntry::DEFAULT };
                assert_eq!(judge(&entry, &end, &[]).is_ok(), wanted, "{end:?}");
                assert!(judge(&entry, &end, &["no"]).is_err(), "{end:?}");
                let lenient = TestEntry { allow_inconclusive: true, ..entry };
                let wanted = wanted || (expect_err == ExpectErr::No && is_inconclusive(&end));
                assert_eq!(judge(&lenient, &end, &[]).is_ok(), wanted, "{end:?}");
                assert!(judge(&lenient, &end, &["no"]).is_err(), "{end:?}");
            }
        }
        let failed = RunEnd::Verdict(AssertResult::fail(detail("why")));
        let plain = TestEntry::DEFAULT;
        let both = judge(&plain, &failed, &["no capture"]);
        assert_eq!(both, texts(&["fail: check: why", "post_vm: no capture"]));
        let mut passed = AssertResult::pass();
        passed.note("warm");
        let noted = judge(&plain, &RunEnd::Verdict(passed), &["none"]);
        assert_eq!(noted, texts(&["post_vm: none"]));
        let skipped = RunEnd::Verdict(AssertResult::skip("no KVM"));
        let skipped = judge(&plain, &skipped, &[]);
        assert_eq!(skipped, Ok(Passed::Skipped("no KVM".to_owned())));
    }

    fn is_inconclusive(end: &RunEnd) -> bool {
        matches!(end, RunEnd::Verdict(verdict) if verdict.outcome == Outcome::Inconclusive)
    }

    #[test]
    fn judge_keeps_the_reasons_of_an_allowed_inconclusive_verdict() {
        let entry = TestEntry { allow_inconclusive: true, ..TestEntry::DEFAULT };
        let end = RunEnd::Verdict(AssertResult::inconclusive(detail("no sample")));
        let reasons = vec!["inconclusive: check: no sample".to_owned()];
        assert_eq!(judge(&entry, &end, &[]), Ok(Passed::Inconclusive(reasons)));
        let complained = judge(&entry, &end, &["no capture"]);
        let both = ["post_vm: no capture", "inconclusive: check: no sample"];
        assert_eq!(complained, texts(&both));
        let beside = AssertResult::inconclusive(detail("no sample"))
            .merge(AssertResult::fail(detail("disk full")));
        assert!(judge(&entry, &RunEnd::Verdict(beside), &[]).is_err());
    }

    #[test]
    fn judge_matches_a_pattern_anywhere_in_a_failure() {
        for (pattern, is_ok) in [
            (r"^check: \d of \d CPUs$", true),
            ("CPU", true),
            ("^5", false),
            ("(?i)cpus", true),
            ("(", false),
        ] {
            let end = RunEnd::Verdict(AssertResult::fail(detail("5 of 4 CPUs")));
            let expect_err = ExpectErr::Matching(pattern);
            let judged = judge(&TestEntry { expect_err, ..TestEntry::DEFAULT }, &end, &[]);
            assert_eq!(judged.is_ok(), is_ok, "{pattern}");
            let Err(reasons) = judged else { continue };
            let heading =
                format!("the test is expected to fail with a match of `{pattern}` (`expect_err`)");
            assert_eq!(reasons[0], format!("{heading}, but its failure is another one:"));
        }
    }

    #[test]
    fn judge_refuses_another_failure_than_the_expected_one() {
        let expected = ExpectErr::Containing("disk is full");
        let two = AssertResult::fail(detail("the disk is full"))
            .merge(AssertResult::fail(detail("5 of 4 CPUs")));
        let inconclusive = AssertResult::inconclusive(detail("the disk is full"));
        let beside = AssertResult::fail(detail("5 of 4 CPUs")).merge(inconclusive.clone());
        let heading = "the test is expected to fail with \"disk is full\" (`expect_err`), but";
        for (end, wanted) in [
            (RunEnd::BodyError("the disk is full".into()), Ok(Passed::AsExpected)),
            (RunEnd::Verdict(two), Ok(Passed::AsExpected)),
            (
                RunEnd::BodyPanicked("three".into()),
                texts(&[
                    &format!("{heading} its failure is another one:"),
                    "test body panicked: three",
                ]),
            ),
            (
                RunEnd::Verdict(beside),
                texts(&[
                    &format!("{heading} its failure is another one:"),
                    "fail: check: 5 of 4 CPUs",
                    "inconclusive: check: the disk is full",
                ]),
            ),
            (
                RunEnd::Verdict(inconclusive),
                texts(&[
                    &format!("{heading} its verdict is inconclusive"),
                    "inconclusive: check: the disk is full",
                ]),
            ),
            (
                RunEnd::Verdict(AssertResult::pass()),
                texts(&[&format!("{heading} its verdict is pass")]),
            ),
            (
                RunEnd::InitFailed(InitFailure::Reported("the disk is full".into())),
                texts(&["infrastructure: guest setup failed: the disk is full"]),
            ),
        ] {
            let entry = TestEntry { expect_err: expected, ..TestEntry::DEFAULT };
            assert_eq!(judge(&entry, &end, &[]), wanted, "{end:?}");
        }
    }

    /// Returns the record of a run that failed with `detail` on an engine with this timing.
    fn failed(timing: Timing, detail: AssertDetail, stolen: &[f64]) -> RunRecord {
        let mut record = crate::runner::record::begin(&TestEntry::DEFAULT);
        record.machine = Some(crate::report::tests::machine(timing));
        record.end = RunEnd::Verdict(AssertResult::fail(detail));
        record.stolen = stolen.to_vec();
        record.timings.body = Some(Duration::from_secs(10));
        record
    }

    fn verdict(record: &RunRecord) -> &AssertResult {
        let RunEnd::Verdict(verdict) = &record.end else { panic!("{}", record.end) };
        verdict
    }

    #[test]
    fn excuse_steal_judges_emulated_time_only_on_request() {
        for (timing, judge_emulated_time, outcome) in [
            (Timing::Emulated, false, Outcome::Pass),
            (Timing::Emulated, true, Outcome::Fail),
            (Timing::Native, false, Outcome::Fail),
        ] {
            let mut record = failed(timing, detail("63 ms").time_based(), &[]);
            excuse_steal(&mut record, judge_emulated_time);
            let verdict = verdict(&record);
            assert_eq!(verdict.outcome, outcome, "{timing:?}");
            assert_eq!(verdict.notes.is_empty(), outcome == Outcome::Fail, "{timing:?}");
        }
    }

    #[test]
    fn excuse_steal_excuses_what_depends_on_time() {
        for (detail, stolen, outcome) in [
            (detail("gap").time_based().cpu(1), [0.001, 0.002, 0.38], Outcome::Inconclusive),
            (detail("gap").time_based(), [0.001, 0.002, 0.004], Outcome::Fail),
            (detail("gap").cpu(2), [0.001, 0.002, 0.38], Outcome::Fail),
        ] {
            let given = format!("{detail:?}");
            let mut record = failed(Timing::Native, detail, &stolen);
            excuse_steal(&mut record, false);
            let verdict = verdict(&record);
            assert_eq!(verdict.outcome, outcome, "{given}");
            let text = verdict.details[0].to_string();
            let is_excused = text.contains("steal time of vCPU 2: 38 %");
            assert_eq!(is_excused, outcome == Outcome::Inconclusive, "{text}");
        }
    }

    #[test]
    fn excuse_steal_needs_as_much_as_explains_a_failure() {
        for timing in [Timing::Emulated, Timing::Native] {
            for (explained_by, stolen, outcome) in [
                (Some(3100), vec![0.1, 0.32], Outcome::Inconclusive),
                (Some(3100), vec![0.1, 0.30], Outcome::Fail),
                (Some(0), vec![0.0, 0.009], Outcome::Fail),
                (Some(0), vec![], Outcome::Fail),
                (None, vec![0.1, 0.99], Outcome::Fail),
            ] {
                let stuck = AssertDetail::new(DetailKind::WorkerStuck, "no iteration in 5.1 s");
                let needed = explained_by.map(Duration::from_millis);
                let stuck = AssertDetail { explained_by: needed, ..stuck };
                let mut record = failed(timing, stuck, &stolen);
                excuse_steal(&mut record, false);
                let verdict = verdict(&record);
                assert_eq!(verdict.outcome, outcome, "{timing:?}: {explained_by:?}, {stolen:?}");
                let text = verdict.details[0].to_string();
                let numbers = "vCPU 1 did not run for 3.2 s of the body's 10.0 s because the host was busy \
                               (steal time 32 %); 3.1 s explain the failure";
                assert_eq!(text.contains(numbers), outcome == Outcome::Inconclusive, "{text}");
            }
        }
    }
}
