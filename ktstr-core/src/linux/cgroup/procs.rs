//! Reads which processes and threads are in a cgroup.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use super::error::Error;
use super::files::read;

/// Reads the processes in one cgroup; in a threaded one, those that have a thread in it.
pub(super) fn read_procs(group: &Path) -> Result<Vec<i32>, Error> {
    let (pids, foreign) = read_pids(group)?;
    if foreign > 0 {
        let path = group.join("cgroup.procs");
        tracing::warn!("{}: {foreign} processes have no number here", path.display());
    }
    Ok(pids)
}

/// As [`read_procs`], and how many are of another pid namespace: they have no number here, and 0,
/// which stands for them, would be this one if it was written.
pub(super) fn read_pids(group: &Path) -> Result<(Vec<i32>, usize), Error> {
    match read_ids(group, Unit::Process) {
        // A threaded cgroup lists no processes: those are in its threaded domain.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            let (threads, foreign) = read_ids(group, Unit::Thread)?;
            let fail = |cause| Error::io("read", &group.join("cgroup.threads"), None, cause);
            let processes = threads.into_iter().filter_map(|tid| process_of(tid).transpose());
            let mut processes = processes.collect::<io::Result<Vec<_>>>().map_err(fail)?;
            let mut seen = HashSet::new();
            processes.retain(|pid| seen.insert(*pid));
            Ok((processes, foreign))
        }
        pids => pids,
    }
}

/// What a cgroup lists and takes: whole processes, or, in a threaded subtree, their threads.
///
/// Source: Linux 6.12, admin-guide/cgroup-v2.rst, "Threads".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Process,
    Thread,
}

impl Unit {
    pub(super) fn file(self) -> &'static str {
        match self {
            Self::Process => "cgroup.procs",
            Self::Thread => "cgroup.threads",
        }
    }
}

/// Reads `cgroup.procs` or `cgroup.threads`; see [`read_pids`] for the second value.
pub(super) fn read_ids(group: &Path, unit: Unit) -> Result<(Vec<i32>, usize), Error> {
    let path = group.join(unit.file());
    let text = read(&path)?;
    let ids = text.lines().map(str::parse::<i32>).collect::<Result<Vec<_>, _>>();
    let ids = ids.map_err(|cause| Error::io("parse", &path, None, io::Error::other(cause)))?;
    let (own, foreign): (Vec<i32>, Vec<i32>) = ids.into_iter().partition(|id| *id > 0);
    Ok((own, foreign.len()))
}

/// Returns the process that a thread belongs to; `None` if the thread has ended.
fn process_of(tid: i32) -> io::Result<Option<i32>> {
    let path = format!("/proc/{tid}/status");
    let status = match fs::read(&path) {
        Ok(status) => status,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
            // Without /proc, every thread would have ended.
            return fs::metadata("/proc/self/status").map(|_| None);
        }
        Err(error) => return Err(error),
    };
    // The line `Name:` holds the command name, which need not be UTF-8.
    let status = String::from_utf8_lossy(&status);
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
    process.map(Some).ok_or_else(|| io::Error::other(format!("no line `Tgid:` in {path}")))
}

/// Whether a cgroup is threaded: a part of the threaded domain of an ancestor.
pub(super) fn is_threaded(group: &Path) -> Result<bool, Error> {
    match read(&group.join("cgroup.type")) {
        Ok(kind) => Ok(kind.trim() == "threaded"),
        // The root of the hierarchy has no type.
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The refusal to freeze or kill a cgroup that holds this process.
pub(super) fn caller_is_in(group: &Path, operation: &str) -> Error {
    let reason = "the caller is in it; move it to another cgroup first";
    Error::Process { operation: operation.to_owned(), path: group.to_owned(), reason }
}

pub(super) fn check_pid(group: &Path, pid: i32) -> Result<(), Error> {
    if pid > 0 {
        return Ok(());
    }
    let reason = "pids are positive; 0 would be whoever writes it";
    Err(Error::Process {
        operation: format!("move process {pid} to"),
        path: group.to_owned(),
        reason,
    })
}
