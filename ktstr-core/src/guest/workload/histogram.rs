//! A histogram in memory that a worker shares with its parent.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::model::histogram::{BUCKETS, Histogram, bucket_of};

/// Counters that one worker writes and other processes read, without a lock and without a system
/// call.
#[derive(Debug)]
pub(super) struct SharedHistogram {
    counts: [AtomicU32; BUCKETS],
}

impl Default for SharedHistogram {
    fn default() -> Self {
        Self { counts: [const { AtomicU32::new(0) }; BUCKETS] }
    }
}

impl SharedHistogram {
    /// Counts a value. There is one writer.
    pub(super) fn record(&self, value: u64) {
        self.counts[bucket_of(value)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Histogram {
        Histogram::from_counts(self.counts.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}
