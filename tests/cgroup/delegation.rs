//! A subtree owned by an ordinary user, with the caller in it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ktstr::cgroup::{CgroupManager, Error, MOUNT};
use ktstr::prelude::*;

use crate::children::{Child, pause};
use crate::modes::{self, DELEGATED as ROOT};

fn controllers() -> BTreeSet<Controller> {
    [Controller::Cpu, Controller::Memory, Controller::Pids].into()
}

fn delegated() -> Result<CgroupManager, Error> {
    CgroupManager::new(format!("{ROOT}/ktstr")).with_walk_root(ROOT)
}

fn as_delegatee(body: impl FnOnce() -> Result<()>) -> Result<AssertResult> {
    modes::as_delegatee(body)?;
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, duration_s = 20)]
fn delegatee_can_use_every_operation(_: &Ctx) -> Result<AssertResult> {
    as_delegatee(|| {
        let cgroups = delegated()?;
        ensure!(fs::read_to_string("/proc/self/cgroup")? == "0::/delegated\n");
        cgroups.setup(&controllers())?;
        ensure!(fs::read_to_string("/proc/self/cgroup")? == "0::/delegated/.ktstr-refuge\n");
        cgroups.create_cgroup("a/leaf")?;
        cgroups.set_memory_max("a/leaf", Some(64 << 20))?;
        cgroups.set_pids_max("a/leaf", Some(5))?;
        let child = Child::fork_in(&cgroups, "a/leaf", pause)?;
        cgroups.create_cgroup("b")?;
        cgroups.move_task("b", child.pid())?;
        ensure!(cgroups.read_procs("b")? == [child.pid()]);
        cgroups.set_freeze("b", true)?;
        cgroups.set_freeze("b", false)?;
        cgroups.drain_tasks("b")?;
        ensure!(cgroups.read_procs("b")?.is_empty());
        cgroups.move_task("b", child.pid())?;
        cgroups.remove_cgroup("b").context("with a process in it")?;
        let where_to = fs::read_to_string(format!("/proc/{}/cgroup", child.pid()))?;
        ensure!(where_to == "0::/delegated/.ktstr-refuge\n", "{where_to}");
        cgroups.move_task("a/leaf", child.pid())?;
        cgroups.kill_cgroup("a/leaf")?;
        cgroups.remove_cgroup("a/leaf")?;
        cgroups.cleanup_all()?;
        ensure!(!cgroups.parent_path().exists() && Path::new(ROOT).exists());
        Ok(())
    })
}

#[ktstr_test(cores = 1, duration_s = 20)]
fn setup_error_explains_delegation(_: &Ctx) -> Result<AssertResult> {
    as_delegatee(|| {
        let error = CgroupManager::new(format!("{MOUNT}/ktstr")).setup(&controllers());
        let error = error.unwrap_err().to_string();
        ensure!(error.contains("as uid 1000: run as root, or run in a delegated"), "{error}");
        CgroupManager::new(format!("{MOUNT}/ktstr")).setup(&BTreeSet::new())?;
        let error = delegated()?.setup(&[Controller::Io, Controller::Cpu].into());
        let error = error.unwrap_err().to_string();
        ensure!(error.contains("`io` are not available in /sys/fs/cgroup/delegated/"), "{error}");
        ensure!(error.contains("which lists `cpu memory pids`"), "{error}");
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let foreign = CgroupManager::new(MOUNT);
        let error = foreign.create_cgroup("mine").unwrap_err().to_string();
        ensure!(error.contains("EACCES") && error.contains("must own this cgroup"), "{error}");
        let error = CgroupManager::new(MOUNT).move_task("", own).unwrap_err().to_string();
        ensure!(error.contains("is not a cgroup name"), "{error}");
        Ok(())
    })
}

/// The kernel accepts `+pids` in a cgroup that contains its caller, which makes it a threaded domain.
#[ktstr_test(cores = 1, duration_s = 20)]
fn setup_error_explains_the_threaded_domain_trap(_: &Ctx) -> Result<AssertResult> {
    as_delegatee(|| {
        fs::write(Path::new(ROOT).join("cgroup.subtree_control"), "+pids")?;
        let error = delegated()?.setup(&controllers()).unwrap_err().to_string();
        println!("{error}");
        ensure!(error.contains("EOPNOTSUPP") && error.contains("threaded-domain trap"), "{error}");
        // The advice of the message.
        fs::write(Path::new(ROOT).join("cgroup.subtree_control"), "-pids")?;
        delegated()?.setup(&controllers())?;
        Ok(())
    })
}

#[ktstr_test(cores = 1)]
fn add_controller_refuses_occupied_cgroups(ctx: &Ctx) -> Result<AssertResult> {
    ctx.cgroups.create_cgroup("inner")?;
    let _child = Child::fork_in(ctx.cgroups, "inner", pause)?;
    let path = ctx.cgroups.parent_path().join("inner");
    let inner = CgroupManager::new(&path);
    let error = inner.add_parent_subtree_controller(Controller::Pids).unwrap_err();
    ensure!(matches!(error, Error::Occupied { .. }), "{error}");
    ensure!(fs::read_to_string(path.join("cgroup.type"))? == "domain\n");
    ensure!(fs::read_to_string(path.join("cgroup.subtree_control"))?.trim().is_empty());
    Ok(AssertResult::pass())
}
