//! What a run says of its test.

use ktstr_core::assert::{AssertResult, Outcome};
use ktstr_core::registry::{ExpectErr, TestEntry};
use ktstr_core::result::RunEnd;
use regex_lite::Regex;

/// How a test can be fine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    AsExpected,
    Skipped(String),
    /// The test allows this; with the reasons.
    Inconclusive(Reasons),
}

/// Why a test fails, the weightiest reason first.
pub(crate) type Reasons = Vec<String>;

/// Whether `end` lets `post_vm` have its say: not if the machinery failed, nor on a skip, for there
/// is nothing to look at then.
pub(crate) fn concerns_post_vm(end: &RunEnd) -> bool {
    let skipped = matches!(end, RunEnd::Verdict(verdict) if verdict.outcome == Outcome::Skip);
    !end.is_infrastructure() && !skipped
}

/// Whether the test passes, or why not.
///
/// A fault of the machinery is never what a test expected, and no verdict compensates for `complaints`,
/// the errors of `post_vm` and `post_vm_unconditional`.
pub(crate) fn judge(
    entry: &TestEntry,
    end: &RunEnd,
    complaints: Vec<String>,
) -> Result<Passed, Reasons> {
    let own = judge_end(entry, end);
    if complaints.is_empty() {
        return own;
    }
    let is_plain_pass = matches!(end, RunEnd::Verdict(verdict) if verdict.is_pass());
    Err(match own {
        Ok(_) if is_plain_pass => complaints,
        Ok(Passed::Inconclusive(reasons)) => [complaints, reasons].concat(),
        Ok(_) => [complaints, vec![format!("the run itself, as expected: {end}")]].concat(),
        Err(reasons) => [reasons, complaints].concat(),
    })
}

fn judge_end(entry: &TestEntry, end: &RunEnd) -> Result<Passed, Reasons> {
    let expect_err = entry.expect_err;
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
            let wanted = wanted(expect_err);
            let mut reasons = vec![format!("{wanted} (`expect_err`), but its verdict is {end}")];
            if verdict.outcome == Outcome::Inconclusive {
                reasons.extend(reasons_of(verdict, end));
            }
            Err(reasons)
        }
        (Outcome::Inconclusive, false) if entry.allow_inconclusive => {
            Ok(Passed::Inconclusive(reasons_of(verdict, end)))
        }
        (Outcome::Inconclusive, false) => Err(reasons_of(verdict, end)),
        (Outcome::Fail, _) => {
            let failed = verdict.details.iter().filter(|detail| detail.outcome == Outcome::Fail);
            let failures: Vec<_> = failed.map(ToString::to_string).collect();
            judge_failure(expect_err, &failures, reasons_of(verdict, end))
        }
    }
}

/// Whether one of the `failures` is that which was expected; `reasons` tell of all that was not good.
fn judge_failure(
    expect_err: ExpectErr,
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
    let other = format!("{} (`expect_err`), but it failed so:", wanted(expect_err));
    Err([vec![other], reasons].concat())
}

fn wanted(expect_err: ExpectErr) -> String {
    match expect_err {
        ExpectErr::Containing(text) => format!("the test was to fail with {text:?}"),
        ExpectErr::Matching(pattern) => format!("the test was to fail with a match of `{pattern}`"),
        _ => "the test was to fail".to_owned(),
    }
}

/// Each detail with its own outcome, or the verdict's if nobody said why.
fn reasons_of(verdict: &AssertResult, end: &RunEnd) -> Reasons {
    let told = verdict.details.iter().map(|detail| format!("{}: {detail}", detail.outcome));
    let reasons: Vec<_> = told.collect();
    if reasons.is_empty() { vec![end.to_string()] } else { reasons }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ktstr_core::assert::{AssertDetail, DetailKind};
    use ktstr_core::result::{ClockSpan, ExitKind};

    use super::*;

    fn detail(text: &str) -> AssertDetail {
        AssertDetail::new(DetailKind::Other, text)
    }

    fn texts(reasons: &[&str]) -> Result<Passed, Reasons> {
        Err(reasons.iter().map(|reason| (*reason).to_owned()).collect())
    }

    #[test]
    fn only_what_was_expected_passes() {
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
            (RunEnd::InitFailed("why".to_owned()), false, false),
            (RunEnd::WireBroken("why".to_owned()), false, false),
            (wrong_clock, false, false),
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
                assert_eq!(judge(&entry, &end, Vec::new()).is_ok(), wanted, "{end:?}");
                assert!(judge(&entry, &end, vec!["no".to_owned()]).is_err(), "{end:?}");
                let lenient = TestEntry { allow_inconclusive: true, ..entry };
                let wanted = wanted || (expect_err == ExpectErr::No && is_inconclusive(&end));
                assert_eq!(judge(&lenient, &end, Vec::new()).is_ok(), wanted, "{end:?}");
                assert!(judge(&lenient, &end, vec!["no".to_owned()]).is_err(), "{end:?}");
            }
        }
        let failed = RunEnd::Verdict(AssertResult::fail(detail("why")));
        let plain = TestEntry::DEFAULT;
        let both = judge(&plain, &failed, vec!["post_vm: no capture".to_owned()]);
        assert_eq!(both, texts(&["fail: check: why", "post_vm: no capture"]));
        let mut passed = AssertResult::pass();
        passed.note("warm");
        let noted = judge(&plain, &RunEnd::Verdict(passed), vec!["post_vm: none".to_owned()]);
        assert_eq!(noted, texts(&["post_vm: none"]));
        let skipped = RunEnd::Verdict(AssertResult::skip("no KVM"));
        let skipped = judge(&plain, &skipped, Vec::new());
        assert_eq!(skipped, Ok(Passed::Skipped("no KVM".to_owned())));
    }

    fn is_inconclusive(end: &RunEnd) -> bool {
        matches!(end, RunEnd::Verdict(verdict) if verdict.outcome == Outcome::Inconclusive)
    }

    #[test]
    fn allowed_inconclusive_verdict_keeps_its_reasons() {
        let entry = TestEntry { allow_inconclusive: true, ..TestEntry::DEFAULT };
        let end = RunEnd::Verdict(AssertResult::inconclusive(detail("no sample")));
        let reasons = vec!["inconclusive: check: no sample".to_owned()];
        assert_eq!(judge(&entry, &end, Vec::new()), Ok(Passed::Inconclusive(reasons)));
        let complained = judge(&entry, &end, vec!["post_vm: no capture".to_owned()]);
        let both = ["post_vm: no capture", "inconclusive: check: no sample"];
        assert_eq!(complained, texts(&both));
        let beside = AssertResult::inconclusive(detail("no sample"))
            .merge(AssertResult::fail(detail("disk full")));
        assert!(judge(&entry, &RunEnd::Verdict(beside), Vec::new()).is_err());
    }

    #[test]
    fn a_pattern_is_matched_anywhere_in_a_failure() {
        for (pattern, is_ok) in [
            (r"^check: \d of \d CPUs$", true),
            ("CPU", true),
            ("^5", false),
            ("(?i)cpus", true),
            ("(", false),
        ] {
            let end = RunEnd::Verdict(AssertResult::fail(detail("5 of 4 CPUs")));
            let expect_err = ExpectErr::Matching(pattern);
            let judged = judge(&TestEntry { expect_err, ..TestEntry::DEFAULT }, &end, Vec::new());
            assert_eq!(judged.is_ok(), is_ok, "{pattern}");
            let Err(reasons) = judged else { continue };
            let heading =
                format!("the test was to fail with a match of `{pattern}` (`expect_err`)");
            assert_eq!(reasons[0], format!("{heading}, but it failed so:"));
        }
    }

    #[test]
    fn another_failure_is_none_that_was_expected() {
        let expected = ExpectErr::Containing("disk is full");
        let two = AssertResult::fail(detail("the disk is full"))
            .merge(AssertResult::fail(detail("5 of 4 CPUs")));
        let untold = AssertResult::inconclusive(detail("the disk is full"));
        let beside = AssertResult::fail(detail("5 of 4 CPUs")).merge(untold.clone());
        let heading = "the test was to fail with \"disk is full\" (`expect_err`), but";
        for (end, wanted) in [
            (RunEnd::BodyError("the disk is full".into()), Ok(Passed::AsExpected)),
            (RunEnd::Verdict(two), Ok(Passed::AsExpected)),
            (
                RunEnd::BodyPanicked("three".into()),
                texts(&[&format!("{heading} it failed so:"), "the body panicked: three"]),
            ),
            (
                RunEnd::Verdict(beside),
                texts(&[
                    &format!("{heading} it failed so:"),
                    "fail: check: 5 of 4 CPUs",
                    "inconclusive: check: the disk is full",
                ]),
            ),
            (
                RunEnd::Verdict(untold),
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
                RunEnd::InitFailed("the disk is full".into()),
                texts(&[
                    "infrastructure: the guest failed before or beside the body: the disk is full",
                ]),
            ),
        ] {
            let entry = TestEntry { expect_err: expected, ..TestEntry::DEFAULT };
            assert_eq!(judge(&entry, &end, Vec::new()), wanted, "{end:?}");
        }
    }
}
