//! What went wrong: operation, path, value, errno, and what to do about it.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::paths::WALK_ROOT_VARIABLE;
use super::{advice, errno};

/// A cgroup operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name cannot be a group below the parent.
    #[error("`{name}` is not a cgroup name: {reason}")]
    Name {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The kernel would not take the value, or not as it is meant.
    #[error("refused to write `{value}` to {knob}: it takes {range} ({rule})")]
    Range {
        /// The file.
        knob: &'static str,
        /// The value that was refused.
        value: String,
        /// What the file takes.
        range: &'static str,
        /// Where the kernel says so.
        rule: &'static str,
    },
    /// A file or folder of cgroupfs refused.
    #[error("failed to {}: {}; {advice}", describe(operation, path, value.as_deref()), errno::describe(cause))]
    Io {
        /// What was tried: `write`, `read`, `create cgroup`.
        operation: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What was to be written there.
        value: Option<String>,
        /// What the kernel answered; also the [`source`](std::error::Error::source).
        #[source]
        cause: io::Error,
        /// What to do about it, with what the group's files say of its state.
        advice: String,
    },
    /// The parent is not below the walk root.
    #[error(
        "cannot manage cgroups below {} from the walk root {}: {reason}",
        parent.display(), walk_root.display()
    )]
    WalkRoot {
        /// The group under which all others are made.
        parent: PathBuf,
        /// Where delegation begins.
        walk_root: PathBuf,
        /// What is wrong with the two.
        reason: &'static str,
    },
    /// Only root may enable controllers from the root of the hierarchy.
    #[error(
        "cannot enable controllers `{controllers}` from {} as uid {uid}: run as root, or run in a \
         delegated group (`systemd-run --user --scope -p Delegate=yes COMMAND`) and name it in \
         {}; see docs/guide/delegation.md",
        walk_root.display(), WALK_ROOT_VARIABLE
    )]
    NotPrivileged {
        /// The root of the hierarchy.
        walk_root: PathBuf,
        /// What was asked for.
        controllers: String,
        /// Who asked.
        uid: u32,
    },
    /// The walk root has not got what `setup` was asked for.
    #[error(
        "controllers `{missing}` are not available in {}, which lists `{available}`: enable them \
         in every group above it, or ask for what is there",
        path.display()
    )]
    Unavailable {
        /// `cgroup.controllers` of the walk root.
        path: PathBuf,
        /// What was asked for in vain.
        missing: String,
        /// What there is.
        available: String,
    },
    /// Controllers were to be enabled for the children of a group that holds processes itself.
    #[error(
        "refused to write `{value}` to {}/cgroup.subtree_control: the group holds processes \
         {pids:?}. Domain controllers would answer EBUSY; cpu, cpuset and pids alone would be \
         taken, but make the group a threaded domain, whose children take neither processes nor \
         memory and io (EOPNOTSUPP). Move the processes to a leaf first",
        path.display()
    )]
    Occupied {
        /// The group.
        path: PathBuf,
        /// What was not written.
        value: String,
        /// Its processes.
        pids: Vec<i32>,
    },
    /// A group was to be empty and is not.
    #[error(
        "failed to {operation} {}: after {within:?} it still holds processes {pids:?}; they may \
         be stuck in the kernel (state D in /proc/PID/stat) or fork faster than they are found",
        path.display()
    )]
    Populated {
        /// What it was to be empty for.
        operation: &'static str,
        /// The group.
        path: PathBuf,
        /// The processes in it and below it.
        pids: Vec<i32>,
        /// How long was waited.
        within: Duration,
    },
    /// A group was to be removed and has groups below it.
    #[error("failed to remove cgroup {}: it has groups {children:?}; remove them first", path.display())]
    HasChildren {
        /// The group.
        path: PathBuf,
        /// The groups in it.
        children: Vec<String>,
    },
    /// All cgroups below the root of the hierarchy were to be removed.
    #[error(
        "refused to remove all cgroups below {}: it is the root of the hierarchy, so they are those \
         of the whole machine or container; make the manager for a cgroup below it",
        path.display()
    )]
    Root {
        /// The root.
        path: PathBuf,
    },
    /// Too many groups could not be removed for one more to be tried.
    #[error(
        "refused to remove cgroup {}: {} groups could not be removed before: {outstanding:?}; \
         remove those again, or call cleanup_all",
        path.display(), outstanding.len()
    )]
    TooManyOutstanding {
        /// The group.
        path: PathBuf,
        /// Those that are still there.
        outstanding: Vec<PathBuf>,
    },
    /// The kernel did not carry an operation out in time. It still may.
    #[error(
        "failed to {}: ETIMEDOUT, no answer in {within:?}; it may still happen, so nothing is \
         done to this file before it is known. Look for a task that holds cgroup_mutex (SysRq-W)",
        describe(operation, path, value.as_deref())
    )]
    TimedOut {
        /// What was tried.
        operation: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What was to be written there.
        value: Option<String>,
        /// How long was waited.
        within: Duration,
    },
    /// An earlier operation on the same file timed out and may still happen.
    #[error(
        "refused to {}: {} started {since:.1?} ago, timed out and may still happen; wait, or \
         use another cgroup",
        describe(operation, path, value.as_deref()), doubt
    )]
    InDoubt {
        /// What was to be done now.
        operation: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What was to be written there.
        value: Option<String>,
        /// What was tried before: `write of 5`.
        doubt: String,
        /// How long ago.
        since: Duration,
    },
    /// The group did not freeze or thaw.
    #[error(
        "failed to {operation} {}: cgroup.events did not say `{wanted}` in {within:?}; a task may \
         be stuck in the kernel (SysRq-W lists them)",
        path.display()
    )]
    NotSettled {
        /// `freeze` or `thaw`.
        operation: &'static str,
        /// The group.
        path: PathBuf,
        /// The line that was waited for.
        wanted: &'static str,
        /// How long was waited.
        within: Duration,
    },
    /// All processes that were to be moved have ended.
    #[error(
        "failed to move processes {pids:?} to {}: all of them are gone (ESRCH); they ended before \
         the move: killed, out of memory, or crashed at their start",
        path.display()
    )]
    AllGone {
        /// The destination.
        path: PathBuf,
        /// The processes.
        pids: Vec<i32>,
    },
    /// The destination's processes would have no memory to run from.
    #[error(
        "refused to move processes to {}: cpuset.cpus is `{cpus}` and cpuset.mems.effective is \
         empty, so the kernel would answer ENOSPC; call set_cpuset_mems for it or the group above",
        path.display()
    )]
    EmptyMems {
        /// The destination.
        path: PathBuf,
        /// Its `cpuset.cpus`.
        cpus: String,
    },
    /// A pid that cannot be moved or a group that must not be killed.
    #[error("refused to {operation} {}: {reason}", path.display())]
    Process {
        /// What was to be done.
        operation: String,
        /// The group.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
}

impl Error {
    /// An error of the file system whose advice follows from the group's state now.
    pub(super) fn io(
        operation: &'static str,
        path: &Path,
        value: Option<&str>,
        cause: io::Error,
    ) -> Self {
        let advice = advice::on(operation, path, value, &cause);
        let (path, value) = (path.to_owned(), value.map(str::to_owned));
        Self::Io { operation, path, value, cause, advice }
    }

    /// The number the kernel answered, if it was the kernel that refused.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Io { cause, .. } => cause.raw_os_error(),
            _ => None,
        }
    }

    /// Whether there is no such group or file.
    pub(crate) fn is_missing(&self) -> bool {
        self.raw_os_error() == Some(libc::ENOENT)
    }

    /// Adds what is known of the surroundings.
    pub(super) fn with_snapshot(mut self, snapshot: &str) -> Self {
        if let Self::Io { advice, .. } = &mut self {
            let _ = write!(advice, "\n{snapshot}");
        }
        self
    }
}

fn describe(operation: &str, path: &Path, value: Option<&str>) -> String {
    match value {
        Some(value) => format!("{operation} `{}` to {}", value.trim_end(), path.display()),
        None => format!("{operation} {}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_cause_is_in_the_chain() {
        let cause = io::Error::from_raw_os_error(libc::EBUSY);
        let error = Error::io("remove cgroup", Path::new("/nonexistent"), None, cause);
        let error = anyhow::Error::from(error).context("step 1");
        let cause = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
        assert_eq!(cause.and_then(io::Error::raw_os_error), Some(libc::EBUSY));
    }
}
