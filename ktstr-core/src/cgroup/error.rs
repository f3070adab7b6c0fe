//! What went wrong, on which file, and what to do about it.

use std::io;
use std::path::PathBuf;

/// A cgroup operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name cannot be a group below the parent.
    #[error("`{name}` is no cgroup name: {reason}")]
    Name {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file or folder of cgroupfs refused.
    #[error("failed to {operation} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was tried: `write 42 to`.
        operation: String,
        /// On which file or folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A group was to be removed and is in use.
    #[error("{} still holds processes {pids:?}; stop them first", path.display())]
    Populated {
        /// The group.
        path: PathBuf,
        /// Its processes.
        pids: Vec<i32>,
    },
}

impl Error {
    pub(super) fn io(
        operation: impl Into<String>,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let (operation, path) = (operation.into(), path.into());
        move |source| Self::Io { operation, path, source }
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            "; the caller must own this group: run as root, or delegate it"
        }
        Some(libc::EROFS) => "; cgroupfs is mounted read-only here, as in many containers",
        Some(libc::ENOENT) => "; there is no such group, or no cgroup v2 hierarchy is mounted",
        Some(libc::EBUSY) => {
            "; the group has domain controllers enabled and cannot hold processes itself"
        }
        _ => "",
    }
}
