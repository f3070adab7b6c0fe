//! What the host and the guest of a ktstr run both speak.
//!
//! The registry of tests, the verdict, the wire between guest and host, and everything that runs
//! in the guest: PID 1, cgroups, workloads, scenarios. Host and guest are the same binary, so
//! both sides always hold the same build of this crate. It never opens `/dev/kvm`.

mod cgroup_stats;
pub mod guest;
pub mod linux;
pub mod model;

#[doc(hidden)]
pub use linkme;

pub use guest::{assert, payload, registry, scenario, scenarios, snapshot, workload};
pub use linux::{cgroup, process};
pub use model::{record, result, topology, wire};
