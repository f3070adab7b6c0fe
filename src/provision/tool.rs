//! Programs of Debian packages, fetched like QEMU.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apt::Suite;
use super::cache::Cache;
use super::units::megabytes;
use crate::notice::notice;

pub(crate) const SUITE: &str = "trixie";
/// The dynamic loader and the libraries, relative to the directory of unpacked packages.
pub(crate) const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
pub(crate) const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// Raised when the layout of these entries changes.
const KIND: &str = "tools-1";

/// Finds `program` of the Debian package `package` in the cache, or fetches the package with its dependencies.
/// Returns the command and its first arguments.
///
/// A fetched package is never updated.
///
/// # Errors
///
/// If the package cannot be fetched.
pub fn resolve(cache: &Cache, package: &str, program: &str) -> Result<Vec<OsString>> {
    Ok(command_line(&root(cache, package)?, program))
}

/// Returns the directory in which a package and its dependencies are unpacked. Fetches them if necessary.
///
/// # Errors
///
/// As for [`resolve`].
pub(crate) fn root(cache: &Cache, package: &str) -> Result<PathBuf> {
    cache.check_exec().with_context(|| format!("cannot run the programs of {package}"))?;
    let root = cache.build_once(&format!("{KIND}/{package}"), |root| {
        let mut suite = Suite::open(cache, SUITE, false)?;
        fs::create_dir(root)?;
        suite.with_fresh_lists(|suite| {
            let packages = suite.closure(package)?;
            let size = packages.iter().map(|package| package.size).sum();
            notice(&format!("fetching {package} ({}) from {} ...", megabytes(size), suite.host()));
            suite.unpack(&packages, root)
        })
    });
    root.with_context(|| format!("failed to fetch {package}"))
}

/// Returns the command that runs `usr/bin/<program>` of the packages unpacked in `root` with the loader of these
/// packages, so that it uses no library of the machine.
pub(super) fn command_line(root: &Path, program: &str) -> Vec<OsString> {
    let at = |path: &str| root.join(path).into_os_string();
    vec![at(LOADER), "--library-path".into(), at(LIBRARIES), at(&format!("usr/bin/{program}"))]
}
