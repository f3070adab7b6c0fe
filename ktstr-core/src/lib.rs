//! The part of ktstr that host and guest share, and everything that runs in the guest.
//!
//! [`linux`] is a library for cgroups and processes, [`model`] has the data that travels between
//! host and guest, [`guest`] runs in the guest: PID 1, workloads, scenarios, checks. Host and guest
//! are the same binary, so both sides always hold the same build of this crate. It never opens
//! `/dev/kvm`.

mod cgroup_stats;
#[macro_use]
mod named;
pub mod guest;
pub mod linux;
pub mod model;

#[doc(hidden)]
pub use linkme;

pub use guest::{assert, payload, registry, scenario, scenarios, snapshot, workload};
pub use linux::{cgroup, process};
pub use model::{machine, record, result, wire};

/// The requested CPU topology, and the one that a machine has.
pub mod topology {
    pub use crate::guest::topology::TestTopology;
    pub use crate::model::machine::{Llcs, Topology, TopologyError};
}
