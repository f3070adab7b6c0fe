//! Processes, as read from /proc.
//!
//! Source: proc_pid_stat(5), proc_pid_environ(5).

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use super::Error;
use crate::linux::sys;

/// A process of a job, as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its command name, at most 15 bytes; those that are not UTF-8 are shown as U+FFFD.
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
    /// Reads a process; `None` if it is gone.
    pub(super) fn read(pid: i32) -> io::Result<Option<Self>> {
        let Some(stat) = Stat::read(pid)? else { return Ok(None) };
        let cmdline = read_file(pid, "cmdline")?.unwrap_or_default();
        let words: Vec<_> = cmdline.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let cmdline = words.join(" ").trim_end().to_owned();
        let comm = String::from_utf8_lossy(&stat.comm).into_owned();
        Ok(Some(Self { pid, comm, cmdline, state: stat.state }))
    }
}

/// Reads a file of a process in /proc; `None` if the process is gone.
///
/// Bytes, not text: command names, arguments and paths of cgroups need not be UTF-8. Any error but
/// ENOENT and ESRCH leaves open whether the process is there, and is returned.
pub(super) fn read_file(pid: i32, file: &str) -> io::Result<Option<Vec<u8>>> {
    let path = format!("/proc/{pid}/{file}");
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        Err(error) => Err(io::Error::new(error.kind(), ReadError { path, source: error })),
    }
}

/// Whether a file in /proc may not be read by this user.
///
/// The process belongs to another user, or /proc is mounted with `hidepid`.
pub(super) fn is_denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// A file in /proc that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {source}")]
struct ReadError {
    path: String,
    source: io::Error,
}

/// The contents of `/proc/PID/stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stat {
    /// The command name, which need not be UTF-8: at most 15 bytes of what a program calls itself.
    pub(crate) comm: Vec<u8>,
    pub(super) state: char,
    pub(super) pgrp: i32,
    /// CPU time of its own and of the children it has waited for, in ticks.
    pub(super) cpu_ticks: u64,
    /// When it began, in ticks since boot. With the pid, this names a process for ever.
    pub(crate) start_ticks: u64,
}

impl Stat {
    /// Reads the file of a process; `None` if the process is gone.
    pub(crate) fn read(pid: i32) -> io::Result<Option<Self>> {
        let Some(bytes) = read_file(pid, "stat")? else { return Ok(None) };
        // A process that ends while it is read gives an empty file.
        if bytes.is_empty() {
            return Ok(None);
        }
        Self::parse(&bytes).map(Some).ok_or_else(|| {
            let text = String::from_utf8_lossy(&bytes);
            let error = format!("cannot parse /proc/{pid}/stat: `{}`", text.trim_end());
            io::Error::new(io::ErrorKind::InvalidData, error)
        })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        // A command name may hold any byte but NUL: parentheses, line breaks, half a letter. What
        // follows the last parenthesis is ASCII.
        let open = bytes.iter().position(|byte| *byte == b'(')?;
        let close = bytes.iter().rposition(|byte| *byte == b')')?;
        let comm = bytes.get(open + 1..close)?.to_vec();
        let fields: Vec<_> =
            std::str::from_utf8(&bytes[close + 1..]).ok()?.split_whitespace().collect();
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

/// Returns the most memory a process has had at once, in bytes; `None` once it has ended.
pub(super) fn peak_memory(pid: i32) -> io::Result<Option<u64>> {
    // The line `Name:` holds the command name, which need not be UTF-8.
    let status = read_file(pid, "status")?.unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.map(|kib| kib << 10))
}

/// A process that cannot be taken for another one any more, whatever becomes of its number.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) process: Process,
    pub(super) pidfd: OwnedFd,
}

/// Opens a pidfd of a process; `None` if it has ended, or if `is_meant` returns false after that.
///
/// Whether it has ended is read from its pidfd: by its state, so has one whose first thread has
/// ended while others run.
///
/// # Errors
///
/// If no descriptors are left, or /proc cannot be read: the process may be there, and must not be
/// passed over.
pub(super) fn pin(
    number: i32,
    is_meant: impl FnOnce(i32) -> Result<bool, Error>,
) -> Result<Option<Pinned>, Error> {
    let Some(pid) = Pid::from_raw(number.max(0)) else { return Ok(None) };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        // ENOENT and EINVAL: a thread that leads no process.
        Err(Errno::SRCH | Errno::NOENT | Errno::INVAL) => return Ok(None),
        Err(errno) => return Err(Error::system(format!("open a pidfd of process {pid}"))(errno)),
    };
    if has_ended(&pidfd) || !is_meant(number)? {
        return Ok(None);
    }
    let process = Process::read(number).map_err(Error::system(format!("look at process {pid}")))?;
    Ok(process.map(|process| Pinned { process, pidfd }))
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
pub(super) fn proc_is_ours() -> io::Result<bool> {
    let own = getpid().to_string();
    match fs::read_link("/proc/self") {
        Ok(link) => Ok(link.as_os_str() == own.as_str()),
        // This process has no number there.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Refuses a /proc whose numbers are those of other processes.
pub(super) fn check_proc() -> Result<(), Error> {
    let fail = || Error::system("find processes in /proc");
    if proc_is_ours().map_err(fail())? {
        return Ok(());
    }
    let why = "it is not mounted or shows another pid namespace: `mount -t proc proc /proc`";
    Err(fail()(io::Error::other(why)))
}

/// Whether the environment of a process has a variable: the memory in which it began, as far as it
/// has not been written over. False if this user may not read it.
pub(super) fn has_variable(pid: i32, name: &str) -> io::Result<bool> {
    let environ = match read_file(pid, "environ") {
        Err(error) if is_denied(&error) => None,
        read => read?,
    };
    let prefix = format!("{name}=");
    let environ = environ.unwrap_or_default();
    Ok(environ.split(|byte| *byte == 0).any(|variable| variable.starts_with(prefix.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_parse_takes_any_command_name() {
        for comm in [&b"a) b ( c"[..], b"", b"t\xc3\xb6\xc3", b"x) R 1 1\n7 (y", b"\xff\x01\n)"] {
            let after = b") S 1 42 42 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 1 0 5555 1 2\n";
            let stat = Stat::parse(&[b"7 (", comm, after].concat()).unwrap();
            assert_eq!(stat.comm, comm);
            assert_eq!((stat.state, stat.pgrp), ('S', 42));
            assert_eq!((stat.cpu_ticks, stat.start_ticks), (127, 5555));
        }
        for malformed in [&b"7 (a) S 1"[..], b"7 )a( S 1", b"7 a S 1", b""] {
            assert_eq!(Stat::parse(malformed), None);
        }
    }

    /// The kernel names a process after the file it runs.
    #[test]
    fn process_read_takes_the_kernels_bytes() {
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        for comm in [&b"t\xc3\xb6\xc3"[..], b"x) R 1 1\n7 (y"] {
            let program = folder.path().join(std::ffi::OsStr::from_bytes(comm));
            fs::copy("/bin/sleep", &program).unwrap();
            let mut child = std::process::Command::new(&program).arg("1000").spawn().unwrap();
            let pid = child.id().try_into().unwrap();
            let process = pin(pid, |_| Ok(true)).unwrap().expect("it runs").process;
            let (stat, peak) = (Stat::read(pid).unwrap().unwrap(), peak_memory(pid).unwrap());
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(process.comm, String::from_utf8_lossy(comm));
            assert_eq!(stat.comm, comm);
            assert!(peak.is_some_and(|peak| peak > 0), "{peak:?}");
            assert_eq!(Stat::read(pid).unwrap(), None, "it has been waited for");
        }
    }

    /// A file that cannot be opened is not a process that has ended.
    #[test]
    fn read_file_returns_errors_other_than_absence() {
        let own = getpid().as_raw_nonzero().get();
        assert!(read_file(own, "stat").unwrap().is_some());
        assert_eq!(read_file(i32::MAX, "stat").unwrap(), None);
        let error = read_file(own, "task").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
        assert!(error.to_string().starts_with(&format!("cannot read /proc/{own}/task: ")));
    }

    #[test]
    fn this_process_is_found_with_its_arguments_and_environment() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let process = Process::read(own).unwrap().unwrap();
        let program = std::env::args().next().unwrap();
        assert!(process.cmdline.starts_with(&program), "{process}");
        assert!(all_pids().unwrap().contains(&own) && peak_memory(own).unwrap() > Some(0));
        assert!(proc_is_ours().unwrap());
        assert!(!has_ended(&pin(own, |_| Ok(true)).unwrap().unwrap().pidfd));
        assert!(pin(own, |_| Ok(false)).unwrap().is_none());
        assert!(
            [0, -1, i32::MAX].into_iter().all(|none| pin(none, |_| Ok(true)).unwrap().is_none())
        );
        assert!(has_variable(own, "PATH").unwrap() && !has_variable(own, "PAT").unwrap());
    }
}
