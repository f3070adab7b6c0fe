//! Payloads: external programs that a test runs in its guest.
//!
//! A [`Payload`] is a constant: a program, its arguments, the numbers to read from its output and the
//! limits of those numbers. The attribute's key `payloads` copies its program with its shared libraries
//! into the guest. A [`PayloadRun`] is one run of it, by an operation of a scenario or by
//! [`Ctx::payload`](crate::guest::scenario::Ctx::payload), and a [`PayloadReport`] is the result.
//!
//! ```
//! use ktstr_core::payload::{Check, Metric, Payload};
//!
//! const HACKBENCH: Payload = Payload::new("hackbench")
//!     .package("rt-tests")
//!     .args(&["-g", "1", "-l", "20"])
//!     .metrics(&[Metric::regex("time_s", r"Time: ([0-9.]+)").time_based()])
//!     .checks(&[Check::Max("time_s", 30.0)]);
//! HACKBENCH.validate().unwrap();
//! ```

mod call;
mod check;
mod definition;
mod end;
mod judge;
mod metric;
mod output;
mod report;
mod running;

pub use call::PayloadCall;
pub use check::Check;
#[doc(hidden)]
pub use definition::{DIRECTORY, LIBRARIES};
pub use definition::{Payload, PayloadRun};
pub use end::PayloadEnd;
pub use metric::{Metric, MetricSource, MetricValue};
pub use output::{OUTPUT_KEPT, Output};
pub use report::PayloadReport;
pub(crate) use running::Running;
