//! Threaded cgroups, which list no processes, and cgroups with names that are not UTF-8.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use ktstr::cgroup::{CgroupManager, Error, MOUNT};
use ktstr::prelude::*;

use crate::children::{Child, pause};

/// Creates a threaded cgroup, which makes its parent a threaded domain.
fn create_threaded(cgroups: &dyn CgroupOps, name: &str) -> Result<()> {
    cgroups.create_cgroup(name)?;
    fs::write(cgroups.parent_path().join(name).join("cgroup.type"), "threaded")?;
    Ok(())
}

/// Forks a process with its first thread in `first` and its second one in `second`.
fn fork_with_threads(cgroups: &dyn CgroupOps, first: &str, second: &str) -> Result<Child> {
    let child = Child::fork_in(cgroups, first, || {
        std::thread::spawn(pause);
        pause()
    })?;
    let tasks = || fs::read_dir(format!("/proc/{}/task", child.pid()));
    crate::children::eventually("two threads", || Ok(tasks()?.count() == 2))?;
    for task in tasks()? {
        let tid = task?.file_name().into_string().unwrap_or_default();
        if tid != child.pid().to_string() {
            fs::write(cgroups.parent_path().join(second).join("cgroup.threads"), tid)?;
        }
    }
    Ok(child)
}

#[ktstr_test(cores = 1, duration_s = 20)]
fn threaded_cgroups_are_read_drained_killed_and_removed(ctx: &Ctx) -> Result<AssertResult> {
    let cgroups = ctx.cgroups;
    for name in ["a/t", "a/t/u"] {
        create_threaded(cgroups, name)?;
    }
    let single = Child::fork_in(cgroups, "a", pause)?;
    cgroups.move_task("a/t", single.pid())?;
    let double = fork_with_threads(cgroups, "a", "a/t/u")?;
    ensure!(cgroups.read_procs("a/t")? == [single.pid()], "{:?}", cgroups.read_procs("a/t")?);
    ensure!(cgroups.read_procs("a/t/u")? == [double.pid()]);
    ensure!(cgroups.read_procs("a")?.len() == 2, "{:?}", cgroups.read_procs("a")?);
    cgroups.set_freeze("a/t", true)?;
    cgroups.set_freeze("a/t", false)?;

    // Draining leaves the processes in their threaded domain.
    cgroups.drain_tasks("a/t")?;
    ensure!(cgroups.read_procs("a/t")?.is_empty() && cgroups.read_procs("a")?.len() == 2);
    cgroups.move_task("a/t", single.pid())?;

    // The whole process is killed, although only one of its threads is there.
    cgroups.kill_cgroup("a/t/u")?;
    ensure!(double.wait()?.terminating_signal() == Some(9));
    ensure!(cgroups.read_procs("a")? == [single.pid()]);

    let error = cgroups.remove_cgroup("a/t").unwrap_err();
    ensure!(matches!(error, Error::HasChildren { .. }), "{error}");
    cgroups.remove_cgroup("a/t/u")?;
    cgroups.remove_cgroup("a/t").context("with a thread in it")?;
    ensure!(cgroups.read_procs("a")? == [single.pid()], "its process still runs in the domain");
    cgroups.remove_cgroup("a")?;
    ensure!(fs::read_to_string(format!("/proc/{}/cgroup", single.pid()))? == "0::/\n");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, duration_s = 20)]
fn guard_and_cleanup_all_remove_threaded_cgroups(ctx: &Ctx) -> Result<AssertResult> {
    let cgroups = ctx.cgroups;
    let children;
    {
        let mut guard = CgroupGroup::new(cgroups);
        guard.add_cgroup_no_cpuset("a/t")?;
        create_threaded(cgroups, "a/t")?;
        children =
            [fork_with_threads(cgroups, "a", "a/t")?, fork_with_threads(cgroups, "a", "a/t")?];
    }
    ensure!(!cgroups.parent_path().join("a").exists(), "the guard did not remove it");
    for name in ["b/t", "b/t/u", "b/v"] {
        create_threaded(cgroups, name)?;
    }
    cgroups.move_task("b", children[0].pid())?;
    cgroups.move_task("b/t/u", children[0].pid())?;
    cgroups.move_task("b/v", children[1].pid())?;
    cgroups.cleanup_all()?;
    ensure!(!cgroups.parent_path().exists() && cgroups.outstanding_removes() == 0);
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, duration_s = 20)]
fn move_task_error_explains_threaded_domains(ctx: &Ctx) -> Result<AssertResult> {
    let cgroups = ctx.cgroups;
    create_threaded(cgroups, "a/t")?;
    cgroups.create_cgroup("a/n")?;
    let child = Child::fork_in(cgroups, "a", pause)?;
    let error = cgroups.move_task("a/n", child.pid()).unwrap_err().to_string();
    println!("{error}");
    ensure!(error.contains("EOPNOTSUPP") && error.contains("ktstr/a is a threaded domain"));
    ensure!(!error.contains("trap"), "no controller was enabled: {error}");
    // A thread of the caller counts as the caller.
    let own = rustix::process::getpid().as_raw_nonzero().get();
    cgroups.move_task("a/t", own)?;
    for refused in [cgroups.kill_cgroup("a/t"), cgroups.kill_cgroup("a")] {
        let error = refused.unwrap_err().to_string();
        ensure!(error.contains("the caller is in it"), "{error}");
    }
    cgroups.cleanup_all()?;
    ensure!(fs::read_to_string("/proc/self/cgroup")? == "0::/\n");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, duration_s = 20)]
fn kill_cgroup_and_cleanup_all_take_names_that_are_not_utf8(ctx: &Ctx) -> Result<AssertResult> {
    let cgroups = ctx.cgroups;
    cgroups.create_cgroup("a")?;
    let below = cgroups.parent_path().join("a").join(OsStr::from_bytes(b"t\xc3\xb6\xc3"));
    fs::create_dir(&below)?;
    let inner = below.join(OsStr::from_bytes(b"\xff"));
    fs::create_dir(&inner)?;
    let (killed, drained) = (Child::fork(pause)?, Child::fork(pause)?);
    fs::write(inner.join("cgroup.procs"), killed.pid().to_string())?;
    let error = cgroups.remove_cgroup("a").unwrap_err().to_string();
    ensure!(error.contains("t\u{f6}\u{fffd}"), "{error}");
    cgroups.kill_cgroup("a")?;
    ensure!(killed.wait()?.terminating_signal() == Some(9));
    fs::write(inner.join("cgroup.procs"), drained.pid().to_string())?;
    cgroups.cleanup_all()?;
    ensure!(!cgroups.parent_path().exists());
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, duration_s = 20)]
fn cleanup_all_refuses_the_root_of_the_hierarchy(ctx: &Ctx) -> Result<AssertResult> {
    ctx.cgroups.create_cgroup("a")?;
    for root in [MOUNT, "/sys/fs/cgroup/", "/sys/fs/cgroup/."] {
        let error = CgroupManager::new(root).cleanup_all().unwrap_err();
        ensure!(matches!(error, Error::Root { .. }), "{error}");
    }
    ensure!(ctx.cgroups.parent_path().join("a").exists());
    Ok(AssertResult::pass())
}
