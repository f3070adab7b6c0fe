//! Ending a job politely.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::fs::File;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;

use super::child::wait_for;
use super::error::Error;
use super::job::Job;
use super::pinned::{Pinned, has_ended};
use super::procfs::Process;
use crate::linux::cgroup::events_say;

/// What came of [`Job::shutdown`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shutdown {
    /// Who ended in time, in that order.
    pub left: Vec<Left>,
    /// Who had to be killed.
    pub killed: Vec<Process>,
    /// Who is still there: nobody was to be killed, or it could not be.
    pub remaining: Vec<Process>,
}

/// A process that ended when it was asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// The process, as it was before.
    pub process: Process,
    /// How long after the signal it was seen to have ended.
    pub after: Duration,
}

impl fmt::Display for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Left { process, after } in &self.left {
            writeln!(f, "{:>9.1?}  {process} left", after)?;
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
    /// Sends `signal` to every process and waits up to `grace` until the job is empty. Then, if
    /// `escalate`, kills those that are left.
    ///
    /// The report has the processes that were there at the signal, and those of their descendants
    /// that were seen since.
    ///
    /// # Errors
    ///
    /// If a process cannot be signalled. Who could not be killed is among those that remain.
    pub fn shutdown(
        &self,
        signal: Signal,
        grace: Duration,
        escalate: bool,
    ) -> Result<Shutdown, Error> {
        let began = Instant::now();
        let deadline = began.checked_add(grace);
        let mut watch = Watch::new(self)?;
        watch.look()?;
        self.signal(signal)?;
        let mut report = Shutdown::default();
        let is_late = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        while !watch.is_over()? && !is_late() {
            // Who is in the job now is waited for, or there would be nobody to wait for.
            watch.look()?;
            watch.wait(deadline)?;
            watch.take_ended(began, &mut report.left);
        }
        watch.take_ended(began, &mut report.left);
        let remaining = self.members()?;
        if !escalate {
            report.remaining = remaining;
            return Ok(report);
        }
        match self.kill_all() {
            Err(Error::Unkillable { processes, .. }) => report.remaining = processes,
            killed => killed?,
        }
        let is_left =
            |process: &Process| report.remaining.iter().any(|left| left.pid == process.pid);
        report.killed = remaining.into_iter().filter(|process| !is_left(process)).collect();
        Ok(report)
    }
}

/// How many processes are watched at a time, for each takes a descriptor.
const MOST_WATCHED: usize = 256;

/// Watches the processes of a job end.
struct Watch<'a> {
    job: &'a Job,
    /// `cgroup.events`, which tells of those that came and went between two looks.
    events: Option<File>,
    running: HashMap<i32, Pinned>,
}

impl<'a> Watch<'a> {
    fn new(job: &'a Job) -> Result<Self, Error> {
        let path = job.containment().events();
        let open = |path: std::path::PathBuf| {
            let fail = Error::system(format!("open {}", path.display()));
            File::open(&path).map_err(fail)
        };
        let events = path.map(open).transpose()?;
        Ok(Self { job, events, running: HashMap::new() })
    }

    /// Adds processes that are there now.
    fn look(&mut self) -> Result<(), Error> {
        for pid in self.job.containment().pids()? {
            if self.running.len() >= MOST_WATCHED {
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

    /// Whether the job is empty.
    fn is_over(&mut self) -> Result<bool, Error> {
        let Some(events) = &mut self.events else {
            return Ok(self.running.is_empty() && self.job.members()?.is_empty());
        };
        // `wait` is told of what has changed since it was read.
        events_say(events, "populated 0").map_err(Error::system("read cgroup.events"))
    }

    /// Waits until a process ends, the job gets empty, or `deadline`. Not if there is nobody to wait
    /// for: then all have ended since they were looked for.
    fn wait(&self, deadline: Option<Instant>) -> Result<(), Error> {
        let pidfds = self.running.values().map(|one| PollFd::new(&one.pidfd, PollFlags::IN));
        let events = self.events.iter().map(|events| PollFd::new(events, PollFlags::PRI));
        let mut fds: Vec<_> = pidfds.chain(events).collect();
        if !fds.is_empty() {
            wait_for(&mut fds, deadline).map_err(Error::system("wait for a job to end"))?;
        }
        Ok(())
    }

    /// Moves those that have ended to the report.
    fn take_ended(&mut self, began: Instant, left: &mut Vec<Left>) {
        let after = began.elapsed();
        let ended = self.running.extract_if(|_, pinned| has_ended(&pinned.pidfd));
        left.extend(ended.map(|(_, Pinned { process, .. })| Left { process, after }));
    }
}
