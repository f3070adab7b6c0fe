//! Finds the cgroup of this process and where it is mounted.
//!
//! Source: proc_pid_mountinfo(5), cgroups(7), cgroup_namespaces(7).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Returns the directory of the cgroup that this process is in.
///
/// # Errors
///
/// If cgroup2 is not mounted, or only a part of it that does not contain this process.
pub(super) fn own_cgroup() -> Result<PathBuf, String> {
    let read = |path| fs::read(path).map_err(|error| format!("{path}: {error}"));
    let (mounts, cgroups) = (read("/proc/self/mountinfo")?, read("/proc/self/cgroup")?);
    locate(&mounts, &cgroups)
}

/// Returns the mount point of the hierarchy that contains `cgroup`.
///
/// # Errors
///
/// If the mounts cannot be read.
pub(super) fn mount_of(cgroup: &Path) -> io::Result<Option<PathBuf>> {
    let mounts = fs::read("/proc/self/mountinfo")?;
    let points = cgroup2_mounts(&mounts).map(|(_, point)| point);
    let above = points.filter(|point| cgroup.starts_with(point));
    Ok(above.max_by_key(|point| point.components().count()))
}

/// Finds the directory of the cgroup in the contents of the two files.
///
/// Takes bytes, because cgroups and mount points may have any name.
fn locate(mountinfo: &[u8], cgroup: &[u8]) -> Result<PathBuf, String> {
    let own = lines(cgroup).find_map(|line| line.strip_prefix(b"0::"));
    let own = own.ok_or("/proc/self/cgroup lists no cgroup v2")?;
    let own = own.strip_suffix(b" (deleted)").unwrap_or(own);
    let own = Path::new(OsStr::from_bytes(own));
    let mut seen = Vec::new();
    // Backwards: a later mount hides an earlier one on the same directory.
    for (root, point) in cgroup2_mounts(mountinfo).collect::<Vec<_>>().into_iter().rev() {
        match own.strip_prefix(&root) {
            // Joining an empty path would append a slash.
            Ok(below) if below.as_os_str().is_empty() => return Ok(point),
            // A cgroup outside the cgroup namespace begins with `/..` and has no directory.
            Ok(below) if !own.starts_with("/..") => return Ok(point.join(below)),
            _ => seen.push(format!("{} (from {})", point.display(), root.display())),
        }
    }
    if seen.is_empty() {
        return Err("/proc/self/mountinfo lists no cgroup2".to_owned());
    }
    Err(format!(
        "the cgroup of this process, {}, is not in a mounted part of the hierarchy: {}",
        own.display(),
        seen.join(", ")
    ))
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|byte| *byte == b'\n')
}

/// Returns the root within the hierarchy and the mount point of each cgroup2 mount.
fn cgroup2_mounts(mountinfo: &[u8]) -> impl Iterator<Item = (PathBuf, PathBuf)> {
    lines(mountinfo).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let (root, point) = (fields.by_ref().nth(3)?, fields.next()?);
        // A dash ends the optional fields.
        fields.find(|field| *field == b"-")?;
        let is_cgroup2 = fields.next() == Some(b"cgroup2");
        is_cgroup2.then(|| (unescape(root).into(), unescape(point).into()))
    })
}

/// Decodes the octal escapes of white space and backslashes.
fn unescape(path: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        let known =
            [(&br"\040"[..], b' '), (br"\011", b'\t'), (br"\012", b'\n'), (br"\134", b'\\')];
        let escape =
            known.iter().find_map(|(octal, byte)| Some((rest.strip_prefix(*octal)?, *byte)));
        let (next, byte) = escape.unwrap_or((after, byte));
        plain.push(byte);
        rest = next;
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "\
        32 24 0:29 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n\
        33 32 0:30 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n\
        34 32 0:31 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory\n";
    const OUTSIDE: &str = "30 23 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    const PART: &str = "30 23 0:26 /a\\040b /mnt/c\\134d rw - cgroup2 none rw\n";

    #[test]
    fn locate_finds_the_cgroup_on_every_kind_of_host() {
        for (mounts, cgroup, want) in [
            (UNIFIED, "0::/\n", Ok("/sys/fs/cgroup")),
            (UNIFIED, "0::/user.slice/a\n", Ok("/sys/fs/cgroup/user.slice/a")),
            (HYBRID, "9:memory:/x\n0::/y\n", Ok("/sys/fs/cgroup/unified/y")),
            (PART, "0::/a b/c\n", Ok("/mnt/c\\d/c")),
            (
                PART,
                "0::/other\n",
                Err("not in a mounted part of the hierarchy: /mnt/c\\d (from /a b)"),
            ),
            (OUTSIDE, "0::/\n", Err("hierarchy: /sys/fs/cgroup (from /../..)")),
            (UNIFIED, "0::/../x\n", Err("/../x, is not in a mounted part")),
            (UNIFIED, "1:memory:/\n", Err("lists no cgroup v2")),
            ("", "0::/\n", Err("lists no cgroup2")),
        ] {
            match (locate(mounts.as_bytes(), cgroup.as_bytes()), want) {
                (Ok(own), Ok(want)) => assert_eq!(own, Path::new(want)),
                (Err(error), Err(want)) => assert!(error.contains(want), "{error}"),
                (got, want) => panic!("{mounts}{cgroup}: {got:?}, not {want:?}"),
            }
        }
    }

    #[test]
    fn locate_accepts_names_that_are_not_utf8() {
        let mounts = b"30 23 0:26 / /mnt/\xff rw shared:9 - cgroup2 none rw\n\
            31 23 0:27 / /mnt/\xfe\\040 rw - tmpfs none rw\n";
        let own = locate(mounts, b"1:name=\xff:/\n0::/a\xc3/b (deleted)\n").unwrap();
        assert_eq!(own.as_os_str().as_bytes(), b"/mnt/\xff/a\xc3/b");
    }

    #[test]
    fn unescape_decodes_each_escape_once() {
        for (escaped, plain) in [
            (&br"a\040b\011\012\134"[..], &b"a b\t\n\\"[..]),
            (br"\134040", br"\040"),
            (br"\04", br"\04"),
            (b"\xff\\040\xfe", b"\xff \xfe"),
        ] {
            assert_eq!(unescape(escaped).as_bytes(), plain);
        }
    }

    #[test]
    fn locate_prefers_the_last_mount_on_a_directory() {
        let mounts = format!("{OUTSIDE}{UNIFIED}");
        assert_eq!(locate(mounts.as_bytes(), b"0::/\n").unwrap(), Path::new("/sys/fs/cgroup"));
    }
}
