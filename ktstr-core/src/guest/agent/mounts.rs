//! The file systems a test expects.

use std::fs;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

struct Mount {
    target: &'static str,
    kind: &'static str,
    /// The kernel option that provides it.
    option: &'static str,
    /// Whether nothing works without it.
    needed: bool,
}

const fn needed(target: &'static str, kind: &'static str, option: &'static str) -> Mount {
    Mount { target, kind, option, needed: true }
}

const fn wanted(target: &'static str, kind: &'static str, option: &'static str) -> Mount {
    Mount { target, kind, option, needed: false }
}

/// In the order in which they depend on each other.
const MOUNTS: [Mount; 14] = [
    needed("/proc", "proc", "CONFIG_PROC_FS"),
    needed("/sys", "sysfs", "CONFIG_SYSFS"),
    needed("/dev", "devtmpfs", "CONFIG_DEVTMPFS"),
    wanted("/dev/pts", "devpts", "CONFIG_UNIX98_PTYS"),
    needed("/dev/shm", "tmpfs", "CONFIG_TMPFS"),
    wanted("/dev/mqueue", "mqueue", "CONFIG_POSIX_MQUEUE"),
    wanted("/dev/hugepages", "hugetlbfs", "CONFIG_HUGETLBFS"),
    needed("/tmp", "tmpfs", "CONFIG_TMPFS"),
    needed("/run", "tmpfs", "CONFIG_TMPFS"),
    needed("/sys/fs/cgroup", "cgroup2", "CONFIG_CGROUPS"),
    wanted("/sys/kernel/security", "securityfs", "CONFIG_SECURITYFS"),
    wanted("/sys/kernel/debug", "debugfs", "CONFIG_DEBUG_FS"),
    wanted("/sys/kernel/tracing", "tracefs", "CONFIG_TRACING"),
    wanted("/sys/fs/bpf", "bpf", "CONFIG_BPF_SYSCALL"),
];

/// Mounts them all. What a kernel without it can still run most tests on is skipped with a line
/// on the console.
pub(super) fn mount_all() -> Result<()> {
    for Mount { target, kind, option, needed } in MOUNTS {
        // In sysfs the folder comes with the feature, and nothing can be made by hand.
        let made = fs::create_dir_all(target);
        let mounted = mount(kind, target, kind, MountFlags::empty(), c"");
        match mounted {
            // A kernel with CONFIG_DEVTMPFS_MOUNT has done it already.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(errno) if needed => {
                return Err(errno).with_context(|| {
                    format!("this kernel cannot mount {kind} at {target}; it needs {option}")
                });
            }
            Err(errno) => {
                let why = made.err().map_or_else(|| errno.to_string(), |error| error.to_string());
                eprintln!("ktstr-init: no {kind} at {target} ({option}): {why}");
            }
        }
    }
    Ok(())
}
