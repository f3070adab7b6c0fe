//! Verdicts: what a test concluded, and why.
//!
//! [`AssertResult`] is a verdict with its reasons, each an [`AssertDetail`]. [`Assert`] holds the
//! bounds that a test sets and judges what was measured by them; [`claim!`](crate::claim) does it
//! for a test's own numbers. Every check is a function of what was measured and nothing else.

mod cgroups;
mod checks;
mod claim;
mod stuck;
mod workers;

pub(crate) use cgroups::is_in;
pub use cgroups::{CgroupAsked, CgroupSample, CpuQuota, OomKills};
pub(crate) use checks::shown;
pub use checks::{Assert, MEASURABLE_AFTER, Surroundings};
pub use claim::{Claim, Measure};
pub use workers::FEWEST_WAKES;

pub use crate::model::detail::{AssertDetail, DetailKind, Outcome};
pub use crate::model::verdict::{AssertResult, Note};
