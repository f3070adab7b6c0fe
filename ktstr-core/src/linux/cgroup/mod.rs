//! The cgroup v2 manager: what scenarios do to cgroups, as a trait, on cgroupfs and in memory.
//!
//! [`CgroupOps`] is the surface, [`CgroupManager`] does it for real, [`RecordingCgroups`] is a
//! double that records and fails on demand, [`CgroupGroup`] removes on drop what it made. Names
//! are relative to the manager's parent group and may be nested (`a/b`).
//!
//! Source: Linux 6.12, admin-guide/cgroup-v2.rst.

mod advice;
mod controllers;
mod errno;
mod error;
mod events;
mod group;
mod handover;
mod knobs;
mod list;
mod manager;
mod model;
mod names;
mod ops;
#[cfg(test)]
mod properties;
mod recording;
mod stats;
mod tasks;
mod teardown;
#[cfg(test)]
mod tests;
mod writer;

pub use controllers::Controller;
pub use error::Error;
pub(crate) use events::says as events_say;
pub use group::CgroupGroup;
pub use knobs::Knob;
pub(crate) use list::format as format_list;
pub use manager::{CgroupManager, WALK_ROOT_VARIABLE};
pub(crate) use names::check as check_name;
pub use ops::CgroupOps;
pub use recording::{Call, RecordingCgroups};
pub use stats::{
    CgroupStats, CpuStat, MemoryEvents, MemoryStat, MemoryStats, PidsStats, Pressure, Stall,
};
pub(crate) use tasks::{SETTLE_WITHIN, is_leaf};

/// Where the cgroup2 file system is mounted.
pub const MOUNT: &str = "/sys/fs/cgroup";
