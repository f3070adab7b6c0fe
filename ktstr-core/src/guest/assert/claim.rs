//! Claims of a test about its own numbers.

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

use super::{AssertDetail, AssertResult, DetailKind};

/// Claims something of a number: an integer, a float or a `Duration`.
///
/// The first argument is the verdict that a claim which does not hold becomes a part of; the claim
/// is labelled by the source text of the second. What is claimed is said by the methods of
/// [`Claim`](crate::guest::assert::Claim), any number of them. A value or a bound that is not a number is
/// inconclusive.
///
/// ```
/// use ktstr_core::assert::AssertResult;
/// use ktstr_core::{claim, claim_present};
/// use std::time::Duration;
///
/// let mut verdict = AssertResult::pass();
/// let (turns, took) = ([40_u64, 44], Duration::from_millis(12));
/// claim!(verdict, turns.len()).equals(2);
/// claim!(verdict, turns[0]).at_least(1).near(turns[1], 5);
/// claim!(verdict, took).time_based().between(Duration::ZERO, Duration::from_millis(50));
/// claim_present!(verdict, turns.first().copied()).at_least(1);
/// assert!(verdict.is_pass());
///
/// claim!(verdict, turns[1]).at_most(43);
/// assert_eq!(verdict.details[0].to_string(), "claim: turns[1] = 44, at most 43");
/// ```
#[macro_export]
macro_rules! claim {
    ($verdict:expr, $value:expr $(,)?) => {
        $verdict.claim(::core::stringify!($value), $value)
    };
}

/// Claims that an `Option` has a value, and then whatever is claimed of that; see
/// [`claim!`](crate::claim!). Of a value that is missing nothing else is claimed.
///
/// ```
/// use ktstr_core::assert::{AssertResult, Outcome};
///
/// let mut verdict = AssertResult::pass();
/// let weights = [100_u32, 200];
/// ktstr_core::claim_present!(verdict, weights.get(2).copied()).at_least(1);
/// assert_eq!(verdict.outcome, Outcome::Fail);
/// let text = "claim: weights.get(2).copied() is missing, a value";
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
    #[must_use = "a claim without a bound claims nothing"]
    pub fn claim<T: Measure>(&mut self, label: &str, value: T) -> Claim<'_, T> {
        Claim { verdict: self, label: label.to_owned(), value: Some(value), time_based: false }
    }

    /// Claims that there is a `value`; [`claim_present!`](crate::claim_present!) takes the label
    /// from the source text.
    pub fn claim_present<T>(&mut self, label: &str, value: Option<T>) -> Claim<'_, T> {
        if value.is_none() {
            let missing = format!("{label} is missing");
            let detail = AssertDetail::measured(DetailKind::Claim, missing, "a value");
            self.absorb(Self::fail(detail));
        }
        Claim { verdict: self, label: label.to_owned(), value, time_based: false }
    }
}

/// A claim about a value. Each method adds to the verdict what does not hold.
#[derive(Debug)]
pub struct Claim<'a, T> {
    verdict: &'a mut AssertResult,
    label: String,
    /// `None` if it is missing, which the verdict says already.
    value: Option<T>,
    time_based: bool,
}

impl<T: Measure> Claim<'_, T> {
    /// Says that what follows could fail because the host took time from the guest's CPUs.
    #[must_use = "nothing has been claimed yet"]
    pub fn time_based(self) -> Self {
        Self { time_based: true, ..self }
    }

    /// Claims that the value is `bound` or more.
    pub fn at_least(self, bound: T) -> Self {
        let holds = |value: T| value.order(bound).map(Ordering::is_ge);
        self.hold(holds, || format!("at least {bound:?}"))
    }

    /// Claims that the value is `bound` or less.
    pub fn at_most(self, bound: T) -> Self {
        let holds = |value: T| value.order(bound).map(Ordering::is_le);
        self.hold(holds, || format!("at most {bound:?}"))
    }

    /// Claims that the value is `wanted`.
    pub fn equals(self, wanted: T) -> Self {
        let holds = |value: T| value.order(wanted).map(Ordering::is_eq);
        self.hold(holds, || format!("exactly {wanted:?}"))
    }

    /// Claims that the value is in a range, whose ends belong to it. A range without any value is
    /// inconclusive.
    pub fn between(self, least: T, most: T) -> Self {
        let holds = |value: T| {
            least.order(most).filter(|order| order.is_le())?;
            Some(value.order(least)?.is_ge() && value.order(most)?.is_le())
        };
        self.hold(holds, || format!("between {least:?} and {most:?}"))
    }

    /// Claims that the value is `wanted`, or off by `tolerance` at most. One below zero is
    /// inconclusive.
    pub fn near(self, wanted: T, tolerance: T) -> Self {
        let holds = |value: T| value.is_within(tolerance, wanted);
        self.hold(holds, || format!("{wanted:?}, give or take {tolerance:?}"))
    }

    /// `None` of `holds` is that nobody can tell.
    fn hold(self, holds: impl Fn(T) -> Option<bool>, bound: impl Fn() -> String) -> Self {
        let Some(value) = self.value else { return self };
        let detail = || {
            let measured = format!("{} = {value:?}", self.label);
            let detail = AssertDetail::measured(DetailKind::Claim, measured, bound());
            AssertDetail { time_based: self.time_based, ..detail }
        };
        match holds(value) {
            Some(true) => {}
            Some(false) => self.verdict.absorb(AssertResult::fail(detail())),
            None => {
                let detail = detail().because("these cannot be compared");
                self.verdict.absorb(AssertResult::inconclusive(detail));
            }
        }
        self
    }
}

impl<T> Claim<'_, T> {
    /// The value; `None` if it is missing.
    pub fn value(self) -> Option<T> {
        self.value
    }
}

/// A number that claims can be about.
pub trait Measure: Copy + fmt::Debug + sealed::Sealed {
    /// How it compares to `other`; `None` if one of them is not a number.
    #[doc(hidden)]
    fn order(self, other: Self) -> Option<Ordering>;

    /// Whether it is off `wanted` by `tolerance` at most; `None` if nobody can tell.
    #[doc(hidden)]
    fn is_within(self, tolerance: Self, wanted: Self) -> Option<bool>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! measures {
    ($($type:ty),*: $within:expr) => {
        $(
            impl sealed::Sealed for $type {}

            impl Measure for $type {
                fn order(self, other: Self) -> Option<Ordering> {
                    self.partial_cmp(&other)
                }

                fn is_within(self, tolerance: Self, wanted: Self) -> Option<bool> {
                    // Not a number, or a tolerance that is none.
                    tolerance.order(Self::default()).filter(|order| order.is_ge())?;
                    self.order(wanted)?;
                    let within: fn(Self, Self, Self) -> bool = $within;
                    Some(within(self, tolerance, wanted))
                }
            }
        )*
    };
}

measures!(u8, u16, u32, u64, u128, usize, Duration: |value, tolerance, wanted| {
    value.abs_diff(wanted) <= tolerance
});
measures!(i8, i16, i32, i64, i128, isize: |value, tolerance, wanted| {
    value.abs_diff(wanted) <= tolerance.unsigned_abs()
});
// Equal infinities are no distance apart, but their difference is no number.
measures!(f32, f64: |value, tolerance, wanted| {
    value == wanted || (value - wanted).abs() <= tolerance
});

#[cfg(test)]
mod tests {
    use super::super::Outcome::{self, Fail, Inconclusive, Pass};
    use super::*;

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
    fn claims_hold_or_do_not_or_cannot_be_told() {
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
    fn a_claim_is_labelled_by_its_source() {
        let waits = [7_u64, 9];
        let told = verdict(|verdict| {
            claim!(verdict, waits.iter().sum::<u64>()).at_least(17).at_most(16).at_most(15);
            claim!(verdict, f64::NAN).at_least(1.0);
        });
        let text = "claim: waits.iter().sum::<u64>() = 16, at least 17\n\
                    claim: waits.iter().sum::<u64>() = 16, at most 15\n\
                    claim: f64::NAN = NaN, at least 1.0: these cannot be compared";
        assert_eq!(told, (Fail, text.to_owned()));
    }

    #[test]
    fn what_is_missing_fails_once() {
        let (none, some) = (None::<u32>, Some(3));
        let told = verdict(|verdict| {
            assert_eq!(claim_present!(verdict, none).at_least(1).value(), None);
            assert_eq!(claim_present!(verdict, some).at_least(3).value(), Some(3));
            claim_present!(verdict, Some("any type"));
        });
        assert_eq!(told, (Fail, "claim: none is missing, a value".to_owned()));
        let told = verdict(|verdict| {
            claim_present!(verdict, some).at_least(4);
        });
        assert_eq!(told, (Fail, "claim: some = 3, at least 4".to_owned()));
    }

    #[test]
    fn claims_can_be_excused_if_they_say_so() {
        let mut verdict = AssertResult::pass();
        claim!(verdict, 5).time_based().at_most(4);
        let excused = verdict.excuse(|_| Some("noise".to_owned()));
        assert_eq!(excused.outcome, Inconclusive);
    }
}
