//! Dropping a job kills children of every kind.

use std::fs;
use std::os::fd::OwnedFd;

use ktstr::prelude::*;
use ktstr::process::{Job, Limits, Mechanism, Process};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::children::eventually;
use crate::modes;
use crate::programs::{MARK, Role, STUBBORN};

/// Pins the processes of a job, so that their end can be checked despite reused pids.
pub(crate) struct Witness(Vec<(Process, OwnedFd)>);

impl Witness {
    pub(crate) fn of(job: &Job) -> Result<Self> {
        let mut seen = Vec::new();
        for process in job.members()? {
            let pid = Pid::from_raw(process.pid).context("pids are positive")?;
            // Processes of a fork bomb may have ended.
            if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
                seen.push((process, pidfd));
            }
        }
        Ok(Self(seen))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Fails unless all of them have ended by now.
    pub(crate) fn ensure_ended(&self) -> Result<()> {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        for (process, pidfd) in &self.0 {
            let ended = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now))? == 1;
            ensure!(ended, "{process} still runs");
        }
        Ok(())
    }
}

/// Fails if a program that this test has started still runs, inside or outside a job.
pub(crate) fn ensure_no_program_runs() -> Result<()> {
    let mark = MARK.with(Clone::clone);
    for entry in fs::read_dir("/proc")?.flatten() {
        // By the last thread: once the first thread has ended, its environment cannot be read.
        let threads = fs::read_dir(entry.path().join("task")).into_iter().flatten().flatten();
        let environ = threads.last().map(|thread| thread.path().join("environ"));
        let environ = environ.and_then(|path| fs::read(path).ok()).unwrap_or_default();
        let own = entry.file_name().to_str() == Some(&std::process::id().to_string());
        let is_program = environ.split(|byte| *byte == 0).any(|one| one == mark.as_bytes());
        ensure!(own || !is_program, "process {} still runs", entry.file_name().display());
    }
    Ok(())
}

/// Starts each program in a job of its own, drops the job and checks that all is gone.
fn ensure_gone(roles: &[Role], make: impl Fn(Role) -> Result<Job>) -> Result<()> {
    for &role in roles {
        let job = make(role).with_context(|| format!("{role:?}"))?;
        let group = match job.mechanism() {
            Mechanism::CgroupV2 { group } => Some(group.clone()),
            Mechanism::ProcessGroup { .. } => None,
        };
        let mut child = role.start_in(&job)?;
        if role == Role::Daemon {
            ensure!(child.wait()?.success(), "the first process of the daemon failed");
            // The intermediate process exits as well.
            eventually("one process is left", || Ok(job.leaked()?.len() == 1))?;
            let leaked = job.leaked()?;
            ensure!(leaked[0].cmdline.contains("programs::program"), "{leaked:?}");
        }
        let witness = Witness::of(&job)?;
        let at_least = match role {
            Role::Tree => 20,
            Role::LeavesSession | Role::NamedByBytes => 2,
            Role::ChangesUser | Role::LosesFirstThread => 2,
            Role::WaitsInKernel => 3,
            _ => 1,
        };
        ensure!(witness.count() >= at_least, "{role:?}: {:?}", job.members()?);
        if role == Role::WaitsInKernel {
            eventually("state D", || Ok(job.members()?.iter().any(|member| member.state == 'D')))?;
        }
        drop(job);
        witness.ensure_ended().with_context(|| format!("{role:?}"))?;
        ensure_no_program_runs().with_context(|| format!("{role:?}"))?;
        ensure!(!group.is_some_and(|group| group.exists()), "{role:?}: its cgroup still exists");
        ensure!(child.wait_timeout(std::time::Duration::ZERO)?.is_some(), "{role:?}: not reaped");
    }
    Ok(())
}

/// Checks jobs that are cgroups; a fork bomb gets a limit.
fn ensure_gone_in_cgroups(roles: &[Role]) -> Result<()> {
    ensure_gone(roles, |role| {
        let bomb = Limits::none().max_processes(60);
        let job = Job::new(if role == Role::ForkBomb { bomb } else { Limits::none() })?;
        ensure!(matches!(job.mechanism(), Mechanism::CgroupV2 { .. }), "{}", job.mechanism());
        Ok(job)
    })
}

fn with(more: &[Role]) -> Vec<Role> {
    [&STUBBORN, more].concat()
}

#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 60)]
fn as_root(_: &Ctx) -> Result<AssertResult> {
    ensure_gone_in_cgroups(&with(&[Role::ForkBomb, Role::ChangesUser]))?;
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 60)]
fn as_delegatee(_: &Ctx) -> Result<AssertResult> {
    modes::as_delegatee(|| ensure_gone_in_cgroups(&with(&[Role::ForkBomb])))?;
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 60)]
fn in_a_container(_: &Ctx) -> Result<AssertResult> {
    let roles = with(&[Role::ForkBomb, Role::ChangesUser]);
    modes::in_container(|| ensure_gone_in_cgroups(&roles))?;
    Ok(AssertResult::pass())
}

fn ensure_gone_in_process_groups() -> Result<()> {
    ensure_gone(&STUBBORN, |_| {
        let job = Job::new(Limits::none())?;
        let Mechanism::ProcessGroup { why } = job.mechanism() else {
            bail!("an ordinary user got {}", job.mechanism());
        };
        ensure!(why.contains("cgroup"), "{why}");
        Ok(job)
    })
}

#[ktstr_test(cores = 2, memory_mib = 512, duration_s = 60)]
fn as_ordinary_user(_: &Ctx) -> Result<AssertResult> {
    modes::as_ordinary_user(ensure_gone_in_process_groups)?;
    Ok(AssertResult::pass())
}

/// With the mechanism of this host, and as root with a process group too.
#[test]
fn on_this_host() -> Result<()> {
    ensure_gone(&STUBBORN, |_| Ok(Job::new(Limits::none())?))?;
    if rustix::process::geteuid().is_root() {
        modes::as_ordinary_user(ensure_gone_in_process_groups)?;
    }
    Ok(())
}
