//! Programs of Debian's that tasks of this project use, fetched like QEMU.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apt::Suite;
use super::cache::Cache;
use super::units::megabytes;
use crate::notice::notice;

pub(crate) const SUITE: &str = "trixie";
/// The dynamic loader and the libraries below the folder of unpacked packages.
pub(crate) const LOADER: &str = "usr/lib64/ld-linux-x86-64.so.2";
pub(crate) const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// Raised when the layout of these entries changes.
const KIND: &str = "tools-1";

/// Finds `program` of the Debian package `package` in the cache, or fetches the package and all it
/// needs. Returns the program to run and the arguments that come before its own.
///
/// What was fetched once is used for good.
///
/// # Errors
///
/// The package cannot be fetched.
pub fn resolve(cache: &Cache, package: &str, program: &str) -> Result<Vec<OsString>> {
    Ok(command_line(&root(cache, package)?, program))
}

/// Finds the folder in which a package and all it needs are unpacked, or fetches it.
///
/// # Errors
///
/// As for [`resolve`].
pub(crate) fn root(cache: &Cache, package: &str) -> Result<PathBuf> {
    cache.check_exec().with_context(|| format!("the programs of {package} cannot run"))?;
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

/// Runs `usr/bin/<program>` of the packages unpacked in `root` by the loader that came with them,
/// so that no library of the machine gets in.
pub(super) fn command_line(root: &Path, program: &str) -> Vec<OsString> {
    let at = |path: &str| root.join(path).into_os_string();
    vec![at(LOADER), "--library-path".into(), at(LIBRARIES), at(&format!("usr/bin/{program}"))]
}
