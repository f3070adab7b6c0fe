//! Names of jobs. Each identifies its owner, so that jobs with a dead owner can be recognized.

use std::fs;
use std::io;
use std::os::linux::fs::MetadataExt;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use super::error::Error;
use super::pinned::has_ended;
use super::procfs::{Stat, proc_is_ours};

const PREFIX: &str = "ktstr-job";

/// The name of a job: of its cgroup, or of the environment variable that marks its processes.
///
/// `ktstr-job.PIDNS.TIMENS.PID.START.N`: pid namespace, pid and start time of the owner (in ticks of
/// its time namespace), which together are unique, and the number of the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JobName {
    pid_namespace: u64,
    time_namespace: u64,
    pid: i32,
    start_ticks: u64,
    number: u32,
}

/// Returns whether a cgroup with this name is that of a job.
pub(crate) fn is_job_cgroup(name: &str) -> bool {
    JobName::parse(name).is_some()
}

impl JobName {
    /// Returns a name that this process has not used yet.
    ///
    /// # Errors
    ///
    /// If /proc cannot be read. With a wrong start time, the owner would be considered dead.
    pub(super) fn next() -> Result<Self, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let pid = getpid().as_raw_nonzero().get();
        let fail = || Error::system("name a job after this process");
        let stat = Stat::read(pid).map_err(fail())?;
        let stat = stat.ok_or(io::Error::from(Errno::SRCH)).map_err(fail())?;
        Ok(Self {
            pid_namespace: namespace("pid").map_err(fail())?,
            time_namespace: namespace("time").map_err(fail())?,
            pid,
            start_ticks: stat.start_ticks,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// Returns the start time of the owner in ticks since boot.
    pub(super) fn start_ticks(&self) -> u64 {
        self.start_ticks
    }

    pub(super) fn cgroup(&self) -> String {
        self.joined('.')
    }

    /// Returns the name of the environment variable. It is unique to the job, so that processes of a
    /// nested job have one for each.
    pub(super) fn variable(&self) -> String {
        self.joined('_').replace('-', "_").to_uppercase()
    }

    fn joined(&self, with: char) -> String {
        let numbers = [
            self.pid_namespace.to_string(),
            self.time_namespace.to_string(),
            self.pid.to_string(),
            self.start_ticks.to_string(),
            self.number.to_string(),
        ];
        numbers.iter().fold(PREFIX.to_owned(), |name, number| format!("{name}{with}{number}"))
    }

    pub(super) fn parse(cgroup: &str) -> Option<Self> {
        let mut parts = cgroup.strip_prefix(PREFIX)?.strip_prefix('.')?.split('.');
        let mut next = || parts.next()?.parse::<u64>().ok();
        let name = Self {
            pid_namespace: next()?,
            time_namespace: next()?,
            pid: next()?.try_into().ok()?,
            start_ticks: next()?,
            number: next()?.try_into().ok()?,
        };
        (parts.next().is_none() && name.cgroup() == cgroup).then_some(name)
    }

    /// Returns whether the owner has certainly ended; false if it is in another namespace or /proc
    /// cannot be read.
    pub(super) fn is_stale(&self) -> bool {
        let Some(pid) = Pid::from_raw(self.pid) else { return false };
        let is_own = |kind, number| namespace(kind).is_ok_and(|own| own == number);
        if !is_own("pid", self.pid_namespace) || !proc_is_ours().is_ok_and(|ours| ours) {
            return false;
        }
        match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => true,
            Err(_) => false,
            Ok(pidfd) if has_ended(&pidfd) => true,
            // The pid may have been reused by another process.
            Ok(_) => {
                let stat = Stat::read(self.pid).ok().flatten();
                is_own("time", self.time_namespace)
                    && stat.is_some_and(|stat| stat.start_ticks != self.start_ticks)
            }
        }
    }
}

/// Returns the inode number of a namespace of this process; 0 if the kernel does not have that kind.
fn namespace(kind: &str) -> io::Result<u64> {
    match fs::metadata(format!("/proc/self/ns/{kind}")) {
        Ok(namespace) => Ok(namespace.st_ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_accepts_only_names_of_jobs() {
        let name = JobName::next().unwrap();
        assert_eq!(JobName::parse(&name.cgroup()), Some(name.clone()));
        assert_ne!(JobName::next().unwrap(), name);
        for other in [
            "ktstr-job",
            "ktstr-job.",
            "ktstr-job.1.2.3.4",
            "ktstr-job.1.2.3.4.5.6",
            "ktstr-job.1.2.3.4.+5",
            "ktstr-job.1.2.-3.4.5",
            "ktstr-job.1.2.3.4.x",
            "ktstr-job.1.2.03.4.5",
            "x.ktstr-job.1.2.3.4.5",
        ] {
            assert_eq!(JobName::parse(other), None, "{other}");
        }
        assert!(
            name.variable()
                .chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
        );
    }

    #[test]
    fn next_reads_the_start_time_despite_a_non_utf8_command_name() {
        let comm = fs::read("/proc/self/comm").unwrap();
        fs::write("/proc/self/comm", b"t\xc3\xb6\xc3").unwrap();
        let name = JobName::next();
        let stat = Stat::read(getpid().as_raw_nonzero().get());
        fs::write("/proc/self/comm", comm).unwrap();
        let stat = stat.unwrap().expect("this process runs");
        assert_eq!(stat.comm, b"t\xc3\xb6\xc3");
        assert!(stat.start_ticks > 0);
        assert_eq!(name.unwrap().start_ticks, stat.start_ticks);
    }

    #[test]
    fn is_stale_only_with_a_dead_owner() {
        let own = JobName::next().unwrap();
        assert!(!own.is_stale());
        let reused = JobName { start_ticks: own.start_ticks - 1, ..own.clone() };
        assert!(reused.is_stale(), "an earlier process with this pid");
        let foreign = JobName { pid_namespace: own.pid_namespace + 1, ..reused.clone() };
        assert!(!foreign.is_stale(), "a pid of another namespace");
        let shifted = JobName { time_namespace: own.time_namespace + 1, ..reused };
        assert!(!shifted.is_stale(), "a start time of another clock");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let ended = JobName { pid: child.id().try_into().unwrap(), ..own };
        assert!(ended.is_stale());
    }
}
