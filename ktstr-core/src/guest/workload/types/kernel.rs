//! Loops of system calls that load the kernel.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::guest::workload::WorkerCtx;
use crate::linux::sys;

pub(super) fn io_sync_write(ctx: &WorkerCtx) -> io::Result<()> {
    const BLOCK: [u8; 4096] = [0x5a; 4096];
    /// 1 MiB, over and over.
    const BLOCKS: u64 = 256;
    let file = nameless_file()?;
    for block in ctx.cycle(0..BLOCKS) {
        file.write_all_at(&BLOCK, block * BLOCK.len() as u64)?;
        file.sync_data()?;
        ctx.record_iteration(1);
    }
    Ok(())
}

/// Opens an unlinked file in the temporary directory. Not with O_TMPFILE, which not every file system
/// supports.
fn nameless_file() -> io::Result<File> {
    let name = format!("ktstr-io-{}", rustix::process::getpid());
    let path = std::env::temp_dir().join(name);
    let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    fs::remove_file(path)?;
    Ok(file)
}

pub(super) fn fork_exit(ctx: &WorkerCtx) -> io::Result<()> {
    while ctx.should_continue() {
        sys::fork_and_reap()?;
        ctx.record_iteration(1);
    }
    Ok(())
}

pub(super) fn cgroup_attach_storm(ctx: &WorkerCtx, groups: &[PathBuf; 2]) -> io::Result<()> {
    let open = |group: &PathBuf| OpenOptions::new().write(true).open(group.join("cgroup.procs"));
    let procs = [open(&groups[0])?, open(&groups[1])?];
    for mut procs in ctx.cycle(&procs) {
        // The writer itself.
        procs.write_all(b"0")?;
        ctx.compute();
        ctx.record_iteration(1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use crate::guest::workload::WorkType;
    use crate::guest::workload::testing::{Running, proc_number, sleeps};

    fn is_in_memory(dir: &Path) -> bool {
        const TMPFS_MAGIC: i64 = 0x0102_1994;
        const RAMFS_MAGIC: i64 = 0x8584_58f6;
        [TMPFS_MAGIC, RAMFS_MAGIC].contains(&rustix::fs::statfs(dir).unwrap().f_type)
    }

    #[test]
    fn io_sync_write_counts_writes_to_an_unlinked_file() {
        let running = Running::of(WorkType::IoSyncWrite, 1);
        running.wait_for_units(10);
        let pid = running.pid(0);
        if !is_in_memory(&std::env::temp_dir()) {
            assert!(sleeps(pid) > 5, "it never waited for the disk");
        }
        let (bytes, units) = (proc_number(pid, "io", "wchar"), running.report(0).work_units);
        assert!(bytes >= 10 * 4096 && bytes <= (units + 1) * 4096, "{bytes} for {units}");
        let name = std::env::temp_dir().join(format!("ktstr-io-{pid}"));
        assert!(!name.exists());
    }

    #[test]
    fn fork_exit_reaps_its_children() {
        let running = Running::of(WorkType::ForkExit, 1);
        let forks = || {
            let stat = fs::read_to_string("/proc/stat").unwrap();
            let forks = stat.lines().find_map(|line| line.strip_prefix("processes ")).unwrap();
            forks.parse::<u64>().unwrap()
        };
        let (before, units) = (forks(), running.report(0).work_units);
        running.wait_for_units(units + 50);
        assert!(forks() - before >= 49);
        let pid = running.pid(0);
        running.stop();
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    /// Two fresh cgroups, if version 2 is mounted and this process may create cgroups.
    struct Groups([PathBuf; 2]);

    impl Groups {
        fn new() -> Option<Self> {
            let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
            let root = roots.into_iter().find(|root| root.join("cgroup.controllers").exists())?;
            let name = |index| format!("ktstr-attach-{}-{index}", std::process::id());
            let groups = [0, 1].map(|index| root.join(name(index)));
            groups.iter().all(|group| fs::create_dir(group).is_ok()).then_some(Self(groups))
        }
    }

    impl Drop for Groups {
        fn drop(&mut self) {
            self.0.iter().for_each(|group| fs::remove_dir(group).unwrap());
        }
    }

    #[test]
    fn cgroup_attach_storm_moves_between_the_cgroups() {
        let Some(groups) = Groups::new() else {
            eprintln!("skipped: this process cannot create cgroups");
            return;
        };
        let running = Running::of(WorkType::CgroupAttachStorm { groups: groups.0.clone() }, 1);
        let in_group = |pid: i32, group: &Path| {
            let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap();
            procs.lines().any(|line| line == pid.to_string())
        };
        running.wait_for_units(20);
        for group in &groups.0 {
            running.wait_until(|running| in_group(running.pid(0), group));
        }
    }
}
