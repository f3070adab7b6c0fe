//! What a run says of its test.

use anyhow::Result;
use ktstr_core::assert::{AssertResult, Outcome};
use ktstr_core::registry::ExpectErr;
use ktstr_core::result::RunEnd;
use regex_lite::Regex;

/// How a test can be fine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    AsExpected,
    Skipped(String),
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
/// A fault of the machinery is never what a test expected, and what `post_vm` found missing is not
/// made good by a verdict.
pub(crate) fn judge(
    expect_err: ExpectErr,
    end: &RunEnd,
    post_vm: &Result<()>,
) -> Result<Passed, Reasons> {
    let own = judge_end(expect_err, end);
    let Err(error) = post_vm else { return own };
    let complaint = format!("post_vm: {error:#}");
    let is_plain_pass = matches!(end, RunEnd::Verdict(verdict) if verdict.is_pass());
    Err(match own {
        Ok(_) if is_plain_pass => vec![complaint],
        Ok(_) => vec![complaint, format!("the run itself, as expected: {end}")],
        Err(mut reasons) => {
            reasons.push(complaint);
            reasons
        }
    })
}

fn judge_end(expect_err: ExpectErr, end: &RunEnd) -> Result<Passed, Reasons> {
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
    use ktstr_core::assert::{AssertDetail, DetailKind};

    use super::*;

    fn detail(text: &str) -> AssertDetail {
        AssertDetail::new(DetailKind::Other, text)
    }

    fn texts(reasons: &[&str]) -> Result<Passed, Reasons> {
        Err(reasons.iter().map(|reason| (*reason).to_owned()).collect())
    }

    #[test]
    fn only_what_was_expected_passes() {
        let died = RunEnd::BodyExited("exit status 0".to_owned());
        for (end, alone, with_expect_err) in [
            (RunEnd::Verdict(AssertResult::pass()), true, false),
            (RunEnd::Verdict(AssertResult::fail(detail("why"))), false, true),
            (RunEnd::Verdict(AssertResult::inconclusive(detail("why"))), false, false),
            (RunEnd::Verdict(AssertResult::skip("why")), true, true),
            (died.clone(), false, true),
            (RunEnd::GuestPanicked("why".to_owned()), false, true),
            (RunEnd::InitFailed("why".to_owned()), false, false),
            (RunEnd::WireBroken("why".to_owned()), false, false),
            (RunEnd::EngineFailed("why".to_owned()), false, false),
            (RunEnd::WrongTopology(vec!["why".to_owned()]), false, false),
        ] {
            for (expect_err, wanted) in [
                (ExpectErr::No, alone),
                (ExpectErr::Any, with_expect_err),
                (ExpectErr::Containing(""), with_expect_err),
                (ExpectErr::Matching(""), with_expect_err),
            ] {
                assert_eq!(judge(expect_err, &end, &Ok(())).is_ok(), wanted, "{end:?}");
                assert!(judge(expect_err, &end, &Err(anyhow::anyhow!("no"))).is_err(), "{end:?}");
            }
        }
        let failed = RunEnd::Verdict(AssertResult::fail(detail("why")));
        let both = judge(ExpectErr::No, &failed, &Err(anyhow::anyhow!("no capture")));
        assert_eq!(both, texts(&["fail: check: why", "post_vm: no capture"]));
        let mut passed = AssertResult::pass();
        passed.note("warm");
        let noted = judge(ExpectErr::No, &RunEnd::Verdict(passed), &Err(anyhow::anyhow!("none")));
        assert_eq!(noted, texts(&["post_vm: none"]));
        let skipped = RunEnd::Verdict(AssertResult::skip("no KVM"));
        let skipped = judge(ExpectErr::No, &skipped, &Ok(()));
        assert_eq!(skipped, Ok(Passed::Skipped("no KVM".to_owned())));
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
            let judged = judge(ExpectErr::Matching(pattern), &end, &Ok(()));
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
            assert_eq!(judge(expected, &end, &Ok(())), wanted, "{end:?}");
        }
    }
}
