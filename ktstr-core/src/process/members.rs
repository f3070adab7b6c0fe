//! Processes as /proc tells of them.
//!
//! Source: proc_pid_stat(5), proc_pid_environ(5).

use std::fmt;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use super::Error;
use crate::sys;

/// A process of a job, as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its command name, at most 15 bytes.
    pub comm: String,
    /// Its arguments, with spaces between them; empty once it has given up its memory.
    pub cmdline: String,
    /// That of its first thread: `R` running, `S` sleeping, `D` waiting in the kernel, `T` stopped,
    /// `Z` ended.
    pub state: char,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} (state {}, `{}`)", self.pid, self.comm, self.state, self.cmdline)
    }
}

impl Process {
    /// Looks at a process; `None` if there is none of that number.
    pub(super) fn read(pid: i32) -> Option<Self> {
        let stat = Stat::read(pid)?;
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = cmdline.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let cmdline = words.join(" ").trim_end().to_owned();
        Some(Self { pid, comm: stat.comm, cmdline, state: stat.state })
    }
}

/// What `/proc/PID/stat` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) comm: String,
    pub(super) state: char,
    pub(super) pgrp: i32,
    /// CPU time of its own and of the children it has waited for, in ticks.
    pub(super) cpu_ticks: u64,
    /// When it began, in ticks since boot. With the pid, this names a process for ever.
    pub(crate) start_ticks: u64,
}

impl Stat {
    pub(crate) fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // A command name may hold anything, parentheses too.
        let (before, after) = text.rsplit_once(')')?;
        let comm = before.split_once('(')?.1.to_owned();
        let fields: Vec<_> = after.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            comm,
            state: fields.first()?.chars().next()?,
            pgrp: fields.get(2)?.parse().ok()?,
            cpu_ticks: (14..=17).map(number).sum::<Option<u64>>()?,
            start_ticks: number(22)?,
        })
    }
}

/// CPU time from the ticks of [`Stat`].
pub(super) fn ticks(count: u64) -> Duration {
    Duration::from_nanos(count * (1_000_000_000 / sys::ticks_per_second()))
}

/// The most memory a process has had at once, in bytes; none once it has ended.
pub(super) fn peak_memory(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// A process that cannot be taken for another one any more, whatever becomes of its number.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) process: Process,
    pub(super) pidfd: OwnedFd,
}

/// Takes hold of a process; `None` if it has ended, or if `is_meant` is not true any more then.
///
/// What has ended is told by its pidfd: by its state, so has one whose first thread has ended while
/// others run.
///
/// # Errors
///
/// If no descriptors are left: who cannot be held must not be passed over.
pub(super) fn pin(
    number: i32,
    is_meant: impl FnOnce(i32) -> bool,
) -> Result<Option<Pinned>, Error> {
    let Some(pid) = Pid::from_raw(number.max(0)) else { return Ok(None) };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        // ENOENT and EINVAL: a thread that leads no process.
        Err(Errno::SRCH | Errno::NOENT | Errno::INVAL) => return Ok(None),
        Err(errno) => return Err(Error::system(format!("open a pidfd of process {pid}"))(errno)),
    };
    if has_ended(&pidfd) || !is_meant(number) {
        return Ok(None);
    }
    Ok(Process::read(number).map(|process| Pinned { process, pidfd }))
}

/// Whether the process of a pidfd has ended. One system call.
pub(super) fn has_ended(pidfd: impl AsFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    !matches!(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&now)), Ok(0))
}

/// The numbers of all processes that can be seen.
pub(super) fn all_pids() -> Result<Vec<i32>, Error> {
    let entries = fs::read_dir("/proc").map_err(Error::system("list /proc"))?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    let names = names.collect::<Result<Vec<_>, _>>().map_err(Error::system("list /proc"))?;
    Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
}

/// Whether the numbers in /proc are those of this process's pid namespace.
pub(super) fn proc_is_ours() -> bool {
    let own = getpid().to_string();
    fs::read_link("/proc/self").is_ok_and(|link| link.as_os_str() == own.as_str())
}

/// Refuses a /proc whose numbers are those of other processes.
pub(super) fn check_proc() -> Result<(), Error> {
    if proc_is_ours() {
        return Ok(());
    }
    let why = "it shows another pid namespace; mount one of this: `mount -t proc proc /proc`";
    Err(Error::system("find processes in /proc")(std::io::Error::other(why)))
}

/// Whether the environment of a process has a variable: the memory in which it began, as far as it
/// can be read and has not been written over.
pub(super) fn has_variable(pid: i32, name: &str) -> bool {
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let prefix = format!("{name}=");
    environ.split(|byte| *byte == 0).any(|variable| variable.starts_with(prefix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_command_name_is_read() {
        let text = "7 (a) b ( c) S 1 42 42 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 1 0 5555 1 2";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat.comm, "a) b ( c");
        assert_eq!((stat.state, stat.pgrp, stat.cpu_ticks, stat.start_ticks), ('S', 42, 127, 5555));
        assert_eq!(Stat::parse("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_is_found_with_its_arguments_and_environment() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let process = Process::read(own).unwrap();
        let program = std::env::args().next().unwrap();
        assert!(process.cmdline.starts_with(&program), "{process}");
        assert!(all_pids().unwrap().contains(&own) && peak_memory(own).unwrap() > 0);
        assert!(proc_is_ours());
        assert!(!has_ended(&pin(own, |_| true).unwrap().unwrap().pidfd));
        assert!(pin(own, |_| false).unwrap().is_none());
        assert!([0, -1, i32::MAX].into_iter().all(|none| pin(none, |_| true).unwrap().is_none()));
        assert!(has_variable(own, "PATH") && !has_variable(own, "PAT"));
    }
}
