//! Clocks and their units.

use rustix::time::{ClockId, clock_gettime};

pub(crate) fn since_boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Returns the unit of CPU times in /proc.
///
/// Not from rustix, which panics before Linux 6.4 in a process that has changed its user and
/// therefore may not read /proc/self/auxv.
pub(crate) fn ticks_per_second() -> u64 {
    // SAFETY: `sysconf` accepts any name.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).ok().filter(|ticks| *ticks > 0).expect("_SC_CLK_TCK is positive on Linux")
}
