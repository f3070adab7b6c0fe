//! Errors: operation, path, value, errno, and what to do about it.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::paths::WALK_ROOT_VARIABLE;
use super::{Operation, advice, errno};

/// A cgroup operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the fields that need more than their name have it")]
pub enum Error {
    /// The name is not valid for a cgroup below the parent.
    #[error("`{name}` is not a cgroup name: {reason}")]
    Name { name: String, reason: &'static str },
    /// The kernel would reject the value, or interpret it differently.
    #[error("refused to write `{value}` to {knob}: it takes {range} ({rule})")]
    Range {
        knob: &'static str,
        value: String,
        /// The values that the file accepts.
        range: &'static str,
        /// Where the kernel documents or implements that.
        rule: &'static str,
    },
    /// The kernel rejected an operation on a file or directory of cgroupfs.
    #[error("failed to {}: {}; {advice}", describe(*operation, path, value.as_deref()), errno::describe(cause))]
    Io {
        operation: Operation,
        path: PathBuf,
        value: Option<String>,
        /// The error of the kernel; also the [`source`](std::error::Error::source).
        #[source]
        cause: io::Error,
        /// What to do about it, depending on the state of the cgroup's files.
        advice: String,
    },
    /// The parent is not below the walk root.
    #[error(
        "cannot manage cgroups below `{}` from the walk root `{}`: {reason}",
        parent.display(), walk_root.display()
    )]
    WalkRoot {
        /// The cgroup in which all others are created.
        parent: PathBuf,
        /// The cgroup from which on controllers are enabled.
        walk_root: PathBuf,
        reason: &'static str,
    },
    /// Only root may enable controllers from the root of the hierarchy on.
    #[error(
        "cannot enable controllers `{controllers}` from {} as uid {uid}: run as root, or run in a \
         delegated cgroup (`systemd-run --user --scope -p Delegate=yes COMMAND`) and name it in \
         {}; see docs/guide/delegation.md",
        walk_root.display(), WALK_ROOT_VARIABLE
    )]
    NotPrivileged { walk_root: PathBuf, controllers: String, uid: u32 },
    /// The walk root lacks controllers that were requested in `setup`.
    #[error(
        "controllers `{missing}` are not available in {}, which lists `{available}`: enable them \
         in each of its ancestors, or request available ones",
        path.display()
    )]
    Unavailable {
        /// `cgroup.controllers` of the walk root.
        path: PathBuf,
        missing: String,
        available: String,
    },
    /// Controllers were to be enabled for the children of a cgroup that contains processes.
    #[error(
        "refused to write `{value}` to `{}/cgroup.subtree_control`: the cgroup contains processes \
         {pids:?}. The kernel would reject domain controllers (EBUSY); cpu, cpuset and pids alone \
         would make the cgroup a threaded domain, whose children accept neither processes nor \
         memory and io (EOPNOTSUPP). Move the processes to a leaf first",
        path.display()
    )]
    Occupied { path: PathBuf, value: String, pids: Vec<i32> },
    /// A cgroup did not become empty.
    #[error(
        "failed to {operation} `{}`: it still contains processes {pids:?} after {within:?}; they may \
         be in an uninterruptible wait (state D in /proc/PID/stat) or fork faster than they are killed",
        path.display()
    )]
    Populated {
        operation: &'static str,
        path: PathBuf,
        /// The processes in it and its descendants.
        pids: Vec<i32>,
        within: Duration,
    },
    /// A cgroup that was to be removed has children.
    #[error("failed to remove cgroup `{}`: it has children {children:?}; remove them first", path.display())]
    HasChildren { path: PathBuf, children: Vec<String> },
    /// All cgroups below the root of the hierarchy were to be removed.
    #[error(
        "refused to remove all cgroups below `{}`: it is the root of the hierarchy, which contains \
         those of the whole machine or container; create the manager for a cgroup below it",
        path.display()
    )]
    Root { path: PathBuf },
    /// Too many cgroups could not be removed, so no further one is tried.
    #[error(
        "refused to remove cgroup `{}`: {} cgroups could not be removed before: {outstanding:?}; \
         remove those again, or call cleanup_all",
        path.display(), outstanding.len()
    )]
    TooManyOutstanding {
        path: PathBuf,
        /// The cgroups that could not be removed and still exist.
        outstanding: Vec<PathBuf>,
    },
    /// The kernel did not complete an operation in time. It still may.
    #[error(
        "failed to {}: ETIMEDOUT, no answer in {within:?}; it may still happen, so further operations \
         on this file are refused until it has ended. Look for a task that holds cgroup_mutex (SysRq-W)",
        describe(*operation, path, value.as_deref())
    )]
    TimedOut { operation: Operation, path: PathBuf, value: Option<String>, within: Duration },
    /// An earlier operation on the same file timed out and may still happen.
    #[error(
        "refused to {}: {} started {since:.1?} ago, timed out and may still happen; wait, or \
         use another cgroup",
        describe(*operation, path, value.as_deref()), doubt
    )]
    InDoubt {
        operation: Operation,
        path: PathBuf,
        value: Option<String>,
        doubt: String,
        since: Duration,
    },
    /// The cgroup did not freeze or thaw.
    #[error(
        "failed to {operation} `{}`: cgroup.events did not contain `{wanted}` within {within:?}; a task \
         may be in an uninterruptible wait (SysRq-W lists them)",
        path.display()
    )]
    NotSettled {
        /// `freeze` or `thaw`.
        operation: &'static str,
        path: PathBuf,
        wanted: &'static str,
        within: Duration,
    },
    /// All processes that were to be moved have ended.
    #[error(
        "failed to move processes {pids:?} to `{}`: all of them have ended (ESRCH): killed, out of \
         memory, or crashed at their start",
        path.display()
    )]
    AllGone { path: PathBuf, pids: Vec<i32> },
    /// The destination has CPUs but no memory nodes.
    #[error(
        "refused to move processes to `{}`: cpuset.cpus is `{cpus}` and cpuset.mems.effective is \
         empty, so the kernel would answer ENOSPC; call set_cpuset_mems for it or its parent",
        path.display()
    )]
    EmptyMems { path: PathBuf, cpus: String },
    /// A pid that cannot be moved, or a cgroup that must not be killed or frozen.
    #[error("refused to {operation} `{}`: {reason}", path.display())]
    Process { operation: String, path: PathBuf, reason: &'static str },
}

impl Error {
    /// Returns an error of the file system, with advice that depends on the current state of the
    /// cgroup.
    pub(super) fn io(
        operation: Operation,
        path: &Path,
        value: Option<&str>,
        cause: io::Error,
    ) -> Self {
        let advice = advice::on(operation, path, value, &cause);
        let (path, value) = (path.to_owned(), value.map(str::to_owned));
        Self::Io { operation, path, value, cause, advice }
    }

    /// Returns the error number of the kernel, if the kernel rejected the operation.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Io { cause, .. } => cause.raw_os_error(),
            _ => None,
        }
    }

    /// Returns whether the cgroup or file does not exist.
    pub(crate) fn is_missing(&self) -> bool {
        self.raw_os_error() == Some(libc::ENOENT)
    }

    /// Appends a description of the state of the cgroup.
    pub(super) fn with_snapshot(mut self, snapshot: &str) -> Self {
        if let Self::Io { advice, .. } = &mut self {
            let _ = write!(advice, "\n{snapshot}");
        }
        self
    }
}

fn describe(operation: Operation, path: &Path, value: Option<&str>) -> String {
    match value {
        Some(value) => format!("{operation} `{}` to `{}`", value.trim_end(), path.display()),
        None => format!("{operation} `{}`", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_error_has_its_cause_as_source() {
        let cause = io::Error::from_raw_os_error(libc::EBUSY);
        let error = Error::io(Operation::Remove, Path::new("/nonexistent"), None, cause);
        let error = anyhow::Error::from(error).context("step 1");
        let cause = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
        assert_eq!(cause.and_then(io::Error::raw_os_error), Some(libc::EBUSY));
    }
}
