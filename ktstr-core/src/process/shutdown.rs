//! Ending a job politely.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::SeekFrom;
use rustix::process::Signal;

use super::child::{has_ended, wait_for};
use super::members::{self, Process};
use super::{Error, Job};

/// What came of [`Job::shutdown`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shutdown {
    /// Who ended in time, in that order.
    pub left: Vec<Left>,
    /// Who had to be killed.
    pub killed: Vec<Process>,
    /// Who is still there, as nobody was to be killed.
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
    /// If a process cannot be signalled or killed.
    pub fn shutdown(
        &self,
        signal: Signal,
        grace: Duration,
        escalate: bool,
    ) -> Result<Shutdown, Error> {
        let began = Instant::now();
        let mut watch = Watch::new(self)?;
        watch.look()?;
        self.signal(signal)?;
        let deadline = began.checked_add(grace);
        let mut report = Shutdown::default();
        let mut in_time = true;
        while in_time && !watch.is_over()? {
            in_time = watch.wait(deadline)?;
            watch.take_ended(began, &mut report.left);
            watch.look()?;
        }
        watch.take_ended(began, &mut report.left);
        let remaining = self.members()?;
        if escalate {
            self.kill_all()?;
            report.killed = remaining;
        } else {
            report.remaining = remaining;
        }
        Ok(report)
    }
}

/// Watches the processes of a job end.
struct Watch<'a> {
    job: &'a Job,
    /// `cgroup.events`, which tells of those that came and went between two looks.
    events: Option<File>,
    running: HashMap<i32, (Process, OwnedFd)>,
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

    /// Adds the processes that are there now. Without descriptors left they are seen by their job
    /// getting empty only.
    fn look(&mut self) -> Result<(), Error> {
        for process in self.job.members()? {
            if self.running.contains_key(&process.pid) {
                continue;
            }
            let Some(pidfd) = members::pin(process.pid) else { continue };
            if self.job.containment().holds(process.pid) {
                self.running.insert(process.pid, (process, pidfd));
            }
        }
        Ok(())
    }

    /// Whether the job is empty.
    fn is_over(&mut self) -> Result<bool, Error> {
        let Some(events) = &mut self.events else { return Ok(self.running.is_empty()) };
        // `wait` is told of what has changed since it was read.
        let mut text = String::new();
        rustix::fs::seek(&*events, SeekFrom::Start(0))
            .map_err(std::io::Error::from)
            .and_then(|_| events.read_to_string(&mut text))
            .map_err(Error::system("read cgroup.events"))?;
        Ok(text.lines().any(|line| line == "populated 0"))
    }

    /// Waits until a process ends or the job gets empty; false if that takes until `deadline`.
    fn wait(&self, deadline: Option<Instant>) -> Result<bool, Error> {
        let pidfds = self.running.values().map(|(_, pidfd)| PollFd::new(pidfd, PollFlags::IN));
        let events = self.events.iter().map(|events| PollFd::new(events, PollFlags::PRI));
        wait_for(&mut pidfds.chain(events).collect::<Vec<_>>(), deadline)
            .map_err(Error::system("wait for a job to end"))
    }

    /// Moves those that have ended to the report.
    fn take_ended(&mut self, began: Instant, left: &mut Vec<Left>) {
        let after = began.elapsed();
        let ended = self.running.extract_if(|_, (_, pidfd)| has_ended(pidfd));
        left.extend(ended.map(|(_, (process, _))| Left { process, after }));
    }
}
