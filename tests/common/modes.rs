//! The three ways to be allowed to make cgroups, and the one to be not.

#![allow(dead_code, reason = "not every suite needs all of it")]

use std::path::Path;

use ktstr::cgroup::{CgroupManager, MOUNT};
use ktstr::prelude::*;
use rustix::fs::chown;
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::children::Child;

pub(crate) const USER: u32 = 1000;

/// The group that is delegated, and the one that is a container's root.
pub(crate) const DELEGATED: &str = "/sys/fs/cgroup/delegated";

fn controllers() -> std::collections::BTreeSet<Controller> {
    [Controller::Cpu, Controller::Memory, Controller::Pids].into()
}

/// Delegates a group the way systemd does and runs `body` in it, as its owner.
pub(crate) fn as_delegatee(body: impl FnOnce() -> Result<()>) -> Result<()> {
    let above = CgroupManager::new(MOUNT);
    above.setup(&controllers())?;
    above.create_cgroup("delegated")?;
    let (uid, gid) = (rustix::fs::Uid::from_raw(USER), rustix::fs::Gid::from_raw(USER));
    // Source: systemd, CGROUP_DELEGATION.md; cgroup-v2.rst, "Model of Delegation".
    for file in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
        chown(Path::new(DELEGATED).join(file), Some(uid), Some(gid))?;
    }
    finish(Child::fork_in(&above, "delegated", || as_user(body))?)
}

/// Runs `body` as an ordinary user.
pub(crate) fn as_ordinary_user(body: impl FnOnce() -> Result<()>) -> Result<()> {
    finish(Child::fork(|| as_user(body))?)
}

/// Runs `body` as root of a cgroup namespace, as in a container.
pub(crate) fn in_container(body: impl FnOnce() -> Result<()>) -> Result<()> {
    use rustix::mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
    };
    use rustix::thread::{UnshareFlags, unshare_unsafe};

    let above = CgroupManager::new(MOUNT);
    above.setup(&controllers())?;
    above.create_cgroup("delegated")?;
    finish(Child::fork_in(&above, "delegated", || {
        told(|| {
            // SAFETY: no thread of this process shares what it gives up.
            unsafe { unshare_unsafe(UnshareFlags::NEWCGROUP | UnshareFlags::NEWNS) }?;
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            // The kernel refuses to mount a file system on itself.
            unmount(MOUNT, UnmountFlags::DETACH)?;
            mount("none", MOUNT, "cgroup2", MountFlags::empty(), None)?;
            body()
        })
    })?)
}

/// Runs `body` as the first process of a pid namespace, where the leaders of its session and of its
/// process group, which is outside, have the number 0.
pub(crate) fn in_pid_namespace(body: impl FnOnce() -> Result<()>) -> Result<()> {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};

    let first = || {
        mount("proc", "/proc", "proc", MountFlags::empty(), None)?;
        body()
    };
    finish(Child::fork(|| {
        told(|| {
            // SAFETY: no thread of this process shares what it gives up.
            unsafe { unshare_unsafe(UnshareFlags::NEWPID | UnshareFlags::NEWNS) }?;
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            finish(Child::fork(|| told(first))?)
        })
    })?)
}

/// Runs `body` in a process of one thread, so that the whole process changes its user.
fn as_user(body: impl FnOnce() -> Result<()>) -> i32 {
    let (uid, gid) = (rustix::fs::Uid::from_raw(USER), rustix::fs::Gid::from_raw(USER));
    told(|| {
        set_thread_groups(&[])?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        body()
    })
}

fn told(body: impl FnOnce() -> Result<()>) -> i32 {
    let ran = body();
    if let Err(error) = &ran {
        eprintln!("{error:#}");
    }
    i32::from(ran.is_err())
}

fn finish(child: Child) -> Result<()> {
    let status = child.wait()?;
    ensure!(status.exit_status() == Some(0), "it ended with {status:?}; see its output");
    Ok(())
}
