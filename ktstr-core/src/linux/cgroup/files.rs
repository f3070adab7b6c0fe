//! Reads the files of a cgroup.

use std::fs;
use std::io;
use std::path::Path;

use super::error::Error;

/// Whether there is such a file or directory. An error that leaves it open is returned.
pub(super) fn is_there(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(|cause| Error::io("look for", path, None, cause))
}

/// Whether there is such a cgroup; a file is none.
pub(super) fn is_group(path: &Path) -> Result<bool, Error> {
    match fs::metadata(path) {
        Ok(found) => Ok(found.is_dir()),
        // ENOTDIR: below a file.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            Ok(false)
        }
        Err(cause) => Err(Error::io("look for", path, None, cause)),
    }
}

pub(super) fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|cause: io::Error| Error::io("read", path, None, cause))
}

/// Whether this is the root of the whole hierarchy, to which the rules for delegated groups do
/// not apply: it alone has no `cgroup.type`. The root of a cgroup namespace has one.
pub(super) fn is_hierarchy_root(group: &Path) -> Result<bool, Error> {
    is_there(&group.join("cgroup.type")).map(|there| !there)
}
