//! Checks the host: KVM, memory, cgroups, the cache directory, the tools for fetching.

use std::fs::{self, OpenOptions};
use std::path::Path;

use ktstr::provision::{Cache, disk_usage, megabytes};
use ktstr::runner::{self, probe};

use super::{Finding, Mark};

/// The memory for one guest of the default size with its engine, and for some at a time.
const NEEDED_MIB: u64 = 512;
const COMFORTABLE_MIB: u64 = 2048;

/// The controllers of the host's cgroups that scenarios of `#[ktstr_test(host_only)]` use.
const CONTROLLERS: [&str; 3] = ["cpu", "cpuset", "memory"];

pub(super) fn kvm() -> Finding {
    match probe::kvm() {
        Ok(facts) => {
            let module = facts.module.as_deref().unwrap_or("built into the kernel");
            Finding::new(Mark::Ok, "KVM", format!("{module}; guests run at native speed"))
        }
        Err(why) => Finding::new(Mark::Note, "KVM", format!("not used: {why}")),
    }
}

pub(super) fn memory() -> Finding {
    judge_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn judge_memory(meminfo: &str) -> Finding {
    let available = meminfo.lines().find_map(|line| {
        let kib = line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()
    });
    let Some(kib) = available else {
        return Finding::new(Mark::Note, "memory", "/proc/meminfo has no MemAvailable");
    };
    let mib = kib / 1024;
    let text = format!("{mib} MiB available; a guest has 256 MiB by default");
    match mib {
        ..NEEDED_MIB => Finding::new(Mark::Problem, "memory", text)
            .fix("ps -eo rss,pid,comm --sort=-rss | head  # stop processes you do not need"),
        NEEDED_MIB..COMFORTABLE_MIB => {
            Finding::new(Mark::Note, "memory", format!("{text}; run few tests at a time"))
                .fix("cargo test -- --test-threads=1")
        }
        _ => Finding::new(Mark::Ok, "memory", text),
    }
}

pub(super) fn cache(cache: &Cache) -> Finding {
    let root = cache.root();
    let used = megabytes(disk_usage(root));
    match cache.write("tmp/doctor", b"") {
        Ok(()) => {
            // A file that cannot be removed does no harm: the next check overwrites it.
            let _ = fs::remove_file(cache.entry("tmp/doctor"));
            Finding::new(Mark::Ok, "cache", format!("{}, {used}", root.display()))
        }
        Err(error) => Finding::new(Mark::Problem, "cache", format!("{error:#}"))
            .fix("export KTSTR_CACHE_DIR=/path/to/directory"),
    }
}

/// Shows the space that saved guests take, from which others are forked.
pub(super) fn templates(cache: &Cache) -> Finding {
    match runner::template_usage(cache) {
        Ok(usage) => {
            let (used, limit) = (megabytes(usage.bytes), megabytes(usage.limit));
            let text = format!("{} saved guests, {used} (KTSTR_CACHE_MAX: {limit})", usage.count);
            Finding::new(Mark::Ok, "forks", text)
        }
        Err(error) => {
            Finding::new(Mark::Problem, "forks", format!("{error:#}")).fix("unset KTSTR_CACHE_MAX")
        }
    }
}

pub(super) fn tools(tools: &Result<(), String>) -> Finding {
    match tools {
        Ok(()) => {
            Finding::new(Mark::Ok, "fetching", "apt-get, dpkg-deb and Debian's keys are installed")
        }
        Err(why) => {
            Finding::new(Mark::Note, "fetching", format!("cannot fetch kernels and QEMU: {why}"))
        }
    }
}

pub(super) fn cgroups() -> Finding {
    let mountinfo = match fs::read("/proc/self/mountinfo") {
        Ok(mountinfo) => mountinfo,
        Err(error) => return cgroup_note(&format!("/proc/self/mountinfo: {error}")),
    };
    // The name of any mount point may not be UTF-8.
    let mountinfo = String::from_utf8_lossy(&mountinfo);
    let Some(mount) = cgroup2_mount(&mountinfo) else {
        return cgroup_note("cgroup2 is not mounted").fix("mount -t cgroup2 none /sys/fs/cgroup");
    };
    let mount = Path::new(mount);
    let controllers = match fs::read_to_string(mount.join("cgroup.controllers")) {
        Ok(controllers) => controllers,
        Err(error) => return cgroup_note(&format!("cgroup2 at {}: {error}", mount.display())),
    };
    let missing = missing(&controllers);
    if !missing.is_empty() {
        let (mount, missing) = (mount.display(), missing.join(", "));
        return cgroup_note(&format!("cgroup2 at {mount} has no controllers {missing}"));
    }
    // Opening the file for writing changes nothing and fails where cgroups cannot be created.
    match OpenOptions::new().write(true).open(mount.join("cgroup.procs")) {
        Ok(_) => Finding::new(
            Mark::Ok,
            "cgroups",
            format!("cgroup2 at {} with {}", mount.display(), controllers.trim()),
        ),
        Err(error) => cgroup_note(&format!("cgroup2 at {}: {error}", mount.display())),
    }
}

fn cgroup_note(what: &str) -> Finding {
    Finding::new(Mark::Note, "cgroups", format!("{what}; affects `host_only` tests only"))
}

/// The first cgroup2 mount. Source: proc_pid_mountinfo(5).
fn cgroup2_mount(mountinfo: &str) -> Option<&str> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        if kind.starts_with("cgroup2 ") { mount.split(' ').nth(4) } else { None }
    })
}

fn missing(controllers: &str) -> Vec<&'static str> {
    let has = |name: &str| controllers.split_whitespace().any(|found| found == name);
    CONTROLLERS.into_iter().filter(|name| !has(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judge_memory_uses_the_available_memory() {
        for (kib, mark) in
            [(24_000_000, Mark::Ok), (1_000_000, Mark::Note), (300_000, Mark::Problem)]
        {
            let meminfo = format!("MemTotal: 99999999 kB\nMemAvailable:   {kib} kB\n");
            assert_eq!(judge_memory(&meminfo).mark, mark, "{kib}");
        }
        assert_eq!(judge_memory("").mark, Mark::Note);
        assert!(judge_memory("MemAvailable: 1 kB\n").command.is_some());
    }

    #[test]
    fn cgroup2_mount_is_found_among_those_of_version_1() {
        let mountinfo = "25 1 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                         31 25 0:26 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(mountinfo), Some("/sys/fs/cgroup/unified"));
        assert_eq!(cgroup2_mount("25 1 0:22 / / rw - ext4 /dev/vda rw\n"), None);
    }

    #[test]
    fn missing_lists_controllers() {
        assert_eq!(missing("cpuset cpu io memory hugetlb pids\n"), [""; 0]);
        assert_eq!(missing("cpuset io"), ["cpu", "memory"]);
    }

    #[test]
    fn cache_that_cannot_be_written_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let finding = cache(&Cache::at(file.join("cache")));
        assert_eq!(finding.mark, Mark::Problem);
        assert_eq!(finding.command.as_deref(), Some("export KTSTR_CACHE_DIR=/path/to/directory"));
        assert_eq!(cache(&Cache::at(dir.path().join("cache"))).mark, Mark::Ok);
    }
}
