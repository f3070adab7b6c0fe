//! Errors of jobs.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::{Limits, Process};
use crate::linux::cgroup;

/// An operation on a job that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields that need more than their name have it")]
pub enum Error {
    /// An operation on the job's cgroup failed.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// Limits were requested and no cgroup can be created that enforces them.
    #[error(
        "cannot limit a job to {limits}: {tried}. Limits need a cgroup v2 that the caller may \
         create: run as root, or in a delegated cgroup (`systemd-run --user --scope -p Delegate=yes \
         COMMAND`), or in a container with its own cgroup namespace and writable cgroupfs; see \
         docs/guide/processes.md"
    )]
    NoLimits {
        limits: Limits,
        /// Which files were tried, and what the kernel answered.
        tried: String,
    },
    /// A program was to be started in a suspended job. It could not report that it has started.
    #[error("cannot start `{}` in a suspended job: resume it first", program.display())]
    Suspended { program: OsString },
    /// The operation is not supported by the job's mechanism.
    #[error("cannot {operation} a job that is a process group: that needs a cgroup, and {why}")]
    NeedsCgroup {
        operation: &'static str,
        /// Why the job is not a cgroup.
        why: String,
    },
    /// A program could not be started.
    #[error("failed to run `{}`: {source}{advice}", program.display())]
    Spawn { program: OsString, source: io::Error, advice: &'static str },
    /// A new process could not enter the job. Its program has not started.
    #[error("failed to start `{}` in {place}: {source}; {advice}", program.display())]
    Enter { program: OsString, place: String, source: io::Error, advice: &'static str },
    /// Processes still exist after they were killed.
    #[error(
        "failed to kill {}: still there after {within:?}. A process in state D ends when its wait in \
         the kernel does; others belong to another user",
        list(processes)
    )]
    Unkillable { processes: Vec<Process>, within: Duration },
    /// A system call failed.
    #[error("failed to {operation}: {source}")]
    System { operation: String, source: io::Error },
    /// A job's cgroup cannot be created in a directory.
    #[error("cannot create a job below {}: {reason}", parent.display())]
    Parent { parent: PathBuf, reason: String },
}

impl Error {
    /// Returns a function for `map_err` after a system call.
    pub(super) fn system<E: Into<io::Error>>(
        operation: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        let operation = operation.into();
        |error| Self::System { operation, source: error.into() }
    }
}

/// How many processes an error message lists.
const MAX_LISTED: usize = 8;

/// Formats a list: `4711 sleep (state D, `sleep 1000`), 4712 cat (state D, `cat`) and 3 more`.
fn list(processes: &[Process]) -> String {
    let named: Vec<_> = processes.iter().take(MAX_LISTED).map(ToString::to_string).collect();
    let more = processes.len() - named.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    named.join(", ") + &more
}
