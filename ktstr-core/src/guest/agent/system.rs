//! What programs expect of an init process in addition to file systems: names, links, files, limits,
//! loopback. Files of the initramfs are not overwritten.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{PermissionsExt, symlink};

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::linux::sys;

/// The guest's host name.
const HOSTNAME: &str = "ktstr";

/// Variables that a login sets. All processes that PID 1 starts have them.
pub(super) const VARIABLES: [(&str, &str); 3] =
    [("HOME", "/root"), ("USER", "root"), ("LOGNAME", "root")];

/// The limits of descriptors. The hard limit is that of distributions. Their soft limit of 1,024, for
/// programs that call `select`, is too low for a load of a few hundred tasks. With this one, a program that
/// closes all possible descriptors still takes less than a second under emulation.
const DESCRIPTORS: Rlimit = Rlimit { current: Some(65_536), maximum: Some(524_288) };

/// Directories with their modes, also of those that exist.
const DIRECTORIES: [(&str, u32); 5] = [
    ("/root", 0o700),
    ("/etc", 0o755),
    ("/var/tmp", 0o1777),
    ("/run", 0o755),
    ("/run/lock", 0o1777),
];

/// Symbolic links with their targets.
///
/// Source: systemd 257, src/shared/dev-setup.c; Filesystem Hierarchy Standard 3.0, 5.13.
const LINKS: [(&str, &str); 7] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/etc/mtab", "../proc/self/mounts"),
    ("/var/run", "/run"),
    ("/var/lock", "/run/lock"),
];

/// Files with their contents. The users and groups are root, the kernel's overflow user and group, and
/// the group of terminals.
const FILES: [(&str, &str); 5] = [
    ("/etc/hostname", "ktstr\n"),
    ("/etc/hosts", "127.0.0.1\tlocalhost ktstr\n::1\tlocalhost ip6-localhost ip6-loopback\n"),
    ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files\n"),
    (
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    ("/etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
];

/// Sets up all of them.
///
/// # Errors
///
/// If any of them fails, except for loopback: a kernel without a network stack gets a line on the console.
pub(super) fn set_up() -> Result<()> {
    for (directory, mode) in DIRECTORIES {
        create_directory(directory, mode)
            .with_context(|| format!("failed to create the directory {directory}"))?;
    }
    for (link, target) in LINKS {
        unless_present(symlink(target, link))
            .with_context(|| format!("failed to create the link {link}"))?;
    }
    for (file, content) in FILES {
        create_file(file, content).with_context(|| format!("failed to write {file}"))?;
    }
    rustix::system::sethostname(HOSTNAME.as_bytes()).context("failed to set the host name")?;
    setrlimit(Resource::Nofile, DESCRIPTORS).context("failed to set the limit of descriptors")?;
    if let Err(error) = sys::bring_up_loopback() {
        eprintln!("ktstr-init: failed to bring up interface lo (CONFIG_INET): {error}");
    }
    Ok(())
}

fn create_directory(directory: &str, mode: u32) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    // Not at creation, where the umask applies.
    fs::set_permissions(directory, Permissions::from_mode(mode))
}

fn create_file(file: &str, content: &str) -> io::Result<()> {
    let created = OpenOptions::new().write(true).create_new(true).open(file);
    unless_present(created.and_then(|mut file| file.write_all(content.as_bytes())))
}

fn unless_present(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}
