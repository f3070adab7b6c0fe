//! The programs of this host that a shell in the guest can use.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::provision::find_program;
use crate::runner::initramfs::{GuestFiles, is_elf};

/// The tools for the guest. Those that the host lacks are left out.
#[rustfmt::skip] // Otherwise a line each.
const TOOLS: &[&str] = &[
    "awk", "cat", "chmod", "chrt", "cp", "cut", "date", "df", "dmesg", "echo", "env", "find",
    "free", "grep", "head", "hostname", "id", "kill", "less", "ln", "ls", "lscpu", "lsmod",
    "lspci", "mkdir", "mkfifo", "mount", "mv", "nice", "nproc", "numactl", "od", "pgrep", "pidof",
    "printf", "ps", "pwd", "readlink", "renice", "rm", "rmdir", "sed", "seq", "setsid", "sha256sum",
    "sleep", "sort", "stat", "strace", "stty", "sync", "sysctl", "tail", "taskset", "tee", "test",
    "timeout", "top", "touch", "tr", "true", "umount", "uname", "uniq", "uptime", "vmstat", "wc",
    "which", "xargs", "yes",
];

/// Programs and symbolic links for the guest's `/bin`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::runner) struct Userland {
    /// Path on the host, path in the guest.
    pub(super) programs: Vec<(PathBuf, String)>,
    /// Name, target.
    pub(super) links: Vec<(String, String)>,
}

impl Userland {
    /// Finds the host's busybox with all its applets, or else its `sh`, and common tools.
    pub(in crate::runner) fn of_host() -> Result<Self> {
        let busybox = find_program("busybox").and_then(|path| Some((applets(&path)?, path)));
        let userland = Self::gather(busybox, find_program);
        ensure!(
            userland.has("sh"),
            "no shell for the guest: neither `busybox` nor `sh` is in PATH; run `apt-get install \
             busybox-static`"
        );
        Ok(userland)
    }

    fn gather(
        busybox: Option<(Vec<String>, PathBuf)>,
        find: impl Fn(&str) -> Option<PathBuf>,
    ) -> Self {
        let mut userland = Self::default();
        if let Some((applets, path)) = busybox {
            userland.programs.push((path, "/bin/busybox".to_owned()));
            let link = |applet: String| (format!("/bin/{applet}"), "busybox".to_owned());
            userland.links = applets.into_iter().map(link).collect();
        }
        for tool in
            ["sh"].iter().chain(TOOLS).filter(|tool| !userland.has(tool)).collect::<Vec<_>>()
        {
            if let Some(path) = find(tool) {
                userland.add(tool, &path);
            }
        }
        userland
    }

    /// Adds a tool under the name of its file, and a link if that is the file of several tools, as in uutils.
    fn add(&mut self, tool: &str, path: &Path) {
        let Ok(file) = fs::canonicalize(path) else { return };
        // A script would also need its interpreter and the files of that.
        if !is_elf(&file) {
            return;
        }
        let Some(name) = file.file_name().and_then(|name| name.to_str()).map(str::to_owned) else {
            return;
        };
        if !self.has(&name) {
            self.programs.push((file, format!("/bin/{name}")));
        }
        if name != tool {
            self.links.push((format!("/bin/{tool}"), name));
        }
    }

    fn has(&self, tool: &str) -> bool {
        let is = |name: &String| name.strip_prefix("/bin/") == Some(tool);
        self.programs.iter().any(|(_, name)| is(name))
            || self.links.iter().any(|(name, _)| is(name))
    }
}

impl From<Userland> for GuestFiles {
    fn from(userland: Userland) -> Self {
        Self { programs: userland.programs, links: userland.links, ..Self::default() }
    }
}

/// Returns the applets of this busybox; `None` if it does not run on this host.
fn applets(busybox: &Path) -> Option<Vec<String>> {
    let output = Command::new(busybox).arg("--list").output().ok()?;
    let list = String::from_utf8(output.stdout).context("not UTF-8").ok()?;
    let applets: Vec<_> =
        list.lines().filter(|name| *name != "busybox").map(str::to_owned).collect();
    (output.status.success() && applets.iter().any(|name| name == "sh")).then_some(applets)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn links(userland: &Userland) -> Vec<(&str, &str)> {
        userland.links.iter().map(|(name, target)| (name.as_str(), target.as_str())).collect()
    }

    #[test]
    fn gather_takes_busybox_before_tools() {
        let dir = tempfile::tempdir().unwrap();
        for tool in ["ls", "lscpu"] {
            fs::write(dir.path().join(tool), b"\x7fELF...").unwrap();
        }
        let busybox = Some((vec!["sh".to_owned(), "ls".to_owned()], PathBuf::from("/b/busybox")));
        let userland = Userland::gather(busybox, |tool| Some(dir.path().join(tool)));
        let names: Vec<_> = userland.programs.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["/bin/busybox", "/bin/lscpu"]);
        assert_eq!(links(&userland), [("/bin/sh", "busybox"), ("/bin/ls", "busybox")]);
    }

    #[test]
    fn gather_follows_links_and_leaves_out_scripts() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("dash"), b"\x7fELF").unwrap();
        fs::write(at("coreutils"), b"\x7fELF").unwrap();
        fs::write(at("which"), b"#!/bin/sh\n").unwrap();
        for (name, target) in [("sh", "dash"), ("ls", "coreutils"), ("cat", "coreutils")] {
            symlink(target, at(name)).unwrap();
        }
        let userland = Userland::gather(None, |tool| Some(at(tool)).filter(|path| path.exists()));
        let names: Vec<_> = userland.programs.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["/bin/dash", "/bin/coreutils"]);
        let expected = [("/bin/sh", "dash"), ("/bin/cat", "coreutils"), ("/bin/ls", "coreutils")];
        assert_eq!(links(&userland), expected);
        assert!(!userland.has("which"));
    }
}
