//! Limits work for root, in a delegated cgroup, and in a container.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use ktstr::prelude::*;
use ktstr::process::{Error, Job, Limits, Mechanism};
use rustix::process::Signal;

use crate::children::{Child, eventually};
use crate::modes;
use crate::programs::Role;

/// Checks that every limit takes effect and can be changed and removed, and that the caller is back
/// in its cgroup afterwards.
fn ensure_limits_work() -> Result<()> {
    let before = fs::read_to_string("/proc/self/cgroup")?;
    let job = Job::new(Limits::none().memory_max(32 << 20).cpu_quota(0.2).max_processes(50))?;
    let Mechanism::CgroupV2 { group } = job.mechanism().clone() else {
        bail!("limits need a cgroup, not {}", job.mechanism());
    };
    for (file, want) in
        [("memory.max", "33554432"), ("cpu.max", "20000 100000"), ("pids.max", "50")]
    {
        ensure!(fs::read_to_string(group.join(file))?.trim() == want, "{file}");
    }
    // The guest has no swap.
    let mut eater = job.spawn(Role::Eats.command())?;
    let status = eater.wait()?;
    // libtest runs it in a thread; the OOM killer kills the whole process.
    ensure!(status.signal() == Some(Signal::KILL.as_raw()), "64 MiB used, limit 32 MiB: {status}");
    let peak = job.stats()?.peak_memory;
    ensure!((16 << 20..=32 << 20).contains(&peak), "peak {peak}");

    let _spinner = Role::Spins.start_in(&job)?;
    let throttled = || -> Result<u64> {
        let stat = fs::read_to_string(group.join("cpu.stat"))?;
        let line = stat.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        Ok(line.context("nr_throttled")?.parse()?)
    };
    eventually("five throttled periods", || Ok(throttled()? >= 5))?;

    // A second job of the same process.
    let other = Job::new(Limits::none().max_processes(3))?;
    Role::Waits.start_in(&other)?;
    drop(other);
    ensure!(group.join("pids.max").exists(), "the first job has lost its controllers");

    job.update_limits(Limits::none().max_processes(4))?;
    for (file, want) in [("memory.max", "max"), ("cpu.max", "max 100000"), ("pids.max", "4")] {
        ensure!(fs::read_to_string(group.join(file))?.trim() == want, "{file}");
    }
    // The spinner and each of these have two threads, so the second one does not fit.
    let mut count = 0;
    let refused = loop {
        match job.spawn(Role::Waits.command()) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
        ensure!(count < 4, "{count} processes with pids.max 4");
    };
    ensure!(matches!(refused, Error::Enter { .. }), "{refused}");
    ensure!(refused.to_string().contains("max_processes"), "{refused}");
    // Some kernels kill processes cloned into a killed cgroup; those that move in count as well.
    job.kill_all()?;
    let spawned = (0..6).filter_map(|_| job.spawn(Role::Waits.command()).ok()).count();
    ensure!((1..=4).contains(&spawned), "{spawned} processes with pids.max 4");
    drop(job);
    ensure!(!group.exists(), "{} still exists", group.display());
    ensure!(fs::read_to_string("/proc/self/cgroup")? == before, "the caller is in another cgroup");
    Ok(())
}

#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 60)]
fn as_root(_: &Ctx) -> Result<AssertResult> {
    ensure_limits_work()?;
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 60)]
fn as_delegatee(_: &Ctx) -> Result<AssertResult> {
    modes::as_delegatee(ensure_limits_work)?;
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 60)]
fn in_a_container(_: &Ctx) -> Result<AssertResult> {
    modes::in_container(ensure_limits_work)?;
    Ok(AssertResult::pass())
}

/// In a session of root as created by systemd: the ancestors have no controllers enabled.
#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 60)]
fn as_root_in_a_session(ctx: &Ctx) -> Result<AssertResult> {
    ctx.cgroups.create_cgroup("user.slice/session-1.scope")?;
    let child = Child::fork_in(ctx.cgroups, "user.slice/session-1.scope", || {
        let ran = ensure_limits_work();
        if let Err(error) = &ran {
            eprintln!("{error:#}");
        }
        i32::from(ran.is_err())
    })?;
    let status = child.wait()?;
    ensure!(status.exit_status() == Some(0), "{status:?}; see the output of the child");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1)]
fn new_refuses_limits_without_a_cgroup(_: &Ctx) -> Result<AssertResult> {
    modes::as_ordinary_user(|| {
        let error = Job::new(Limits::none().cpu_quota(0.5)).unwrap_err().to_string();
        println!("{error}");
        for part in [
            "cannot limit a job to cpu_quota 0.5",
            "/sys/fs/cgroup",
            "ermission denied",
            "systemd-run --user --scope -p Delegate=yes",
        ] {
            ensure!(error.contains(part), "{part}: {error}");
        }
        let job = Job::new(Limits::none())?;
        let error = job.update_limits(Limits::none().memory_max(1 << 20)).unwrap_err();
        ensure!(matches!(error, Error::NeedsCgroup { .. }), "{error}");
        Ok(())
    })?;
    Ok(AssertResult::pass())
}

/// A value out of range does not lead to another mechanism.
#[ktstr_test(cores = 1)]
fn new_refuses_limits_out_of_range(_: &Ctx) -> Result<AssertResult> {
    let error = Job::new(Limits::none().cpu_quota(0.0)).unwrap_err().to_string();
    ensure!(error.contains("refused to write `0 100000` to cpu.max"), "{error}");
    Ok(AssertResult::pass())
}
