//! Handing one operation to another thread and waiting for its answer, as cheaply as it goes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::{CpuSet, futex, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};

use super::writer::{Operation, WITHIN};
use crate::linux::sync::lock;

/// How long the thread is kept to its caller's CPU. A CPU that is taken by something more urgent
/// must not pass for a cgroupfs that is stuck.
const KEPT_FOR: Duration = Duration::from_millis(20);

/// Where one caller and one thread meet.
///
/// One futex word says whose turn it is, and only the other one waits for it to change. A mutex
/// with a condition variable would wake each of them twice: for the change, and for the lock.
#[derive(Debug, Default)]
pub(super) struct Slot {
    turn: AtomicU32,
    work: Mutex<Work>,
    /// The thread, once it runs.
    tid: AtomicI32,
    /// The CPU the thread is kept to, counted from 1; 0 for none.
    cpu: AtomicU32,
}

const THREADS_TURN: u32 = 1;
const CALLERS_TURN: u32 = 2;
/// Nobody waits any more: the thread ends once its operation does.
pub(super) const CLOSED: u32 = 3;

#[derive(Debug, Default)]
struct Work {
    todo: Option<(PathBuf, Operation)>,
    done: Option<io::Result<()>>,
}

impl Slot {
    /// The thread's side.
    pub(super) fn serve(&self) {
        self.tid.store(gettid().as_raw_nonzero().get(), Ordering::Release);
        loop {
            let turn = self.turn.load(Ordering::Acquire);
            // Before its turn, the caller may still be about to say so.
            let due = turn == THREADS_TURN || turn == CLOSED;
            let todo = if due { lock(&self.work).todo.take() } else { None };
            if let Some((path, operation)) = todo {
                let result = operation.run(&path);
                lock(&self.work).done = Some(result);
                // It fails if the caller has given up, and then nobody waits.
                let _ = self.turn.compare_exchange(
                    THREADS_TURN,
                    CALLERS_TURN,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                let _ = futex::wake(&self.turn, futex::Flags::PRIVATE, 1);
            } else if turn == CLOSED {
                return;
            } else {
                // Whatever ends the wait, the word is looked at again.
                let _ = futex::wait(&self.turn, futex::Flags::PRIVATE, turn, None);
            }
        }
    }

    /// The caller's side; `None` if the answer did not come in time.
    pub(super) fn hand_over(&self, path: &Path, operation: &Operation) -> Option<io::Result<()>> {
        lock(&self.work).todo = Some((path.to_owned(), operation.clone()));
        self.come_to_cpu();
        self.set_turn(THREADS_TURN);
        let deadline = Instant::now() + WITHIN;
        loop {
            if self.turn.load(Ordering::Acquire) != THREADS_TURN {
                return lock(&self.work).done.take();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let until_free = KEPT_FOR.saturating_sub(WITHIN - left);
            if until_free.is_zero() {
                self.leave_cpu();
            }
            let wait = if until_free.is_zero() { left } else { until_free };
            let timeout = wait.try_into().expect("seconds fit a timespec");
            let _ = futex::wait(&self.turn, futex::Flags::PRIVATE, THREADS_TURN, Some(&timeout));
        }
    }

    /// Brings the thread to the caller's CPU, where waking it is a switch of tasks; waking one on an
    /// idle CPU takes an interrupt there, and costs several times what the operation does.
    fn come_to_cpu(&self) {
        let cpu = sched_getcpu();
        let here = cpu as u32 + 1;
        if cpu < CpuSet::MAX_CPU && self.cpu.swap(here, Ordering::Relaxed) != here {
            let mut only = CpuSet::new();
            only.set(cpu);
            self.set_cpus(&only);
        }
    }

    /// Lets the thread run wherever the caller may.
    fn leave_cpu(&self) {
        if self.cpu.swap(0, Ordering::Relaxed) != 0
            && let Ok(cpus) = sched_getaffinity(None)
        {
            self.set_cpus(&cpus);
        }
    }

    /// Best effort: the kernel may refuse, and then the thread runs where it did.
    fn set_cpus(&self, cpus: &CpuSet) {
        match Pid::from_raw(self.tid.load(Ordering::Acquire)) {
            Some(thread) => drop(sched_setaffinity(Some(thread), cpus)),
            // It has not begun; the next operation tries again.
            None => self.cpu.store(0, Ordering::Relaxed),
        }
    }

    pub(super) fn set_turn(&self, turn: u32) {
        self.turn.store(turn, Ordering::Release);
        let _ = futex::wake(&self.turn, futex::Flags::PRIVATE, 1);
    }

    /// How an operation that timed out has ended since.
    pub(super) fn ended(&self) -> Option<String> {
        match lock(&self.work).done.as_ref()? {
            Ok(()) => Some("it did happen".to_owned()),
            Err(error) => Some(super::errno::describe(error)),
        }
    }
}
