//! What a run says of its test.

use anyhow::Result;
use ktstr_core::assert::{AssertResult, Outcome};
use ktstr_core::result::RunEnd;

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
    expect_err: bool,
    end: &RunEnd,
    post_vm: &Result<()>,
) -> Result<Passed, Reasons> {
    let own = judge_end(expect_err, end);
    let Err(error) = post_vm else { return own };
    let complaint = format!("post_vm: {error:#}");
    Err(match own {
        Ok(_) if *end == RunEnd::Verdict(AssertResult::pass()) => vec![complaint],
        Ok(_) => vec![complaint, format!("the run itself, as expected: {end}")],
        Err(mut reasons) => {
            reasons.push(complaint);
            reasons
        }
    })
}

fn judge_end(expect_err: bool, end: &RunEnd) -> Result<Passed, Reasons> {
    let verdict = match end {
        RunEnd::Verdict(verdict) => verdict,
        end if end.is_infrastructure() => return Err(vec![format!("infrastructure: {end}")]),
        _ if expect_err => return Ok(Passed::AsExpected),
        end => return Err(vec![end.to_string()]),
    };
    match (verdict.outcome, expect_err) {
        (Outcome::Skip, _) => {
            let reasons: Vec<_> = verdict.details.iter().map(|detail| &*detail.message).collect();
            Ok(Passed::Skipped(reasons.join("; ")))
        }
        (Outcome::Pass, false) | (Outcome::Fail, true) => Ok(Passed::AsExpected),
        (Outcome::Pass | Outcome::Inconclusive, true) => {
            Err(vec![format!("the test was to fail (`expect_err`), but its verdict is {end}")])
        }
        (Outcome::Fail | Outcome::Inconclusive, false) => {
            let told = verdict.details.iter().map(|detail| format!("{end}: {detail}"));
            let reasons: Vec<_> = told.collect();
            if reasons.is_empty() { Err(vec![end.to_string()]) } else { Err(reasons) }
        }
    }
}

#[cfg(test)]
mod tests {
    use ktstr_core::assert::{AssertDetail, DetailKind};

    use super::*;

    #[test]
    fn only_what_was_expected_passes() {
        let detail = || AssertDetail::new(DetailKind::Other, "why");
        let died = RunEnd::BodyExited("exit status 0".to_owned());
        for (end, alone, with_expect_err) in [
            (RunEnd::Verdict(AssertResult::pass()), true, false),
            (RunEnd::Verdict(AssertResult::fail(detail())), false, true),
            (RunEnd::Verdict(AssertResult::inconclusive(detail())), false, false),
            (RunEnd::Verdict(AssertResult::skip("why")), true, true),
            (died.clone(), false, true),
            (RunEnd::GuestPanicked("why".to_owned()), false, true),
            (RunEnd::InitFailed("why".to_owned()), false, false),
            (RunEnd::WireBroken("why".to_owned()), false, false),
            (RunEnd::EngineFailed("why".to_owned()), false, false),
            (RunEnd::WrongTopology(vec!["why".to_owned()]), false, false),
        ] {
            assert_eq!(judge(false, &end, &Ok(())).is_ok(), alone, "{end:?}");
            assert_eq!(judge(true, &end, &Ok(())).is_ok(), with_expect_err, "{end:?}");
            for expect_err in [false, true] {
                assert!(judge(expect_err, &end, &Err(anyhow::anyhow!("no"))).is_err(), "{end:?}");
            }
        }
        let failed = RunEnd::Verdict(AssertResult::fail(detail()));
        let both = judge(false, &failed, &Err(anyhow::anyhow!("no capture")));
        assert_eq!(both.unwrap_err(), ["fail: check: why", "post_vm: no capture"]);
        let skipped = judge(false, &RunEnd::Verdict(AssertResult::skip("no KVM")), &Ok(()));
        assert_eq!(skipped, Ok(Passed::Skipped("no KVM".to_owned())));
    }
}
