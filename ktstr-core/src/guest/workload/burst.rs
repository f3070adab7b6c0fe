//! Bursts: computing for a fixed time without a system call.
//!
//! The parent calibrates the number of loops in a burst once, before its workers are forked. Workers would
//! calibrate while all of them start and preempt each other.

use std::hint::{black_box, spin_loop};
use std::sync::OnceLock;
use std::time::Duration;

use super::telemetry::Telemetry;
use crate::linux::sys::since_boot_ns;

/// A burst takes this many times as long as the measuring of an iteration, if that is within the two
/// limits below. After a burst, when others have used the caches and branch predictors, measuring
/// takes up to twice as long as measured here.
const BURST_PER_SAMPLE: u64 = 100;
const SHORTEST_NS: u64 = 5_000;
/// A long burst on a CPU that a worker shares with many others takes a large part of what it gets.
const LONGEST_NS: u64 = 50_000;

/// The number of measurements of which the fastest counts. Preemption, steal time and the translation
/// of code that an emulated CPU runs for the first time only ever lengthen one.
const MEASUREMENTS: u32 = 16;

const FEWEST_LOOPS: u32 = 4;
/// However the clock behaves, a burst takes no longer than a few ticks.
const MOST_LOOPS: u32 = 1 << 16;

/// The number of loops in a burst on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bursts {
    length_ns: u64,
    spin_loops: u32,
    compute_loops: u32,
}

impl Bursts {
    /// Returns the bursts of this process, which finds their length at the first call. A forked
    /// process inherits it.
    pub(super) fn get() -> Self {
        static BURSTS: OnceLock<Bursts> = OnceLock::new();
        *BURSTS.get_or_init(Self::calibrate)
    }

    fn calibrate() -> Self {
        let length_ns = burst_ns(sample_cost_ns());
        Self {
            length_ns,
            spin_loops: loops_for(length_ns, |loops| time(|| spin(loops))),
            compute_loops: loops_for(length_ns, |loops| time(|| compute(loops))),
        }
    }

    /// Returns how long a burst takes on a CPU of its own.
    pub(super) fn length(&self) -> Duration {
        Duration::from_nanos(self.length_ns)
    }

    pub(super) fn spin(&self) {
        spin(self.spin_loops);
    }

    pub(super) fn compute(&self) {
        compute(self.compute_loops);
    }
}

fn spin(loops: u32) {
    for _ in 0..loops {
        spin_loop();
    }
}

/// Runs four chains of multiplications that do not wait for each other.
fn compute(loops: u32) {
    let mut chains = black_box([3_u64, 5, 7, 11]);
    for _ in 0..loops {
        // A different shift for each chain: with one shift, the compiler makes SSE2 vectors of them. The
        // time of that loop varies by 8 % with the distance of the chains at its entry.
        for (chain, shift) in chains.iter_mut().zip(29..) {
            *chain = chain.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ (*chain >> shift);
        }
    }
    black_box(chains);
}

/// Returns how long it takes to measure one iteration.
fn sample_cost_ns() -> u64 {
    const SAMPLES: u64 = 32;
    let telemetry = Telemetry::default();
    // As for a worker with a cpuset, for which it takes longer.
    telemetry.begin_epoch();
    fastest(|| time(|| (0..SAMPLES).for_each(|_| telemetry.sample(1)))) / SAMPLES
}

/// Returns the length of a burst if measuring an iteration takes `sample_ns`.
fn burst_ns(sample_ns: u64) -> u64 {
    sample_ns.saturating_mul(BURST_PER_SAMPLE).clamp(SHORTEST_NS, LONGEST_NS)
}

/// Returns how many loops take `length_ns`; `measure` runs that many and returns the nanoseconds.
fn loops_for(length_ns: u64, measure: impl Fn(u32) -> u64) -> u32 {
    let mut loops = FEWEST_LOOPS;
    loop {
        let ns = fastest(|| measure(loops)).max(1);
        // Half of the length is long enough to be scaled up.
        if 2 * ns >= length_ns || loops >= MOST_LOOPS {
            let scaled = (u64::from(loops) * length_ns).div_ceil(ns);
            return scaled.min(MOST_LOOPS.into()) as u32;
        }
        loops *= 2;
    }
}

fn fastest(measure: impl Fn() -> u64) -> u64 {
    // The measurements share their code, which an emulated CPU translates once, only if the compiler
    // does not unroll the loop.
    (0..black_box(MEASUREMENTS)).map(|_| measure()).min().unwrap_or(0)
}

fn time(what: impl FnOnce()) -> u64 {
    let begin = since_boot_ns();
    what();
    since_boot_ns() - begin
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn burst_length_follows_the_cost_of_a_sample_within_its_limits() {
        for (sample_ns, wanted) in
            [(0, 5_000), (40, 5_000), (200, 20_000), (1_000, 50_000), (u64::MAX, 50_000)]
        {
            assert_eq!(burst_ns(sample_ns), wanted);
        }
    }

    /// A clock on which each loop takes `loop_ps` picoseconds, and which another task or the host
    /// stops for a thousand times as long in all measurements of which `is_hit` is true.
    fn scripted(loop_ps: u64, is_hit: impl Fn(u32) -> bool) -> impl Fn(u32) -> u64 {
        let measurement = Cell::new(0);
        move |loops| {
            let index = measurement.replace(measurement.get() + 1);
            let ns = u64::from(loops) * loop_ps / 1000;
            if is_hit(index) { 1000 * ns + 30_000_000 } else { ns }
        }
    }

    #[test]
    fn loops_take_the_length_whatever_interrupts_most_measurements() {
        let hits: [fn(u32) -> bool; 4] =
            [|_| false, |index| index % 2 == 0, |index| index % 16 != 7, |index| index < 15];
        for length_ns in [SHORTEST_NS, 21_000, LONGEST_NS] {
            for loop_ps in [800, 1_300, 40_000, 900_000] {
                for is_hit in hits {
                    let loops = loops_for(length_ns, scripted(loop_ps, is_hit));
                    let took_ns = u64::from(loops) * loop_ps / 1000;
                    let wanted = length_ns..=length_ns * 5 / 4;
                    assert!(wanted.contains(&took_ns), "{length_ns}, {loop_ps}: {took_ns}");
                }
            }
        }
    }

    #[test]
    fn loops_are_bounded_on_a_clock_that_stands_still_or_jumps() {
        assert_eq!(loops_for(LONGEST_NS, |_| 0), MOST_LOOPS);
        assert_eq!(loops_for(LONGEST_NS, |_| u64::MAX / 2), 1);
    }

    #[test]
    fn bursts_are_long_compared_with_measuring() {
        let bursts = Bursts::get();
        assert!(bursts.length_ns >= SHORTEST_NS && bursts.length_ns <= LONGEST_NS, "{bursts:?}");
        let shortest = |what: &dyn Fn()| (0..200).map(|_| time(what)).min().unwrap();
        for burst in [shortest(&|| bursts.spin()), shortest(&|| bursts.compute())] {
            assert!(burst > SHORTEST_NS / 2, "{burst}, {bursts:?}");
            assert!(burst > 20 * sample_cost_ns(), "{burst}, {}", sample_cost_ns());
        }
    }

    #[test]
    fn bursts_are_found_once_and_inherited() {
        let found = Bursts::get();
        let inherited =
            crate::linux::sys::Shared::new(std::sync::atomic::AtomicU64::new(0)).unwrap();
        let child = || {
            let same = Bursts::get() == found;
            inherited.store(same.into(), std::sync::atomic::Ordering::Relaxed);
            0
        };
        // SAFETY: the child reads what was found before the fork, and stores a number.
        let child = unsafe { crate::linux::sys::fork(child) }.unwrap();
        assert!(crate::linux::sys::reap(child).unwrap().0.success());
        assert_eq!(inherited.load(std::sync::atomic::Ordering::Relaxed), 1);
    }
}
