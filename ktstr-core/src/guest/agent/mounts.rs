//! The file systems that a test expects.

use std::fs;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

struct Mount {
    target: &'static str,
    kind: &'static str,
    /// The kernel option that provides it.
    option: &'static str,
    /// Whether PID 1 fails without it.
    needed: bool,
}

const fn needed(target: &'static str, kind: &'static str, option: &'static str) -> Mount {
    Mount { target, kind, option, needed: true }
}

const fn wanted(target: &'static str, kind: &'static str, option: &'static str) -> Mount {
    Mount { target, kind, option, needed: false }
}

/// The mounts, each after those on which it depends.
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

/// Mounts all of them. One that most tests do not need is skipped, with a line on the console, if the
/// kernel lacks it.
pub(super) fn mount_all() -> Result<()> {
    for Mount { target, kind, option, needed } in MOUNTS {
        // In sysfs, the directory exists if the kernel has the feature, and cannot be created.
        let made = fs::create_dir_all(target);
        let mounted = mount(kind, target, kind, MountFlags::empty(), c"");
        match mounted {
            // A kernel with CONFIG_DEVTMPFS_MOUNT has mounted it already.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(errno) if needed => {
                return Err(errno).with_context(|| {
                    format!("failed to mount {kind} at {target}; this kernel needs {option}")
                });
            }
            Err(errno) => {
                let why = made.err().map_or_else(|| errno.to_string(), |error| error.to_string());
                eprintln!("ktstr-init: failed to mount {kind} at {target} ({option}): {why}");
            }
        }
    }
    Ok(())
}
