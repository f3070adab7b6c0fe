//! What the checks have in common: how they describe values, and why some cannot be measured.

use std::time::Duration;

use crate::model::detail::{AssertDetail, DetailKind};
use crate::model::measurement::{Better, Measurement, Scope};
use crate::model::worker::WorkerReport;

/// The shortest time over which shares and rates are judged. Start and stop weigh too much in a shorter
/// one, in which a kernel with 250 Hz counts less than 25 ticks.
pub const MEASURABLE_AFTER: Duration = Duration::from_millis(100);

/// The fewest wake-ups from which a 99th percentile is taken: with less, it would be the slowest one.
pub const FEWEST_WAKES: u64 = 100;

/// Returns a detail with a value that was measured; smaller values are better.
pub(super) fn lower(
    kind: DetailKind,
    name: &str,
    value: f64,
    unit: &str,
    samples: u64,
) -> AssertDetail {
    measured(kind, Measurement::new(name, value, unit).better(Better::Lower).samples(samples))
}

/// Returns a detail with a value that was measured; larger values are better.
pub(super) fn higher(
    kind: DetailKind,
    name: &str,
    value: f64,
    unit: &str,
    samples: u64,
) -> AssertDetail {
    measured(kind, Measurement::new(name, value, unit).better(Better::Higher).samples(samples))
}

fn measured(kind: DetailKind, measured: Measurement) -> AssertDetail {
    AssertDetail { time_based: is_time_based(kind), ..AssertDetail::measured(kind, measured) }
}

/// Returns the detail of a check that could not measure anything.
pub(super) fn unmeasured(kind: DetailKind, why: impl Into<String>) -> AssertDetail {
    AssertDetail { time_based: is_time_based(kind), ..AssertDetail::new(kind, why) }
}

/// Returns why nothing can be measured in a window of this length, if it is too short.
pub(super) fn too_short(wall: Duration) -> Option<String> {
    (wall < MEASURABLE_AFTER)
        .then(|| format!("window too short to measure: {wall:?} (minimum {MEASURABLE_AFTER:?})"))
}

/// Returns whether steal time can explain the failure of a check; the fields of
/// [`Assert`](super::Assert) state why.
fn is_time_based(kind: DetailKind) -> bool {
    !matches!(kind, DetailKind::WorkerStuck | DetailKind::OomKill | DetailKind::PageLocality)
}

pub(super) fn scope_of(worker: &WorkerReport) -> Scope {
    let WorkerReport { pid, comm, cgroup, .. } = worker;
    Scope::Worker { pid: *pid, comm: comm.clone(), cgroup: cgroup.clone() }
}
