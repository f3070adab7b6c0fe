//! The timeouts of a run, as a pure function of what happened when.
//!
//! No method reads a clock: `now` is a parameter.

use std::time::{Duration, Instant};

use ktstr_core::result::RunPhase;

/// Longest silence of a guest before its test body starts. A stock kernel prints a line every few hundred
/// milliseconds on hardware; the slowest emulation measured is forty times slower.
const BOOT_SILENCE: Duration = Duration::from_secs(60);

/// Longest boot. It ends a guest that keeps printing without ever becoming ready.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// How long a panicked kernel may take to reset the machine.
const PANIC_GRACE: Duration = Duration::from_secs(10);

/// A wait that ends later than this after its deadline was stalled by the host.
const HOST_STALL: Duration = Duration::from_secs(2);

/// A guest that has been silent for less than this, before scaling, is alive.
const ALIVE: Duration = Duration::from_secs(2);

/// Timeouts are scaled by at most this.
const MAX_SLOWNESS: f64 = 8.0;

/// The most time of a run that is excluded because this process kept the guest waiting. Its output is what
/// keeps this process busy, so without a limit a guest could run forever.
const MAX_EXCLUDED: Duration = Duration::from_secs(300);

/// The limits of a run, before they are scaled for slow machines.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunLimits {
    /// The planned duration of the body; `None` for a shell, which may run forever.
    pub(crate) duration: Option<Duration>,
    /// The time a body may take beyond its duration, and the longest silence of the guest.
    pub(crate) watchdog: Duration,
}

/// A limit that the guest has exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    /// The kernel panicked and did not reset the machine.
    Panicked,
    /// Nothing has ever arrived.
    NoOutput { silent: Duration },
    /// Nothing arrives any more.
    Hung { silent: Duration },
    /// The boot takes too long.
    NotReady { limit: Duration },
    /// The body takes too long.
    BodyTimeout { ran: Duration, allowed: Duration },
}

/// Decides when a guest has run out of time.
#[derive(Debug)]
pub(super) struct Watchdog {
    limits: RunLimits,
    /// How many times slower than hardware the guest booted, from 1.0; it scales `limits.watchdog`.
    slowness: f64,
    started: Instant,
    /// When the run ends at the latest; `None` for a shell. Only stalls of the host move it.
    run_deadline: Option<Instant>,
    phase: RunPhase,
    phase_began: Instant,
    /// The time that [`Watchdog::exclude`] has excluded.
    excluded: Duration,
    /// When the guest last showed that it is alive: by any byte while it boots, by a message later.
    last_activity: Instant,
    /// When the console showed the panic of the kernel.
    panicked: Option<Instant>,
}

impl Watchdog {
    pub(super) fn new(limits: RunLimits, now: Instant) -> Self {
        Self {
            limits,
            slowness: 1.0,
            started: now,
            // A limit beyond the range of the clock does not apply.
            run_deadline: longest_run(limits).and_then(|longest| now.checked_add(longest)),
            phase: RunPhase::Silent,
            phase_began: now,
            excluded: Duration::ZERO,
            last_activity: now,
            panicked: None,
        }
    }

    pub(super) fn phase(&self) -> RunPhase {
        self.phase
    }

    /// Returns the time since the engine was started, without stalls of the host.
    pub(super) fn run_time(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// Returns the time since the phase began, without stalls of the host.
    pub(super) fn phase_time(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.phase_began)
    }

    /// Returns the time that a message may take.
    pub(super) fn message_timeout(&self) -> Duration {
        self.limits.watchdog.mul_f64(self.slowness)
    }

    /// Scales the limits of the body for a machine that booted `slowness` times slower than hardware. Returns
    /// the factor, which is 1.0 to 8.0.
    pub(super) fn set_slowness(&mut self, slowness: f64) -> f64 {
        self.slowness = slowness.clamp(1.0, MAX_SLOWNESS);
        self.slowness
    }

    pub(super) fn enter(&mut self, phase: RunPhase, now: Instant) {
        tracing::debug!("guest: {:?} -> {phase:?} after {:?}", self.phase, self.phase_time(now));
        self.phase = phase;
        self.phase_began = now;
    }

    /// Notes that the guest is alive: a message arrived.
    pub(super) fn on_activity(&mut self, now: Instant) {
        self.last_activity = now;
    }

    /// Notes bytes of the console. They count as activity only while the guest boots: a kernel can print
    /// although PID 1 hangs.
    pub(super) fn on_console(&mut self, now: Instant) {
        if self.phase == RunPhase::Silent {
            self.enter(RunPhase::Booting, now);
        }
        if self.phase == RunPhase::Booting {
            self.last_activity = now;
        }
    }

    /// Notes the panic of the kernel; the first one counts.
    pub(super) fn on_panic(&mut self, now: Instant) {
        if self.panicked.is_none() {
            tracing::debug!("guest: kernel panic; the machine has {PANIC_GRACE:?} to reset");
            self.panicked = Some(now);
        }
    }

    /// Excludes a time from `from` to `now` in which this process itself kept the guest waiting, up to
    /// [`MAX_EXCLUDED`] in one run.
    pub(super) fn exclude(&mut self, from: Instant, now: Instant) {
        let left = MAX_EXCLUDED.saturating_sub(self.excluded);
        let time = now.saturating_duration_since(from).min(left);
        self.excluded += time;
        self.phase_began += time;
        self.last_activity = now;
    }

    /// Excludes the time by which a wait has missed its deadline, if the host stalled this process: it was
    /// stopped by Ctrl-Z, or the machine was suspended.
    pub(super) fn shift_deadlines(&mut self, deadline: Instant, now: Instant) {
        let late = now.saturating_duration_since(deadline);
        if late <= HOST_STALL {
            return;
        }
        tracing::debug!("watchdog: the host stalled for {late:?}; deadlines shifted");
        self.started += late;
        self.run_deadline = self.run_deadline.map(|when| when + late);
        self.phase_began += late;
        self.last_activity += late;
        self.panicked = self.panicked.map(|when| when + late);
    }

    /// Returns when to check the limits again if nothing happens. A shell is polled often, for its input.
    pub(super) fn deadline(&self, now: Instant) -> Instant {
        let interval = match self.limits.duration {
            Some(_) => Duration::from_secs(1),
            None => Duration::from_millis(20),
        };
        now + interval
    }

    /// Returns the limit that the guest has exceeded, if any.
    pub(super) fn overdue(&self, now: Instant) -> Option<Overdue> {
        if self.panicked.is_some_and(|when| now > when + PANIC_GRACE) {
            return Some(Overdue::Panicked);
        }
        // First the limit that no message, output or console line of the guest can move.
        if self.run_deadline.is_some_and(|when| now > when) {
            return Some(match (self.phase, longest_run(self.limits)) {
                (RunPhase::Body, Some(allowed)) => {
                    Overdue::BodyTimeout { ran: self.run_time(now), allowed }
                }
                _ => Overdue::NotReady { limit: BOOT_LIMIT },
            });
        }
        let silent = now.saturating_duration_since(self.last_activity);
        let allowed_silence = match self.phase {
            RunPhase::Silent | RunPhase::Booting | RunPhase::Ready => BOOT_SILENCE,
            RunPhase::Body => self.message_timeout(),
        };
        if silent > allowed_silence {
            let is_first = self.phase == RunPhase::Silent;
            return Some(if is_first {
                Overdue::NoOutput { silent }
            } else {
                Overdue::Hung { silent }
            });
        }
        if self.phase != RunPhase::Body {
            let is_late = self.run_time(now) > BOOT_LIMIT;
            return is_late.then_some(Overdue::NotReady { limit: BOOT_LIMIT });
        }
        let allowed = self.limits.duration? + self.message_timeout();
        let ran = self.phase_time(now);
        // A guest that has just become silent may have hung: the limit on silence decides that later.
        let is_alive = silent < ALIVE.mul_f64(self.slowness);
        (ran > allowed && is_alive).then_some(Overdue::BodyTimeout { ran, allowed })
    }
}

/// Returns the longest run from the start of the engine that the limits of all phases allow, on the slowest
/// machine and with the most time excluded. `None` for a shell.
fn longest_run(limits: RunLimits) -> Option<Duration> {
    let body = limits.duration?.saturating_add(limits.watchdog.mul_f64(MAX_SLOWNESS));
    Some(body.saturating_add(BOOT_LIMIT + MAX_EXCLUDED))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RunLimits =
        RunLimits { duration: Some(Duration::from_secs(10)), watchdog: Duration::from_secs(5) };

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Returns a watchdog that entered `phase` at its start, and the start.
    fn watchdog(phase: RunPhase) -> (Watchdog, Instant) {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(LIMITS, start);
        watchdog.enter(phase, start);
        (watchdog, start)
    }

    #[test]
    fn overdue_depends_on_phase_and_silence() {
        let (not_ready, silent) = (Overdue::NotReady { limit: BOOT_LIMIT }, s(61));
        for (phase, last_activity, now, want) in [
            (RunPhase::Silent, 0, 60, None),
            (RunPhase::Silent, 0, 61, Some(Overdue::NoOutput { silent })),
            (RunPhase::Booting, 0, 61, Some(Overdue::Hung { silent })),
            (RunPhase::Ready, 9, 70, Some(Overdue::Hung { silent })),
            (RunPhase::Booting, 300, 300, None),
            (RunPhase::Booting, 300, 301, Some(not_ready)),
            (RunPhase::Ready, 300, 301, Some(not_ready)),
            (RunPhase::Body, 0, 5, None),
            (RunPhase::Body, 0, 6, Some(Overdue::Hung { silent: s(6) })),
            (RunPhase::Body, 15, 15, None),
            (RunPhase::Body, 15, 16, Some(Overdue::BodyTimeout { ran: s(16), allowed: s(15) })),
            // Too long, but silent: whether it hangs is not decided yet.
            (RunPhase::Body, 15, 18, None),
            (RunPhase::Body, 15, 21, Some(Overdue::Hung { silent: s(6) })),
        ] {
            let (mut watchdog, start) = watchdog(phase);
            watchdog.on_activity(start + s(last_activity));
            assert_eq!(watchdog.overdue(start + s(now)), want, "{phase:?} {last_activity} {now}");
        }
    }

    #[test]
    fn overdue_scales_with_slowness() {
        for (slowness, last_activity, now, want) in [
            (1.0, 16, 16, Some(Overdue::BodyTimeout { ran: s(16), allowed: s(15) })),
            (8.0, 16, 16, None),
            (8.0, 0, 40, None),
            (8.0, 0, 41, Some(Overdue::Hung { silent: s(41) })),
            (8.0, 50, 51, Some(Overdue::BodyTimeout { ran: s(51), allowed: s(50) })),
        ] {
            let (mut watchdog, start) = watchdog(RunPhase::Body);
            watchdog.set_slowness(slowness);
            watchdog.on_activity(start + s(last_activity));
            assert_eq!(watchdog.overdue(start + s(now)), want, "{slowness} {last_activity} {now}");
        }
    }

    #[test]
    fn overdue_never_ends_a_shell_that_answers() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(RunLimits { duration: None, ..LIMITS }, start);
        watchdog.enter(RunPhase::Body, start);
        watchdog.on_activity(start + s(100_000));
        assert_eq!(watchdog.overdue(start + s(100_001)), None);
        assert_eq!(watchdog.deadline(start), start + Duration::from_millis(20));
    }

    #[test]
    fn overdue_after_a_panic_waits_for_the_reset() {
        let (mut watchdog, start) = watchdog(RunPhase::Booting);
        watchdog.on_panic(start);
        // A later one does not extend the time.
        watchdog.on_panic(start + s(9));
        assert_eq!(watchdog.overdue(start + s(10)), None);
        assert_eq!(watchdog.overdue(start + s(11)), Some(Overdue::Panicked));
    }

    #[test]
    fn on_console_is_activity_only_during_the_boot() {
        for (phase, is_activity) in [
            (RunPhase::Silent, true),
            (RunPhase::Booting, true),
            (RunPhase::Ready, false),
            (RunPhase::Body, false),
        ] {
            let (mut watchdog, start) = watchdog(phase);
            watchdog.on_console(start + s(60));
            assert_eq!(watchdog.overdue(start + s(62)).is_none(), is_activity, "{phase:?}");
            assert_ne!(watchdog.phase(), RunPhase::Silent);
        }
    }

    #[test]
    fn shift_deadlines_excludes_stalls_of_the_host() {
        for (deadline, woken, hung) in [(1, 3, 6), (1, 4, 9), (1, 1000, 1005)] {
            let (mut watchdog, start) = watchdog(RunPhase::Body);
            watchdog.on_panic(start);
            watchdog.shift_deadlines(start + s(deadline), start + s(woken));
            assert_eq!(watchdog.overdue(start + s(hung - 1)), None, "{deadline} {woken}");
            let silent = s(if woken > 3 { hung + deadline - woken } else { hung });
            let want = Some(Overdue::Hung { silent });
            assert_eq!(watchdog.overdue(start + s(hung)), want, "{deadline} {woken}");
        }
    }

    #[test]
    fn exclude_gives_the_body_its_time_back() {
        let (mut watchdog, start) = watchdog(RunPhase::Body);
        watchdog.exclude(start, start + s(100));
        assert_eq!(watchdog.phase_time(start + s(115)), s(15));
        watchdog.on_activity(start + s(115));
        assert_eq!(watchdog.overdue(start + s(115)), None);
        let want = Some(Overdue::BodyTimeout { ran: s(16), allowed: s(15) });
        assert_eq!(watchdog.overdue(start + s(116)), want);
    }
    /// Each closure is a guest that does its worst at every moment.
    #[test]
    fn overdue_ends_every_run_whatever_the_guest_does() {
        type Guest = fn(&mut Watchdog, Instant);
        let guests: [(&str, Guest); 5] = [
            ("messages", |watchdog, now| watchdog.on_activity(now)),
            ("console", |watchdog, now| watchdog.on_console(now)),
            ("body starts again", |watchdog, now| watchdog.enter(RunPhase::Body, now)),
            ("output that is slow to print", |watchdog, now| {
                watchdog.on_activity(now);
                watchdog.exclude(now.checked_sub(s(1)).unwrap(), now);
            }),
            ("boots again", |watchdog, now| watchdog.enter(RunPhase::Ready, now)),
        ];
        let longest = longest_run(LIMITS).unwrap();
        assert_eq!(longest, s(10 + 5 * 8 + 300 + 300));
        for phase in [RunPhase::Silent, RunPhase::Booting, RunPhase::Ready, RunPhase::Body] {
            for (name, guest) in guests {
                let (mut watchdog, start) = watchdog(phase);
                watchdog.set_slowness(1000.0);
                let ended = (1..=longest.as_secs() + 1).find(|second| {
                    let now = start + s(*second);
                    guest(&mut watchdog, now);
                    watchdog.overdue(now).is_some()
                });
                assert!(ended.is_some(), "{name} from {phase:?} on");
            }
        }
    }

    #[test]
    fn exclude_is_limited_in_total() {
        let (mut watchdog, start) = watchdog(RunPhase::Body);
        for second in 0..1000 {
            watchdog.exclude(start + s(second), start + s(second + 1));
        }
        assert_eq!(watchdog.phase_time(start + s(1000)), s(1000) - MAX_EXCLUDED);
    }

    #[test]
    fn shift_deadlines_moves_the_end_of_the_run() {
        let (mut watchdog, start) = watchdog(RunPhase::Body);
        let longest = longest_run(LIMITS).unwrap();
        let woken = start + longest + s(100);
        watchdog.shift_deadlines(start + s(1), woken);
        watchdog.on_activity(woken);
        assert_eq!(watchdog.overdue(woken), None);
    }
}
