//! Owners that are killed with `kill -9`, without a chance to clean up.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ktstr::cgroup::MOUNT;
use ktstr::prelude::*;
use ktstr::process::{Job, Limits, Mechanism};
use rustix::process::{Pid, Signal, kill_process};

use crate::children::{Child, eventually, pause};
use crate::gone::{Witness, ensure_no_program_runs};
use crate::modes;
use crate::programs::Role;

/// Forks an owner of a job with twenty processes; returns once they run, with the path of the cgroup.
fn start_owner(limits: Limits) -> Result<(Child, String)> {
    start_owner_in(limits, |body| Child::fork(body))
}

/// Does the same as [`start_owner`], with another fork.
fn start_owner_in(
    limits: Limits,
    fork: impl FnOnce(&dyn Fn() -> i32) -> Result<Child>,
) -> Result<(Child, String)> {
    let (reader, writer) = rustix::pipe::pipe()?;
    let own = || -> Result<()> {
        let job = Job::new(limits)?;
        Role::Tree.start_in(&job)?;
        ensure!(Witness::of(&job)?.count() >= 20, "{:?}", job.members()?);
        let group = match job.mechanism() {
            Mechanism::CgroupV2 { group } => group.display().to_string(),
            Mechanism::ProcessGroup { .. } => String::new(),
        };
        writeln!(fs::File::from(writer.try_clone()?), "{group}")?;
        pause();
        Ok(())
    };
    let owner = fork(&|| {
        if let Err(error) = own() {
            eprintln!("the owner: {error:#}");
        }
        1
    })?;
    drop(writer);
    let mut group = String::new();
    BufReader::new(fs::File::from(reader)).read_line(&mut group)?;
    ensure!(group.ends_with('\n'), "the owner ended before its job was running");
    Ok((owner, group.trim().to_owned()))
}

/// Returns the cgroups of jobs in a directory and its descendants.
fn job_cgroups(parent: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
    let dirs: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    let below = dirs.iter().flat_map(|dir| job_cgroups(dir)).collect::<Vec<_>>();
    let is_job = |path: &PathBuf| path.to_string_lossy().contains("/ktstr-job.");
    dirs.into_iter().filter(is_job).chain(below).collect()
}

fn ensure_nothing_is_left() -> Result<()> {
    // The keeper works asynchronously.
    eventually("all processes have ended", || Ok(ensure_no_program_runs().is_ok()))?;
    eventually("all cgroups are removed", || Ok(job_cgroups(Path::new(MOUNT)).is_empty()))?;
    eventually("all keepers have ended", || Ok(keepers().is_empty()))
}

/// Returns the keepers that have not ended. A killed one is a zombie until its owner ends.
pub(crate) fn keepers() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let keepers = entries.filter(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        stat.contains("(ktstr-keeper) ") && !stat.contains(") Z ")
    });
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    keepers.filter_map(number).filter_map(Pid::from_raw).collect()
}

fn kill_owners(times: usize, limits: Limits) -> Result<()> {
    for _ in 0..times {
        let (owner, group) = start_owner(limits)?;
        ensure!(!keepers().is_empty(), "the job has no keeper");
        ensure!(group.is_empty() || Path::new(&group).exists(), "{group}");
        // SIGKILL, and waits for its end.
        drop(owner);
        eventually(
            "the cgroup is removed",
            || Ok(group.is_empty() || !Path::new(&group).exists()),
        )?;
    }
    ensure_nothing_is_left()
}

#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 60)]
fn as_root(_: &Ctx) -> Result<AssertResult> {
    kill_owners(20, Limits::none())?;
    Ok(AssertResult::pass())
}

/// With limits, so that the owner moves to a leaf and the other processes move back from it.
#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 60)]
fn as_delegatee(_: &Ctx) -> Result<AssertResult> {
    modes::as_delegatee(|| {
        kill_owners(10, Limits::none().max_processes(100))?;
        ensure!(fs::read_to_string("/proc/self/cgroup")? == "0::/delegated\n");
        Ok(())
    })?;
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 60)]
fn in_a_container(_: &Ctx) -> Result<AssertResult> {
    modes::in_container(|| {
        kill_owners(10, Limits::none().max_processes(100))?;
        ensure!(fs::read_to_string("/proc/self/cgroup")? == "0::/\n");
        Ok(())
    })?;
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 60)]
fn as_ordinary_user(_: &Ctx) -> Result<AssertResult> {
    modes::as_ordinary_user(|| kill_owners(10, Limits::none()))?;
    Ok(AssertResult::pass())
}

/// `cargo test --test process -- --ignored thousand`
#[ktstr_test(
    cores = 2,
    memory_mib = 512,
    duration_s = 1800,
    ignore = "takes minutes: cargo test --test process -- --ignored a_thousand"
)]
fn a_thousand_as_root(_: &Ctx) -> Result<AssertResult> {
    kill_owners(1000, Limits::none())?;
    Ok(AssertResult::pass())
}

/// If the keeper is killed as well, the owner of the next job removes the cgroup.
#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 30)]
fn new_removes_only_jobs_of_dead_owners(_: &Ctx) -> Result<AssertResult> {
    let (alive, alive_group) = start_owner(Limits::none())?;
    let (owner, group) = start_owner(Limits::none())?;
    // Similar names, and one of another pid namespace.
    let others = ["ktstr-job", "ktstr-job.1.2.3.4", "ktstr-jobs.1.2.3.4.5", "ktstr-job.1.2.3.4.5"];
    for other in others {
        fs::create_dir(Path::new(MOUNT).join(other))?;
    }
    for keeper in keepers() {
        kill_process(keeper, Signal::KILL)?;
    }
    eventually("all keepers have ended", || Ok(keepers().is_empty()))?;
    drop(owner);
    ensure!(Path::new(&group).exists(), "it was removed too early");
    let job = Job::new(Limits::none())?;
    ensure!(!Path::new(&group).exists(), "its owner is dead");
    ensure!(Path::new(&alive_group).exists(), "its owner runs");
    for other in others {
        ensure!(Path::new(MOUNT).join(other).exists(), "{other} is not a job of this machine");
    }
    drop(job);
    drop(alive);
    drop(Job::new(Limits::none())?);
    ensure!(!Path::new(&alive_group).exists(), "its owner is dead now");
    ensure_no_program_runs()?;
    Ok(AssertResult::pass())
}

/// systemd or another manager kills the whole cgroup of the owner, including the keeper.
#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 30)]
fn job_ends_with_the_cgroup_of_its_owner(ctx: &Ctx) -> Result<AssertResult> {
    ctx.cgroups.create_cgroup("user.slice/session-1.scope")?;
    let (owner, group) = start_owner_in(Limits::none(), |body| {
        Child::fork_in(ctx.cgroups, "user.slice/session-1.scope", body)
    })?;
    ensure!(group.contains("/session-1.scope/ktstr-job."), "{group}");
    ctx.cgroups.kill_cgroup("user.slice/session-1.scope")?;
    drop(owner);
    ensure_no_program_runs()?;
    ensure!(keepers().is_empty(), "a keeper still runs");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 30)]
fn nested_job_ends_with_the_outer_one(_: &Ctx) -> Result<AssertResult> {
    let outer = Job::new(Limits::none())?;
    let (owner, inner) = start_owner_in(Limits::none(), |body| {
        let (gate, opener) = rustix::pipe::pipe()?;
        let child = Child::fork(|| match rustix::io::read(&gate, &mut [0_u8; 1]) {
            Ok(1) => body(),
            _ => 102,
        })?;
        outer.adopt(child.pid())?;
        rustix::io::write(&opener, &[1])?;
        Ok(child)
    })?;
    let Mechanism::CgroupV2 { group } = outer.mechanism() else { bail!("root gets a cgroup") };
    ensure!(Path::new(&inner).starts_with(group), "{inner} is not in {}", group.display());
    drop(outer);
    drop(owner);
    ensure_no_program_runs()?;
    ensure_nothing_is_left()?;
    Ok(AssertResult::pass())
}

/// On the host, with a terminal, a session and another PID 1.
#[test]
fn on_this_host() -> Result<()> {
    // In a process with one thread, because it forks.
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", "owners::forks_owners", "--include-ignored", "--nocapture"]);
    let output = command.stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
#[ignore = "run by the test above, in a process of its own"]
fn forks_owners() -> Result<()> {
    for _ in 0..3 {
        let (owner, group) = start_owner(Limits::none())?;
        drop(owner);
        eventually(
            "the cgroup is removed",
            || Ok(group.is_empty() || !Path::new(&group).exists()),
        )?;
    }
    Ok(())
}
