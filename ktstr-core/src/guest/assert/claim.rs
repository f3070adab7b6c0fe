//! Claims of a test about its own numbers: `claim!`.

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

use crate::guest::measured;
use crate::model::detail::{AssertDetail, DetailKind};
use crate::model::measurement::{Limit, Measurement, Scope};
use crate::model::verdict::AssertResult;

/// Begins a claim about a number: an integer, a float or a `Duration`.
///
/// The first argument is the verdict; a claim that does not hold becomes a part of it. The label of the
/// claim is the source text of the second argument. The methods of
/// [`Claim`](crate::guest::assert::Claim) set limits, any number of them. A value or a limit that is not
/// a number is inconclusive.
///
/// ```
/// use ktstr_core::assert::AssertResult;
/// use ktstr_core::{claim, claim_present};
/// use std::time::Duration;
///
/// let mut verdict = AssertResult::pass();
/// let (iterations, took) = ([40_u64, 44], Duration::from_millis(12));
/// claim!(verdict, iterations.len()).equals(2);
/// claim!(verdict, iterations[0]).at_least(1).near(iterations[1], 5);
/// claim!(verdict, took).time_based().between(Duration::ZERO, Duration::from_millis(50));
/// claim_present!(verdict, iterations.first().copied()).at_least(1);
/// assert!(verdict.is_pass());
///
/// claim!(verdict, iterations[1]).at_most(43);
/// assert_eq!(verdict.details[0].to_string(), "claim: iterations[1] = 44 (limit 43)");
/// ```
#[macro_export]
macro_rules! claim {
    ($verdict:expr, $value:expr $(,)?) => {
        $verdict.claim(::core::stringify!($value), $value)
    };
}

/// Claims that an `Option` has a value, and begins a claim about that value; see
/// [`claim!`](crate::claim!). A missing value is one failure, whatever is claimed about it.
///
/// ```
/// use ktstr_core::assert::{AssertResult, Outcome};
///
/// let mut verdict = AssertResult::pass();
/// let weights = [100_u32, 200];
/// ktstr_core::claim_present!(verdict, weights.get(2).copied()).at_least(1);
/// assert_eq!(verdict.outcome, Outcome::Fail);
/// let text = "claim: weights.get(2).copied() is missing";
/// assert_eq!(verdict.details[0].to_string(), text);
/// ```
#[macro_export]
macro_rules! claim_present {
    ($verdict:expr, $value:expr $(,)?) => {
        $verdict.claim_present(::core::stringify!($value), $value)
    };
}

impl AssertResult {
    /// Begins a claim about `value`, called `label`; [`claim!`](crate::claim!) takes the label from
    /// the source text.
    #[must_use = "a claim without a limit claims nothing"]
    pub fn claim<T: Measure>(&mut self, label: &str, value: T) -> Claim<'_, T> {
        self.claim_present(label, Some(value))
    }

    /// Claims that there is a `value`; [`claim_present!`](crate::claim_present!) takes the label
    /// from the source text.
    pub fn claim_present<T>(&mut self, label: &str, value: Option<T>) -> Claim<'_, T> {
        if value.is_none() {
            let missing = format!("{label} is missing");
            self.record_fail(AssertDetail::new(DetailKind::Claim, missing));
        }
        let label = label.to_owned();
        Claim { verdict: self, label, value, time_based: false, is_recorded: false }
    }
}

/// A claim about a value. Each method adds to the verdict if the claim does not hold.
#[derive(Debug)]
pub struct Claim<'a, T> {
    verdict: &'a mut AssertResult,
    label: String,
    /// `None` if it is missing, which is already part of the verdict.
    value: Option<T>,
    time_based: bool,
    /// Whether the value is one of the verdict's measurements.
    is_recorded: bool,
}

impl<T: Measure> Claim<'_, T> {
    /// Marks the claims that follow as something that steal time could explain.
    #[must_use = "nothing has been claimed yet"]
    pub fn time_based(self) -> Self {
        Self { time_based: true, ..self }
    }

    /// Claims that the value is `bound` or more.
    pub fn at_least(self, bound: T) -> Self {
        let holds = |value: T| value.order(bound).map(Ordering::is_ge);
        self.hold(holds, Limit::AtLeast(bound.number()))
    }

    /// Claims that the value is `bound` or less.
    pub fn at_most(self, bound: T) -> Self {
        let holds = |value: T| value.order(bound).map(Ordering::is_le);
        self.hold(holds, Limit::AtMost(bound.number()))
    }

    /// Claims that the value is `wanted`.
    pub fn equals(self, wanted: T) -> Self {
        let holds = |value: T| value.order(wanted).map(Ordering::is_eq);
        self.hold(holds, Limit::Between(wanted.number(), wanted.number()))
    }

    /// Claims that the value is in a range, including both ends. An empty range is inconclusive.
    pub fn between(self, least: T, most: T) -> Self {
        let holds = |value: T| {
            least.order(most).filter(|order| order.is_le())?;
            Some(value.order(least)?.is_ge() && value.order(most)?.is_le())
        };
        self.hold(holds, Limit::Between(least.number(), most.number()))
    }

    /// Claims that the value differs from `wanted` by at most `tolerance`. A negative tolerance is
    /// inconclusive.
    pub fn near(self, wanted: T, tolerance: T) -> Self {
        let holds = |value: T| value.is_within(tolerance, wanted);
        let (center, distance) = (wanted.number(), tolerance.number());
        self.hold(holds, Limit::Between(center - distance, center + distance))
    }

    /// Adds to the verdict what `holds` returns for the value; `None` is inconclusive. The comparison is
    /// exact, while `limit` has been rounded to floating point.
    fn hold(mut self, holds: impl Fn(T) -> Option<bool>, limit: Limit) -> Self {
        let Some(value) = self.value else { return self };
        let measured = Measurement::new(&self.label, value.number(), T::UNIT);
        let measured = measured.scope(Scope::Claim).better(limit.better());
        let detail = AssertDetail::measured(DetailKind::Claim, measured);
        if !std::mem::replace(&mut self.is_recorded, true) {
            let measurement = detail.measured.clone().map(|measured| measured.limit(Some(limit)));
            measured::send(&measurement);
            self.verdict.measurements.extend(measurement);
        }
        let detail = AssertDetail { time_based: self.time_based, ..detail.limit(limit) };
        match holds(value) {
            Some(true) => {}
            Some(false) if limit.allows(value.number()) == Some(false) => {
                self.verdict.record_fail(detail);
            }
            Some(false) => {
                self.verdict.record_fail(detail.because(&format!("the exact value is {value:?}")));
            }
            None => {
                self.verdict.record_inconclusive(detail.because("the numbers are not comparable"));
            }
        }
        self
    }
}

impl<T> Claim<'_, T> {
    /// Returns the value; `None` if it is missing.
    pub fn value(self) -> Option<T> {
        self.value
    }
}

/// A number that claims can be about.
pub trait Measure: Copy + fmt::Debug + sealed::Sealed {
    /// The unit of [`number`](Self::number).
    #[doc(hidden)]
    const UNIT: &'static str;

    /// Returns the value in floating point, which may round it.
    #[doc(hidden)]
    fn number(self) -> f64;

    /// Compares exactly; `None` if one of the values is not a number.
    #[doc(hidden)]
    fn order(self, other: Self) -> Option<Ordering>;

    /// Returns whether the value differs from `wanted` by at most `tolerance`; `None` if one of them is
    /// not a number or the tolerance is negative.
    #[doc(hidden)]
    fn is_within(self, tolerance: Self, wanted: Self) -> Option<bool>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! measures {
    ($unit:literal, $number:expr, $($type:ty),*: $within:expr) => {
        $(
            impl sealed::Sealed for $type {}

            impl Measure for $type {
                const UNIT: &'static str = $unit;

                fn number(self) -> f64 {
                    let number: fn(Self) -> f64 = $number;
                    number(self)
                }

                fn order(self, other: Self) -> Option<Ordering> {
                    self.partial_cmp(&other)
                }

                fn is_within(self, tolerance: Self, wanted: Self) -> Option<bool> {
                    tolerance.order(Self::default()).filter(|order| order.is_ge())?;
                    self.order(wanted)?;
                    let within: fn(Self, Self, Self) -> bool = $within;
                    Some(within(self, tolerance, wanted))
                }
            }
        )*
    };
}

measures!("", |value| value as f64, u8, u16, u32, u64, u128, usize: |value, tolerance, wanted| {
    value.abs_diff(wanted) <= tolerance
});
measures!("ms", |value| value.as_nanos() as f64 / 1e6, Duration: |value, tolerance, wanted| {
    value.abs_diff(wanted) <= tolerance
});
measures!("", |value| value as f64, i8, i16, i32, i64, i128, isize: |value, tolerance, wanted| {
    value.abs_diff(wanted) <= tolerance.unsigned_abs()
});
// Equal infinities are equal, although their difference is NaN.
measures!("", f64::from, f32, f64: |value, tolerance, wanted| {
    value == wanted || (value - wanted).abs() <= tolerance
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::detail::Outcome::{self, Fail, Inconclusive, Pass};
    use crate::model::measurement::Better;

    fn verdict(claims: impl FnOnce(&mut AssertResult)) -> (Outcome, String) {
        let mut verdict = AssertResult::pass();
        claims(&mut verdict);
        let texts: Vec<_> = verdict.details.iter().map(ToString::to_string).collect();
        (verdict.outcome, texts.join("\n"))
    }

    macro_rules! outcomes {
        ($($value:expr => $method:ident($($bound:expr),*) $outcome:expr;)*) => {
            $(assert_eq!(
                verdict(|verdict| { claim!(verdict, $value).$method($($bound),*); }).0,
                $outcome,
                stringify!($value $method $($bound),*)
            );)*
        };
    }

    #[test]
    fn claim_methods_compare_exactly() {
        let ms = Duration::from_millis;
        outcomes! {
            4_u8 => at_least(4) Pass;
            4_u8 => at_least(5) Fail;
            4_usize => at_most(4) Pass;
            4_usize => at_most(3) Fail;
            4_i64 => equals(4) Pass;
            4_i64 => equals(-4) Fail;
            4_u32 => between(4, 5) Pass;
            4_u32 => between(5, 6) Fail;
            4_u32 => between(2, 3) Fail;
            4_u32 => between(5, 3) Inconclusive;
            4_u64 => near(6, 2) Pass;
            6_u64 => near(4, 1) Fail;
            i8::MIN => near(i8::MAX, i8::MAX) Fail;
            -4_i32 => near(-3, 1) Pass;
            -4_i32 => near(-4, -1) Inconclusive;
            ms(4) => at_most(ms(4)) Pass;
            ms(4) => near(ms(6), ms(1)) Fail;
            ms(4) => near(ms(6), ms(2)) Pass;
            0.5 => at_most(0.5) Pass;
            0.5 => at_most(0.4) Fail;
            0.5_f32 => near(0.75, 0.25) Pass;
            0.5_f32 => near(0.75, 0.125) Fail;
            f64::INFINITY => near(f64::INFINITY, 0.0) Pass;
            f64::NAN => at_least(0.0) Inconclusive;
            f64::NAN => equals(f64::NAN) Inconclusive;
            f64::NAN => near(0.0, f64::INFINITY) Inconclusive;
            0.0 => near(0.0, f64::NAN) Inconclusive;
            0.0 => between(f64::NAN, 1.0) Inconclusive;
            0.0 => between(0.0, f64::NAN) Inconclusive;
        }
    }

    #[test]
    fn claim_is_labelled_by_its_source() {
        let waits = [7_u64, 9];
        let judged = verdict(|verdict| {
            claim!(verdict, waits.iter().sum::<u64>()).at_least(17).at_most(16).at_most(15);
            claim!(verdict, f64::NAN).at_least(1.0);
        });
        let text = "claim: waits.iter().sum::<u64>() = 16 (minimum 17)\n\
                    claim: waits.iter().sum::<u64>() = 16 (limit 15)\n\
                    claim: f64::NAN = NaN; the numbers are not comparable (minimum 1)";
        assert_eq!(judged, (Fail, text.to_owned()));
    }

    #[test]
    fn claim_shows_units_and_exact_values() {
        let judged = verdict(|verdict| {
            claim!(verdict, Duration::from_micros(12_500))
                .near(Duration::from_millis(9), Duration::from_millis(1));
            claim!(verdict, u64::MAX).equals(u64::MAX - 1);
        });
        let text = "claim: Duration::from_micros(12_500) = 12.5 ms (expected 8 to 10 ms)\n\
                    claim: u64::MAX = 18446744073709552000 (expected 18446744073709552000): \
                    the exact value is 18446744073709551615";
        assert_eq!(judged, (Fail, text.to_owned()));
    }

    #[test]
    fn claim_records_its_value_once() {
        let mut verdict = AssertResult::pass();
        claim!(verdict, 7).at_most(9).at_least(1);
        claim!(verdict, f64::NAN).at_most(9.0);
        let [measured] = &verdict.measurements[..] else { panic!("{verdict:?}") };
        let want = Measurement::new("7", 7.0, "").scope(Scope::Claim).better(Better::Lower);
        let want = want.limit(Some(Limit::AtMost(9.0)));
        assert_eq!(*measured, want);
    }

    #[test]
    fn claim_present_fails_once_if_missing() {
        let (none, some) = (None::<u32>, Some(3));
        let judged = verdict(|verdict| {
            assert_eq!(claim_present!(verdict, none).at_least(1).value(), None);
            assert_eq!(claim_present!(verdict, some).at_least(3).value(), Some(3));
            claim_present!(verdict, Some("any type"));
        });
        assert_eq!(judged, (Fail, "claim: none is missing".to_owned()));
        let judged = verdict(|verdict| {
            claim_present!(verdict, some).at_least(4);
        });
        assert_eq!(judged, (Fail, "claim: some = 3 (minimum 4)".to_owned()));
    }

    #[test]
    fn claim_is_excused_if_time_based() {
        let mut verdict = AssertResult::pass();
        claim!(verdict, 5).time_based().at_most(4);
        let excused = verdict.excuse(|_| Some("noise".to_owned()));
        assert_eq!(excused.outcome, Inconclusive);
    }
}
