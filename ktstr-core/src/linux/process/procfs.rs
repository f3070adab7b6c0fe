//! Reads processes from /proc.
//!
//! All functions return bytes or typed values: command names, arguments and paths of cgroups need
//! not be UTF-8.
//!
//! Source: proc_pid_stat(5), proc_pid_environ(5).

use std::fmt;
use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::getpid;

use crate::linux::sys;

/// A snapshot of one process of a job.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Process {
    /// The pid.
    pub pid: i32,
    /// The command name, at most 15 bytes. Bytes that are not UTF-8 are shown as U+FFFD.
    pub comm: String,
    /// The arguments, joined by spaces. Empty once the process has released its memory.
    pub cmdline: String,
    /// The state of the first thread: `R` running, `S` sleeping, `D` uninterruptible, `T` stopped,
    /// `Z` ended.
    pub state: char,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} (state {}, `{}`)", self.pid, self.comm, self.state, self.cmdline)
    }
}

impl Process {
    /// Reads a process; `None` if it does not exist.
    pub(super) fn read(pid: i32) -> io::Result<Option<Self>> {
        let Some(stat) = Stat::read(pid)? else { return Ok(None) };
        let cmdline = read_file(pid, "cmdline")?.unwrap_or_default();
        let words: Vec<_> = cmdline.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let cmdline = words.join(" ").trim_end().to_owned();
        let comm = String::from_utf8_lossy(&stat.comm).into_owned();
        Ok(Some(Self { pid, comm, cmdline, state: stat.state }))
    }
}

/// Reads a file of a process in /proc; `None` if the process does not exist.
///
/// # Errors
///
/// Everything but ENOENT and ESRCH: the process may still exist then.
pub(super) fn read_file(pid: i32, file: &str) -> io::Result<Option<Vec<u8>>> {
    let path = format!("/proc/{pid}/{file}");
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        Err(error) => Err(io::Error::new(error.kind(), ReadError { path, source: error })),
    }
}

/// Returns whether this user lacks the permission to read a file in /proc.
///
/// Either the process belongs to another user, or /proc is mounted with `hidepid`.
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
    /// The command name, at most 15 bytes, not necessarily UTF-8.
    pub(crate) comm: Vec<u8>,
    pub(super) state: char,
    pub(super) pgrp: i32,
    /// CPU time of the process and of the children it has waited for, in ticks.
    pub(super) cpu_ticks: u64,
    /// Start time in ticks since boot. Together with the pid it identifies a process uniquely.
    pub(crate) start_ticks: u64,
}

impl Stat {
    /// Reads the file of a process; `None` if the process does not exist.
    pub(crate) fn read(pid: i32) -> io::Result<Option<Self>> {
        let Some(bytes) = read_file(pid, "stat")? else { return Ok(None) };
        // The file of a process that ends during the read is empty.
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
        // A command name may contain any byte but NUL, including parentheses and line breaks. All
        // fields after the last parenthesis are ASCII.
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

/// Converts the ticks of [`Stat`] to CPU time.
pub(super) fn ticks(count: u64) -> Duration {
    Duration::from_nanos(count * (1_000_000_000 / sys::ticks_per_second()))
}

/// Returns the peak memory of a process in bytes; `None` once it has ended.
pub(super) fn peak_memory(pid: i32) -> io::Result<Option<u64>> {
    // The line `Name:` contains the command name, which need not be UTF-8.
    let status = read_file(pid, "status")?.unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.map(|kib| kib << 10))
}

pub(super) fn all_pids() -> io::Result<Vec<i32>> {
    let names = fs::read_dir("/proc")?.map(|entry| entry.map(|entry| entry.file_name()));
    let names = names.collect::<io::Result<Vec<_>>>()?;
    Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
}

/// Returns whether /proc shows the pid namespace of this process.
pub(super) fn proc_is_ours() -> io::Result<bool> {
    let own = getpid().to_string();
    match fs::read_link("/proc/self") {
        Ok(link) => Ok(link.as_os_str() == own.as_str()),
        // This process has no pid in the namespace that is shown.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns whether a process was started with a variable in its environment, as far as it has not
/// overwritten that memory since. False if this user may not read it.
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
    fn stat_parse_accepts_any_command_name() {
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

    /// The kernel sets the command name to the name of the executed file.
    #[test]
    fn process_read_accepts_non_utf8_command_names() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        for comm in [&b"t\xc3\xb6\xc3"[..], b"x) R 1 1\n7 (y"] {
            let program = dir.path().join(std::ffi::OsStr::from_bytes(comm));
            fs::copy("/bin/sleep", &program).unwrap();
            let mut child = std::process::Command::new(&program).arg("1000").spawn().unwrap();
            let pid = child.id().try_into().unwrap();
            let process = Process::read(pid).unwrap().expect("it runs");
            let (stat, peak) = (Stat::read(pid).unwrap().unwrap(), peak_memory(pid).unwrap());
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(process.comm, String::from_utf8_lossy(comm));
            assert_eq!(stat.comm, comm);
            assert!(peak.is_some_and(|peak| peak > 0), "{peak:?}");
            assert_eq!(Stat::read(pid).unwrap(), None, "it has been waited for");
        }
    }

    #[test]
    fn read_file_returns_every_error_but_absence() {
        let own = getpid().as_raw_nonzero().get();
        assert!(read_file(own, "stat").unwrap().is_some());
        assert_eq!(read_file(i32::MAX, "stat").unwrap(), None);
        let error = read_file(own, "task").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
        assert!(error.to_string().starts_with(&format!("cannot read /proc/{own}/task: ")));
    }

    #[test]
    fn process_read_returns_the_arguments_of_this_process() {
        let own = getpid().as_raw_nonzero().get();
        let process = Process::read(own).unwrap().unwrap();
        let program = std::env::args().next().unwrap();
        assert!(process.cmdline.starts_with(&program), "{process}");
        assert!(all_pids().unwrap().contains(&own) && peak_memory(own).unwrap() > Some(0));
        assert!(proc_is_ours().unwrap());
        assert!(has_variable(own, "PATH").unwrap() && !has_variable(own, "PAT").unwrap());
    }
}
