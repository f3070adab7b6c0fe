//! Where a job's cgroup can be.
//!
//! Source: proc_pid_mountinfo(5), cgroups(7), cgroup_namespaces(7).

use std::fs;
use std::path::{Path, PathBuf};

/// The group this process is in, as a folder.
///
/// # Errors
///
/// Why there is none: no cgroup2 is mounted, or not the part in which this process is.
pub(super) fn own_group() -> Result<PathBuf, String> {
    let read = |path| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let (mounts, groups) = (read("/proc/self/mountinfo")?, read("/proc/self/cgroup")?);
    locate(&mounts, &groups)
}

/// The place where the hierarchy that `group` is in is mounted.
pub(super) fn mount_of(group: &Path) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let points = cgroup2_mounts(&mounts).map(|(_, point)| point);
    points.filter(|point| group.starts_with(point)).max_by_key(|point| point.components().count())
}

/// The folder of the group, from the two files.
fn locate(mountinfo: &str, cgroup: &str) -> Result<PathBuf, String> {
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"));
    let own = own.ok_or("this kernel has no cgroup v2, says /proc/self/cgroup")?;
    // A path that begins with /.. is outside of the cgroup namespace.
    let own = Path::new(own.strip_suffix(" (deleted)").unwrap_or(own));
    let mut seen = Vec::new();
    // The last one mounted on a folder is the one that is seen there.
    for (root, point) in cgroup2_mounts(mountinfo).collect::<Vec<_>>().into_iter().rev() {
        match own.strip_prefix(&root) {
            // Joined with nothing, a path would end with a slash.
            Ok(below) if below.as_os_str().is_empty() => return Ok(point),
            Ok(below) if !own.starts_with("/..") => return Ok(point.join(below)),
            _ => seen.push(format!("{} (from {})", point.display(), root.display())),
        }
    }
    if seen.is_empty() {
        return Err("no cgroup2 is mounted, says /proc/self/mountinfo".to_owned());
    }
    Err(format!(
        "this process is in group {}, which is in no mount: {}",
        own.display(),
        seen.join(", ")
    ))
}

/// Root within the hierarchy and mount point of each cgroup2 that is mounted.
fn cgroup2_mounts(mountinfo: &str) -> impl Iterator<Item = (PathBuf, PathBuf)> {
    mountinfo.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let is_cgroup2 = file_system.split(' ').next() == Some("cgroup2");
        is_cgroup2.then(|| (unescape(root).into(), unescape(point).into()))
    })
}

/// Blanks and backslashes are written in octal.
fn unescape(path: &str) -> String {
    [(r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", r"\")]
        .into_iter()
        .fold(path.to_owned(), |path, (octal, character)| path.replace(octal, character))
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
    fn the_own_group_is_found_on_every_kind_of_host() {
        for (mounts, cgroup, want) in [
            (UNIFIED, "0::/\n", Ok("/sys/fs/cgroup")),
            (UNIFIED, "0::/user.slice/a\n", Ok("/sys/fs/cgroup/user.slice/a")),
            (HYBRID, "9:memory:/x\n0::/y\n", Ok("/sys/fs/cgroup/unified/y")),
            (PART, "0::/a b/c\n", Ok("/mnt/c\\d/c")),
            (PART, "0::/other\n", Err("in no mount: /mnt/c\\d (from /a b)")),
            (OUTSIDE, "0::/\n", Err("in no mount: /sys/fs/cgroup (from /../..)")),
            (UNIFIED, "0::/../x\n", Err("in group /../x, which is in no mount")),
            (UNIFIED, "1:memory:/\n", Err("no cgroup v2")),
            ("", "0::/\n", Err("no cgroup2 is mounted")),
        ] {
            match (locate(mounts, cgroup), want) {
                (Ok(own), Ok(want)) => assert_eq!(own, Path::new(want)),
                (Err(error), Err(want)) => assert!(error.contains(want), "{error}"),
                (got, want) => panic!("{mounts}{cgroup}: {got:?}, not {want:?}"),
            }
        }
    }

    #[test]
    fn a_mount_over_another_is_the_one_seen() {
        let mounts = format!("{OUTSIDE}{UNIFIED}");
        assert_eq!(locate(&mounts, "0::/\n").unwrap(), Path::new("/sys/fs/cgroup"));
    }
}
