//! Verdicts: what a test concluded, and why.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a test concluded. The order is the order of [`AssertResult::merge`]: the greater wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The test did not apply here; it says why.
    Skip,
    /// Everything that was checked held.
    Pass,
    /// The checks could not tell; never a pass.
    Inconclusive,
    /// A check failed.
    Fail,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Skip => "skip",
            Self::Pass => "pass",
            Self::Inconclusive => "inconclusive",
            Self::Fail => "fail",
        })
    }
}

/// What a detail is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DetailKind {
    /// A worker died before it was told to stop.
    WorkerDied,
    /// A worker was released and did no work.
    WorkerStuck,
    /// A cgroup does not hold what it should.
    Cgroup,
    /// The reason of a skip.
    Skip,
    /// Anything else; the message tells.
    Other,
}

impl fmt::Display for DetailKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WorkerDied => "worker died",
            Self::WorkerStuck => "worker stuck",
            Self::Cgroup => "cgroup",
            Self::Skip => "skipped",
            Self::Other => "check",
        })
    }
}

/// One reason of a verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssertDetail {
    /// What it is about.
    pub kind: DetailKind,
    /// What was seen, against what was expected.
    pub message: String,
}

impl AssertDetail {
    /// A detail of `kind` that says `message`.
    pub fn new(kind: DetailKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl fmt::Display for AssertDetail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}

/// The verdict of a test, or of a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use = "a verdict that is dropped checks nothing"]
pub struct AssertResult {
    /// The conclusion.
    pub outcome: Outcome,
    /// Its reasons, the weightiest conclusion's first.
    pub details: Vec<AssertDetail>,
}

impl AssertResult {
    /// Everything that was checked held.
    pub fn pass() -> Self {
        Self { outcome: Outcome::Pass, details: Vec::new() }
    }

    /// A check failed.
    pub fn fail(detail: AssertDetail) -> Self {
        Self { outcome: Outcome::Fail, details: vec![detail] }
    }

    /// The test does not apply here.
    pub fn skip(reason: impl Into<String>) -> Self {
        let detail = AssertDetail::new(DetailKind::Skip, reason);
        Self { outcome: Outcome::Skip, details: vec![detail] }
    }

    /// The checks could not tell.
    pub fn inconclusive(detail: AssertDetail) -> Self {
        Self { outcome: Outcome::Inconclusive, details: vec![detail] }
    }

    /// Whether the conclusion is [`Outcome::Pass`]; a skip is not.
    pub fn is_pass(&self) -> bool {
        self.outcome == Outcome::Pass
    }

    /// Joins two verdicts: fail over inconclusive over pass over skip, the details of both kept.
    pub fn merge(mut self, mut other: Self) -> Self {
        if other.outcome > self.outcome {
            std::mem::swap(&mut self, &mut other);
        }
        self.details.append(&mut other.details);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_graver_verdict_wins_and_keeps_all_details() {
        let detail = |text| AssertDetail::new(DetailKind::Other, text);
        let all = [
            AssertResult::skip("s"),
            AssertResult::pass(),
            AssertResult::inconclusive(detail("i")),
            AssertResult::fail(detail("f")),
        ];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                let merged = a.clone().merge(b.clone());
                assert_eq!(merged.outcome, all[i.max(j)].outcome);
                assert_eq!(merged.details.len(), a.details.len() + b.details.len());
                if i != j {
                    assert!(merged.details.starts_with(&all[i.max(j)].details));
                }
            }
        }
    }

    #[test]
    fn only_a_pass_is_a_pass() {
        assert!(AssertResult::pass().is_pass());
        assert!(!AssertResult::skip("no sched_ext").is_pass());
    }
}
