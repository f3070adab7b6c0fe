//! The interface of the two mechanisms.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI32};
use std::time::Duration;

use super::{Error, Limits};

/// Contains the processes of a job. Dropping it kills them and removes what was created for them.
pub(super) trait Containment: fmt::Debug + Send + Sync {
    /// Prepares a command for this job; returns the function by which its process enters.
    fn entry(&self, command: &mut Command) -> Result<EnterFn, Error>;

    /// Describes the cgroup or process group in an error message.
    fn place(&self) -> String;

    /// Returns the pids of the processes in it, including some that have just ended.
    fn pids(&self) -> Result<Vec<i32>, Error>;

    /// Returns whether it contains a process now; false if the process does not exist.
    fn holds(&self, pid: i32) -> Result<bool, Error>;

    /// Returns the file that changes when the job becomes empty (`cgroup.events`), if there is one.
    fn events(&self) -> Option<PathBuf>;

    /// Kills all processes; returns when none is left.
    fn kill(&self) -> Result<(), Error>;

    /// Freezes or thaws all processes; returns when that is done.
    fn freeze(&self, frozen: bool) -> Result<(), Error>;

    /// Moves a process that was started elsewhere into the job.
    fn adopt(&self, pid: i32) -> Result<(), Error>;

    /// Replaces all limits.
    fn update_limits(&self, limits: Limits) -> Result<(), Error>;

    /// Returns what the kernel has counted for the job as a whole.
    fn usage(&self) -> Result<Usage, Error>;
}

/// Resource usage of a job as a whole; `None` where the kernel only counts for single processes.
#[derive(Debug, Default)]
pub(super) struct Usage {
    pub(super) cpu_time: Option<Duration>,
    /// In bytes.
    pub(super) peak_memory: Option<u64>,
}

/// Runs in a new process between fork and exec, so it only makes system calls. It either returns, or
/// exits after the process has been replaced by the sibling in [`EntryState::sibling`].
///
/// It must not be called in any other process.
pub(super) type EnterFn = Box<dyn Fn(&EntryState) -> io::Result<()> + Send + Sync>;

/// The state of one process's entry, in memory that it shares with its parent.
#[derive(Debug, Default)]
pub(super) struct EntryState {
    /// Set by the parent: the process must move itself and not clone a sibling.
    pub(super) must_move: AtomicBool,
    /// The pid of the sibling that replaces the forked process; 0 for none.
    pub(super) sibling: AtomicI32,
    /// A process has entered.
    pub(super) has_entered: AtomicBool,
    /// The error number of a failed entry; 0 for none.
    pub(super) errno: AtomicI32,
}
