//! The verdict of a test, and how verdicts are joined.

use std::cmp::Reverse;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::detail::{AssertDetail, DetailKind, Outcome};
use super::measurement::{Limit, Measurement};
use super::text::cut;

/// Information that does not affect the outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The name of the value in `text`, if it is a value.
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[must_use = "a verdict that is dropped checks nothing"]
pub struct AssertResult {
    /// The conclusion.
    pub outcome: Outcome,
    /// Its reasons, those of the most serious conclusion first.
    pub details: Vec<AssertDetail>,
    /// Additional information. Notes never change the conclusion.
    pub notes: Vec<Note>,
    /// What the checks measured, whether or not there was a limit. The host gets measurements by
    /// themselves, in [`RunRecord::measurements`](super::record::RunRecord::measurements), and a verdict
    /// without them.
    #[serde(skip)]
    pub measurements: Vec<Measurement>,
}

impl AssertResult {
    /// Creates a verdict in which every check passed.
    pub fn pass() -> Self {
        let (details, notes, measurements) = (Vec::new(), Vec::new(), Vec::new());
        Self { outcome: Outcome::Pass, details, notes, measurements }
    }

    /// Creates a failed verdict.
    pub fn fail(detail: AssertDetail) -> Self {
        Self::with_reason(Outcome::Fail, detail)
    }

    /// Creates a failed verdict with a message as the only reason.
    pub fn fail_msg(message: impl Into<String>) -> Self {
        Self::fail(AssertDetail::new(DetailKind::Other, message))
    }

    /// Creates the verdict of a test that does not apply here.
    pub fn skip(reason: impl Into<String>) -> Self {
        Self::with_reason(Outcome::Skip, AssertDetail::new(DetailKind::Skip, reason))
    }

    /// Creates the verdict of checks that could not decide.
    pub fn inconclusive(detail: AssertDetail) -> Self {
        Self::with_reason(Outcome::Inconclusive, detail)
    }

    fn with_reason(outcome: Outcome, detail: AssertDetail) -> Self {
        let details = vec![AssertDetail { outcome, ..detail }];
        Self { outcome, details, ..Self::pass() }
    }

    /// Compares what a check measured with a limit, and records the measurement in any case.
    ///
    /// Without a limit, the verdict is a pass. With one, it is inconclusive if nothing was measured or
    /// the limit is NaN.
    pub(crate) fn judge(detail: AssertDetail, limit: Option<Limit>) -> Self {
        let measurements = detail.measured.iter().cloned();
        let measurements = measurements.map(|measured| measured.limit(limit)).collect();
        let allowed = |limit: Limit| limit.allows(detail.measured.as_ref()?.value);
        let verdict = match limit.map(|limit| (limit, allowed(limit))) {
            None | Some((_, Some(true))) => Self::pass(),
            Some((limit, Some(false))) => Self::fail(detail.limit(limit)),
            Some((limit, None)) if detail.measured.is_some() => {
                Self::inconclusive(detail.limit(limit))
            }
            Some((_, None)) => Self::inconclusive(detail),
        };
        Self { measurements, ..verdict }
    }

    /// Returns whether the conclusion is [`Outcome::Pass`]; a skip is not.
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

    /// Joins two verdicts: fail over inconclusive over pass over skip, with the details of both.
    pub fn merge(mut self, mut other: Self) -> Self {
        self.notes.append(&mut other.notes);
        self.measurements.append(&mut other.measurements);
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

    pub(crate) fn map_details(mut self, map: impl Fn(AssertDetail) -> AssertDetail) -> Self {
        self.details = self.details.into_iter().map(map).collect();
        self
    }

    /// Merges verdicts that must all pass. Without any verdict, the result is inconclusive.
    pub fn all_of(verdicts: impl IntoIterator<Item = Self>) -> Self {
        verdicts.into_iter().reduce(Self::merge).unwrap_or_else(Self::of_nothing)
    }

    /// Returns the best of alternative verdicts: a pass before an inconclusive one before a failure, and
    /// a skip only without any of them.
    ///
    /// Details of the others become notes. Without any verdict, the result is inconclusive.
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
            verdict.measurements.append(&mut other.measurements);
            for detail in other.details {
                verdict.note(format!("another alternative: {}: {detail}", detail.outcome));
            }
        }
        verdict
    }

    fn of_nothing() -> Self {
        Self::inconclusive(AssertDetail::new(DetailKind::Other, "nothing was checked"))
    }

    /// Adds a note, which does not affect the outcome.
    pub fn note(&mut self, text: impl Into<String>) -> &mut Self {
        self.notes.push(Note { name: None, text: text.into() });
        self
    }

    /// Adds a named value as a note, which does not affect the outcome.
    pub fn note_value(&mut self, name: impl Into<String>, value: impl fmt::Display) -> &mut Self {
        self.notes.push(Note { name: Some(name.into()), text: value.to_string() });
        self
    }

    /// Makes failures inconclusive that steal time explains.
    ///
    /// `why` is called for each failure that is time-based or
    /// [explained](AssertDetail::explained_by) by a certain steal time, and returns the explanation,
    /// which is added to the detail, or `None`. All other failures stay failures.
    pub fn excuse(mut self, why: impl Fn(&AssertDetail) -> Option<String>) -> Self {
        let is_failure = |detail: &AssertDetail| detail.outcome == Outcome::Fail;
        if !self.is_fail() {
            return self;
        }
        let mut excused = 0;
        for detail in self.details.iter_mut().filter(|detail| is_failure(detail)) {
            if (detail.time_based || detail.explained_by.is_some())
                && let Some(why) = why(detail)
            {
                *detail = detail.clone().because(&why);
                detail.outcome = Outcome::Inconclusive;
                excused += 1;
            }
        }
        // Without a change, the details stay in the order of the checks.
        if excused == 0 {
            return self;
        }
        self.sort();
        if !self.details.iter().any(is_failure) {
            self.outcome = Outcome::Inconclusive;
        }
        self
    }

    /// Turns time-based details that are not passes into notes with the reason `why`, unless their
    /// checks are judged on emulated CPUs as well. The remaining details decide; without any, the
    /// verdict is a pass.
    pub fn waive_time_based(mut self, why: &str) -> Self {
        // A verdict without a detail of its outcome was not derived from details, and stays.
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
            let worst = self.details.iter().map(|detail| detail.outcome).max();
            self.outcome = worst.unwrap_or(Outcome::Pass).max(Outcome::Pass);
        }
        self
    }

    /// Removes numbers that are not finite, which a guest can send: JSON would keep them as `null`, and
    /// the record could not be read back.
    pub fn remove_non_finite(&mut self) {
        for detail in &mut self.details {
            detail.measured = detail.measured.take().and_then(Measurement::finite);
            detail.limit = detail.limit.filter(|limit| limit.is_finite());
        }
    }

    /// Bounds the encoded size of the verdict, so that it fits a frame of the wire. Failures that steal
    /// time cannot explain are dropped last; notes state what was dropped.
    pub(crate) fn shorten(&mut self) {
        const DETAILS: usize = 100;
        const NOTES: usize = 200;
        // In bytes: the message of a detail, the name of a note.
        const MESSAGE: usize = 3 << 10;
        const TEXT: usize = 256;
        self.keep(DETAILS, NOTES);
        for detail in &mut self.details {
            cut(&mut detail.message, MESSAGE);
            detail.scope.texts_mut().for_each(|text| cut(text, TEXT));
            detail.measured.iter_mut().for_each(Measurement::shorten);
        }
        for note in &mut self.notes {
            note.name.iter_mut().for_each(|name| cut(name, TEXT));
            cut(&mut note.text, 2 * TEXT);
        }
    }

    /// Drops details and notes beyond the given numbers, and notes how many that were.
    fn keep(&mut self, details: usize, notes: usize) {
        let more = |length: usize, most: usize| length.saturating_sub(most);
        let dropped = more(self.details.len(), details) + more(self.notes.len(), notes);
        if dropped > 0 {
            self.sort();
            self.details.truncate(details);
            self.notes.truncate(notes);
            self.note(format!("{dropped} more details and notes were dropped"));
        }
    }

    /// Sorts details by severity; of the same severity, those that steal time cannot explain come first.
    fn sort(&mut self) {
        self.details.sort_by_key(|detail| (Reverse(detail.outcome), detail.time_based));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::model::measurement::Scope;
    use crate::model::wire::Payload;

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
    fn merge_takes_the_worse_outcome_and_all_details() {
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
    fn record_fail_and_record_inconclusive_merge_the_detail() {
        for (index, (after_fail, after_inconclusive)) in
            [(3, 2), (3, 2), (3, 2), (3, 3)].into_iter().enumerate()
        {
            let outcome = |mut verdict: AssertResult, is_fail| {
                let recorded = if is_fail {
                    verdict.record_fail(detail("late"))
                } else {
                    verdict.record_inconclusive(detail("late"))
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
    fn failure_details_returns_failed_checks_only() {
        let mut verdict = AssertResult::fail_msg("disk full");
        verdict.record_inconclusive(detail("no sample")).record_fail(detail("oom"));
        let failed: Vec<_> = verdict.failure_details().map(|detail| &*detail.message).collect();
        assert_eq!(failed, ["disk full", "oom"]);
        assert_eq!(each().map(|verdict| verdict.is_fail()), [false, false, false, true]);
    }

    #[test]
    fn is_pass_excludes_skip() {
        assert_eq!(each().map(|verdict| verdict.is_pass()), [false, true, false, false]);
    }

    #[test]
    fn all_of_takes_the_worst_and_any_of_the_best() {
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
    fn notes_survive_merge_without_effect() {
        for mut verdict in each() {
            let outcome = verdict.outcome;
            verdict.note("warm").note_value("iterations", 3);
            assert_eq!(verdict.outcome, outcome);
            let merged = verdict.merge(AssertResult::fail(detail("f")));
            let notes: Vec<_> = merged.notes.iter().map(Note::to_string).collect();
            assert_eq!(notes, ["warm", "iterations = 3"]);
        }
    }

    #[test]
    fn excuse_affects_time_based_failures_only() {
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
        // A failure without a reason cannot be excused.
        let bare = AssertResult { outcome: Outcome::Fail, ..AssertResult::pass() };
        assert_eq!(bare.clone().excuse(stolen), bare);
    }

    #[test]
    fn waive_time_based_turns_details_into_notes() {
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
    fn keep_drops_time_based_details_first() {
        let mut verdict = AssertResult::inconclusive(detail("i"));
        for index in 0..9 {
            verdict.absorb(AssertResult::fail(detail("gap").time_based()));
            verdict.note_value("index", index);
        }
        verdict.absorb(AssertResult::fail(detail("oom")));
        let whole = verdict.clone();
        verdict.keep(11, 9);
        assert_eq!(verdict, whole);
        verdict.keep(2, 3);
        assert_eq!(verdict.details.iter().map(|d| &*d.message).collect::<Vec<_>>(), ["oom", "gap"]);
        assert_eq!(verdict.notes.len(), 4);
        assert_eq!(verdict.notes[3].to_string(), "15 more details and notes were dropped");
    }

    #[test]
    fn judge_compares_with_the_limit_and_keeps_the_measurement() {
        let measured =
            |value| AssertDetail::measured(DetailKind::Gap, Measurement::new("gap", value, "ms"));
        let nothing = || AssertDetail::new(DetailKind::Gap, "no iteration");
        for (detail, limit, outcome, text) in [
            (measured(2.0), Some(Limit::AtMost(2.0)), Outcome::Pass, ""),
            (measured(9.0), None, Outcome::Pass, ""),
            (
                measured(9.0),
                Some(Limit::AtMost(2.0)),
                Outcome::Fail,
                "max_gap_ms: 9 ms (limit 2 ms)",
            ),
            (
                measured(9.0),
                Some(Limit::AtMost(f64::NAN)),
                Outcome::Inconclusive,
                "max_gap_ms: 9 ms: limit NaN ms",
            ),
            (nothing(), None, Outcome::Pass, ""),
            (
                nothing(),
                Some(Limit::AtMost(2.0)),
                Outcome::Inconclusive,
                "max_gap_ms: no iteration",
            ),
        ] {
            let count = usize::from(detail.measured.is_some());
            let verdict = AssertResult::judge(detail, limit);
            let texts: Vec<_> = verdict.details.iter().map(ToString::to_string).collect();
            assert_eq!((verdict.outcome, &*texts.concat()), (outcome, text));
            assert_eq!(verdict.measurements.len(), count);
        }
    }

    #[test]
    fn shorten_fits_the_longest_verdict_into_a_frame() {
        let long = "\u{20ac}".repeat(1 << 20);
        let scope = Scope::Payload { name: long.clone(), cgroup: long.clone() };
        let measured = Measurement::new(&*long, 1.0, &*long).scope(scope);
        let detail = AssertDetail::measured(DetailKind::Other, measured);
        let detail = detail.because(&long).cpu(u32::MAX).at_ns(u64::MAX);
        let mut verdict = AssertResult::fail(detail.clone());
        verdict.details = vec![detail; 110];
        for _ in 0..210 {
            verdict.note_value(long.as_str(), "x".repeat(1 << 10));
        }
        verdict.shorten();
        Payload::encode(&verdict).unwrap();
        let lengths = [verdict.details.len(), verdict.notes.len()];
        assert_eq!((lengths, verdict.is_fail()), ([100, 201], true));
    }

    #[test]
    fn remove_non_finite_makes_the_verdict_readable() {
        let measured = |value| Measurement::new("gap", value, "ms");
        let detail = |value, limit| {
            let detail = AssertDetail::measured(DetailKind::Gap, measured(1.0));
            AssertDetail {
                measured: Some(measured(value)),
                limit: Some(Limit::AtMost(limit)),
                ..detail
            }
        };
        let mut verdict = AssertResult::fail(detail(f64::NAN, 1.0));
        verdict.record_fail(detail(2.0, f64::INFINITY)).record_fail(detail(3.0, 4.0));
        verdict.remove_non_finite();
        let json = serde_json::to_string(&verdict).unwrap();
        assert_eq!(serde_json::from_str::<AssertResult>(&json).unwrap(), verdict);
        let kept = [&verdict.details[0], &verdict.details[1], &verdict.details[2]]
            .map(|detail| (detail.measured.is_some(), detail.limit.is_some()));
        assert_eq!(kept, [(false, true), (true, false), (true, true)]);
    }

    fn any_verdict() -> impl Strategy<Value = AssertResult> {
        let part = (0..4_usize, any::<bool>()).prop_map(|(index, time_based)| {
            each()[index].clone().map_details(|detail| AssertDetail { time_based, ..detail })
        });
        proptest::collection::vec(part, 1..6).prop_map(AssertResult::all_of)
    }

    proptest! {
        /// In any merged verdict, steal time excuses time-based failures only, and never makes a pass.
        #[test]
        fn excuse_affects_time_based_details_only(verdict in any_verdict()) {
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

        /// Dropping details changes neither the verdict nor what steal time can excuse.
        #[test]
        fn keep_preserves_the_outcome_after_excuse(verdict in any_verdict(), room in 1..4_usize) {
            let noise = |_: &AssertDetail| Some("noise".to_owned());
            let mut short = verdict.clone();
            short.keep(room, 0);
            prop_assert_eq!(short.excuse(noise).outcome, verdict.excuse(noise).outcome);
        }
    }
}
