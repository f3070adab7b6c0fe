//! A histogram with a bounded relative error and a fixed number of buckets.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The bits that are kept below a value's highest one: a relative error of 1/32, some 3 %.
const PRECISION_BITS: u32 = 5;
const STEPS: usize = 1 << PRECISION_BITS;

/// Values below `STEPS` have a bucket each, then each power of two has `STEPS`.
pub(crate) const BUCKETS: usize = STEPS * (64 - PRECISION_BITS as usize + 1);

/// Counts values of any size, such as nanoseconds, with a relative error of at most 1/32.
///
/// The buckets are those of Gil Tene's HdrHistogram: linear within a power of two.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "SerializedHistogram")]
pub struct Histogram {
    /// Bucket and count, where the count is not zero, in the order of the buckets.
    counts: Vec<(u16, u32)>,
}

/// A [`Histogram`] from a guest or a file, not checked yet.
#[derive(Deserialize)]
#[serde(rename = "Histogram")]
struct SerializedHistogram {
    counts: Vec<(u16, u32)>,
}

/// Why a serialized histogram is refused.
#[derive(Debug, thiserror::Error)]
enum Malformed {
    #[error("the histogram counts values in bucket {0} (the last one is {last})", last = BUCKETS - 1)]
    UnknownBucket(u16),
    #[error("bucket {1} of the histogram follows bucket {0}")]
    OutOfOrder(u16, u16),
    #[error("bucket {0} of the histogram is empty")]
    Empty(u16),
}

impl TryFrom<SerializedHistogram> for Histogram {
    type Error = Malformed;

    fn try_from(SerializedHistogram { counts }: SerializedHistogram) -> Result<Self, Malformed> {
        let mut before = None;
        for (bucket, count) in &counts {
            if usize::from(*bucket) >= BUCKETS {
                return Err(Malformed::UnknownBucket(*bucket));
            }
            if let Some(before) = before.replace(*bucket).filter(|before| before >= bucket) {
                return Err(Malformed::OutOfOrder(before, *bucket));
            }
            if *count == 0 {
                return Err(Malformed::Empty(*bucket));
            }
        }
        Ok(Self { counts })
    }
}

impl Histogram {
    /// Returns the histogram with these counts of all buckets, in order.
    pub(crate) fn from_counts(counts: impl Iterator<Item = u32>) -> Self {
        let counts = (0..).zip(counts).filter(|(_, count)| *count > 0);
        Self { counts: counts.collect() }
    }

    /// Returns the number of values.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    /// Returns the value that `percent` of all values, 0 to 100, do not exceed, rounded up to the end of its
    /// bucket; `None` if it is empty.
    pub fn percentile(&self, percent: f64) -> Option<u64> {
        let wanted = (self.count() as f64 * percent.clamp(0.0, 100.0) / 100.0).ceil().max(1.0);
        let mut seen = 0.0;
        self.counts.iter().find_map(|(bucket, count)| {
            seen += f64::from(*count);
            (seen >= wanted).then(|| highest_of(usize::from(*bucket)))
        })
    }

    /// Returns the mean, by the middles of the buckets; `None` if it is empty.
    pub fn mean(&self) -> Option<f64> {
        let sum: f64 =
            self.counts.iter().map(|(bucket, count)| middle_of(*bucket) * f64::from(*count)).sum();
        (!self.counts.is_empty()).then(|| sum / self.count() as f64)
    }

    /// Returns the coefficient of variation, the standard deviation over the mean; `None` if it is
    /// empty or all values are zero.
    pub fn variation(&self) -> Option<f64> {
        let mean = self.mean().filter(|mean| *mean > 0.0)?;
        let squares: f64 = self
            .counts
            .iter()
            .map(|(bucket, count)| (middle_of(*bucket) - mean).powi(2) * f64::from(*count))
            .sum();
        Some((squares / self.count() as f64).sqrt() / mean)
    }

    /// Adds the values of another histogram.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, count) in &other.counts {
            match self.counts.binary_search_by_key(bucket, |(bucket, _)| *bucket) {
                Ok(at) => self.counts[at].1 = self.counts[at].1.saturating_add(*count),
                Err(at) => self.counts.insert(at, (*bucket, *count)),
            }
        }
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count())
            .field("p50", &self.percentile(50.0))
            .field("p99", &self.percentile(99.0))
            .field("max", &self.percentile(100.0))
            .finish()
    }
}

/// Returns the index of the bucket that counts `value`.
pub(crate) fn bucket_of(value: u64) -> usize {
    let power = u64::BITS - value.leading_zeros();
    match power.checked_sub(PRECISION_BITS + 1) {
        // Small values have a bucket each.
        None => value as usize,
        Some(shift) => (shift as usize + 1) * STEPS + (value >> shift) as usize - STEPS,
    }
}

fn lowest_of(bucket: usize) -> u64 {
    match bucket.checked_sub(2 * STEPS) {
        None => bucket as u64,
        Some(above) => ((above % STEPS + STEPS) as u64) << (above / STEPS + 1),
    }
}

fn highest_of(bucket: usize) -> u64 {
    if bucket + 1 < BUCKETS { lowest_of(bucket + 1) - 1 } else { u64::MAX }
}

fn middle_of(bucket: u16) -> f64 {
    let bucket = usize::from(bucket);
    lowest_of(bucket).midpoint(highest_of(bucket)) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Histogram {
        let mut counts = [0; BUCKETS];
        values.into_iter().for_each(|value| counts[bucket_of(value)] += 1);
        Histogram::from_counts(counts.into_iter())
    }

    #[test]
    fn bucket_of_contains_its_value() {
        let powers = (0..64).map(|power| 1_u64 << power);
        for value in powers.flat_map(|power| [power - 1, power, power + 1]).chain([u64::MAX]) {
            let bucket = bucket_of(value);
            assert!(lowest_of(bucket) <= value && value <= highest_of(bucket), "{value}");
            let width = highest_of(bucket) - lowest_of(bucket);
            assert!(width <= value / STEPS as u64, "{value}: {width}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        for bucket in 1..BUCKETS {
            assert_eq!(highest_of(bucket - 1) + 1, lowest_of(bucket));
        }
    }

    #[test]
    fn percentile_matches_the_values() {
        let histogram = of(1..=1000);
        assert_eq!(histogram.count(), 1000);
        for (percent, value) in [(0.0, 1), (50.0, 500), (99.0, 990), (100.0, 1000)] {
            let got = histogram.percentile(percent).unwrap();
            assert!((value..=value + value / 32).contains(&got), "{percent}: {got}");
        }
        assert_eq!(Histogram::default().percentile(50.0), None);
    }

    #[test]
    fn variation_is_zero_for_equal_values() {
        assert_eq!(of([7; 9]).variation(), Some(0.0));
        assert!((of([0, 20]).variation().unwrap() - 1.0).abs() < 1e-9);
        assert_eq!((of([0, 0]).variation(), of([]).variation()), (None, None));
    }

    #[test]
    fn deserialize_refuses_what_no_histogram_has() {
        let last = BUCKETS as u16 - 1;
        let read = |counts: &[(u16, u32)]| -> Option<Histogram> {
            let sent = postcard::to_allocvec(&counts).unwrap();
            let value = serde_json::json!({ "counts": counts });
            let read = postcard::from_bytes::<Histogram>(&sent).ok();
            assert_eq!(read, serde_json::from_value(value).ok(), "{counts:?}");
            read
        };
        for (counts, why) in [
            (&[(last + 1, 1)][..], "no such bucket"),
            (&[(u16::MAX, 2)], "no such bucket"),
            (&[(2, 1), (1, 1)], "order"),
            (&[(2, 1), (2, 1)], "twice"),
            (&[(1, 1), (2, 0)], "an empty bucket"),
        ] {
            assert_eq!(read(counts), None, "{why}");
        }
        // The largest histogram that is accepted: no later calculation may fail with it.
        let mut full = read(&[(0, u32::MAX), (last, u32::MAX)]).unwrap();
        full.merge(&full.clone());
        assert_eq!(full.percentile(100.0), Some(u64::MAX));
        assert!(full.mean().zip(full.variation()).is_some());
        assert_eq!(read(&[]), Some(Histogram::default()));
    }

    #[test]
    fn merge_adds_the_values() {
        let mut histogram = of([3, 500]);
        histogram.merge(&of([3, 70_000, 1]));
        assert_eq!(histogram, of([1, 3, 3, 500, 70_000]));
    }
}
