//! A job as a process group, for those who may make no cgroup.
//!
//! The keeper leads the group, so its number stays taken as long as the job lives. Who leaves the
//! group is known by a variable that all processes of the job have in their environment; who clears
//! that as well escapes.

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{
    Pid, Signal, getpid, kill_current_process_group, kill_process_group, pidfd_send_signal, setpgid,
};

use super::child::wait_for;
use super::containment::{Containment, EnterFn, Usage};
use super::keeper::{Duty, Keeper};
use super::members::{self, Process, Stat};
use super::name::Name;
use super::{Error, Limits};
use crate::cgroup::SETTLE_WITHIN;
use crate::sys;

/// A process group that was made for one job.
#[derive(Debug)]
pub(super) struct Group {
    why: String,
    mark: Mark,
    /// Another one after each kill, for it is killed as well.
    keeper: Mutex<Option<Keeper>>,
}

/// How processes that have left the group are found.
#[derive(Debug, Clone)]
struct Mark {
    variable: String,
    /// No process of the job is older than its owner.
    start_ticks: u64,
}

impl Mark {
    /// Whether a process is alive and began with the mark in its environment.
    fn is_on(&self, pid: i32) -> bool {
        let young = Stat::read(pid)
            .is_some_and(|stat| stat.is_alive() && stat.start_ticks >= self.start_ticks);
        young && members::has_variable(pid, &self.variable)
    }

    /// Kills those that have the mark.
    fn kill(&self) {
        for pid in members::all_pids().into_iter().filter(|pid| self.is_on(*pid)) {
            let Some(pidfd) = members::pin(pid) else { continue };
            // It is still the one that was looked at, and not a new one of the same number.
            if self.is_on(pid) {
                let _ = pidfd_send_signal(pidfd, Signal::KILL);
            }
        }
    }

    /// Whether a process is alive and in the group or marked. Its keeper does not count.
    fn holds(&self, group: Pid, pid: i32) -> bool {
        let group = group.as_raw_nonzero().get();
        let Some(stat) = Stat::read(pid).filter(Stat::is_alive) else { return false };
        pid != group && (stat.pgrp == group || self.is_on(pid))
    }

    fn members(&self, group: Pid) -> Vec<Process> {
        let pids = members::all_pids().into_iter().filter(|pid| self.holds(group, *pid));
        pids.filter_map(Process::read).collect()
    }

    /// Kills the group, its keeper with it, and all that have the mark; returns when they are gone.
    fn kill_group(&self, group: Pid) -> Result<(), Error> {
        let deadline = Instant::now() + SETTLE_WITHIN;
        loop {
            // As long as nobody has reaped the keeper, the number stays the group's. No fork gets
            // through: the kernel refuses those of a process that has a signal to take.
            let _ = kill_process_group(group, Signal::KILL);
            self.kill();
            let left = self.members(group);
            if left.is_empty() {
                return Ok(());
            }
            let pidfds: Vec<_> = left.iter().filter_map(|left| members::pin(left.pid)).collect();
            let fds = pidfds.iter().map(|pidfd| PollFd::new(pidfd, PollFlags::IN));
            let mut fds: Vec<_> = fds.collect();
            let fail = Error::system("wait for the end of killed processes");
            let ended = fds.is_empty() || wait_for(&mut fds, Some(deadline)).map_err(fail)?;
            if !ended || Instant::now() >= deadline {
                return Err(Error::Unkillable { processes: left, within: SETTLE_WITHIN });
            }
        }
    }
}

impl Group {
    /// Makes a process group for a job; `why` it is not a cgroup.
    pub(super) fn new(why: String) -> Result<Self, Error> {
        let name = Name::next();
        let mark = Mark { variable: name.variable(), start_ticks: name.start_ticks() };
        let keeper = Mutex::new(Some(start_keeper(&mark)?));
        Ok(Self { why, mark, keeper })
    }

    fn keeper(&self) -> MutexGuard<'_, Option<Keeper>> {
        self.keeper.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// The number of the group; `None` if the last kill could start no keeper for a new one.
    fn number(&self) -> Option<Pid> {
        self.keeper().as_ref().map(Keeper::pid)
    }

    fn needs_cgroup(&self, operation: &'static str) -> Error {
        Error::NeedsCgroup { operation, why: self.why.clone() }
    }
}

fn start_keeper(mark: &Mark) -> Result<Keeper, Error> {
    Keeper::start(&Keep { mark }).map_err(Error::system("fork a keeper"))
}

impl Containment for Group {
    fn entry(&self, command: &mut Command) -> Result<EnterFn, Error> {
        command.env(&self.mark.variable, "1");
        let mut keeper = self.keeper();
        let group = match &*keeper {
            Some(keeper) => keeper.pid(),
            None => keeper.insert(start_keeper(&self.mark)?).pid(),
        };
        Ok(Box::new(move |_| Ok(setpgid(None, Some(group))?)))
    }

    fn place(&self) -> String {
        match self.number() {
            Some(number) => format!("process group {number}"),
            None => "a process group".to_owned(),
        }
    }

    fn members(&self) -> Result<Vec<Process>, Error> {
        Ok(self.number().map(|group| self.mark.members(group)).unwrap_or_default())
    }

    fn holds(&self, pid: i32) -> bool {
        self.number().is_some_and(|group| self.mark.holds(group, pid))
    }

    fn events(&self) -> Option<PathBuf> {
        None
    }

    fn kill(&self) -> Result<(), Error> {
        // The number is another's as soon as the keeper is reaped, so nobody may start one here.
        let mut keeper = self.keeper();
        if let Some(group) = keeper.as_ref().map(Keeper::pid) {
            self.mark.kill_group(group)?;
        }
        drop(keeper.take());
        Ok(())
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
        // Without a keeper there is nobody left to see to it at this process's end.
        if let Err(error) = self.kill() {
            tracing::warn!("left behind: {error}");
        }
    }
}

/// What the keeper of a group does.
struct Keep<'a> {
    mark: &'a Mark,
}

impl Duty for Keep<'_> {
    fn settle(&self) -> io::Result<()> {
        Ok(setpgid(None, None)?)
    }

    fn end(&self) {
        let group = getpid();
        let finish = || {
            // Not in the group that is killed.
            if setpgid(None, None).is_ok() {
                let _ = self.mark.kill_group(group);
            }
            0
        };
        // SAFETY: a keeper has one thread and holds no lock.
        if unsafe { sys::fork(finish) }.is_err() {
            let _ = kill_current_process_group(Signal::KILL);
        }
    }
}
