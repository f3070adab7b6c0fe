//! What went wrong with a job.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::limits::Limits;
use super::procfs::Process;
use crate::linux::cgroup;

/// An operation on a job that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The job's cgroup refused.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// Limits were asked for where no cgroup can keep them.
    #[error(
        "cannot limit a job to {limits}: {tried}. Limits need a cgroup v2 that the caller may \
         make: run as root, or in a delegated group (`systemd-run --user --scope -p Delegate=yes \
         COMMAND`), in a container with a cgroup namespace of its own and cgroupfs writable; see \
         docs/guide/processes.md"
    )]
    NoLimits {
        /// What was asked for.
        limits: Limits,
        /// Which files were tried, and what they answered.
        tried: String,
    },
    /// A program was to be started in a job that is suspended, and could never say that it was.
    #[error("cannot start `{}` in a job that is suspended: resume it first", program.display())]
    Suspended {
        /// The program.
        program: OsString,
    },
    /// What was asked for needs another mechanism than the job has.
    #[error("cannot {operation} a job that is a process group: that needs a cgroup, and {why}")]
    NeedsCgroup {
        /// What was asked for.
        operation: &'static str,
        /// Why the job is no cgroup.
        why: String,
    },
    /// A program could not be started.
    #[error("failed to run `{}`: {source}{advice}", program.display())]
    Spawn {
        /// The program.
        program: OsString,
        /// What came back.
        source: io::Error,
        /// What to do about it.
        advice: &'static str,
    },
    /// A new process could not enter the job. Its program has not begun.
    #[error("failed to start `{}` in {place}: {source}; {advice}", program.display())]
    Enter {
        /// The program.
        program: OsString,
        /// The group it was to be in.
        place: String,
        /// What came back.
        source: io::Error,
        /// What to do about it.
        advice: &'static str,
    },
    /// Processes live on although they were killed.
    #[error(
        "failed to kill {}: still there after {within:?}. State D waits in the kernel and goes \
         when that wait ends; anything else has another user's rights",
        list(processes)
    )]
    Unkillable {
        /// The processes.
        processes: Vec<Process>,
        /// How long was waited.
        within: Duration,
    },
    /// A system call failed.
    #[error("failed to {operation}: {source}")]
    System {
        /// What was tried, on what.
        operation: String,
        /// What came back.
        source: io::Error,
    },
    /// A path that was to hold the job's group is none in which one can be.
    #[error("cannot make a job below {}: {reason}", parent.display())]
    Parent {
        /// The path.
        parent: PathBuf,
        /// Why not.
        reason: String,
    },
}

impl Error {
    /// For `map_err` after a system call.
    pub(super) fn system<E: Into<io::Error>>(
        operation: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        let operation = operation.into();
        |error| Self::System { operation, source: error.into() }
    }
}

/// How many processes an error names.
const MOST_NAMED: usize = 8;

/// `4711 sleep (state D, `sleep 1000`), 4712 cat (state D, `cat`) and 3 more`.
fn list(processes: &[Process]) -> String {
    let named: Vec<_> = processes.iter().take(MOST_NAMED).map(ToString::to_string).collect();
    let more = processes.len() - named.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    named.join(", ") + &more
}
