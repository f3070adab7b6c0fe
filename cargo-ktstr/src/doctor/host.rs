//! What the host is: KVM, memory, cgroups, the cache's folder, the tools that fetch.

use std::fs::{self, OpenOptions};
use std::path::Path;

use ktstr::provision::{Cache, disk_usage, megabytes};
use ktstr::runner::probe;

use super::{Finding, Mark};

/// The least for a guest of the default size and its engine, and what lets some run side by side.
const NEEDED_MIB: u64 = 512;
const COMFORTABLE_MIB: u64 = 2048;

/// What `#[ktstr_test(host_only)]` scenarios use of the host's cgroups.
const CONTROLLERS: [&str; 3] = ["cpu", "cpuset", "memory"];

pub(super) fn kvm() -> Finding {
    match probe::kvm() {
        Ok(facts) => {
            let module = facts.module.as_deref().unwrap_or("built into the kernel");
            Finding::new(Mark::Ok, "KVM", format!("{module}, at the speed of hardware"))
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
        return Finding::new(Mark::Note, "memory", "/proc/meminfo does not tell what is available");
    };
    let mib = kib / 1024;
    let text = format!("{mib} MiB available, a guest has 256 MiB unless its test asks for more");
    match mib {
        ..NEEDED_MIB => Finding::new(Mark::Problem, "memory", text)
            .mend("ps -eo rss,pid,comm --sort=-rss | head  # and end what you can spare"),
        NEEDED_MIB..COMFORTABLE_MIB => {
            Finding::new(Mark::Note, "memory", format!("{text}; run few tests at a time"))
                .mend("cargo test -- --test-threads=1")
        }
        _ => Finding::new(Mark::Ok, "memory", text),
    }
}

pub(super) fn cache(cache: &Cache) -> Finding {
    let root = cache.root();
    let used = megabytes(disk_usage(root));
    match cache.write("tmp/doctor", b"") {
        Ok(()) => {
            // The next doctor writes it again if it cannot be removed.
            let _ = fs::remove_file(cache.entry("tmp/doctor"));
            Finding::new(Mark::Ok, "cache", format!("{}, {used}", root.display()))
        }
        Err(error) => Finding::new(Mark::Problem, "cache", format!("{error:#}"))
            .mend("export KTSTR_CACHE_DIR=/a/folder/of/yours"),
    }
}

pub(super) fn tools(tools: &Result<(), String>) -> Finding {
    match tools {
        Ok(()) => {
            Finding::new(Mark::Ok, "fetching", "apt-get, dpkg-deb and Debian's keys are here")
        }
        Err(why) => {
            Finding::new(Mark::Note, "fetching", format!("no kernel or QEMU can be fetched: {why}"))
        }
    }
}

pub(super) fn cgroups() -> Finding {
    let mountinfo = match fs::read("/proc/self/mountinfo") {
        Ok(mountinfo) => mountinfo,
        Err(error) => return cgroup_note(&format!("/proc/self/mountinfo: {error}")),
    };
    // Any mount point may have a name that is not UTF-8.
    let mountinfo = String::from_utf8_lossy(&mountinfo);
    let Some(mount) = cgroup2_mount(&mountinfo) else {
        return cgroup_note("no cgroup2 is mounted").mend("mount -t cgroup2 none /sys/fs/cgroup");
    };
    let mount = Path::new(mount);
    let controllers = match fs::read_to_string(mount.join("cgroup.controllers")) {
        Ok(controllers) => controllers,
        Err(error) => return cgroup_note(&format!("cgroup2 at {}: {error}", mount.display())),
    };
    let missing = missing(&controllers);
    if !missing.is_empty() {
        let where_ = mount.display();
        return cgroup_note(&format!("cgroup2 at {where_} lacks {}", missing.join(", ")));
    }
    // Opening for writing changes nothing and tells whether groups can be made and filled.
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
    Finding::new(Mark::Note, "cgroups", format!("{what}; matters to `host_only` tests alone"))
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
    fn memory_is_judged_by_what_is_available() {
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
    fn the_cgroup2_mount_is_found_beside_version_1() {
        let mountinfo = "25 1 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                         31 25 0:26 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(mountinfo), Some("/sys/fs/cgroup/unified"));
        assert_eq!(cgroup2_mount("25 1 0:22 / / rw - ext4 /dev/vda rw\n"), None);
    }

    #[test]
    fn missing_controllers_are_named() {
        assert_eq!(missing("cpuset cpu io memory hugetlb pids\n"), [""; 0]);
        assert_eq!(missing("cpuset io"), ["cpu", "memory"]);
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_a_problem() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let finding = cache(&Cache::at(file.join("cache")));
        assert_eq!(finding.mark, Mark::Problem);
        assert_eq!(finding.command.as_deref(), Some("export KTSTR_CACHE_DIR=/a/folder/of/yours"));
        assert_eq!(cache(&Cache::at(dir.path().join("cache"))).mark, Mark::Ok);
    }
}
