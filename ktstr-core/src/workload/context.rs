//! What a work loop has to work with: bursts, the counting of turns, its place in its group.

use std::cell::Cell;
use std::fmt;
use std::hint::{black_box, spin_loop};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::clock_nanosleep_absolute;
use rustix::time::{ClockId, Timespec};

use super::resources::Resources;
use super::telemetry::Telemetry;
use super::worker::Page;
use crate::sys::{Shared, since_boot_ns};

/// A burst is at least so many times as long as measuring over and over. After a burst, with caches
/// and branch predictors used by others, measuring takes up to twice as long.
const BURST_PER_SAMPLE: u64 = 100;
const SHORTEST_BURST_NS: u64 = 5_000;
/// However the clock behaves, a burst stays below a tick.
const MOST_LOOPS: u32 = 1 << 15;

/// A worker, as its own work loop sees it.
pub struct WorkerCtx {
    pages: Arc<[Shared<Page>]>,
    index: usize,
    pub(super) resources: Arc<Resources>,
    spin_loops: u32,
    compute_loops: u32,
    /// When the current phase of a sequence ends.
    until_ns: Cell<u64>,
}

impl WorkerCtx {
    /// For the worker itself, when it has been released: finds out how long a burst has to be.
    pub(super) fn new(pages: Arc<[Shared<Page>]>, index: usize, resources: Arc<Resources>) -> Self {
        let least_ns = burst_ns(sample_cost_ns());
        let spin_loops = loops_for(least_ns, spin);
        let compute_loops = loops_for(least_ns, compute);
        let until_ns = Cell::new(u64::MAX);
        Self { pages, index, resources, spin_loops, compute_loops, until_ns }
    }

    /// Its place in its group, from 0; 0 if it works alone.
    pub fn index(&self) -> usize {
        self.index
    }

    /// How many workers are in its group; 1 if it works alone.
    pub fn group_size(&self) -> usize {
        self.pages.len()
    }

    /// Spins for a burst, with PAUSE and without a system call: some 5 µs, and so long that a
    /// [`turn`](Self::turn) after it takes no more than 3 % of it.
    pub fn spin(&self) {
        spin(self.spin_loops);
    }

    /// Computes for as long, as fast as the CPU can.
    pub fn compute(&self) {
        compute(self.compute_loops);
    }

    /// Counts a turn of the work loop, in which so many units of work were done: takes the time and
    /// the CPU, without a system call where the vDSO has both.
    pub fn turn(&self, units: u64) {
        sample(self.telemetry(), units);
    }

    /// Counts a wake-up that could have happened at `due_ns`, in nanoseconds since boot, and happened
    /// now.
    pub fn woke(&self, due_ns: u64) {
        self.telemetry().wake_latency.record(since_boot_ns().saturating_sub(due_ns));
    }

    /// Sleeps, and counts how much later than that it goes on.
    pub fn sleep(&self, length: Duration) {
        self.sleep_until(since_boot_ns() + length.as_nanos() as u64);
    }

    /// Sleeps until so many nanoseconds after boot, and counts how much later it goes on.
    pub fn sleep_until(&self, due_ns: u64) {
        self.pause_until(due_ns);
        self.woke(due_ns);
    }

    /// Sleeps without counting when it wakes.
    pub(super) fn pause_until(&self, due_ns: u64) {
        let due = Timespec {
            tv_sec: (due_ns / 1_000_000_000) as i64,
            tv_nsec: (due_ns % 1_000_000_000) as i64,
        };
        while clock_nanosleep_absolute(ClockId::Boottime, &due) == Err(Errno::INTR) {}
    }

    /// False when the phase of a sequence is over, by the time of the last turn. Otherwise always
    /// true: a worker is stopped from outside.
    pub fn goes_on(&self) -> bool {
        self.telemetry().last_turn_ns() < self.until_ns.get()
    }

    pub(super) fn end_at(&self, until_ns: u64) {
        self.until_ns.set(until_ns);
    }

    pub(super) fn telemetry(&self) -> &Telemetry {
        &self.pages[self.index].telemetry
    }

    /// The page of the worker with this index in the group.
    pub(super) fn page(&self, index: usize) -> &Page {
        &self.pages[index]
    }

    pub(super) fn own(&self) -> &Page {
        self.page(self.index)
    }

    /// In a group of two.
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

fn sample(telemetry: &Telemetry, units: u64) {
    let epoch = telemetry.epoch();
    let cpu = rustix::thread::sched_getcpu() as u32;
    telemetry.note_place(epoch, cpu);
    telemetry.turn(since_boot_ns(), cpu, units);
}

fn spin(loops: u32) {
    for _ in 0..loops {
        spin_loop();
    }
}

/// Four chains of multiplications that do not wait for each other.
fn compute(loops: u32) {
    let mut chains = black_box([3_u64, 5, 7, 11]);
    for _ in 0..loops {
        // Not one shift for all: the compiler would make SSE2 vectors of them, whose loop takes 8 %
        // more or less time by how far the chains are apart when it is entered.
        for (chain, shift) in chains.iter_mut().zip(29..) {
            *chain = chain.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ (*chain >> shift);
        }
    }
    black_box(chains);
}

fn sample_cost_ns() -> u64 {
    const SAMPLES: u64 = 32;
    let telemetry = Telemetry::default();
    // As for a worker with a cpuset, for which it takes longer.
    telemetry.begin_epoch();
    fastest(|| (0..SAMPLES).for_each(|_| sample(&telemetry, 1))) / SAMPLES
}

/// How long a burst is, at least, if measuring takes so long.
fn burst_ns(sample_ns: u64) -> u64 {
    SHORTEST_BURST_NS.max(sample_ns * BURST_PER_SAMPLE)
}

fn loops_for(least_ns: u64, burst: impl Fn(u32)) -> u32 {
    let mut loops = 32;
    while loops < MOST_LOOPS && fastest(|| burst(loops)) < least_ns {
        loops *= 2;
    }
    loops
}

/// The fastest of several, in nanoseconds: the others were interrupted, or the first to run this code,
/// which an emulated CPU has to translate. They have it in common only if the compiler does not
/// unroll the loop.
fn fastest(what: impl Fn()) -> u64 {
    (0..black_box(4)).map(|_| time(&what)).min().unwrap_or(0)
}

fn time(what: impl FnOnce()) -> u64 {
    let begin = since_boot_ns();
    what();
    since_boot_ns() - begin
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_long_against_its_measuring() {
        let pages: Arc<[_]> = vec![Shared::new(Page::default()).unwrap()].into();
        let ctx = WorkerCtx::new(pages, 0, Arc::new(Resources::None));
        let shortest = |what: &dyn Fn()| (0..200).map(|_| time(what)).min().unwrap();
        for (sample_ns, wanted) in [(0, 5_000), (40, 5_000), (1_000, 100_000)] {
            assert_eq!(burst_ns(sample_ns), wanted);
        }
        for burst in [shortest(&|| ctx.spin()), shortest(&|| ctx.compute())] {
            // It is made to be 100 times as long.
            assert!(burst > 40 * sample_cost_ns(), "{burst}, {}", sample_cost_ns());
            assert!(burst > SHORTEST_BURST_NS / 2, "{burst}");
        }
    }
}
