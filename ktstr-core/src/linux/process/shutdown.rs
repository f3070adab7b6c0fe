//! Orderly shutdown of a job.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::fs::File;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;

use super::pinned::{Pinned, has_ended};
use super::{Error, Job, Process, wait_for};
use crate::linux::cgroup::events_contain;

/// The result of [`Job::shutdown`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shutdown {
    /// The processes that ended in time, in that order.
    pub exited: Vec<ExitedProcess>,
    /// The processes that were killed.
    pub killed: Vec<Process>,
    /// The processes that are still there: `escalate` was false, or they could not be killed.
    pub remaining: Vec<Process>,
}

/// A process that ended after the signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitedProcess {
    /// The process before the signal.
    pub process: Process,
    /// The time between the signal and the observed end.
    pub after: Duration,
}

impl fmt::Display for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ExitedProcess { process, after } in &self.exited {
            writeln!(f, "{:>9.1?}  {process} exited", after)?;
        }
        for (processes, what) in [(&self.killed, "was killed"), (&self.remaining, "remains")] {
            for process in processes {
                writeln!(f, "{:>9}  {process} {what}", "")?;
            }
        }
        Ok(())
    }
}

impl Job {
    /// Sends `signal` to every process and waits up to `grace` until the job is empty. Then kills
    /// the remaining processes if `escalate`.
    ///
    /// The result lists the processes that existed at the time of the signal, and those of their
    /// descendants that were observed later.
    ///
    /// # Errors
    ///
    /// If a process cannot be signalled. Processes that cannot be killed are in
    /// [`Shutdown::remaining`].
    pub fn shutdown(
        &self,
        signal: Signal,
        grace: Duration,
        escalate: bool,
    ) -> Result<Shutdown, Error> {
        let began = Instant::now();
        let deadline = began.checked_add(grace);
        let mut watch = ShutdownWatch::new(self)?;
        watch.add_members()?;
        self.signal(signal)?;
        let mut shutdown = Shutdown::default();
        let is_late = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        while !watch.is_job_empty()? && !is_late() {
            // New members are added first: `wait` returns at once if it watches no process.
            watch.add_members()?;
            watch.wait(deadline)?;
            watch.take_ended(began, &mut shutdown.exited);
        }
        watch.take_ended(began, &mut shutdown.exited);
        let remaining = self.members()?;
        if !escalate {
            shutdown.remaining = remaining;
            return Ok(shutdown);
        }
        match self.kill_all() {
            Err(Error::Unkillable { processes, .. }) => shutdown.remaining = processes,
            killed => killed?,
        }
        let is_left =
            |process: &Process| shutdown.remaining.iter().any(|left| left.pid == process.pid);
        shutdown.killed = remaining.into_iter().filter(|process| !is_left(process)).collect();
        Ok(shutdown)
    }
}

/// How many processes are watched at a time, because each takes a descriptor.
const MAX_WATCHED: usize = 256;

/// Watches the processes of a job until they end.
struct ShutdownWatch<'a> {
    job: &'a Job,
    /// `cgroup.events`, which also covers processes that start and end between two scans.
    events: Option<File>,
    running: HashMap<i32, Pinned>,
}

impl<'a> ShutdownWatch<'a> {
    fn new(job: &'a Job) -> Result<Self, Error> {
        let path = job.containment().events();
        let open = |path: std::path::PathBuf| {
            let fail = Error::system(format!("open {}", path.display()));
            File::open(&path).map_err(fail)
        };
        let events = path.map(open).transpose()?;
        Ok(Self { job, events, running: HashMap::new() })
    }

    /// Adds the current members of the job, up to [`MAX_WATCHED`].
    fn add_members(&mut self) -> Result<(), Error> {
        for pid in self.job.containment().pids()? {
            if self.running.len() >= MAX_WATCHED {
                break;
            }
            if let Entry::Vacant(entry) = self.running.entry(pid)
                && let Some(pinned) = self.job.pin(pid)?
            {
                entry.insert(pinned);
            }
        }
        Ok(())
    }

    fn is_job_empty(&mut self) -> Result<bool, Error> {
        let Some(events) = &mut self.events else {
            return Ok(self.running.is_empty() && self.job.members()?.is_empty());
        };
        // `wait` polls for changes since this read.
        events_contain(events, "populated 0").map_err(Error::system("read cgroup.events"))
    }

    /// Waits until a process ends, the job becomes empty, or `deadline`. Returns at once if there is
    /// nothing to wait for, because all processes have ended since they were listed.
    fn wait(&self, deadline: Option<Instant>) -> Result<(), Error> {
        let pidfds = self.running.values().map(|one| PollFd::new(&one.pidfd, PollFlags::IN));
        let events = self.events.iter().map(|events| PollFd::new(events, PollFlags::PRI));
        let mut fds: Vec<_> = pidfds.chain(events).collect();
        if !fds.is_empty() {
            wait_for(&mut fds, deadline).map_err(Error::system("wait for a job to end"))?;
        }
        Ok(())
    }

    /// Moves the processes that have ended to `exited`.
    fn take_ended(&mut self, began: Instant, exited: &mut Vec<ExitedProcess>) {
        let after = began.elapsed();
        let ended = self.running.extract_if(|_, pinned| has_ended(&pinned.pidfd));
        exited.extend(ended.map(|(_, Pinned { process, .. })| ExitedProcess { process, after }));
    }
}
