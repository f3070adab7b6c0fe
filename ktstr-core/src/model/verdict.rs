//! The verdict of a test, and how verdicts are joined.

use std::cmp::Reverse;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::detail::{AssertDetail, DetailKind, Outcome};

/// Something worth knowing that decides nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// What `text` is a value of, if it is one.
    pub name: Option<String>,
    /// The note, or the value.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} = {}", self.text),
            None => f.write_str(&self.text),
        }
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
    /// What is worth knowing beside them. Notes never change the conclusion.
    pub notes: Vec<Note>,
}

impl AssertResult {
    /// Everything that was checked held.
    pub fn pass() -> Self {
        Self { outcome: Outcome::Pass, details: Vec::new(), notes: Vec::new() }
    }

    /// A check failed.
    pub fn fail(detail: AssertDetail) -> Self {
        Self::because(Outcome::Fail, detail)
    }

    /// Creates a failed verdict whose only reason is a message.
    pub fn fail_msg(message: impl Into<String>) -> Self {
        Self::fail(AssertDetail::new(DetailKind::Other, message))
    }

    /// The test does not apply here.
    pub fn skip(reason: impl Into<String>) -> Self {
        Self::because(Outcome::Skip, AssertDetail::new(DetailKind::Skip, reason))
    }

    /// The checks could not tell.
    pub fn inconclusive(detail: AssertDetail) -> Self {
        Self::because(Outcome::Inconclusive, detail)
    }

    fn because(outcome: Outcome, detail: AssertDetail) -> Self {
        Self { outcome, details: vec![AssertDetail { outcome, ..detail }], notes: Vec::new() }
    }

    /// Whether the conclusion is [`Outcome::Pass`]; a skip is not.
    pub fn is_pass(&self) -> bool {
        self.outcome == Outcome::Pass
    }

    /// Returns whether the conclusion is [`Outcome::Fail`].
    pub fn is_fail(&self) -> bool {
        self.outcome == Outcome::Fail
    }

    /// Returns the details of failed checks.
    pub fn failure_details(&self) -> impl Iterator<Item = &AssertDetail> {
        self.details.iter().filter(|detail| detail.outcome == Outcome::Fail)
    }

    /// Adds a failed check, which makes the verdict a failure.
    pub fn record_fail(&mut self, detail: AssertDetail) -> &mut Self {
        self.absorb(Self::fail(detail));
        self
    }

    /// Adds a check without a result, which makes the verdict inconclusive unless it is a failure.
    pub fn record_inconclusive(&mut self, detail: AssertDetail) -> &mut Self {
        self.absorb(Self::inconclusive(detail));
        self
    }

    /// Joins two verdicts: fail over inconclusive over pass over skip, the details of both kept.
    pub fn merge(mut self, mut other: Self) -> Self {
        self.notes.append(&mut other.notes);
        if other.outcome > self.outcome {
            std::mem::swap(&mut self.outcome, &mut other.outcome);
            std::mem::swap(&mut self.details, &mut other.details);
        }
        self.details.append(&mut other.details);
        self
    }

    /// Joins `other` into this verdict; [`AssertResult::merge`] in place.
    pub fn absorb(&mut self, other: Self) {
        let own = std::mem::replace(self, Self::pass());
        *self = own.merge(other);
    }

    /// The same verdict with each of its details made anew.
    pub(crate) fn map_details(mut self, map: impl Fn(AssertDetail) -> AssertDetail) -> Self {
        self.details = self.details.into_iter().map(map).collect();
        self
    }

    /// All of them: the verdicts merged. Of none at all it is inconclusive, for nothing was shown.
    pub fn all_of(verdicts: impl IntoIterator<Item = Self>) -> Self {
        verdicts.into_iter().reduce(Self::merge).unwrap_or_else(Self::of_nothing)
    }

    /// Any one of them: the best verdict, where a pass is better than what could not be told, that
    /// better than a failure, and a skip counts only if there is nothing else.
    ///
    /// Details of the others become notes. Of none at all it is inconclusive.
    pub fn any_of(verdicts: impl IntoIterator<Item = Self>) -> Self {
        let verdicts: Vec<_> = verdicts.into_iter().collect();
        let rank = |outcome| match outcome {
            Outcome::Pass => 0,
            Outcome::Inconclusive => 1,
            Outcome::Fail => 2,
            Outcome::Skip => 3,
        };
        let Some(best) = verdicts.iter().map(|verdict| rank(verdict.outcome)).min() else {
            return Self::of_nothing();
        };
        let (chosen, others): (Vec<_>, Vec<_>) =
            verdicts.into_iter().partition(|verdict| rank(verdict.outcome) == best);
        let mut verdict = Self::all_of(chosen);
        for mut other in others {
            verdict.notes.append(&mut other.notes);
            for detail in other.details {
                verdict.note(format!("another alternative: {}: {detail}", detail.outcome));
            }
        }
        verdict
    }

    fn of_nothing() -> Self {
        Self::inconclusive(AssertDetail::new(DetailKind::Other, "nothing was checked"))
    }

    /// Adds something worth knowing, which decides nothing.
    pub fn note(&mut self, text: impl Into<String>) -> &mut Self {
        self.notes.push(Note { name: None, text: text.into() });
        self
    }

    /// Adds a value worth knowing, which decides nothing.
    pub fn note_value(&mut self, name: impl Into<String>, value: impl fmt::Display) -> &mut Self {
        self.notes.push(Note { name: Some(name.into()), text: value.to_string() });
        self
    }

    /// Makes failures inconclusive that steal time explains: `why` is asked of each that is time-based
    /// or [explained](AssertDetail::explained_by) by a certain steal time, and its answer stands in the
    /// detail. A failure that it does not explain and all others stay what they are, and with them
    /// the verdict.
    pub fn excuse(mut self, why: impl Fn(&AssertDetail) -> Option<String>) -> Self {
        let is_failure = |detail: &AssertDetail| detail.outcome == Outcome::Fail;
        if self.outcome != Outcome::Fail || !self.details.iter().any(is_failure) {
            return self;
        }
        let excused = |detail: AssertDetail| match why(&detail) {
            Some(why) => AssertDetail { outcome: Outcome::Inconclusive, ..detail.because(&why) },
            None => detail,
        };
        let failures = self.details.iter().filter(|detail| is_failure(detail)).count();
        let details = std::mem::take(&mut self.details).into_iter();
        let may_be = |detail: &AssertDetail| {
            is_failure(detail) && (detail.time_based || detail.explained_by.is_some())
        };
        self.details =
            details.map(|detail| if may_be(&detail) { excused(detail) } else { detail }).collect();
        let left = self.details.iter().filter(|detail| is_failure(detail)).count();
        // What nothing was changed of stays in the order of the checks.
        if left < failures {
            self.sort();
        }
        if left == 0 {
            self.outcome = Outcome::Inconclusive;
        }
        self
    }

    /// Turns everything time-based that is not good into notes, which say `why`: it is reported and
    /// not judged, unless its bounds want it to be on emulated CPUs as well. What is left decides; if
    /// nothing is, the verdict is a pass.
    pub fn waive_time_based(mut self, why: &str) -> Self {
        // Else the verdict was not made of its details, and does not change with them.
        let is_explained = self.details.iter().any(|detail| detail.outcome == self.outcome);
        let (waived, kept): (Vec<_>, _) =
            std::mem::take(&mut self.details).into_iter().partition(|detail| {
                detail.time_based && !detail.judge_emulated && detail.outcome > Outcome::Pass
            });
        self.details = kept;
        if waived.is_empty() {
            return self;
        }
        for detail in waived {
            self.note(format!("not judged, {why}: {detail}"));
        }
        if is_explained {
            let gravest = self.details.iter().map(|detail| detail.outcome).max();
            self.outcome = gravest.unwrap_or(Outcome::Pass).max(Outcome::Pass);
        }
        self
    }

    /// Drops details and notes beyond so many of each and notes how many: what nothing can excuse
    /// is dropped last.
    pub(crate) fn shorten(&mut self, details: usize, notes: usize) {
        let dropped =
            self.details.len().saturating_sub(details) + self.notes.len().saturating_sub(notes);
        if dropped == 0 {
            return;
        }
        self.sort();
        self.details.truncate(details);
        self.notes.truncate(notes);
        self.note(format!("{dropped} more details and notes were dropped"));
    }

    /// The gravest first, and among those what no noise explains.
    fn sort(&mut self) {
        self.details.sort_by_key(|detail| (Reverse(detail.outcome), detail.time_based));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn detail(text: &str) -> AssertDetail {
        AssertDetail::new(DetailKind::Other, text)
    }

    /// One of each outcome, in their order.
    fn each() -> [AssertResult; 4] {
        [
            AssertResult::skip("s"),
            AssertResult::pass(),
            AssertResult::inconclusive(detail("i")),
            AssertResult::fail(detail("f")),
        ]
    }

    #[test]
    fn the_graver_verdict_wins_and_keeps_all_details() {
        let all = each();
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
    fn recorded_details_decide_as_merged_ones_do() {
        for (index, (after_fail, after_inconclusive)) in
            [(3, 2), (3, 2), (3, 2), (3, 3)].into_iter().enumerate()
        {
            let outcome = |mut verdict: AssertResult, is_fail| {
                let recorded = match is_fail {
                    true => verdict.record_fail(detail("late")),
                    false => verdict.record_inconclusive(detail("late")),
                };
                assert!(recorded.details.iter().any(|detail| detail.message == "late"));
                (verdict.outcome, verdict.failure_details().count())
            };
            let own = usize::from(index == 3);
            assert_eq!(outcome(each()[index].clone(), true), (each()[after_fail].outcome, own + 1));
            let inconclusive = outcome(each()[index].clone(), false);
            assert_eq!(inconclusive, (each()[after_inconclusive].outcome, own));
        }
    }

    #[test]
    fn failure_details_are_those_of_failed_checks() {
        let mut verdict = AssertResult::fail_msg("disk full");
        verdict.record_inconclusive(detail("no sample")).record_fail(detail("oom"));
        let failed: Vec<_> = verdict.failure_details().map(|detail| &*detail.message).collect();
        assert_eq!(failed, ["disk full", "oom"]);
        assert_eq!(each().map(|verdict| verdict.is_fail()), [false, false, false, true]);
    }

    #[test]
    fn only_a_pass_is_a_pass() {
        assert_eq!(each().map(|verdict| verdict.is_pass()), [false, true, false, false]);
    }

    #[test]
    fn all_of_takes_the_gravest_and_any_of_the_best() {
        let [skip, pass, inconclusive, fail] = [0, 1, 2, 3];
        for (given, all, any) in [
            (&[][..], inconclusive, inconclusive),
            (&[skip], skip, skip),
            (&[skip, pass], pass, pass),
            (&[skip, fail], fail, fail),
            (&[pass, fail, inconclusive], fail, pass),
            (&[inconclusive, fail, skip], fail, inconclusive),
            (&[fail, fail], fail, fail),
        ] {
            let verdicts = || given.iter().map(|index| each()[*index].clone());
            assert_eq!(AssertResult::all_of(verdicts()).outcome, each()[all].outcome, "{given:?}");
            assert_eq!(AssertResult::any_of(verdicts()).outcome, each()[any].outcome, "{given:?}");
        }
        let any = AssertResult::any_of([each()[3].clone(), AssertResult::pass()]);
        assert_eq!(any.details, []);
        assert_eq!(any.notes[0].to_string(), "another alternative: fail: check: f");
    }

    #[test]
    fn notes_change_nothing_and_are_kept() {
        for mut verdict in each() {
            let outcome = verdict.outcome;
            verdict.note("warm").note_value("turns", 3);
            assert_eq!(verdict.outcome, outcome);
            let merged = verdict.merge(AssertResult::fail(detail("f")));
            let notes: Vec<_> = merged.notes.iter().map(Note::to_string).collect();
            assert_eq!(notes, ["warm", "turns = 3"]);
        }
    }

    #[test]
    fn only_failures_by_time_are_excused() {
        let gap = || AssertResult::fail(detail("gap").time_based());
        let stolen = |_: &AssertDetail| Some("host stole 38 % of vCPU 2".to_owned());
        for (verdict, outcome, text) in [
            (gap(), Outcome::Inconclusive, "check: gap; host stole 38 % of vCPU 2"),
            (AssertResult::fail(detail("oom")), Outcome::Fail, "check: oom"),
            (
                AssertResult::fail(detail("stuck").explained_by(Duration::ZERO)),
                Outcome::Inconclusive,
                "check: stuck; host stole 38 % of vCPU 2",
            ),
            (gap().merge(AssertResult::fail(detail("oom"))), Outcome::Fail, "check: oom"),
            (
                gap().merge(AssertResult::inconclusive(detail("no sample"))),
                Outcome::Inconclusive,
                "check: no sample",
            ),
            (
                AssertResult::inconclusive(detail("no sample").time_based()),
                Outcome::Inconclusive,
                "check: no sample",
            ),
        ] {
            let excused = verdict.excuse(stolen);
            assert_eq!((excused.outcome, &*excused.details[0].to_string()), (outcome, text));
        }
        let two = gap().merge(AssertResult::fail(detail("rate").time_based().cpu(1)));
        let some = two.clone().excuse(|detail| detail.cpu.and_then(|_| stolen(detail)));
        assert_eq!((some.outcome, some.details[1].outcome), (Outcome::Fail, Outcome::Inconclusive));
        assert_eq!(two.clone().excuse(|_| None), two);
        let mixed = gap().merge(AssertResult::fail(detail("cpuset")));
        assert_eq!(mixed.clone().excuse(|_| None), mixed, "the order of the checks stays");
        assert_eq!(AssertResult::pass().excuse(stolen), AssertResult::pass());
        // A failure whose reasons nobody gave is nobody's to excuse.
        let bare = AssertResult { outcome: Outcome::Fail, ..AssertResult::pass() };
        assert_eq!(bare.clone().excuse(stolen), bare);
    }

    #[test]
    fn what_is_waived_is_reported_and_not_judged() {
        let gap = || AssertResult::fail(detail("gap").time_based());
        let none = || AssertResult::inconclusive(detail("no sample").time_based());
        let oom = || AssertResult::fail(detail("oom"));
        let bare = AssertResult { outcome: Outcome::Fail, ..AssertResult::pass() };
        for (verdict, outcome, notes) in [
            (gap(), Outcome::Pass, 1),
            (gap().merge(none()), Outcome::Pass, 2),
            (gap().merge(AssertResult::skip("s")), Outcome::Pass, 1),
            (gap().merge(oom()), Outcome::Fail, 1),
            (none().merge(AssertResult::inconclusive(detail("i"))), Outcome::Inconclusive, 1),
            (AssertResult::skip("s"), Outcome::Skip, 0),
            (oom(), Outcome::Fail, 0),
            (bare.clone(), Outcome::Fail, 0),
            (bare.merge(none()), Outcome::Fail, 1),
        ] {
            let waived = verdict.waive_time_based("emulated");
            assert_eq!((waived.outcome, waived.notes.len()), (outcome, notes));
            assert!(waived.details.iter().all(|detail| !detail.time_based));
        }
        let note = &gap().waive_time_based("emulated").notes[0];
        assert_eq!(note.to_string(), "not judged, emulated: check: gap");
    }

    #[test]
    fn what_nothing_excuses_is_dropped_last() {
        let mut verdict = AssertResult::inconclusive(detail("i"));
        for index in 0..9 {
            verdict.absorb(AssertResult::fail(detail("gap").time_based()));
            verdict.note_value("index", index);
        }
        verdict.absorb(AssertResult::fail(detail("oom")));
        let whole = verdict.clone();
        verdict.shorten(11, 9);
        assert_eq!(verdict, whole);
        verdict.shorten(2, 3);
        assert_eq!(verdict.details.iter().map(|d| &*d.message).collect::<Vec<_>>(), ["oom", "gap"]);
        assert_eq!(verdict.notes.len(), 4);
        assert_eq!(verdict.notes[3].to_string(), "15 more details and notes were dropped");
    }

    fn any_verdict() -> impl Strategy<Value = AssertResult> {
        let part = (0..4_usize, any::<bool>()).prop_map(|(index, time_based)| {
            each()[index].clone().map_details(|detail| AssertDetail { time_based, ..detail })
        });
        proptest::collection::vec(part, 1..6).prop_map(AssertResult::all_of)
    }

    proptest! {
        /// Whatever is merged, noise excuses what it explains and nothing else, and makes no pass.
        #[test]
        fn excuses_reach_as_far_as_time(verdict in any_verdict()) {
            let failed = |time_based| {
                let mut details = verdict.details.iter();
                details.any(|d| d.outcome == Outcome::Fail && d.time_based == time_based)
            };
            let wanted = match (failed(false), failed(true)) {
                (true, _) => Outcome::Fail,
                (false, true) => Outcome::Inconclusive,
                (false, false) => verdict.outcome,
            };
            let excused = verdict.clone().excuse(|_| Some("noise".to_owned()));
            prop_assert_eq!(excused.outcome, wanted);
            prop_assert_eq!(excused.details.len(), verdict.details.len());
            prop_assert!(excused.details.is_sorted_by_key(|detail| Reverse(detail.outcome)) || excused == verdict);
        }

        /// What is dropped for want of room changes neither the verdict nor what can excuse it.
        #[test]
        fn shortening_keeps_what_decides(verdict in any_verdict(), room in 1..4_usize) {
            let noise = |_: &AssertDetail| Some("noise".to_owned());
            let mut short = verdict.clone();
            short.shorten(room, 0);
            prop_assert_eq!(short.excuse(noise).outcome, verdict.excuse(noise).outcome);
        }
    }
}
