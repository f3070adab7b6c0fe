//! The files of this process: its program and its libraries, whatever has become of them since they were loaded.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The file of this program, also after Cargo has built another under the same name.
///
/// Source: proc_pid_exe(5).
pub(crate) const THIS_PROGRAM: &str = "/proc/self/exe";

/// The kernel appends this to the name of a deleted file.
const DELETED: &[u8] = b" (deleted)";

/// The path from which this program was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnName {
    /// The path.
    pub(crate) path: PathBuf,
    /// Whether the path still names this program's file.
    pub(crate) is_current: bool,
}

/// Returns the path from which this program was started.
pub(crate) fn own_name() -> io::Result<OwnName> {
    let path = fs::read_link(THIS_PROGRAM)?;
    let own = fs::metadata(THIS_PROGRAM)?;
    let is_own = |meta: fs::Metadata| (meta.dev(), meta.ino()) == (own.dev(), own.ino());
    let is_current = fs::metadata(&path).is_ok_and(is_own);
    let path = if is_current { path } else { without_mark(path.as_os_str()).0 };
    Ok(OwnName { path, is_current })
}

/// A file that this process has mapped as code.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LoadedFile {
    /// The path from which it was loaded.
    pub(crate) path: PathBuf,
    /// Whether that file was deleted; another may exist at its path.
    pub(crate) is_gone: bool,
}

/// Returns the files that this process has mapped as code: itself and its libraries.
pub(crate) fn loaded_files() -> Result<BTreeSet<LoadedFile>> {
    let maps = fs::read("/proc/self/maps").context("failed to read /proc/self/maps")?;
    Ok(maps.split(|byte| *byte == b'\n').filter_map(loaded_file).collect())
}

/// Parses a line of `/proc/<pid>/maps`.
///
/// Source: proc_pid_maps(5).
fn loaded_file(line: &[u8]) -> Option<LoadedFile> {
    let path = &line[line.iter().position(|byte| *byte == b'/')?..];
    let mut fields = line.split(|byte| *byte == b' ');
    (fields.nth(1)? == b"r-xp").then_some(())?;
    let (path, is_gone) = without_mark(OsStr::from_bytes(path));
    Some(LoadedFile { path, is_gone })
}

/// Returns a path without the kernel's mark, and whether it had the mark of a deleted file.
fn without_mark(path: &OsStr) -> (PathBuf, bool) {
    let bytes = path.as_bytes();
    match bytes.strip_suffix(DELETED) {
        // A file may really have this name.
        Some(name) if !Path::new(path).exists() => (OsString::from_vec(name.to_vec()).into(), true),
        _ => (path.into(), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_name_is_the_path_of_this_program() {
        let name = own_name().unwrap();
        assert_eq!(name.path, std::env::current_exe().unwrap());
        assert!(name.is_current);
        let own = LoadedFile { path: name.path, is_gone: false };
        assert!(loaded_files().unwrap().contains(&own));
    }

    #[test]
    fn loaded_file_reads_bytes() {
        let begin = b"7f0000000000-7f0000001000 r-xp 00000000 08:01 42       ".as_slice();
        for (name, want) in [
            (&b"/lib/\xff a.so"[..], Some((&b"/lib/\xff a.so"[..], false))),
            (b"/lib/b.so (deleted)", Some((b"/lib/b.so", true))),
            (b"[vdso]", None),
        ] {
            let want = want.map(|(path, is_gone)| LoadedFile {
                path: PathBuf::from(OsStr::from_bytes(path)),
                is_gone,
            });
            assert_eq!(loaded_file(&[begin, name].concat()), want, "{name:?}");
        }
        assert_eq!(loaded_file(b"7f00-7f01 r--p 00000000 08:01 42 /lib/c.so"), None);
    }
}
