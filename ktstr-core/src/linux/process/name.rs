//! Names of jobs, which say whose they are, and so which of them nobody owns any more.

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

/// The name of a job: of its cgroup, and what marks its processes where there is none.
///
/// `ktstr-job.PIDNS.TIMENS.PID.START.N`: the owner by its pid namespace, its number there and the tick
/// it began, as its time namespace counts, which no two processes share; and a number for each job
/// of that owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    pid_namespace: u64,
    time_namespace: u64,
    pid: i32,
    start_ticks: u64,
    number: u32,
}

impl Name {
    /// Returns a name that this process has not used yet.
    ///
    /// # Errors
    ///
    /// If /proc cannot be read. A name with a wrong start would look like that of a dead owner.
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

    /// When the owner began, in ticks since boot.
    pub(super) fn start_ticks(&self) -> u64 {
        self.start_ticks
    }

    /// The name as a cgroup's.
    pub(super) fn group(&self) -> String {
        self.joined('.')
    }

    /// The name as a variable of the environment. One per job, so that a job in a job has both.
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

    /// The reverse of [`group`](Self::group).
    pub(super) fn parse(group: &str) -> Option<Self> {
        let mut parts = group.strip_prefix(PREFIX)?.strip_prefix('.')?.split('.');
        let mut next = || parts.next()?.parse::<u64>().ok();
        let name = Self {
            pid_namespace: next()?,
            time_namespace: next()?,
            pid: next()?.try_into().ok()?,
            start_ticks: next()?,
            number: next()?.try_into().ok()?,
        };
        (parts.next().is_none() && name.group() == group).then_some(name)
    }

    /// Returns whether the owner has ended for sure; false if it is in another namespace, or if
    /// /proc cannot be read.
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
            // Its number may have passed to another process.
            Ok(_) => {
                let stat = Stat::read(self.pid).ok().flatten();
                is_own("time", self.time_namespace)
                    && stat.is_some_and(|stat| stat.start_ticks != self.start_ticks)
            }
        }
    }
}

/// Returns the number of a namespace of this process; 0 if the kernel has no such kind.
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
    fn names_are_told_apart_from_others() {
        let name = Name::next().unwrap();
        assert_eq!(Name::parse(&name.group()), Some(name.clone()));
        assert_ne!(Name::next().unwrap(), name);
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
            assert_eq!(Name::parse(other), None, "{other}");
        }
        assert!(
            name.variable()
                .chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
        );
    }

    /// With another start than its owner's, it would be that of a dead owner to everyone else.
    #[test]
    fn next_has_the_start_of_an_owner_whose_command_name_is_not_utf8() {
        let comm = fs::read("/proc/self/comm").unwrap();
        fs::write("/proc/self/comm", b"t\xc3\xb6\xc3").unwrap();
        let name = Name::next();
        let stat = Stat::read(getpid().as_raw_nonzero().get());
        fs::write("/proc/self/comm", comm).unwrap();
        let stat = stat.unwrap().expect("this process runs");
        assert_eq!(stat.comm, b"t\xc3\xb6\xc3");
        assert!(stat.start_ticks > 0);
        assert_eq!(name.unwrap().start_ticks, stat.start_ticks);
    }

    #[test]
    fn only_a_dead_owner_makes_a_name_stale() {
        let own = Name::next().unwrap();
        assert!(!own.is_stale());
        let reused = Name { start_ticks: own.start_ticks - 1, ..own.clone() };
        assert!(reused.is_stale(), "another process had this number");
        let foreign = Name { pid_namespace: own.pid_namespace + 1, ..reused.clone() };
        assert!(!foreign.is_stale(), "nobody here can tell");
        let shifted = Name { time_namespace: own.time_namespace + 1, ..reused };
        assert!(!shifted.is_stale(), "it may be the same, by another clock");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let gone = Name { pid: child.id().try_into().unwrap(), ..own };
        assert!(gone.is_stale());
    }
}
