//! Checks: compare what workers and cgroups did with the limits of a test.
//!
//! [`Assert`] holds the limits of a test; [`claim!`](crate::claim) judges a test's own numbers. A check
//! measures first, as a [`Measurement`], and then judges the value if there is a [`Limit`]. The result
//! is an [`AssertResult`]: a verdict with its reasons, each an [`AssertDetail`], and all measurements.
//! Every check is a pure function of what was measured.

mod cgroups;
mod checks;
mod claim;
mod measure;
mod stuck;
mod workers;

pub(crate) use cgroups::is_in;
pub use cgroups::{CgroupAsked, CgroupSample, CpuQuota, OomKills};
pub use checks::{Assert, Surroundings};
pub use claim::{Claim, Measure};
pub use measure::{FEWEST_WAKES, MEASURABLE_AFTER};

pub use crate::model::detail::{AssertDetail, DetailKind, Outcome};
pub use crate::model::measurement::{Better, Limit, Measurement, Scope};
pub use crate::model::verdict::{AssertResult, Note};
