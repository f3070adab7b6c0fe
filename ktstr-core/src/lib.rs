//! What the host and the guest of a ktstr run both speak.
//!
//! The registry of tests, the verdict, the wire between guest and host, and everything that runs
//! in the guest: PID 1, cgroups, workloads, scenarios. Host and guest are the same binary, so
//! both sides always hold the same build of this crate. It never opens `/dev/kvm`.

pub mod assert;
pub mod cgroup;
pub mod guest;
pub mod logging;
pub mod payload;
pub mod process;
pub mod registry;
pub mod result;
pub mod scenario;
pub mod scenarios;
pub mod snapshot;
pub mod topology;
pub mod wire;
pub mod workload;

#[doc(hidden)]
pub use linkme;

mod chain;
mod sys;
