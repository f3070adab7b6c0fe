//! Real processes are frozen, killed, moved and drained.

use std::time::Duration;

use ktstr::cgroup::Error;
use ktstr::prelude::*;

use crate::children::{Child, all, eventually, pause, spin};

#[ktstr_test(cores = 1, duration_s = 20)]
fn set_freeze_stops_all_cpu_time(ctx: &Ctx) -> Result<AssertResult> {
    ctx.cgroups.create_cgroup("cg")?;
    let spinner = Child::fork_in(ctx.cgroups, "cg", spin)?;
    let usage = || anyhow::Ok(ctx.cgroups.stats("cg")?.cpu.usage_usec);
    eventually("the spinner runs", || Ok(usage()? > 0))?;
    ctx.cgroups.set_freeze("cg", true)?;
    ensure!(ctx.cgroups.stats("cg")?.frozen);
    let before = usage()?;
    std::thread::sleep(Duration::from_millis(300));
    let used = usage()? - before;
    ensure!(used < 1000, "{used} us of CPU time while frozen");
    ctx.cgroups.set_freeze("cg", false)?;
    eventually("it runs again", || Ok(usage()? > before + 10_000))?;
    ctx.cgroups.set_freeze("cg", true)?;
    ctx.cgroups.remove_cgroup("cg").context("removing a frozen cgroup")?;
    ensure!(!ctx.cgroups.parent_path().join("cg").exists());
    drop(spinner);
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, duration_s = 5)]
fn set_freeze_thaws_children_with_their_parent(ctx: &Ctx) -> Result<AssertResult> {
    let is_frozen = || anyhow::Ok(ctx.cgroups.stats("cold/in")?.frozen);
    ctx.cgroups.create_cgroup("cold/in")?;
    ctx.cgroups.set_freeze("cold/in", true)?;
    ctx.cgroups.set_freeze("cold", true)?;
    ctx.cgroups.set_freeze("cold/in", false)?;
    ensure!(is_frozen()?);
    ctx.cgroups.set_freeze("cold", false)?;
    ensure!(!is_frozen()?);
    Ok(AssertResult::pass())
}

/// 200 processes that fork all the time, so that no list of them is complete.
#[ktstr_test(cores = 2, memory_mib = 1024, duration_s = 60)]
fn kill_cgroup_empties_a_cgroup_of_200_forking_processes(ctx: &Ctx) -> Result<AssertResult> {
    ctx.cgroups.setup(&all())?;
    ctx.cgroups.create_cgroup("cg")?;
    let (gate, opener) = rustix::pipe::pipe()?;
    let root = Child::fork_in(ctx.cgroups, "cg", || {
        for _ in 0..200 {
            std::mem::forget(Child::fork(|| {
                let _ = rustix::io::read(&gate, &mut [0_u8; 1]);
                loop {
                    let _ = Child::fork(|| 0).and_then(Child::wait);
                }
            }));
        }
        pause()
    })?;
    eventually("200 processes", || Ok(ctx.cgroups.read_procs("cg")?.len() > 200))?;
    rustix::io::write(&opener, &[0; 200])?;
    eventually("one has forked", || Ok(ctx.cgroups.read_procs("cg")?.len() > 201))?;
    ctx.cgroups.kill_cgroup("cg")?;
    ensure!(!ctx.cgroups.stats("cg")?.populated);
    ensure!(ctx.cgroups.read_procs("cg")?.is_empty());
    ensure!(root.wait()?.terminating_signal() == Some(9), "the parent process is killed as well");
    ctx.cgroups.remove_cgroup("cg")?;
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, duration_s = 20)]
fn move_tasks_and_drain_tasks_move_processes(ctx: &Ctx) -> Result<AssertResult> {
    let cgroups = ctx.cgroups;
    cgroups.setup(&all())?;
    cgroups.create_cgroup("from")?;
    cgroups.create_cgroup("to")?;
    let children = (0..3).map(|_| Child::fork_in(cgroups, "from", pause));
    let children = children.collect::<Result<Vec<_>>>()?;
    let mut pids: Vec<_> = children.iter().map(Child::pid).collect();
    let ended = Child::fork(|| 0)?;
    let ended_pid = ended.pid();
    ended.wait()?;
    pids.push(ended_pid);
    cgroups.move_tasks("to", &pids).context("a process that has ended is skipped")?;
    pids.pop();
    ensure!(cgroups.read_procs("to")? == pids && cgroups.read_procs("from")?.is_empty());
    let error = cgroups.move_tasks("from", &[ended_pid]).unwrap_err();
    ensure!(matches!(error, Error::AllGone { .. }), "{error}");
    cgroups.drain_tasks("to")?;
    ensure!(cgroups.read_procs("to")?.is_empty());
    let own = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
    ensure!(own(pids[0])? == "0::/\n", "drained to the root of the hierarchy");
    cgroups.move_task("from", pids[0])?;
    cgroups.remove_cgroup("from").context("removing a cgroup with processes")?;
    ensure!(own(pids[0])? == "0::/\n", "the processes still run");
    Ok(AssertResult::pass())
}

/// The priorities keep a process that was reaped from leaving its CPU. Since Linux 7.0 the kernel refuses to
/// enable controllers until then, but does not list the process in `cgroup.procs`.
#[ktstr_test(cores = 1, duration_s = 30)]
fn create_cgroup_waits_for_processes_that_are_exiting(ctx: &Ctx) -> Result<AssertResult> {
    let cgroups = ctx.cgroups;
    set_policy(libc::SCHED_FIFO, 50)?;
    cgroups.setup(&all())?;
    for round in 0..20 {
        let cgroup = format!("cg{round}");
        cgroups.create_cgroup(&cgroup)?;
        let child = Child::fork_in(cgroups, &cgroup, || {
            set_policy(libc::SCHED_IDLE, 0).map_or(101, |()| 0)
        })?;
        ensure!(child.wait()?.exit_status() == Some(0), "the child has another policy");
        cgroups.create_cgroup(&format!("{cgroup}/leaf"))?;
    }
    Ok(AssertResult::pass())
}

/// Sets the scheduling policy of this process.
fn set_policy(policy: i32, priority: i32) -> Result<()> {
    // SAFETY: the kernel reads a `sched_param`, which is an int.
    let done =
        unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const priority) };
    ensure!(done == 0, "sched_setscheduler: {}", std::io::Error::last_os_error());
    Ok(())
}

#[ktstr_test(cores = 1)]
fn kill_cgroup_spares_the_caller_and_the_guard_removes(ctx: &Ctx) -> Result<AssertResult> {
    let cgroups = ctx.cgroups;
    let own = rustix::process::getpid().as_raw_nonzero().get();
    cgroups.setup(&all())?;
    {
        let mut group = CgroupGroup::new(cgroups);
        group.add_cgroup("a", &[0].into())?;
        group.add_cgroup_no_cpuset("b/leaf")?;
        cgroups.move_task("b/leaf", own)?;
        let error = cgroups.kill_cgroup("b").unwrap_err().to_string();
        ensure!(error.contains("the caller is in it"), "{error}");
    }
    let left = std::fs::read_dir(cgroups.parent_path())?.flatten();
    let left: Vec<_> = left.filter(|entry| entry.path().is_dir()).collect();
    ensure!(left.is_empty(), "{left:?}");
    ensure!(std::fs::read_to_string("/proc/self/cgroup")? == "0::/\n");
    Ok(AssertResult::pass())
}
