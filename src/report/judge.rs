//! What a run says of its test.

use anyhow::Result;
use ktstr_core::assert::Outcome;
use ktstr_core::result::RunEnd;

/// How a test can be fine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    AsExpected,
    Skipped(String),
}

/// Whether the test passes, or why not.
///
/// A fault of the machinery is never what a test expected, and what `post_vm` found missing is not
/// made good by a verdict.
pub(crate) fn judge(
    expect_err: bool,
    end: &RunEnd,
    post_vm: &Result<()>,
) -> Result<Passed, String> {
    if end.is_infrastructure() {
        return Err(format!("infrastructure: {end}"));
    }
    if let Err(error) = post_vm {
        return Err(format!("post_vm: {error:#}"));
    }
    let verdict = match end {
        RunEnd::Verdict(verdict) => verdict,
        _ if expect_err => return Ok(Passed::AsExpected),
        _ => return Err(end.to_string()),
    };
    match (verdict.outcome, expect_err) {
        (Outcome::Skip, _) => {
            let reasons: Vec<_> = verdict.details.iter().map(|detail| &*detail.message).collect();
            Ok(Passed::Skipped(reasons.join("; ")))
        }
        (Outcome::Pass, false) | (Outcome::Fail, true) => Ok(Passed::AsExpected),
        (Outcome::Pass | Outcome::Inconclusive, true) => {
            Err(format!("the test was to fail (`expect_err`), but its verdict is {end}"))
        }
        (Outcome::Fail | Outcome::Inconclusive, false) => {
            let first = verdict.details.first();
            Err(first.map_or_else(|| end.to_string(), |detail| format!("{end}: {detail}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use ktstr_core::assert::{AssertDetail, AssertResult, DetailKind};

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
        let skipped = judge(false, &RunEnd::Verdict(AssertResult::skip("no KVM")), &Ok(()));
        assert_eq!(skipped, Ok(Passed::Skipped("no KVM".to_owned())));
    }
}
