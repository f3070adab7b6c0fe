//! A job as a process group, for those who may make no cgroup.
//!
//! The group is led by a zombie, a child of the keeper that ends at once: as long as nobody reaps it,
//! the group's number stays taken, and a signal to the group hurts nobody else. Who leaves the group is
//! known by a variable that all processes of the job have in their environment.

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_send_signal, setpgid, waitid,
};

use super::child::wait_for;
use super::containment::{Containment, EnterFn, Usage};
use super::error::Error;
use super::keeper::{Duty, Keeper};
use super::limits::Limits;
use super::name::Name;
use super::pinned::{self, Pinned};
use super::procfs::{self, Stat};
use crate::linux::cgroup::SETTLE_WITHIN;
use crate::linux::sys;

/// How many processes are waited for at a time, for each takes a descriptor.
const MOST_PINNED: usize = 64;

/// A process group that was made for one job.
#[derive(Debug)]
pub(super) struct Group {
    why: String,
    scope: Scope,
    keeper: Option<Keeper>,
}

impl Group {
    /// Makes a process group for a job; `why` it is not a cgroup.
    pub(super) fn new(why: String) -> Result<Self, Error> {
        let mark = Mark::new(&Name::next()?);
        let fail = Error::system("fork a keeper");
        let (keeper, leader) = Keeper::start(&Keep { mark: &mark }).map_err(fail)?;
        let group = leader.expect("it has forked the leader of the group");
        Ok(Self { why, scope: Scope { group, mark }, keeper: Some(keeper) })
    }

    fn needs_cgroup(&self, operation: &'static str) -> Error {
        Error::NeedsCgroup { operation, why: self.why.clone() }
    }
}

/// How processes that have left the group are found.
#[derive(Debug, Clone)]
struct Mark {
    variable: String,
    /// No process of the job is older than its owner.
    start_ticks: u64,
}

impl Mark {
    fn new(name: &Name) -> Self {
        Self { variable: name.variable(), start_ticks: name.start_ticks() }
    }
}

/// The processes of a job: those in the group, and those with the mark.
#[derive(Debug)]
struct Scope {
    group: Pid,
    mark: Mark,
}

impl Scope {
    fn holds(&self, pid: i32) -> Result<bool, Error> {
        let fail = || Error::system(format!("look at process {pid}"));
        let leader = self.group.as_raw_nonzero().get();
        let stat = match Stat::read(pid) {
            // With hidepid=1, of a process with another user's rights.
            Err(error) if procfs::is_denied(&error) => None,
            read => read.map_err(fail())?,
        };
        let Some(stat) = stat.filter(|_| pid != leader) else { return Ok(false) };
        if stat.pgrp == leader {
            return Ok(true);
        }
        let is_young = stat.start_ticks >= self.mark.start_ticks;
        Ok(is_young && procfs::has_variable(pid, &self.mark.variable).map_err(fail())?)
    }

    fn pids(&self) -> Result<Vec<i32>, Error> {
        let mut pids = Vec::new();
        for pid in procfs::all_pids().map_err(Error::system("list /proc"))? {
            if self.holds(pid)? {
                pids.push(pid);
            }
        }
        Ok(pids)
    }

    /// Kills all processes; returns when they are gone.
    fn kill(&self) -> Result<(), Error> {
        let deadline = Instant::now() + SETTLE_WITHIN;
        loop {
            // No fork gets through: the kernel refuses those of a process that has a signal to take.
            match kill_process_group(self.group, Signal::KILL) {
                // ESRCH: nobody is in it. EPERM: nobody in it may be killed, of which is told below.
                Ok(()) | Err(Errno::SRCH | Errno::PERM) => {}
                Err(errno) => return Err(Error::system("kill a process group")(errno)),
            }
            let left = self.kill_some()?;
            if left.is_empty() {
                return Ok(());
            }
            let fds = left.iter().map(|left| PollFd::new(&left.pidfd, PollFlags::IN));
            let fail = Error::system("wait for the end of killed processes");
            let ended = wait_for(&mut fds.collect::<Vec<_>>(), Some(deadline)).map_err(fail)?;
            if !ended || Instant::now() >= deadline {
                let processes = left.into_iter().map(|left| left.process).collect();
                return Err(Error::Unkillable { processes, within: SETTLE_WITHIN });
            }
        }
    }

    /// Kills every process; returns some of those that have not ended yet.
    fn kill_some(&self) -> Result<Vec<Pinned>, Error> {
        let mut left = Vec::new();
        for pid in self.pids()? {
            let Some(pinned) = pinned::pin(pid, |pid| self.holds(pid))? else { continue };
            // One that may not be killed is among those that are left in the end.
            let _ = pidfd_send_signal(&pinned.pidfd, Signal::KILL);
            if left.len() < MOST_PINNED {
                left.push(pinned);
            }
        }
        Ok(left)
    }
}

impl Containment for Group {
    fn entry(&self, command: &mut Command) -> Result<EnterFn, Error> {
        command.env(&self.scope.mark.variable, "1");
        let group = self.scope.group;
        Ok(Box::new(move |_| match setpgid(None, Some(group)) {
            // The command has made it the leader of a session. It is found by its mark.
            Err(Errno::PERM) if sys::is_session_and_group_leader().0 => Ok(()),
            joined => Ok(joined?),
        }))
    }

    fn place(&self) -> String {
        format!("process group {}", self.scope.group)
    }

    fn pids(&self) -> Result<Vec<i32>, Error> {
        self.scope.pids()
    }

    fn holds(&self, pid: i32) -> Result<bool, Error> {
        self.scope.holds(pid)
    }

    fn events(&self) -> Option<PathBuf> {
        None
    }

    fn kill(&self) -> Result<(), Error> {
        self.scope.kill()
    }

    fn freeze(&self, frozen: bool) -> Result<(), Error> {
        Err(self.needs_cgroup(if frozen { "suspend" } else { "resume" }))
    }

    fn adopt(&self, _: i32) -> Result<(), Error> {
        Err(self.needs_cgroup("adopt a process into"))
    }

    fn update_limits(&self, limits: Limits) -> Result<(), Error> {
        if limits == Limits::none() { Ok(()) } else { Err(self.needs_cgroup("limit")) }
    }

    fn usage(&self) -> Result<Usage, Error> {
        Ok(Usage::default())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!("left behind for the keeper: {error}");
            // It tries again at this process's end.
            std::mem::forget(self.keeper.take());
        }
    }
}

/// What the keeper of a group does.
struct Keep<'a> {
    mark: &'a Mark,
}

impl Duty for Keep<'_> {
    fn settle(&self) -> io::Result<Option<Pid>> {
        // Not with its owner, whose terminal may signal all of its group, but in the same session: who
        // is in another one may not join the group.
        setpgid(None, None)?;
        let lead = || i32::from(setpgid(None, None).is_err());
        // SAFETY: the child makes one system call.
        let leader = unsafe { sys::fork(lead) }?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let ended = waitid(WaitId::Pid(leader), options)?;
        match ended.and_then(|ended| ended.exit_status()) {
            Some(0) => Ok(Some(leader)),
            _ => Err(Errno::PERM.into()),
        }
    }

    fn end(&self, kept: Option<Pid>) {
        if let Some(group) = kept {
            let scope = Scope { group, mark: self.mark.clone() };
            while let Err(Error::Unkillable { .. }) = scope.kill() {}
        }
    }
}
