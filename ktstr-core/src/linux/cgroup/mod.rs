//! The cgroup v2 manager.
//!
//! [`CgroupOps`] is the trait, [`CgroupManager`] implements it on cgroupfs, [`RecordingCgroups`] is a
//! test double in memory, [`CgroupGroup`] removes cgroups when it is dropped. Names are relative to
//! the parent cgroup of the manager and may be nested (`a/b`).
//!
//! Source: Linux 6.12, admin-guide/cgroup-v2.rst.

mod advice;
mod controller;
mod errno;
mod error;
mod events;
mod files;
mod group;
mod knobs;
mod list;
mod manager;
mod model;
mod names;
mod operation;
mod operations;
mod ops;
mod paths;
mod procs;
#[cfg(test)]
mod properties;
mod recording;
mod setup;
mod stats;
mod tasks;
mod teardown;
#[cfg(test)]
mod tests;
mod writer;

pub use controller::Controller;
pub use error::Error;
pub(crate) use events::contains as events_contain;
pub use group::CgroupGroup;
pub use knobs::Knob;
pub(crate) use list::{format as format_list, parse as parse_list};
pub use manager::CgroupManager;
pub(crate) use names::check as check_name;
pub use operation::Operation;
pub use ops::CgroupOps;
pub use paths::{MOUNT, WALK_ROOT_VARIABLE};
pub use recording::{Call, RecordingCgroups};
pub use stats::{
    CgroupStats, CpuStat, MemoryEvents, MemoryStat, MemoryStats, PidsStats, Pressure, Stall,
};
pub(crate) use tasks::{SETTLE_WITHIN, is_leaf};
