//! Compares the guest's clock with the host's.
//!
//! A kernel that calibrates its clock wrongly, as one on a busy host may, has another second: a body
//! of 20 s is over after 3 s, and each rate and timeout is wrong with it.
//!
//! The guest's messages carry its uptime. It cannot be longer than the time since the engine was
//! started, however busy the host is: load delays messages, and the host then sees more time, not
//! less. So a small excess is proof. A shortfall is not, because it may be a delay: only one that no
//! delay explains counts.

use std::time::Duration;

use ktstr_core::result::{ClockSpan, RunEnd};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// The guest's clock may be ahead by 1/20: kernels keep a calibration that is 1 % off, and both clocks
/// may be corrected.
const AHEAD_PART: u32 = 20;

/// The guest's clock is behind if it counts less than 1/2 of the host's time ...
const BEHIND_PART: u32 = 2;

/// ... and lacks more than this, which is longer than the delay of a message on a busy host.
const BEHIND_LEAST: Duration = Duration::from_secs(10);

/// Compares the two clocks of a run.
#[derive(Debug)]
pub(super) struct Clocks {
    /// The host's clock at the engine's start.
    host_at_boot: Duration,
    /// The guest's clock at the body's start.
    guest_at_body: Option<Duration>,
}

impl Clocks {
    /// Records the time of the host, before the engine is started.
    pub(super) fn at_boot() -> Self {
        Self { host_at_boot: host_clock(), guest_at_body: None }
    }

    /// Continues with a guest that was saved after at most `ran` of its time. It does not count the time until it
    /// was restored.
    pub(super) fn add_time_before_save(&mut self, ran: Duration) {
        self.host_at_boot = self.host_at_boot.saturating_sub(ran);
    }

    /// Returns the time of the host since the engine was started.
    pub(super) fn run_time(&self) -> Duration {
        host_clock().saturating_sub(self.host_at_boot)
    }

    /// Records the guest's time at which the body started.
    pub(super) fn start_body(&mut self, guest_ns: u64) {
        self.guest_at_body = Some(Duration::from_nanos(guest_ns));
    }

    /// Fails if the guest, by its own clock, has been up for longer than the engine has run, before a save and
    /// after it.
    pub(super) fn check_uptime(&self, guest_ns: u64) -> Result<(), RunEnd> {
        let guest = Duration::from_nanos(guest_ns);
        let host = self.run_time();
        if is_ahead(guest, host) {
            return Err(RunEnd::WrongClock { span: ClockSpan::Boot, guest, host });
        }
        Ok(())
    }

    /// Fails if the body has run for much less time by the guest's clock than by `host`, the host's time
    /// without the time that the runner was stopped or suspended.
    pub(super) fn check_body(&self, guest_ns: u64, host: Duration) -> Result<(), RunEnd> {
        let Some(began) = self.guest_at_body else { return Ok(()) };
        let guest = Duration::from_nanos(guest_ns).saturating_sub(began);
        if is_behind(guest, host) {
            return Err(RunEnd::WrongClock { span: ClockSpan::Body, guest, host });
        }
        Ok(())
    }
}

/// Reads the host's clock, which includes the time that the host is suspended: its TSC may do so, too.
fn host_clock() -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Boottime);
    Duration::new(tv_sec.unsigned_abs(), tv_nsec.unsigned_abs() as u32)
}

fn is_ahead(guest: Duration, host: Duration) -> bool {
    guest > host + host / AHEAD_PART
}

fn is_behind(guest: Duration, host: Duration) -> bool {
    guest < host / BEHIND_PART && host - guest > BEHIND_LEAST
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn is_ahead_has_a_small_tolerance() {
        for (guest, host, want) in [
            (ms(0), ms(0), false),
            (ms(1_049), ms(1_000), false),
            (ms(1_051), ms(1_000), true),
            // Load of the host explains a guest that is behind.
            (ms(1_000), ms(60_000), false),
            // A clock six times too fast, 0.5 s after the engine's start.
            (ms(20_000), ms(3_800), true),
        ] {
            assert_eq!(is_ahead(guest, host), want, "{guest:?} {host:?}");
        }
    }

    #[test]
    fn is_behind_tolerates_delays() {
        for (guest, host, want) in [
            (ms(0), ms(0), false),
            (ms(0), ms(10_000), false),
            (ms(0), ms(10_001), true),
            (ms(20_000), ms(31_000), false),
            (ms(20_000), ms(60_000), true),
            (ms(60_000), ms(20_000), false),
        ] {
            assert_eq!(is_behind(guest, host), want, "{guest:?} {host:?}");
        }
    }

    #[test]
    fn check_uptime_counts_the_time_before_a_save() {
        let mut clocks = Clocks::at_boot();
        // The uptime of the host, which may be short.
        let ran = host_clock();
        let ns = u64::try_from(ran.as_nanos()).unwrap();
        assert!(clocks.check_uptime(ns).is_err());
        clocks.add_time_before_save(ran);
        assert_eq!(clocks.check_uptime(ns), Ok(()));
        assert!(clocks.check_uptime(2 * ns).is_err());
    }

    #[test]
    fn check_body_counts_from_the_start_of_the_body() {
        let mut clocks = Clocks::at_boot();
        let seconds = |seconds: u64| seconds * 1_000_000_000;
        assert_eq!(clocks.check_body(seconds(1), ms(60_000)), Ok(()), "no body has started");
        clocks.start_body(seconds(100));
        assert_eq!(clocks.check_body(seconds(120), ms(25_000)), Ok(()));
        let (guest, host) = (ms(20_000), ms(60_000));
        let end = RunEnd::WrongClock { span: ClockSpan::Body, guest, host };
        assert_eq!(clocks.check_body(seconds(120), host), Err(end));
    }
}
