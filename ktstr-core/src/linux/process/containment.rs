//! What a mechanism has to do for a job.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI32};
use std::time::Duration;

use super::error::Error;
use super::limits::Limits;

/// Holds the processes of a job. Dropping it ends them, and whatever was made to hold them.
pub(super) trait Containment: fmt::Debug + Send + Sync {
    /// Prepares a command for this job; returns how its process gets in.
    fn entry(&self, command: &mut Command) -> Result<EnterFn, Error>;

    /// Where that is, in words.
    fn place(&self) -> String;

    /// The numbers of the processes in it, of some that have just ended, too.
    fn pids(&self) -> Result<Vec<i32>, Error>;

    /// Returns whether a process is in it now; false if the process is gone.
    fn holds(&self, pid: i32) -> Result<bool, Error>;

    /// A file that tells when the job gets empty, if there is one: `cgroup.events`.
    fn events(&self) -> Option<PathBuf>;

    /// Kills all processes; returns when there are none.
    fn kill(&self) -> Result<(), Error>;

    /// Stops all processes or lets them go on; returns when that is so.
    fn freeze(&self, frozen: bool) -> Result<(), Error>;

    /// Takes in a process that was started elsewhere.
    fn adopt(&self, pid: i32) -> Result<(), Error>;

    /// Puts other limits in the place of those there are.
    fn update_limits(&self, limits: Limits) -> Result<(), Error>;

    /// What the kernel has counted for the job as a whole.
    fn usage(&self) -> Result<Usage, Error>;
}

/// What the kernel has counted for a job as a whole; `None` where it counts processes only.
#[derive(Debug, Default)]
pub(super) struct Usage {
    pub(super) cpu_time: Option<Duration>,
    /// In bytes.
    pub(super) peak_memory: Option<u64>,
}

/// Run by a new process between fork and exec, so it only makes system calls. A process that does
/// not return from it has left its place to the sibling it names.
///
/// It is unsafe to call for any other process.
pub(super) type EnterFn = Box<dyn Fn(&Entered) -> io::Result<()> + Send + Sync>;

/// What a new process is told and says of its entry, in memory it shares with its parent.
#[derive(Debug, Default)]
pub(super) struct Entered {
    /// It is to enter as itself, and leave its place to nobody.
    pub(super) in_person: AtomicBool,
    /// The process that took the place of the one that was forked; 0 for none.
    pub(super) sibling: AtomicI32,
    /// Some process has got in.
    pub(super) got_in: AtomicBool,
    /// The number of the error that kept it out; 0 for none.
    pub(super) refused: AtomicI32,
}
