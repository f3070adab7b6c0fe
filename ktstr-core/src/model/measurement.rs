//! Numbers that checks measure, and the limits they are compared with.
//!
//! A check measures whether or not the test sets a limit, and the host receives every
//! [`Measurement`]: the numbers of a passing run are what a later run is compared with. Checks make finite
//! values and limits only, because JSON has no other numbers. Others, which a test may set itself, become
//! NaN in a record.

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use super::text::{CUT_MARK, cut};

/// A number that was measured in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// What was measured: `gap`, or the name of a payload's metric.
    pub name: String,
    /// The unit: `ms`, `%`; empty for a ratio or an unknown unit.
    pub unit: String,
    /// The value, in that unit.
    #[serde(deserialize_with = "null_as_nan")]
    pub value: f64,
    /// What the value belongs to.
    pub scope: Scope,
    /// Which values are preferable.
    pub better: Better,
    /// How many observations the value summarizes.
    pub samples: u64,
    /// The limit that the value was compared with; the first one, if there were several.
    pub limit: Option<Limit>,
}

impl Measurement {
    /// Creates a measurement of one observation on the whole machine, where neither direction is better.
    pub fn new(name: impl Into<String>, value: f64, unit: impl Into<String>) -> Self {
        let (name, unit) = (name.into(), unit.into());
        let (scope, better) = (Scope::Machine, Better::Neither);
        Self { name, unit, value, scope, better, samples: 1, limit: None }
    }

    /// Sets what the value belongs to.
    pub fn scope(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    /// Sets which values are preferable.
    pub fn better(self, better: Better) -> Self {
        Self { better, ..self }
    }

    /// Sets how many observations the value summarizes.
    pub fn samples(self, samples: u64) -> Self {
        Self { samples, ..self }
    }

    /// Sets the limit that the value was compared with.
    pub fn limit(self, limit: Option<Limit>) -> Self {
        Self { limit, ..self }
    }

    /// Returns the measurement without a limit that is not finite; `None` if the value is not finite.
    pub(crate) fn finite(self) -> Option<Self> {
        let limit = self.limit.filter(|limit| limit.is_finite());
        self.value.is_finite().then_some(Self { limit, ..self })
    }

    /// Returns the measurement with its texts cut, as [`Measurement::finite`].
    pub(crate) fn bounded(mut self) -> Option<Self> {
        self.shorten();
        self.finite()
    }

    /// Cuts its texts. Does nothing if that was done before.
    pub(crate) fn shorten(&mut self) {
        const WORD: usize = 96;
        let Self { name, unit, scope, .. } = self;
        for text in [name, unit].into_iter().chain(scope.texts_mut()) {
            if text.len() > WORD {
                cut(text, WORD - CUT_MARK.len());
            }
        }
    }

    /// Returns its encoded size in bytes, roughly.
    fn size(&mut self) -> usize {
        let texts = self.scope.texts_mut().map(|text| text.len()).sum::<usize>();
        64 + self.name.len() + self.unit.len() + texts
    }
}

/// Writes `gap 957.9 ms (limit 300 ms), worker 77 (spin), cgroup cg_0`.
impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, compared(self.value, &self.unit, self.limit))?;
        let scope = self.scope.to_string();
        if scope.is_empty() { Ok(()) } else { write!(f, ", {scope}") }
    }
}

/// The measurements of a run, in the order in which they were taken, up to a total size.
#[derive(Debug, Default)]
pub struct BoundedMeasurements {
    kept: Vec<Measurement>,
    size: usize,
}

impl BoundedMeasurements {
    /// The largest total size in bytes, roughly.
    pub const MAX_SIZE: usize = 4 << 20;

    /// Adds a measurement unless one has been dropped before. Values that are not finite are ignored.
    pub fn add(&mut self, measured: Measurement) {
        let Some(mut measured) = measured.bounded() else { return };
        self.size = self.size.saturating_add(measured.size());
        if !self.is_truncated() {
            self.kept.push(measured);
        }
    }

    /// Returns whether measurements were dropped because the total size would be too large.
    pub fn is_truncated(&self) -> bool {
        self.size > Self::MAX_SIZE
    }

    /// Returns those of `all` that were not added. One that was added once is left out once.
    pub(crate) fn missing(&self, all: Vec<Measurement>) -> Vec<Measurement> {
        // Verdicts are usually merged in the order of the measurements: then the first one matches.
        let mut added: VecDeque<_> = self.kept.iter().collect();
        let mut all: Vec<_> = all.into_iter().filter_map(Measurement::bounded).collect();
        all.retain(|measured| {
            let index = added.iter().position(|added| *added == measured);
            index.and_then(|index| added.remove(index)).is_none()
        });
        all
    }

    /// Returns the measurements.
    pub fn into_vec(self) -> Vec<Measurement> {
        self.kept
    }
}

/// What a measurement or a reason of a verdict belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Scope {
    /// The whole machine under test.
    #[default]
    Machine,
    /// One worker process.
    Worker {
        /// Its pid.
        pid: i32,
        /// Its command name.
        comm: String,
        /// Its cgroup; empty for none.
        cgroup: String,
    },
    /// One cgroup.
    Cgroup {
        /// Its name, relative to the manager's parent.
        name: String,
    },
    /// One run of a payload.
    Payload {
        /// The name of the run.
        name: String,
        /// Its cgroup; empty for none.
        cgroup: String,
    },
    /// A number of the test's own.
    Claim,
}

impl Scope {
    /// Returns the scope of a cgroup; that of the machine if the name is empty.
    pub fn of_cgroup(name: &str) -> Self {
        if name.is_empty() { Self::Machine } else { Self::Cgroup { name: name.to_owned() } }
    }

    /// Returns the name of the cgroup, if there is one.
    pub fn cgroup(&self) -> Option<&str> {
        match self {
            Self::Worker { cgroup: name, .. }
            | Self::Payload { cgroup: name, .. }
            | Self::Cgroup { name } => Some(&**name).filter(|name| !name.is_empty()),
            Self::Machine | Self::Claim => None,
        }
    }

    /// Returns the texts of the scope, so that a caller can bound their length.
    pub(crate) fn texts_mut(&mut self) -> impl Iterator<Item = &mut String> {
        let (first, second) = match self {
            Self::Worker { comm: name, cgroup, .. } | Self::Payload { name, cgroup } => {
                (Some(name), Some(cgroup))
            }
            Self::Cgroup { name } => (Some(name), None),
            Self::Machine | Self::Claim => (None, None),
        };
        first.into_iter().chain(second)
    }
}

/// Writes `worker 77 (spin), cgroup cg_0`; nothing for the machine and for a claim.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = match self {
            Self::Worker { pid, comm, .. } => {
                write!(f, "worker {pid} ({comm})")?;
                ", "
            }
            Self::Payload { name, .. } => {
                write!(f, "payload {name}")?;
                ", "
            }
            Self::Cgroup { .. } | Self::Machine | Self::Claim => "",
        };
        self.cgroup().map_or(Ok(()), |cgroup| write!(f, "{separator}cgroup {cgroup}"))
    }
}

/// Which values of a measurement are preferable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Higher ones.
    Higher,
    /// Lower ones.
    Lower,
    /// Neither, or that is not known.
    Neither,
}

/// The values that a check allows, in the unit of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Limit {
    /// This value or less.
    AtMost(#[serde(deserialize_with = "null_as_nan")] f64),
    /// This value or more.
    AtLeast(#[serde(deserialize_with = "null_as_nan")] f64),
    /// A value between the two, or one of them.
    Between(
        #[serde(deserialize_with = "null_as_nan")] f64,
        #[serde(deserialize_with = "null_as_nan")] f64,
    ),
}

impl Limit {
    /// Returns whether the limit allows `value`; `None` if one of the numbers is NaN.
    pub fn allows(self, value: f64) -> Option<bool> {
        let [least, most] = self.bounds().map(|bound| bound.map(|bound| value.partial_cmp(&bound)));
        let holds = |bound: Option<Option<std::cmp::Ordering>>, wrong| match bound {
            None => Some(true),
            Some(order) => order.map(|order| order != wrong),
        };
        Some(holds(least, std::cmp::Ordering::Less)? && holds(most, std::cmp::Ordering::Greater)?)
    }

    /// Returns the least and the greatest value that is allowed.
    fn bounds(self) -> [Option<f64>; 2] {
        match self {
            Self::AtMost(most) => [None, Some(most)],
            Self::AtLeast(least) => [Some(least), None],
            Self::Between(least, most) => [Some(least), Some(most)],
        }
    }

    /// Returns which values are preferable, given that the limit allows them.
    pub(crate) fn better(self) -> Better {
        match self {
            Self::AtMost(_) => Better::Lower,
            Self::AtLeast(_) => Better::Higher,
            Self::Between(..) => Better::Neither,
        }
    }

    pub(crate) fn is_finite(self) -> bool {
        self.bounds().into_iter().flatten().all(f64::is_finite)
    }

    /// Describes the limit in a unit: `limit 300 ms`, `minimum 5 %`, `expected 1 to 2`.
    pub(crate) fn describe(self, unit: &str) -> String {
        match self {
            Self::AtMost(most) => format!("limit {}", with_unit(most.to_string(), unit)),
            Self::AtLeast(least) => format!("minimum {}", with_unit(least.to_string(), unit)),
            Self::Between(least, most) if least == most => {
                format!("expected {}", with_unit(least.to_string(), unit))
            }
            Self::Between(least, most) => {
                format!("expected {}", with_unit(format!("{least} to {most}"), unit))
            }
        }
    }
}

/// Reads a number. serde_json writes `null` for one that is not finite, and would refuse to read the record.
fn null_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    if deserializer.is_human_readable() {
        Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
    } else {
        f64::deserialize(deserializer)
    }
}

/// Formats a value and the limit it is compared with: `957.9 ms (limit 300 ms)`.
///
/// The value has four significant digits, or all of them where four would hide that it is beyond the
/// limit.
pub(crate) fn compared(value: f64, unit: &str, limit: Option<Limit>) -> String {
    let bounds = limit.map_or([None, None], Limit::bounds);
    let value = with_unit(rounded(value, &bounds), unit);
    match limit {
        Some(limit) => format!("{value} ({})", limit.describe(unit)),
        None => value,
    }
}

fn with_unit(value: String, unit: &str) -> String {
    if unit.is_empty() { value } else { format!("{value} {unit}") }
}

/// Rounds to four significant digits unless the result is on another side of one of the bounds.
fn rounded(value: f64, bounds: &[Option<f64>]) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let scale = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    let rounded =
        if value.abs() < 1000.0 { (value * scale).round() / scale } else { value.round() };
    // The scale of a subnormal number is infinite.
    let is_moved =
        |bound: &f64| rounded.partial_cmp(bound) != value.partial_cmp(bound) || rounded == *bound;
    let is_exact = bounds.iter().flatten().any(is_moved) || !rounded.is_finite();
    if is_exact { value.to_string() } else { rounded.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_allows_its_own_bounds() {
        let nan = f64::NAN;
        for (limit, value, want) in [
            (Limit::AtMost(2.0), 2.0, Some(true)),
            (Limit::AtMost(2.0), 2.000_01, Some(false)),
            (Limit::AtLeast(2.0), 2.0, Some(true)),
            (Limit::AtLeast(2.0), 1.999, Some(false)),
            (Limit::Between(1.0, 2.0), 1.0, Some(true)),
            (Limit::Between(1.0, 2.0), 2.0, Some(true)),
            (Limit::Between(1.0, 2.0), 0.999, Some(false)),
            (Limit::Between(1.0, 2.0), 2.001, Some(false)),
            (Limit::AtMost(2.0), nan, None),
            (Limit::AtMost(nan), 2.0, None),
            (Limit::Between(1.0, nan), 2.0, None),
        ] {
            assert_eq!(limit.allows(value), want, "{limit:?} {value}");
        }
    }

    #[test]
    fn compared_shows_value_unit_and_limit() {
        for (value, unit, limit, want) in [
            (957.94, "ms", Some(Limit::AtMost(300.0)), "957.9 ms (limit 300 ms)"),
            (2.000_01, "%", Some(Limit::AtMost(2.0)), "2.00001 % (limit 2 %)"),
            (12_345.6, "", Some(Limit::AtLeast(99_999.0)), "12346 (minimum 99999)"),
            (3.0, "", Some(Limit::Between(1.0, 2.0)), "3 (expected 1 to 2)"),
            (3.0, "ms", Some(Limit::Between(2.0, 2.0)), "3 ms (expected 2 ms)"),
            (0.123_456, "", None, "0.1235"),
        ] {
            assert_eq!(compared(value, unit, limit), want);
        }
    }

    #[test]
    fn rounded_keeps_four_digits_and_differs_from_the_bound() {
        for (value, bound, text) in [
            (50.000_4, 1.0, "50"),
            (50.000_4, 50.0, "50.0004"),
            (999.96, 1.0, "1000"),
            // 1000 would be beyond the bound.
            (999.96, 999.98, "999.96"),
            (0.000_123_44, 1.0, "0.0001234"),
            (-2.5, 1.0, "-2.5"),
            (0.0, 1.0, "0"),
        ] {
            assert_eq!(rounded(value, &[None, Some(bound)]), text);
        }
        assert_eq!(rounded(5e-324, &[]).parse(), Ok(5e-324));
    }

    #[test]
    fn measurement_and_limit_can_be_read_whatever_their_numbers() {
        for value in [1.5, f64::NAN, f64::INFINITY] {
            let limits = [Limit::AtMost(value), Limit::AtLeast(value), Limit::Between(value, 1.0)];
            let all = (Measurement::new("gap", value, "ms"), limits);
            let json = serde_json::to_string(&all).unwrap();
            let (read, limits): (Measurement, [Limit; 3]) = serde_json::from_str(&json).unwrap();
            assert_eq!(read.value.is_nan(), !value.is_finite(), "{json}");
            assert!(limits.iter().all(|limit| limit.is_finite() == value.is_finite()), "{json}");
            let bytes = postcard::to_allocvec(&all).unwrap();
            let (read, _): (Measurement, [Limit; 3]) = postcard::from_bytes(&bytes).unwrap();
            assert_eq!(read.value.to_bits(), value.to_bits());
        }
    }

    #[test]
    fn measurement_shows_limit_and_scope() {
        let measured = Measurement::new("gap", 957.94, "ms").scope(Scope::of_cgroup("cg"));
        assert_eq!(measured.to_string(), "gap 957.9 ms, cgroup cg");
        let limited = Measurement::new("took", 2.0, "").limit(Some(Limit::AtMost(3.0)));
        assert_eq!(limited.to_string(), "took 2 (limit 3)");
    }

    #[test]
    fn bounded_measurements_keep_the_first_up_to_their_size() {
        let mut all = BoundedMeasurements::default();
        all.add(Measurement::new("nan", f64::NAN, ""));
        let long = "\u{20ac}".repeat(1 << 20);
        let scope = Scope::Payload { name: long.clone(), cgroup: long.clone() };
        let measured = Measurement::new(long, 1.0, "").scope(scope).bounded().unwrap();
        assert_eq!(measured.clone().bounded(), Some(measured.clone()));
        let room = BoundedMeasurements::MAX_SIZE / measured.clone().size();
        for _ in 0..room {
            all.add(measured.clone());
        }
        assert!(!all.is_truncated());
        all.add(measured);
        // Would fit, but the list has a gap before it.
        all.add(Measurement::new("last", 1.0, ""));
        assert!(all.is_truncated());
        assert_eq!(all.into_vec().len(), room);
    }

    #[test]
    fn bounded_measurements_find_each_missing_one() {
        let [a, b, c] = ["a", "b", "c"].map(|name| Measurement::new(name, 1.0, ""));
        let mut added = BoundedMeasurements::default();
        [&a, &b, &b].into_iter().for_each(|measured| added.add(measured.clone()));
        let all = vec![b.clone(), a.clone(), c.clone(), b.clone(), a.clone()];
        assert_eq!(added.missing(all), [c, a]);
    }

    #[test]
    fn scope_shows_its_object_and_cgroup() {
        let (name, cgroup) = ("fio".to_owned(), "cg".to_owned());
        for (scope, want) in [
            (Scope::Machine, ""),
            (Scope::of_cgroup(""), ""),
            (Scope::of_cgroup("cg"), "cgroup cg"),
            (Scope::Payload { name, cgroup }, "payload fio, cgroup cg"),
            (
                Scope::Worker { pid: 7, comm: "spin".to_owned(), cgroup: String::new() },
                "worker 7 (spin)",
            ),
        ] {
            assert_eq!(scope.to_string(), want);
        }
    }
}
