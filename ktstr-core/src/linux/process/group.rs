//! A job as a process group, for callers that may not create a cgroup.
//!
//! The leader of the process group is a zombie: a child of the keeper that exits at once. Until it is
//! reaped, its pid and therefore the id of the group stay taken, so a signal to the group cannot
//! reach other processes. Processes that leave the group are found by a variable that every process
//! of the job has in its environment.

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_send_signal, setpgid, waitid,
};

use super::containment::{Containment, EnterFn, Usage};
use super::keeper::{Keeper, KeeperTask};
use super::name::JobName;
use super::pinned::{self, Pinned};
use super::procfs::{self, Stat};
use super::{Error, Limits, wait_for};
use crate::linux::cgroup::SETTLE_WITHIN;
use crate::linux::sys;

/// How many processes are waited for at a time, because each takes a descriptor.
const MAX_PINNED: usize = 64;

/// A process group that was created for one job.
#[derive(Debug)]
pub(super) struct ProcessGroup {
    /// Why the job is not a cgroup.
    why: String,
    members: GroupMembers,
    keeper: Option<Keeper>,
}

impl ProcessGroup {
    /// Creates a process group for a job; `why` it is not a cgroup.
    pub(super) fn new(why: String) -> Result<Self, Error> {
        let mark = EnvironmentMark::new(&JobName::next()?);
        let fail = Error::system("fork a keeper");
        let (keeper, leader) = Keeper::start(&GroupKeeper { mark: &mark }).map_err(fail)?;
        let group = leader.expect("GroupKeeper::start returns the leader of the group");
        Ok(Self { why, members: GroupMembers { group, mark }, keeper: Some(keeper) })
    }

    fn needs_cgroup(&self, operation: &'static str) -> Error {
        Error::NeedsCgroup { operation, why: self.why.clone() }
    }
}

/// Identifies processes that have left the group.
#[derive(Debug, Clone)]
struct EnvironmentMark {
    variable: String,
    /// The start time of the owner. No process of the job is older.
    start_ticks: u64,
}

impl EnvironmentMark {
    fn new(name: &JobName) -> Self {
        Self { variable: name.variable(), start_ticks: name.start_ticks() }
    }
}

/// The processes of a job: those in the group, and those with the mark.
#[derive(Debug)]
struct GroupMembers {
    group: Pid,
    mark: EnvironmentMark,
}

impl GroupMembers {
    fn holds(&self, pid: i32) -> Result<bool, Error> {
        let fail = || Error::system(format!("read process {pid}"));
        let leader = self.group.as_raw_nonzero().get();
        let stat = match Stat::read(pid) {
            // A process of another user, with hidepid=1.
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

    /// Kills all processes; returns when none is left.
    fn kill(&self) -> Result<(), Error> {
        let deadline = Instant::now() + SETTLE_WITHIN;
        loop {
            // First the group at once: the kernel refuses a fork of a process with a pending signal,
            // so no child escapes.
            match kill_process_group(self.group, Signal::KILL) {
                // ESRCH: the group is empty. EPERM: none of its processes may be killed; they are
                // reported as unkillable below.
                Ok(()) | Err(Errno::SRCH | Errno::PERM) => {}
                Err(errno) => return Err(Error::system("kill a process group")(errno)),
            }
            // Then the processes that have left the group, until no new ones are found.
            let left = self.kill_each()?;
            if left.is_empty() {
                return Ok(());
            }
            let fds = left.iter().map(|left| PollFd::new(&left.pidfd, PollFlags::IN));
            let fail = Error::system("wait for killed processes to end");
            let ended = wait_for(&mut fds.collect::<Vec<_>>(), Some(deadline)).map_err(fail)?;
            if !ended || Instant::now() >= deadline {
                let processes = left.into_iter().map(|left| left.process).collect();
                return Err(Error::Unkillable { processes, within: SETTLE_WITHIN });
            }
        }
    }

    /// Kills every process; returns up to [`MAX_PINNED`] of those that have not ended yet.
    fn kill_each(&self) -> Result<Vec<Pinned>, Error> {
        let mut left = Vec::new();
        for pid in self.pids()? {
            let Some(pinned) = pinned::pin(pid, |pid| self.holds(pid))? else { continue };
            // A process that may not be killed stays in the list until the timeout.
            let _ = pidfd_send_signal(&pinned.pidfd, Signal::KILL);
            if left.len() < MAX_PINNED {
                left.push(pinned);
            }
        }
        Ok(left)
    }
}

impl Containment for ProcessGroup {
    fn entry(&self, command: &mut Command) -> Result<EnterFn, Error> {
        command.env(&self.members.mark.variable, "1");
        let group = self.members.group;
        Ok(Box::new(move |_| match setpgid(None, Some(group)) {
            // The command has made the process a session leader, which cannot change its group. The
            // mark identifies it.
            Err(Errno::PERM) if sys::is_session_and_group_leader().0 => Ok(()),
            joined => Ok(joined?),
        }))
    }

    fn place(&self) -> String {
        format!("process group {}", self.members.group)
    }

    fn pids(&self) -> Result<Vec<i32>, Error> {
        self.members.pids()
    }

    fn holds(&self, pid: i32) -> Result<bool, Error> {
        self.members.holds(pid)
    }

    fn events(&self) -> Option<PathBuf> {
        None
    }

    fn kill(&self) -> Result<(), Error> {
        self.members.kill()
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

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!("failed to end a job, left to its keeper: {error}");
            // Not dropped, so that the keeper kills the rest when this process ends.
            std::mem::forget(self.keeper.take());
        }
    }
}

/// The task of the keeper of a process group.
struct GroupKeeper<'a> {
    mark: &'a EnvironmentMark,
}

impl KeeperTask for GroupKeeper<'_> {
    fn start(&self) -> io::Result<Option<Pid>> {
        // Not in the owner's process group, which the terminal may signal, but in the same session:
        // a process cannot join a group in another session.
        setpgid(None, None)?;
        let lead = || i32::from(setpgid(None, None).is_err());
        // SAFETY: the child makes one system call.
        let leader = unsafe { sys::fork(lead) }?;
        // Not reaped (NOWAIT): the zombie keeps the id of the group taken.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let ended = waitid(WaitId::Pid(leader), options)?;
        match ended.and_then(|ended| ended.exit_status()) {
            Some(0) => Ok(Some(leader)),
            _ => Err(Errno::PERM.into()),
        }
    }

    fn clean_up(&self, kept: Option<Pid>) {
        if let Some(group) = kept {
            let members = GroupMembers { group, mark: self.mark.clone() };
            while let Err(Error::Unkillable { .. }) = members.kill() {}
        }
    }
}
