//! Operations on cgroupfs that cannot block their caller forever.
//!
//! A task that waits for `cgroup_mutex` cannot be interrupted, so another thread has to make the
//! system call. Each manager keeps one thread for that, because starting a thread costs several
//! times as much as a write. A thread that is stuck is abandoned with its operation, and concurrent
//! callers get a thread each.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::Thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::{Error, Operation, errno};
use crate::linux::sync::lock;
use crate::linux::sys;

/// Timeout of one operation.
pub(super) const WITHIN: Duration = Duration::from_secs(2);

/// An operation that changes one path.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Write(String),
    Create,
    Remove,
}

impl Change {
    fn operation(&self) -> Operation {
        match self {
            Self::Write(_) => Operation::Write,
            Self::Create => Operation::Create,
            Self::Remove => Operation::Remove,
        }
    }

    fn value(&self) -> Option<&str> {
        match self {
            Self::Write(value) => Some(value),
            Self::Create | Self::Remove => None,
        }
    }

    /// Returns whether the kernel holds the lock of the parent directory during the operation.
    fn locks_parent(&self) -> bool {
        !matches!(self, Self::Write(_))
    }

    fn run(&self, path: &Path) -> io::Result<()> {
        match self {
            // Not `fs::write`: with O_CREAT, a missing file of cgroupfs reads as EACCES, not ENOENT.
            // The kernel takes each write(2) as a whole value, so it must not be split.
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

/// Runs operations, each within [`WITHIN`].
#[derive(Debug, Default)]
pub(super) struct Writer {
    state: Mutex<WriterState>,
    /// Operations run on the calling thread, without a timeout.
    unbounded: bool,
    /// The threads have the highest real-time priority.
    pub(super) runs_first: bool,
}

#[derive(Debug, Default)]
struct WriterState {
    /// A thread without work. A busy thread is owned by its caller.
    idle: Option<WriterThread>,
    /// Operations that timed out and may still happen.
    timed_out: Vec<TimedOut>,
}

impl Writer {
    /// Returns a writer without threads, for a process that must not start one.
    pub(super) fn unbounded() -> Self {
        Self { unbounded: true, ..Self::default() }
    }

    /// Runs `change` on `path`.
    ///
    /// # Errors
    ///
    /// The error of the kernel; [`Error::TimedOut`] without an answer in time; [`Error::InDoubt`] if an
    /// earlier operation that timed out may still affect this one.
    pub(super) fn run(&self, path: &Path, change: Change) -> Result<(), Error> {
        let (operation, value) = (change.operation(), change.value());
        let fail = |cause: io::Error| Error::io(operation, path, value, cause);
        if self.unbounded {
            return change.run(path).map_err(fail);
        }
        let parent = path.parent().filter(|_| change.locks_parent());
        let thread = {
            let mut state = lock(&self.state);
            state.refuse_if_in_doubt(operation, path, value, |earlier| {
                earlier.affects(path) || parent.is_some_and(|parent| earlier.locks(parent))
            })?;
            state.take_thread(self.runs_first).map_err(fail)?
        };
        let began = Instant::now();
        // The lock is not held here: concurrent callers do not wait for this operation, and a
        // process forked meanwhile does not inherit a locked mutex.
        match thread.slot.call(&thread.thread, path, &change) {
            Some(result) => {
                lock(&self.state).idle = Some(thread);
                result.map_err(fail)
            }
            None => {
                let (path, value) = (path.to_owned(), value.map(str::to_owned));
                let slot = Arc::clone(&thread.slot);
                let earlier = TimedOut { path: path.clone(), change, began, slot };
                lock(&self.state).timed_out.push(earlier);
                Err(Error::TimedOut { operation, path, value, within: WITHIN })
            }
        }
    }

    /// Fails if an operation that timed out may still change what `path` contains.
    pub(super) fn check_read(&self, path: &Path) -> Result<(), Error> {
        lock(&self.state)
            .refuse_if_in_doubt(Operation::Read, path, None, |earlier| earlier.affects(path))
    }

    /// Fails if listing `dir` could block because an operation that timed out holds its lock.
    pub(super) fn check_dir(
        &self,
        operation: Operation,
        path: &Path,
        dir: &Path,
    ) -> Result<(), Error> {
        lock(&self.state).refuse_if_in_doubt(operation, path, None, |earlier| {
            earlier.affects(path) || earlier.locks(dir)
        })
    }
}

impl WriterState {
    fn refuse_if_in_doubt(
        &mut self,
        operation: Operation,
        path: &Path,
        value: Option<&str>,
        conflicts: impl Fn(&TimedOut) -> bool,
    ) -> Result<(), Error> {
        self.timed_out.retain(|earlier| !conflicts(earlier) || !earlier.has_ended());
        match self.timed_out.iter().find(|earlier| conflicts(earlier)) {
            None => Ok(()),
            Some(earlier) => Err(Error::InDoubt {
                operation,
                path: path.to_owned(),
                value: value.map(str::to_owned),
                doubt: earlier.describe(),
                since: earlier.began.elapsed(),
            }),
        }
    }

    /// Returns the idle thread, or starts one.
    fn take_thread(&mut self, runs_first: bool) -> io::Result<WriterThread> {
        let pid = rustix::process::getpid();
        match self.idle.take() {
            Some(thread) if thread.pid == pid => return Ok(thread),
            // In a forked process there is no such thread, and it may have held the lock of its slot
            // at the fork. Dropping it could block forever.
            other => std::mem::forget(other),
        }
        let slot = Arc::<OperationSlot>::default();
        let served = Arc::clone(&slot);
        let thread = std::thread::Builder::new().name("ktstr-cgroupfs".to_owned());
        let handle = thread.spawn(move || {
            if runs_first && let Err(error) = sys::set_highest_priority() {
                tracing::warn!("writes to cgroupfs run without real-time priority: {error}");
            }
            served.serve();
        })?;
        Ok(WriterThread { pid, slot, thread: handle.thread().clone() })
    }
}

/// A thread that runs operations until this is dropped, one at a time.
#[derive(Debug)]
struct WriterThread {
    /// The process that started the thread.
    pid: Pid,
    slot: Arc<OperationSlot>,
    thread: Thread,
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        lock(&self.slot.0).is_closed = true;
        self.thread.unpark();
    }
}

/// Passes one operation to a [`WriterThread`] and its result back.
///
/// Not a channel of std: its receiver spins before it blocks, which under an emulator takes longer
/// than the operation.
#[derive(Debug, Default)]
struct OperationSlot(Mutex<SlotState>);

#[derive(Debug, Default)]
struct SlotState {
    request: Option<(PathBuf, Change, Thread)>,
    result: Option<io::Result<()>>,
    /// The thread ends once no request is left.
    is_closed: bool,
}

impl OperationSlot {
    /// Runs requests until the slot is closed.
    ///
    /// Both sides check the state before they park, and `unpark` of a running thread makes its next
    /// `park` return at once. So no request, result or close is missed.
    fn serve(&self) {
        loop {
            let (request, is_closed) = {
                let mut state = lock(&self.0);
                (state.request.take(), state.is_closed)
            };
            match request {
                Some((path, change, caller)) => {
                    let result = change.run(&path);
                    lock(&self.0).result = Some(result);
                    caller.unpark();
                }
                None if is_closed => return,
                None => std::thread::park(),
            }
        }
    }

    /// Has `thread` run an operation; `None` if it takes longer than [`WITHIN`].
    fn call(&self, thread: &Thread, path: &Path, change: &Change) -> Option<io::Result<()>> {
        let request = (path.to_owned(), change.clone(), std::thread::current());
        lock(&self.0).request = Some(request);
        thread.unpark();
        let deadline = Instant::now() + WITHIN;
        loop {
            if let Some(result) = lock(&self.0).result.take() {
                return Some(result);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            std::thread::park_timeout(left);
        }
    }
}

#[derive(Debug)]
struct TimedOut {
    path: PathBuf,
    change: Change,
    began: Instant,
    slot: Arc<OperationSlot>,
}

impl TimedOut {
    /// Returns whether the operation may still change `path` or a cgroup that contains it.
    fn affects(&self, path: &Path) -> bool {
        path.starts_with(&self.path)
    }

    /// Returns whether the operation holds the lock of `dir`. Listing it, or looking up a name that
    /// is not in the kernel's dentry cache, would block as well.
    fn locks(&self, dir: &Path) -> bool {
        self.change.locks_parent() && self.path.parent() == Some(dir)
    }

    /// Returns whether the operation has ended by now, and logs its result.
    fn has_ended(&self) -> bool {
        let result = match &lock(&self.slot.0).result {
            None => return false,
            Some(Ok(())) => "it succeeded".to_owned(),
            Some(Err(error)) => errno::describe(error),
        };
        let (earlier, since) = (self.describe(), self.began.elapsed());
        tracing::warn!("{earlier}, started {since:.1?} ago, timed out and has now ended: {result}");
        true
    }

    fn describe(&self) -> String {
        match &self.change {
            Change::Write(value) => {
                format!("the write of `{}` to `{}`", value.trim_end(), self.path.display())
            }
            other => format!("the operation `{}` on `{}`", other.operation(), self.path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    fn write(value: &str) -> Change {
        Change::Write(value.to_owned())
    }

    /// Opening a FIFO for writing blocks in the kernel until a reader opens it.
    #[test]
    fn run_times_out_and_refuses_the_path_until_the_write_has_landed() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, file) = (dir.path().join("fifo"), dir.path().join("file"));
        mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        fs::write(&file, "").unwrap();
        let writer = Writer::default();
        let began = Instant::now();
        let error = writer.run(&fifo, write("5")).unwrap_err().to_string();
        assert!(began.elapsed() >= WITHIN, "{:?}", began.elapsed());
        assert!(error.contains("write `5` to") && error.contains("ETIMEDOUT"), "{error}");
        for error in [writer.run(&fifo, write("6")), writer.check_read(&fifo)] {
            let error = error.unwrap_err().to_string();
            assert!(error.contains("the write of `5` to `/"), "{error}");
            assert!(error.contains("/fifo` started"), "{error}");
        }
        writer.run(&file, write("7")).expect("other files are not in doubt");
        assert_eq!(fs::read_to_string(&file).unwrap(), "7");
        assert_eq!(fs::read_to_string(&fifo).unwrap(), "5", "the late write lands");
        while writer.check_read(&fifo).is_err() {
            std::thread::yield_now();
        }
        let reader = std::thread::spawn(move || fs::read_to_string(fifo).unwrap());
        let path = dir.path().join("fifo");
        writer.run(&path, write("8")).expect("no longer in doubt");
        assert_eq!(reader.join().unwrap(), "8");
    }

    #[test]
    fn create_and_remove_in_doubt_block_the_cgroup_and_its_directory() {
        let parent = tempfile::tempdir().unwrap();
        let (parent, cgroup) = (parent.path(), parent.path().join("cg"));
        for change in [Change::Create, Change::Remove] {
            let writer = Writer::default();
            lock(&writer.state).timed_out.push(TimedOut {
                path: cgroup.clone(),
                change: change.clone(),
                began: Instant::now(),
                slot: Arc::default(),
            });
            for refused in [
                writer.run(&cgroup, Change::Create),
                writer.run(&parent.join("other"), Change::Create),
                writer.run(&cgroup.join("cpu.max"), write("5")),
                writer.check_read(&cgroup.join("cgroup.procs")),
                writer.check_dir(Operation::List, parent, parent),
                writer.check_dir(Operation::List, &cgroup, &cgroup),
                writer.check_dir(Operation::Remove, &parent.join("other"), parent),
            ] {
                let error = refused.unwrap_err().to_string();
                let earlier = format!("`{}` on `{}` started", change.operation(), cgroup.display());
                assert!(error.contains(&earlier), "{error}");
            }
            writer.check_read(&parent.join("cgroup.procs")).expect("files need no lock");
            writer
                .check_dir(Operation::List, &parent.join("other"), &parent.join("other"))
                .unwrap();
        }
    }

    #[test]
    fn run_does_not_wait_for_operations_of_other_callers() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, file) = (dir.path().join("fifo"), dir.path().join("file"));
        mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        fs::write(&file, "").unwrap();
        let writer = Writer::default();
        writer.run(&file, write("1")).unwrap();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| writer.run(&fifo, write("2")));
            while lock(&writer.state).idle.is_some() {
                std::thread::yield_now();
            }
            writer.run(&file, write("3")).unwrap();
            assert_eq!(fs::read_to_string(&fifo).unwrap(), "2");
            other.join().unwrap().expect("its caller still waits");
        });
    }

    #[test]
    fn writer_reuses_its_thread_and_ends_it_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let writer = Writer::default();
        writer.run(&file, write("1")).unwrap();
        let slot = Arc::clone(&lock(&writer.state).idle.as_ref().unwrap().slot);
        writer.run(&file, write("2")).unwrap();
        assert!(Arc::ptr_eq(&slot, &lock(&writer.state).idle.as_ref().unwrap().slot));
        drop(writer);
        while Arc::strong_count(&slot) > 1 {
            std::thread::yield_now();
        }
    }
}
