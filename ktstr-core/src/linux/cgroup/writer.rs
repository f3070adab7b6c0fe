//! Operations on cgroupfs that cannot hang their caller.
//!
//! A task that waits for `cgroup_mutex` cannot be interrupted, so only another thread can bear
//! the wait. One thread per manager does it, kept from one operation to the next: starting one
//! costs several times what a write does. A thread that is stuck is left behind with its operation,
//! and callers at the same time have one each.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::error::Error;
use super::handover::{CLOSED, Slot};
use crate::linux::sync::lock;
use crate::linux::sys;

/// How long an operation may take.
pub(super) const WITHIN: Duration = Duration::from_secs(2);

/// Something to do to one path.
#[derive(Debug, Clone)]
pub(super) enum Operation {
    Write(String),
    Create,
    Remove,
}

impl Operation {
    fn name(&self) -> &'static str {
        match self {
            Self::Write(_) => "write",
            Self::Create => "create cgroup",
            Self::Remove => "remove cgroup",
        }
    }

    fn value(&self) -> Option<&str> {
        match self {
            Self::Write(value) => Some(value),
            Self::Create | Self::Remove => None,
        }
    }

    /// Making and removing a group, the kernel keeps the folder locked in which it is.
    fn locks_folder(&self) -> bool {
        !matches!(self, Self::Write(_))
    }

    pub(super) fn run(&self, path: &Path) -> io::Result<()> {
        match self {
            // Not `fs::write`: with O_CREAT, a missing file of cgroupfs answers EACCES, not ENOENT.
            // The kernel takes one write as one value, so it must not be split.
            Self::Write(value) => OpenOptions::new()
                .write(true)
                .open(path)
                .and_then(|mut file| file.write(value.as_bytes()))
                .map(drop),
            Self::Create => fs::create_dir(path),
            Self::Remove => fs::remove_dir(path),
        }
    }
}

/// Carries operations out, each within [`WITHIN`].
#[derive(Debug, Default)]
pub(super) struct Writer {
    state: Mutex<State>,
    /// Without a thread: the caller bears the wait, however long.
    unbounded: bool,
    /// The threads run before everything else.
    pub(super) runs_first: bool,
}

#[derive(Debug, Default)]
struct State {
    /// A thread that waits for work. One that works is with its caller.
    idle: Option<Thread>,
    /// Operations that timed out.
    doubts: Vec<Doubt>,
}

impl Writer {
    /// For a process that must not start a thread and has nothing else to do.
    pub(super) fn unbounded() -> Self {
        Self { unbounded: true, ..Self::default() }
    }

    /// Carries `operation` out on `path`.
    ///
    /// # Errors
    ///
    /// What the kernel answered; [`Error::TimedOut`] if it did not; [`Error::InDoubt`] if an
    /// earlier operation may still change what this one meets.
    pub(super) fn run(&self, path: &Path, operation: Operation) -> Result<(), Error> {
        let (name, value) = (operation.name(), operation.value());
        let fail = |cause: io::Error| Error::io(name, path, value, cause);
        if self.unbounded {
            return operation.run(path).map_err(fail);
        }
        let folder = path.parent().filter(|_| operation.locks_folder());
        let thread = {
            let mut state = lock(&self.state);
            state.refuse_if_in_doubt(name, path, value, |doubt| {
                doubt.concerns(path) || folder.is_some_and(|folder| doubt.locks(folder))
            })?;
            state.idle_thread(self.runs_first).map_err(fail)?
        };
        let began = Instant::now();
        // Not under the lock: nobody waits for another one's operation, and a fork finds it open.
        match thread.slot.hand_over(path, &operation) {
            Some(result) => {
                lock(&self.state).idle = Some(thread);
                result.map_err(fail)
            }
            None => {
                let (path, value) = (path.to_owned(), value.map(str::to_owned));
                let slot = Arc::clone(&thread.slot);
                let doubt = Doubt { path: path.clone(), operation, began, slot };
                lock(&self.state).doubts.push(doubt);
                Err(Error::TimedOut { operation: name, path, value, within: WITHIN })
            }
        }
    }

    /// Refuses to read what an operation that timed out may still change.
    pub(super) fn check_read(&self, path: &Path) -> Result<(), Error> {
        lock(&self.state).refuse_if_in_doubt("read", path, None, |doubt| doubt.concerns(path))
    }

    /// Refuses to look into a folder that an operation which timed out keeps locked.
    pub(super) fn check_folder(
        &self,
        operation: &'static str,
        path: &Path,
        folder: &Path,
    ) -> Result<(), Error> {
        lock(&self.state).refuse_if_in_doubt(operation, path, None, |doubt| {
            doubt.concerns(path) || doubt.locks(folder)
        })
    }
}

impl State {
    fn refuse_if_in_doubt(
        &mut self,
        operation: &'static str,
        path: &Path,
        value: Option<&str>,
        met: impl Fn(&Doubt) -> bool,
    ) -> Result<(), Error> {
        self.doubts.retain(|doubt| !met(doubt) || !doubt.has_ended());
        match self.doubts.iter().find(|doubt| met(doubt)) {
            None => Ok(()),
            Some(doubt) => Err(Error::InDoubt {
                operation,
                path: path.to_owned(),
                value: value.map(str::to_owned),
                doubt: doubt.told(),
                since: doubt.began.elapsed(),
            }),
        }
    }

    /// A thread that waits for work: the last one to have ended its work, or a new one.
    fn idle_thread(&mut self, runs_first: bool) -> io::Result<Thread> {
        let pid = rustix::process::getpid();
        match self.idle.take() {
            Some(thread) if thread.pid == pid => return Ok(thread),
            // Threads do not survive a fork, and what they hold stays locked in the child.
            other => std::mem::forget(other),
        }
        let slot = Arc::new(Slot::default());
        let theirs = Arc::clone(&slot);
        let thread = std::thread::Builder::new().name("ktstr-cgroupfs".to_owned());
        thread.spawn(move || {
            if runs_first && let Err(error) = sys::set_highest_priority() {
                tracing::warn!("what is written to cgroupfs has to wait for a CPU: {error}");
            }
            theirs.serve();
        })?;
        Ok(Thread { pid, slot })
    }
}

/// An operation that timed out.
#[derive(Debug)]
struct Doubt {
    path: PathBuf,
    operation: Operation,
    began: Instant,
    slot: Arc<Slot>,
}

impl Doubt {
    /// Whether `path`, or a group it is in, is what the operation may still change.
    fn concerns(&self, path: &Path) -> bool {
        path.starts_with(&self.path)
    }

    /// Whether the operation keeps `folder` locked. Who lists it, or looks for a name there that
    /// the kernel does not have at hand, waits with it, and for ever.
    fn locks(&self, folder: &Path) -> bool {
        self.operation.locks_folder() && self.path.parent() == Some(folder)
    }

    /// Whether it has ended by now, which is told.
    fn has_ended(&self) -> bool {
        let Some(ended) = self.slot.ended() else { return false };
        let (told, since) = (self.told(), self.began.elapsed());
        tracing::warn!("{told}, begun {since:.1?} ago, had timed out; it has ended since: {ended}");
        true
    }

    fn told(&self) -> String {
        match &self.operation {
            Operation::Write(value) => {
                format!("the write of `{}` to {}", value.trim_end(), self.path.display())
            }
            other => format!("the operation `{}` on {}", other.name(), self.path.display()),
        }
    }
}

#[derive(Debug)]
struct Thread {
    pid: Pid,
    slot: Arc<Slot>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.slot.set_turn(CLOSED);
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    fn write(value: &str) -> Operation {
        Operation::Write(value.to_owned())
    }

    /// Opening a FIFO for writing waits for a reader, in the kernel, for ever.
    #[test]
    fn a_stuck_write_times_out_stays_in_doubt_and_is_forgotten_once_it_landed() {
        let folder = tempfile::tempdir().unwrap();
        let (fifo, file) = (folder.path().join("fifo"), folder.path().join("file"));
        mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        fs::write(&file, "").unwrap();
        let writer = Writer::default();
        let began = Instant::now();
        let error = writer.run(&fifo, write("5")).unwrap_err().to_string();
        assert!(began.elapsed() >= WITHIN, "{:?}", began.elapsed());
        assert!(error.contains("write `5` to") && error.contains("ETIMEDOUT"), "{error}");
        for error in [writer.run(&fifo, write("6")), writer.check_read(&fifo)] {
            let error = error.unwrap_err().to_string();
            assert!(error.contains("the write of `5` to /"), "{error}");
            assert!(error.contains("/fifo was begun"), "{error}");
        }
        writer.run(&file, write("7")).expect("other files are not in doubt");
        assert_eq!(fs::read_to_string(&file).unwrap(), "7");
        assert_eq!(fs::read_to_string(&fifo).unwrap(), "5", "the late write lands");
        while writer.check_read(&fifo).is_err() {
            std::thread::yield_now();
        }
        let reader = std::thread::spawn(move || fs::read_to_string(fifo).unwrap());
        let path = folder.path().join("fifo");
        writer.run(&path, write("8")).expect("no longer in doubt");
        assert_eq!(reader.join().unwrap(), "8");
    }

    /// A writer on which `operation` on `path` timed out and does not end.
    fn in_doubt(path: &Path, operation: Operation) -> Writer {
        let writer = Writer::default();
        let (path, began, slot) = (path.to_owned(), Instant::now(), Arc::default());
        writer.state.lock().unwrap().doubts.push(Doubt { path, operation, began, slot });
        writer
    }

    #[test]
    fn a_group_that_may_still_come_or_go_is_left_alone_and_so_is_its_folder() {
        let parent = tempfile::tempdir().unwrap();
        let (parent, group) = (parent.path(), parent.path().join("cg"));
        for operation in [Operation::Create, Operation::Remove] {
            let writer = in_doubt(&group, operation.clone());
            for refused in [
                writer.run(&group, Operation::Create),
                writer.run(&parent.join("other"), Operation::Create),
                writer.run(&group.join("cpu.max"), write("5")),
                writer.check_read(&group.join("cgroup.procs")),
                writer.check_folder("list cgroup", parent, parent),
                writer.check_folder("list cgroup", &group, &group),
                writer.check_folder("remove cgroup", &parent.join("other"), parent),
            ] {
                let error = refused.unwrap_err().to_string();
                let told = format!("`{}` on {} was begun", operation.name(), group.display());
                assert!(error.contains(&told), "{error}");
            }
            writer.check_read(&parent.join("cgroup.procs")).expect("files need no lock");
            writer
                .check_folder("list cgroup", &parent.join("other"), &parent.join("other"))
                .unwrap();
        }
    }

    #[test]
    fn nobody_waits_for_the_operation_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let (fifo, file) = (folder.path().join("fifo"), folder.path().join("file"));
        mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        fs::write(&file, "").unwrap();
        let writer = Writer::default();
        writer.run(&file, write("1")).unwrap();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| writer.run(&fifo, write("2")));
            while writer.state.lock().unwrap().idle.is_some() {
                std::thread::yield_now();
            }
            writer.run(&file, write("3")).unwrap();
            assert_eq!(fs::read_to_string(&fifo).unwrap(), "2");
            other.join().unwrap().expect("it was still waited for");
        });
    }

    #[test]
    fn one_thread_serves_all_writes_and_ends_with_the_writer() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let writer = Writer::default();
        writer.run(&file, write("1")).unwrap();
        let slot = Arc::clone(&writer.state.lock().unwrap().idle.as_ref().unwrap().slot);
        writer.run(&file, write("2")).unwrap();
        assert!(Arc::ptr_eq(&slot, &writer.state.lock().unwrap().idle.as_ref().unwrap().slot));
        drop(writer);
        while Arc::strong_count(&slot) > 1 {
            std::thread::yield_now();
        }
    }
}
