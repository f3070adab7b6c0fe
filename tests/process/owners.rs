//! Owners that are killed with `kill -9`, which leaves them no time for anything.

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

/// An owner of a job with twenty processes: a fork of this process, which says when it is ready.
fn start_owner(limits: Limits) -> Result<(Child, String)> {
    start_owner_in(limits, |body| Child::fork(body))
}

/// As [`start_owner`], forked by `fork`.
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
    ensure!(group.ends_with('\n'), "the owner ended before its job was up");
    Ok((owner, group.trim().to_owned()))
}

/// The groups of jobs in a folder, and below it.
fn job_groups(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let folders: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    let below = folders.iter().flat_map(|folder| job_groups(folder)).collect::<Vec<_>>();
    let is_job = |path: &PathBuf| path.to_string_lossy().contains("/ktstr-job.");
    folders.into_iter().filter(is_job).chain(below).collect()
}

fn ensure_nothing_is_left() -> Result<()> {
    // The keeper is told of the end, and works on its own.
    eventually("no process is left", || Ok(ensure_no_program_runs().is_ok()))?;
    eventually("no group is left", || Ok(job_groups(Path::new(MOUNT)).is_empty()))?;
    eventually("no keeper is left", || Ok(keepers().is_empty()))
}

/// The keepers that have not ended. One that was killed is a zombie until its owner ends.
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
        ensure!(!keepers().is_empty(), "nobody keeps the job");
        ensure!(group.is_empty() || Path::new(&group).exists(), "{group}");
        // SIGKILL, and waits for its end.
        drop(owner);
        eventually("the group is removed", || Ok(group.is_empty() || !Path::new(&group).exists()))?;
    }
    ensure_nothing_is_left()
}

#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 60)]
fn as_root(_: &Ctx) -> Result<AssertResult> {
    kill_owners(20, Limits::none())?;
    Ok(AssertResult::pass())
}

/// With limits, so that the owner moves to a leaf, from which the rest moves back.
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

/// A group whose keeper was killed as well: the next job's owner removes it.
#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 30)]
fn what_a_dead_owner_left_is_swept_and_nothing_else(_: &Ctx) -> Result<AssertResult> {
    let (alive, alive_group) = start_owner(Limits::none())?;
    let (owner, group) = start_owner(Limits::none())?;
    // Named as a job's, but by nobody that could have ended.
    let others = ["ktstr-job", "ktstr-job.1.2.3.4", "ktstr-jobs.1.2.3.4.5", "ktstr-job.1.2.3.4.5"];
    for other in others {
        fs::create_dir(Path::new(MOUNT).join(other))?;
    }
    for keeper in keepers() {
        kill_process(keeper, Signal::KILL)?;
    }
    eventually("no keeper is left", || Ok(keepers().is_empty()))?;
    drop(owner);
    ensure!(Path::new(&group).exists(), "nobody has removed it");
    let job = Job::new(Limits::none())?;
    ensure!(!Path::new(&group).exists(), "its owner is dead");
    ensure!(Path::new(&alive_group).exists(), "its owner lives");
    for other in others {
        ensure!(Path::new(MOUNT).join(other).exists(), "{other} is no job of this machine's");
    }
    drop(job);
    drop(alive);
    drop(Job::new(Limits::none())?);
    ensure!(!Path::new(&alive_group).exists(), "its owner is dead now");
    ensure_no_program_runs()?;
    Ok(AssertResult::pass())
}

/// The kernel, systemd or somebody else kills all that is in the owner's group: the keeper, too.
#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 30)]
fn what_ends_the_owners_group_ends_its_jobs(ctx: &Ctx) -> Result<AssertResult> {
    ctx.cgroups.create_cgroup("user.slice/session-1.scope")?;
    let (owner, group) = start_owner_in(Limits::none(), |body| {
        Child::fork_in(ctx.cgroups, "user.slice/session-1.scope", body)
    })?;
    ensure!(group.contains("/session-1.scope/ktstr-job."), "{group}");
    ctx.cgroups.kill_cgroup("user.slice/session-1.scope")?;
    drop(owner);
    ensure_no_program_runs()?;
    ensure!(keepers().is_empty(), "a keeper is left");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 30)]
fn a_job_in_a_job_ends_with_the_outer_one(_: &Ctx) -> Result<AssertResult> {
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
    let Mechanism::CgroupV2 { group } = outer.mechanism() else { bail!("root has a cgroup") };
    ensure!(Path::new(&inner).starts_with(group), "{inner} is not in {}", group.display());
    drop(outer);
    drop(owner);
    ensure_no_program_runs()?;
    ensure_nothing_is_left()?;
    Ok(AssertResult::pass())
}

/// On the host, where there is a terminal, a session and no PID 1 of ours.
#[test]
fn on_this_host() -> Result<()> {
    // A process of one thread, which may fork as it likes.
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
        eventually("the group is removed", || Ok(group.is_empty() || !Path::new(&group).exists()))?;
    }
    Ok(())
}
