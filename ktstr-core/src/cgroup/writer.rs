//! Operations on cgroupfs that cannot hang their caller.
//!
//! A task that waits for `cgroup_mutex` cannot be interrupted, so only another thread can bear
//! the wait. One thread per manager does it, kept from one operation to the next: starting one
//! costs several times what a write does. A thread that is stuck is left behind with its operation.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::Error;
use super::handover::{CLOSED, Slot};
use super::manager::lock;

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

/// Carries operations out, one at a time, each within [`WITHIN`].
#[derive(Debug, Default)]
pub(super) struct Writer {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    thread: Option<Thread>,
    /// Operations that timed out, by their path.
    doubts: BTreeMap<PathBuf, Doubt>,
}

#[derive(Debug)]
struct Doubt {
    operation: Operation,
    began: Instant,
    slot: Arc<Slot>,
}

impl Writer {
    /// Carries `operation` out on `path`.
    ///
    /// # Errors
    ///
    /// What the kernel answered; [`Error::TimedOut`] if it did not; [`Error::InDoubt`] if an
    /// earlier operation on this path may still happen.
    pub(super) fn run(&self, path: &Path, operation: Operation) -> Result<(), Error> {
        let mut state = lock(&self.state);
        state.refuse_if_in_doubt(path, operation.name(), operation.value())?;
        let fail = |cause: io::Error| Error::io(operation.name(), path, operation.value(), cause);
        let slot = state.thread().map_err(fail)?;
        let began = Instant::now();
        match slot.hand_over(path, &operation) {
            Some(result) => result.map_err(fail),
            None => {
                state.thread = None;
                let (name, value) = (operation.name(), operation.value().map(str::to_owned));
                state.doubts.insert(path.to_owned(), Doubt { operation, began, slot });
                Err(Error::TimedOut {
                    operation: name,
                    path: path.to_owned(),
                    value,
                    within: WITHIN,
                })
            }
        }
    }

    /// Refuses to read what an operation that timed out may still change.
    pub(super) fn check_read(&self, path: &Path) -> Result<(), Error> {
        lock(&self.state).refuse_if_in_doubt(path, "read", None)
    }
}

impl State {
    fn refuse_if_in_doubt(
        &mut self,
        path: &Path,
        operation: &'static str,
        value: Option<&str>,
    ) -> Result<(), Error> {
        let Some(doubt) = self.doubts.get(path) else { return Ok(()) };
        let told = match &doubt.operation {
            Operation::Write(value) => format!("the write of `{}`", value.trim_end()),
            other => format!("the operation `{}`", other.name()),
        };
        let since = doubt.began.elapsed();
        if let Some(ended) = doubt.slot.ended() {
            tracing::warn!(
                "{}: {told}, begun {since:.1?} ago, had timed out; it has ended since: {ended}",
                path.display()
            );
            self.doubts.remove(path);
            return Ok(());
        }
        Err(Error::InDoubt {
            operation,
            path: path.to_owned(),
            value: value.map(str::to_owned),
            doubt: told,
            since,
        })
    }

    /// The thread that waits for work; the first of this process, or one after it got stuck.
    fn thread(&mut self) -> io::Result<Arc<Slot>> {
        let pid = rustix::process::getpid();
        if let Some(other) = self.thread.take_if(|thread| thread.pid != pid) {
            // Threads do not survive a fork, and what they hold stays locked in the child.
            std::mem::forget(other);
        }
        if self.thread.is_none() {
            let slot = Arc::new(Slot::default());
            let theirs = Arc::clone(&slot);
            let thread = std::thread::Builder::new().name("ktstr-cgroupfs".to_owned());
            thread.spawn(move || theirs.serve())?;
            self.thread = Some(Thread { pid, slot });
        }
        Ok(Arc::clone(&self.thread.as_ref().expect("it was just made").slot))
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
            assert!(error.contains("the write of `5` was begun"), "{error}");
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

    #[test]
    fn one_thread_serves_all_writes_and_ends_with_the_writer() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let writer = Writer::default();
        writer.run(&file, write("1")).unwrap();
        let slot = Arc::clone(&writer.state.lock().unwrap().thread.as_ref().unwrap().slot);
        writer.run(&file, write("2")).unwrap();
        assert!(Arc::ptr_eq(&slot, &writer.state.lock().unwrap().thread.as_ref().unwrap().slot));
        drop(writer);
        while Arc::strong_count(&slot) > 1 {
            std::thread::yield_now();
        }
    }
}
