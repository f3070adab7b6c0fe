//! Workers: processes that load the machine in a defined way, and are measured while they do.
//!
//! A [`WorkSpec`] sets the number of workers, what they do ([`WorkType`]) and how the kernel
//! schedules them ([`SchedPolicy`], [`AffinityIntent`], [`MemoryPolicy`]).
//!
//! A worker starts in two phases: it is forked and waits, it is placed in its cgroup, and only
//! then released, so that none of its load runs in another cgroup. It counts its iterations in
//! memory that it shares with its parent, which can read them even if the worker dies; what the kernel
//! counts of it is read from `/proc`. Both are in a [`WorkerReport`].

mod affinity;
mod burst;
mod context;
mod group;
mod histogram;
mod memory;
mod page;
mod policy;
mod resources;
mod schedstat;
mod spec;
mod sync;
mod telemetry;
#[cfg(test)]
mod testing;
mod types;
mod work_type;
mod worker;

pub use crate::model::histogram::Histogram;
pub use crate::model::worker::{CpusetPeriod, FrozenPeriod, IterationGap, WorkerEnd, WorkerReport};
pub use affinity::AffinityIntent;
pub use context::WorkerCtx;
pub(crate) use group::Workers;
pub use memory::MemoryPolicy;
pub use policy::SchedPolicy;
pub use spec::WorkSpec;
pub use work_type::WorkType;
pub(crate) use worker::Worker;
