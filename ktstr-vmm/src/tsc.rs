//! The time-stamp counter of the host's CPUs, and its rate.
//!
//! Source: Intel SDM vol. 3B, 19.17 (time-stamp counter).

use std::arch::x86_64::_rdtsc;
use std::sync::OnceLock;

use rustix::time::{ClockId, clock_gettime};

/// Two readings are far enough apart once the error of the rate is below 1 in 10,000. Kernels
/// accept five times this error from the timers that they calibrate against.
const PRECISION: u64 = 10_000;

/// How often one reading is repeated. The one with the smallest error is used: a busy host did not
/// interrupt it.
const REPEATS: u32 = 32;

/// The longest measurement. It is sufficient unless one reading takes more than 100 us.
const LONGEST_NS: u64 = 1_000_000_000;

/// Reads the counter of the CPU that this thread runs on.
pub(crate) fn read() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction. If it is disabled for the process (PR_SET_TSC),
    // the process ends by a signal.
    unsafe { _rdtsc() }
}

/// Returns the counter's rate in kHz, measured once per process, or `None` if it cannot be measured
/// with the precision that a kernel needs.
pub(crate) fn host_khz() -> Option<u32> {
    static KHZ: OnceLock<Option<u32>> = OnceLock::new();
    *KHZ.get_or_init(measure)
}

fn measure() -> Option<u32> {
    let first = Reading::now();
    loop {
        let last = Reading::now();
        if let Some(khz) = khz(&first, &last) {
            return Some(khz);
        }
        if last.ns.saturating_sub(first.ns) > LONGEST_NS {
            return None;
        }
    }
}

/// The counter and the clock at the same time, with an error of at most `error_ns`.
#[derive(Debug)]
struct Reading {
    tsc: u64,
    ns: u64,
    error_ns: u64,
}

impl Reading {
    fn now() -> Self {
        let once = || {
            // Not CLOCK_MONOTONIC: NTP adjusts its rate.
            let clock = || clock_gettime(ClockId::MonotonicRaw);
            let (before, tsc, after) = (clock(), read(), clock());
            let ns = |time: rustix::time::Timespec| {
                time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
            };
            let error_ns = (ns(after) - ns(before)).div_ceil(2);
            Self { tsc, ns: ns(before) + error_ns, error_ns }
        };
        let readings = (1..REPEATS).map(|_| once());
        readings.fold(once(), |best, next| if next.error_ns < best.error_ns { next } else { best })
    }
}

/// Returns the rate between two readings, if they are far enough apart for the precision.
fn khz(first: &Reading, last: &Reading) -> Option<u32> {
    let span_ns = last.ns.checked_sub(first.ns)?;
    let error_ns = first.error_ns + last.error_ns;
    if span_ns == 0 || error_ns > span_ns / PRECISION {
        return None;
    }
    let count = last.tsc.checked_sub(first.tsc)?;
    let khz = u128::from(count) * 1_000_000 / u128::from(span_ns);
    u32::try_from(khz).ok().filter(|khz| *khz > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(tsc: u64, ns: u64, error_ns: u64) -> Reading {
        Reading { tsc, ns, error_ns }
    }

    #[test]
    fn khz_needs_precise_readings() {
        let first = reading(1_000, 500, 50);
        for (last, want) in [
            (reading(2_446_000, 1_000_500, 50), Some(2_445_000)),
            (reading(2_446_000, 1_000_500, 51), None),
            (reading(1_000, 500, 0), None),
            (reading(0, 1_000_500, 0), None),
            (reading(1_001, 1_000_000_500, 50), None),
            (reading(u64::MAX, 2_000_500, 0), None),
        ] {
            assert_eq!(khz(&first, &last), want, "{last:?}");
        }
    }

    #[test]
    fn measure_is_repeatable() {
        let (Some(one), Some(other)) = (measure(), measure()) else {
            eprintln!("skipped: this host's counter cannot be measured");
            return;
        };
        // Twice the error of one measurement.
        let allowed = u64::from(one) * 2 / PRECISION + 2;
        assert!(u64::from(one.abs_diff(other)) <= allowed, "{one} kHz, {other} kHz");
    }
}
