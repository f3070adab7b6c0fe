//! Reads files of cgroups.

use std::fs;
use std::io;
use std::path::Path;

use super::error::Error;
use super::operation::Operation;

pub(super) fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(|cause| Error::io(Operation::LookFor, path, None, cause))
}

/// Returns whether a cgroup exists; false for a file.
pub(super) fn is_cgroup(path: &Path) -> Result<bool, Error> {
    match fs::metadata(path) {
        Ok(found) => Ok(found.is_dir()),
        // ENOTDIR: a component of the path is a file.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            Ok(false)
        }
        Err(cause) => Err(Error::io(Operation::LookFor, path, None, cause)),
    }
}

/// Returns whether this is the root of the whole hierarchy, to which the rules for delegated cgroups
/// do not apply: only the root has no `cgroup.type`. The root of a cgroup namespace has one.
pub(super) fn is_hierarchy_root(cgroup: &Path) -> Result<bool, Error> {
    exists(&cgroup.join("cgroup.type")).map(|exists| !exists)
}

pub(super) fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path)
        .map_err(|cause: io::Error| Error::io(Operation::Read, path, None, cause))
}
