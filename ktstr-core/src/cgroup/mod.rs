//! The cgroup v2 manager: what scenarios do to cgroups, as a trait and on cgroupfs.
//!
//! Names are relative to the manager's parent group and may be nested (`a/b`).
//!
//! Source: Linux 6.12, admin-guide/cgroup-v2.rst.

mod error;
mod manager;
mod names;

use std::path::Path;

pub use error::Error;
pub use manager::CgroupManager;

/// Where the cgroup2 file system is mounted.
pub const MOUNT: &str = "/sys/fs/cgroup";

/// What scenario code may do to cgroups.
pub trait CgroupOps: std::fmt::Debug {
    /// The group under which all others are made.
    fn parent_path(&self) -> &Path;

    /// Makes a group, and the groups above it as needed. An existing one is left as it is.
    fn create_cgroup(&self, name: &str) -> Result<(), Error>;

    /// Removes a group once its last process is gone; a missing one is fine.
    ///
    /// # Errors
    ///
    /// If processes are still in it after two seconds; they are named.
    fn remove_cgroup(&self, name: &str) -> Result<(), Error>;

    /// Moves a process, with all its threads, into a group by writing `cgroup.procs`.
    fn move_task(&self, name: &str, pid: i32) -> Result<(), Error>;

    /// The processes in a group, in the order of `cgroup.procs`.
    fn read_procs(&self, name: &str) -> Result<Vec<i32>, Error>;

    /// Kills what is left in the groups under the parent and removes them, the parent too.
    fn cleanup_all(&self) -> Result<(), Error>;
}
