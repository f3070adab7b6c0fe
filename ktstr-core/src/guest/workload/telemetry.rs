//! The counters of a worker, in memory that it shares with its parent.
//!
//! Invariant: each value has one writer, the worker, except for the current epoch, which only its parent
//! writes. So no atomic read-modify-write is needed. A worker can be killed between any two writes; values that
//! belong together (a gap, an epoch's CPUs) are written to unused memory and then made valid by one store.
//!
//! An epoch is a time in which one cpuset is in effect. The parent ends the epoch before it writes a
//! cpuset and begins the next one after the kernel has applied it; the worker reads the epoch, then its
//! CPU, then the epoch again, and counts the CPU only if the epoch has not changed.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use super::histogram::SharedHistogram;
use crate::linux::sys::since_boot_ns;
use crate::model::worker::IterationGap;

/// `cpus_used` does not contain CPUs from this number on.
const MAX_CPUS: usize = 1024;
const MAX_NODES: usize = 64;
/// The number of latest cpusets for which the CPUs used are kept.
pub(super) const MAX_EPOCHS: usize = 64;

/// The counters of one worker.
#[derive(Debug)]
pub(super) struct Telemetry {
    iterations: AtomicU64,
    work_units: AtomicU64,
    first_iteration_ns: AtomicU64,
    last_iteration_ns: AtomicU64,
    last_cpu: AtomicU32,
    migrations: AtomicU64,
    cpus_used: CpuBits,
    /// Odd while a cpuset is in effect, a new number for each; even while there is none, or while it is
    /// being changed.
    epoch: AtomicU32,
    /// A ring: an epoch replaces the one `MAX_EPOCHS` cpusets before.
    epochs: [Epoch; MAX_EPOCHS],
    /// The longest gap, and room for the next longest: the worker may be killed while it writes.
    gaps: [SharedGap; 2],
    /// The number of the valid one of `gaps`, from 1; 0 for none.
    longest_gap: AtomicU32,
    pub(super) wake_latency: SharedHistogram,
    numa_pages: [AtomicU64; MAX_NODES],
}

#[derive(Debug, Default)]
struct SharedGap {
    length_ns: AtomicU64,
    cpu: AtomicU32,
    at_ns: AtomicU64,
}

/// The CPUs on which a worker was during one epoch.
#[derive(Debug, Default)]
struct Epoch {
    /// The epoch of `cpus_used`; 0 while they change.
    number: AtomicU32,
    cpus_used: CpuBits,
}

#[derive(Debug, Default)]
struct CpuBits([AtomicU64; MAX_CPUS / 64]);

impl CpuBits {
    fn insert(&self, cpu: u32) {
        let Some(word) = self.0.get(cpu as usize / 64) else { return };
        let (bits, bit) = (word.load(Ordering::Relaxed), 1 << (cpu % 64));
        if bits & bit == 0 {
            word.store(bits | bit, Ordering::Release);
        }
    }

    fn clear(&self) {
        self.0.iter().for_each(|word| word.store(0, Ordering::Release));
    }

    fn list(&self) -> Vec<u32> {
        let words: Vec<_> = self.0.iter().map(|word| word.load(Ordering::Acquire)).collect();
        let is_set = |cpu: &u32| words[*cpu as usize / 64] >> (cpu % 64) & 1 == 1;
        (0..MAX_CPUS as u32).filter(is_set).collect()
    }
}

/// The value of `Telemetry::last_cpu` before the first iteration.
const NO_CPU: u32 = u32::MAX;

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            iterations: AtomicU64::new(0),
            work_units: AtomicU64::new(0),
            first_iteration_ns: AtomicU64::new(0),
            last_iteration_ns: AtomicU64::new(0),
            last_cpu: AtomicU32::new(NO_CPU),
            migrations: AtomicU64::new(0),
            cpus_used: CpuBits::default(),
            epoch: AtomicU32::new(0),
            epochs: std::array::from_fn(|_| Epoch::default()),
            gaps: Default::default(),
            longest_gap: AtomicU32::new(0),
            wake_latency: SharedHistogram::default(),
            numa_pages: [const { AtomicU64::new(0) }; MAX_NODES],
        }
    }
}

impl Telemetry {
    /// Counts an iteration that ends now on the CPU on which this runs.
    pub(super) fn sample(&self, units: u64) {
        // The epoch is read before the CPU, and again after it in `record_cpu_in`.
        let epoch = self.epoch();
        let cpu = rustix::thread::sched_getcpu() as u32;
        self.record_cpu_in(epoch, cpu);
        self.record_iteration(since_boot_ns(), cpu, units);
    }

    /// Counts an iteration that ended at `now_ns` on `cpu`, with `units` of work.
    pub(super) fn record_iteration(&self, now_ns: u64, cpu: u32, units: u64) {
        add(&self.work_units, units);
        add(&self.iterations, 1);
        let last_ns = self.last_iteration_ns.load(Ordering::Relaxed);
        self.last_iteration_ns.store(now_ns, Ordering::Relaxed);
        match last_ns {
            0 => self.first_iteration_ns.store(now_ns, Ordering::Relaxed),
            _ => self.record_gap(now_ns.saturating_sub(last_ns), cpu, now_ns),
        }
        let last_cpu = self.last_cpu.load(Ordering::Relaxed);
        if cpu != last_cpu {
            self.record_cpu(cpu, last_cpu);
        }
    }

    fn record_gap(&self, length_ns: u64, cpu: u32, at_ns: u64) {
        let valid = self.longest_gap.load(Ordering::Relaxed);
        if valid != 0 && length_ns <= self.gap(valid).length_ns.load(Ordering::Relaxed) {
            return;
        }
        // The other one is free: readers use it no more once they see that it is not valid.
        let free = if valid == 1 { 2 } else { 1 };
        let gap = self.gap(free);
        gap.length_ns.store(length_ns, Ordering::Relaxed);
        gap.cpu.store(cpu, Ordering::Relaxed);
        gap.at_ns.store(at_ns, Ordering::Relaxed);
        self.longest_gap.store(free, Ordering::Release);
    }

    fn record_cpu(&self, cpu: u32, last_cpu: u32) {
        if last_cpu != NO_CPU {
            add(&self.migrations, 1);
        }
        self.last_cpu.store(cpu, Ordering::Relaxed);
        self.cpus_used.insert(cpu);
    }

    /// Returns the current epoch. The worker reads it before it reads its CPU.
    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Records the CPU on which the worker was after `epoch` was read. Drops it if the epoch has changed
    /// since, because either cpuset may have been in effect at the time.
    pub(super) fn record_cpu_in(&self, epoch: u32, cpu: u32) {
        fence(Ordering::Acquire);
        if epoch.is_multiple_of(2) || self.epoch.load(Ordering::Relaxed) != epoch {
            return;
        }
        let own = self.slot_of(epoch);
        if own.number.load(Ordering::Relaxed) == epoch {
            return own.cpus_used.insert(cpu);
        }
        // The first CPU of a new epoch: invalidate the slot, fill it, make it valid.
        own.number.store(0, Ordering::Relaxed);
        own.cpus_used.clear();
        own.cpus_used.insert(cpu);
        own.number.store(epoch, Ordering::Release);
    }

    /// Ends the current epoch. Called by the parent before it writes a cpuset.
    pub(super) fn end_epoch(&self) {
        let epoch = self.epoch();
        // From odd to even; an even one stays.
        self.epoch.store(epoch + epoch % 2, Ordering::SeqCst);
    }

    /// Begins the epoch of another cpuset and returns it. Called by the parent once the kernel has applied
    /// that.
    pub(super) fn begin_epoch(&self) -> u32 {
        let epoch = self.epoch();
        // The next odd number.
        let next = epoch + 1 + epoch % 2;
        self.epoch.store(next, Ordering::SeqCst);
        next
    }

    /// Returns the CPUs on which the worker was in one of the last epochs, sorted.
    pub(super) fn cpus_used_in(&self, epoch: u32) -> Vec<u32> {
        let own = self.slot_of(epoch);
        let is_valid = || own.number.load(Ordering::Acquire) == epoch;
        let cpus_used = if is_valid() { own.cpus_used.list() } else { Vec::new() };
        // The worker may have reused the slot during the read.
        if is_valid() { cpus_used } else { Vec::new() }
    }

    fn slot_of(&self, epoch: u32) -> &Epoch {
        &self.epochs[epoch as usize / 2 % MAX_EPOCHS]
    }

    pub(super) fn record_pages(&self, node: usize, pages: u64) {
        if let Some(counter) = self.numa_pages.get(node) {
            add(counter, pages);
        }
    }

    pub(super) fn iterations(&self) -> u64 {
        self.iterations.load(Ordering::Relaxed)
    }

    pub(super) fn work_units(&self) -> u64 {
        self.work_units.load(Ordering::Relaxed)
    }

    pub(super) fn migrations(&self) -> u64 {
        self.migrations.load(Ordering::Relaxed)
    }

    pub(super) fn last_cpu(&self) -> Option<u32> {
        Some(self.last_cpu.load(Ordering::Relaxed)).filter(|cpu| *cpu != NO_CPU)
    }

    /// Returns the end of the last iteration; 0 before the first.
    pub(super) fn last_iteration_ns(&self) -> u64 {
        self.last_iteration_ns.load(Ordering::Relaxed)
    }

    /// Returns the end of the first iteration in nanoseconds since boot; 0 if there was none.
    pub(super) fn first_iteration_ns(&self) -> u64 {
        self.first_iteration_ns.load(Ordering::Relaxed)
    }

    /// Returns the longest time between two iterations, before the first, or after the last; `None` if
    /// no iteration has ended.
    pub(super) fn longest_gap_within(
        &self,
        released_ns: u64,
        until_ns: u64,
    ) -> Option<IterationGap> {
        let last_ns = self.last_iteration_ns();
        if last_ns == 0 {
            return None;
        }
        let of = |from_ns: u64, to_ns: u64| IterationGap {
            length: Duration::from_nanos(to_ns.saturating_sub(from_ns)),
            cpu: self.last_cpu.load(Ordering::Relaxed),
            at_ns: to_ns,
        };
        let first = of(released_ns, self.first_iteration_ns());
        let open = of(last_ns, until_ns);
        self.longest_gap().into_iter().chain([first, open]).max_by_key(|gap| gap.length)
    }

    fn longest_gap(&self) -> Option<IterationGap> {
        loop {
            let valid = self.longest_gap.load(Ordering::Acquire);
            if valid == 0 {
                return None;
            }
            let gap = self.gap(valid);
            let read = IterationGap {
                length: Duration::from_nanos(gap.length_ns.load(Ordering::Acquire)),
                cpu: gap.cpu.load(Ordering::Acquire),
                at_ns: gap.at_ns.load(Ordering::Acquire),
            };
            // The worker writes to a gap again only after it has made the other one valid.
            if self.longest_gap.load(Ordering::Acquire) == valid {
                return Some(read);
            }
        }
    }

    fn gap(&self, which: u32) -> &SharedGap {
        &self.gaps[which as usize - 1]
    }

    pub(super) fn cpus_used(&self) -> Vec<u32> {
        self.cpus_used.list()
    }

    /// Returns the number of pages by node, up to the last node with any.
    pub(super) fn numa_pages(&self) -> Vec<u64> {
        let mut pages: Vec<_> =
            self.numa_pages.iter().map(|pages| pages.load(Ordering::Relaxed)).collect();
        let nodes = pages.iter().rposition(|pages| *pages > 0).map_or(0, |last| last + 1);
        pages.truncate(nodes);
        pages
    }
}

/// Adds to a counter that has one writer.
fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(Ordering::Relaxed) + value, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_iteration_adds_up() {
        let telemetry = Telemetry::default();
        assert_eq!((telemetry.longest_gap(), telemetry.cpus_used()), (None, vec![]));
        for (now, cpu, units) in [(100, 3, 1), (150, 3, 2), (400, 70, 0), (500, 3, 7)] {
            telemetry.record_iteration(now, cpu, units);
        }
        assert_eq!((telemetry.iterations(), telemetry.work_units()), (4, 10));
        assert_eq!((telemetry.migrations(), telemetry.cpus_used()), (2, vec![3, 70]));
        let gap = IterationGap { length: Duration::from_nanos(250), cpu: 70, at_ns: 400 };
        assert_eq!(telemetry.longest_gap(), Some(gap));
        assert_eq!(telemetry.last_iteration_ns(), 500);
    }

    #[test]
    fn record_iteration_ignores_cpus_beyond_the_limit() {
        let telemetry = Telemetry::default();
        telemetry.record_iteration(1, MAX_CPUS as u32, 1);
        telemetry.record_iteration(2, 0, 1);
        assert_eq!((telemetry.cpus_used(), telemetry.migrations()), (vec![0], 1));
    }

    #[test]
    fn cpus_used_in_separates_epochs() {
        let telemetry = Telemetry::default();
        // No cpuset is in effect yet.
        telemetry.record_cpu_in(telemetry.epoch(), 9);
        let first = telemetry.begin_epoch();
        [3, 70, 3].into_iter().for_each(|cpu| telemetry.record_cpu_in(first, cpu));
        telemetry.end_epoch();
        telemetry.end_epoch();
        telemetry.record_cpu_in(telemetry.epoch(), 9);
        // Read before the epoch ended; the CPU may have been read after it.
        telemetry.record_cpu_in(first, 9);
        let second = telemetry.begin_epoch();
        let third = telemetry.begin_epoch();
        telemetry.record_cpu_in(second, 9);
        telemetry.record_cpu_in(third, 1);
        telemetry.record_cpu_in(third, MAX_CPUS as u32);
        for (epoch, cpus) in [(first, vec![3, 70]), (second, vec![]), (third, vec![1])] {
            assert_eq!(telemetry.cpus_used_in(epoch), cpus, "{epoch}");
        }
    }

    #[test]
    fn cpus_used_in_drops_the_oldest_epoch() {
        let telemetry = Telemetry::default();
        let epochs: Vec<_> = (0..=MAX_EPOCHS as u32)
            .map(|cpu| {
                let epoch = telemetry.begin_epoch();
                telemetry.record_cpu_in(epoch, cpu);
                epoch
            })
            .collect();
        assert_eq!(telemetry.cpus_used_in(epochs[0]), [0; 0]);
        for (epoch, cpu) in epochs.into_iter().zip(0..).skip(1) {
            assert_eq!(telemetry.cpus_used_in(epoch), [cpu]);
        }
    }

    #[test]
    fn numa_pages_ends_with_the_last_node_that_has_any() {
        let telemetry = Telemetry::default();
        assert_eq!(telemetry.numa_pages(), [0; 0]);
        telemetry.record_pages(2, 5);
        telemetry.record_pages(2, 1);
        telemetry.record_pages(MAX_NODES, 9);
        assert_eq!(telemetry.numa_pages(), [0, 0, 6]);
    }
}
