//! The interface of a work loop: bursts, the counting of iterations, its index in its group.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::clock_nanosleep_absolute;
use rustix::time::{ClockId, Timespec};

use super::burst::Bursts;
use super::page::Page;
use super::resources::Resources;
use super::telemetry::Telemetry;
use crate::linux::sys::{Shared, since_boot_ns};

/// The interface of a worker for its own work loop.
pub struct WorkerCtx {
    pages: Arc<[Shared<Page>]>,
    index: usize,
    pub(super) resources: Arc<Resources>,
    bursts: Bursts,
    /// The end of the current phase of a sequence.
    until_ns: Cell<u64>,
}

impl WorkerCtx {
    pub(super) fn new(pages: Arc<[Shared<Page>]>, index: usize, resources: Arc<Resources>) -> Self {
        Self { pages, index, resources, bursts: Bursts::get(), until_ns: Cell::new(u64::MAX) }
    }

    /// Returns its index in its group, from 0; 0 if it works alone.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Returns the number of workers in its group; 1 if it works alone.
    pub fn group_size(&self) -> usize {
        self.pages.len()
    }

    /// Spins for a burst, with PAUSE and without a system call: 5 to 50 µs, within these limits a
    /// hundred times as long as a [`record_iteration`](Self::record_iteration) takes.
    pub fn spin(&self) {
        self.bursts.spin();
    }

    /// Computes for a burst, as fast as the CPU can.
    pub fn compute(&self) {
        self.bursts.compute();
    }

    pub(super) fn burst(&self) -> Duration {
        self.bursts.length()
    }

    /// Counts an iteration of the work loop, in which `units` of work were done: reads the time and
    /// the CPU, without a system call where the vDSO has both.
    pub fn record_iteration(&self, units: u64) {
        self.telemetry().sample(units);
    }

    /// Counts a wake-up that could have happened at `due_ns`, in nanoseconds since boot, and happened
    /// now.
    pub fn record_wakeup(&self, due_ns: u64) {
        self.telemetry().wake_latency.record(since_boot_ns().saturating_sub(due_ns));
    }

    /// Sleeps for `length` and records the wake-up latency.
    pub fn sleep(&self, length: Duration) {
        self.sleep_until(since_boot_ns() + length.as_nanos() as u64);
    }

    /// Sleeps until `due_ns`, in nanoseconds since boot, and records the wake-up latency.
    pub fn sleep_until(&self, due_ns: u64) {
        self.pause_until(due_ns);
        self.record_wakeup(due_ns);
    }

    /// Sleeps until `due_ns` without recording the wake-up latency.
    pub(super) fn pause_until(&self, due_ns: u64) {
        let due = Timespec {
            tv_sec: (due_ns / 1_000_000_000) as i64,
            tv_nsec: (due_ns % 1_000_000_000) as i64,
        };
        while clock_nanosleep_absolute(ClockId::Boottime, &due) == Err(Errno::INTR) {}
    }

    /// Returns whether to make another iteration: false once the phase of a sequence has ended, by the
    /// time of the last iteration. Without a sequence always true, because a worker is stopped by SIGKILL.
    pub fn should_continue(&self) -> bool {
        self.telemetry().last_iteration_ns() < self.until_ns.get()
    }

    /// Repeats `items`, one for each iteration of the work loop.
    pub(super) fn cycle<T>(
        &self,
        items: impl IntoIterator<Item = T, IntoIter: Clone>,
    ) -> impl Iterator<Item = T> {
        items.into_iter().cycle().take_while(|_| self.should_continue())
    }

    pub(super) fn end_at(&self, until_ns: u64) {
        self.until_ns.set(until_ns);
    }

    pub(super) fn telemetry(&self) -> &Telemetry {
        &self.pages[self.index].telemetry
    }

    pub(super) fn page(&self, index: usize) -> &Page {
        &self.pages[index]
    }

    pub(super) fn own(&self) -> &Page {
        self.page(self.index)
    }

    /// Returns the page of the other worker of a group of two.
    pub(super) fn partner(&self) -> &Page {
        self.page(1 - self.index)
    }
}

impl fmt::Debug for WorkerCtx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerCtx")
            .field("index", &self.index)
            .field("group_size", &self.group_size())
            .finish_non_exhaustive()
    }
}
