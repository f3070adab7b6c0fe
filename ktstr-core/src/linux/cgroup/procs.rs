//! Reads which processes and threads are in a cgroup.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use super::error::Error;
use super::files::read;
use super::operation::Operation;

/// Reads the processes in one cgroup; in a threaded one, those that have a thread in it.
pub(super) fn read_procs(cgroup: &Path) -> Result<Vec<i32>, Error> {
    let (pids, foreign) = read_pids(cgroup)?;
    if foreign > 0 {
        let path = cgroup.join("cgroup.procs");
        tracing::warn!("{}: {foreign} processes are in another pid namespace", path.display());
    }
    Ok(pids)
}

/// Reads the processes like [`read_procs`], and how many are in another pid namespace.
///
/// Those are listed as 0, which must never be written back: it would move the writing process.
pub(super) fn read_pids(cgroup: &Path) -> Result<(Vec<i32>, usize), Error> {
    match read_ids(cgroup, ProcsUnit::Process) {
        // The kernel lists processes in the threaded domain only.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            let (threads, foreign) = read_ids(cgroup, ProcsUnit::Thread)?;
            let fail =
                |cause| Error::io(Operation::Read, &cgroup.join("cgroup.threads"), None, cause);
            let processes = threads.into_iter().filter_map(|tid| process_of(tid).transpose());
            let mut processes = processes.collect::<io::Result<Vec<_>>>().map_err(fail)?;
            let mut seen = HashSet::new();
            processes.retain(|pid| seen.insert(*pid));
            Ok((processes, foreign))
        }
        pids => pids,
    }
}

/// What a cgroup lists and accepts: whole processes, or single threads in a threaded subtree.
///
/// Source: Linux 6.12, admin-guide/cgroup-v2.rst, "Threads".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProcsUnit {
    Process,
    Thread,
}

impl ProcsUnit {
    pub(super) fn file(self) -> &'static str {
        match self {
            Self::Process => "cgroup.procs",
            Self::Thread => "cgroup.threads",
        }
    }
}

/// Reads `cgroup.procs` or `cgroup.threads`; see [`read_pids`] for the second value.
pub(super) fn read_ids(cgroup: &Path, unit: ProcsUnit) -> Result<(Vec<i32>, usize), Error> {
    let path = cgroup.join(unit.file());
    let text = read(&path)?;
    let ids = text.lines().map(str::parse::<i32>).collect::<Result<Vec<_>, _>>();
    let ids =
        ids.map_err(|cause| Error::io(Operation::Parse, &path, None, io::Error::other(cause)))?;
    let (own, foreign): (Vec<i32>, Vec<i32>) = ids.into_iter().partition(|id| *id > 0);
    Ok((own, foreign.len()))
}

/// Returns the process of a thread; `None` if the thread has ended.
fn process_of(tid: i32) -> io::Result<Option<i32>> {
    let path = format!("/proc/{tid}/status");
    let status = match fs::read(&path) {
        Ok(status) => status,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
            // Fails if /proc is not mounted, where every thread would seem to have ended.
            return fs::metadata("/proc/self/status").map(|_| None);
        }
        Err(error) => return Err(error),
    };
    // The line `Name:` contains the command name, which need not be UTF-8.
    let status = String::from_utf8_lossy(&status);
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
    process.map(Some).ok_or_else(|| io::Error::other(format!("no line `Tgid:` in {path}")))
}

/// Returns whether a cgroup is threaded: a part of the threaded domain of an ancestor.
pub(super) fn is_threaded(cgroup: &Path) -> Result<bool, Error> {
    match read(&cgroup.join("cgroup.type")) {
        Ok(kind) => Ok(kind.trim() == "threaded"),
        // The root of the hierarchy has no type.
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the error of freezing or killing a cgroup that contains this process.
pub(super) fn caller_is_in(cgroup: &Path, operation: &str) -> Error {
    let reason = "the caller is in it; move it to another cgroup first";
    Error::Process { operation: operation.to_owned(), path: cgroup.to_owned(), reason }
}

pub(super) fn check_pid(cgroup: &Path, pid: i32) -> Result<(), Error> {
    if pid > 0 {
        return Ok(());
    }
    let reason = "pids are positive; 0 would move the writing process";
    Err(Error::Process {
        operation: format!("move process {pid} to"),
        path: cgroup.to_owned(),
        reason,
    })
}
