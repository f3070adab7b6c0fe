//! `not_stuck`: whether workers complete iterations, given the CPU time that each could get.
//!
//! A worker without an iteration has had a certain time. The guest may explain a part of it: the
//! scenario froze the worker, its weight or quota is small, `memory.high` slows it down. The host may
//! explain a part of the rest by steal time, which only the host sees. The detail therefore carries how
//! much steal time explains it, and becomes inconclusive if there was as much. See
//! docs/decisions/0007-stuck-workers.md.

use std::time::Duration;

use super::measure::{lower, unmeasured};
use crate::model::detail::{AssertDetail, DetailKind};
use crate::model::measurement::Limit;
use crate::model::verdict::AssertResult;
use crate::model::worker::{IterationGap, WorkerReport};

/// The factor on the limit for a worker that has completed an iteration, because the next one may take
/// longer, depending on its type; and for one that the kernel may throttle when it allocates memory.
const LATER: u32 = 5;

/// Fails if the worker completed no iteration in `stuck_after`, or for five times as long later on.
/// Adds a note if it completed none in a shorter time, which proves nothing.
pub(super) fn not_stuck(worker: &WorkerReport, stuck_after: Duration) -> AssertResult {
    let limit = stuck_after.max(worker.fair_wait_bound);
    let later = limit.saturating_mul(LATER);
    match worker.longest_gap.filter(|_| worker.iterations > 0) {
        Some(gap) => stalled(worker, gap, later),
        None if worker.iterations > 0 => AssertResult::pass(),
        None => idle(worker, if worker.is_memory_throttled { later } else { limit }),
    }
}

/// Judges a worker that completed no iteration.
fn idle(worker: &WorkerReport, limit: Duration) -> AssertResult {
    let frozen = worker.frozen_within(worker.active, worker.active_until_ns);
    let had = worker.active.saturating_sub(frozen);
    if had >= limit {
        return AssertResult::fail(stuck(worker, had, limit, frozen));
    }
    let mut verdict = AssertResult::pass();
    let frozen = if frozen.is_zero() {
        String::new()
    } else {
        format!(", not counting {frozen:.1?} while frozen")
    };
    verdict.note(format!(
        "{worker} completed no iteration in {had:.1?}{frozen}: too short to judge (limit {limit:.1?}); {}",
        time_spent(worker)
    ));
    verdict
}

/// Judges the longest time without an iteration of a worker that completed some.
fn stalled(worker: &WorkerReport, gap: IterationGap, limit: Duration) -> AssertResult {
    let frozen = worker.frozen_within(gap.length, gap.at_ns);
    let had = gap.length.saturating_sub(frozen);
    if had >= limit {
        let detail = stuck(worker, had, limit, frozen);
        return AssertResult::fail(detail.cpu(gap.cpu).at_ns(gap.at_ns));
    }
    let mut verdict = AssertResult::pass();
    if gap.length >= limit {
        verdict.note(format!("{worker} was frozen for {frozen:.1?}, which may hide a stall"));
    }
    verdict
}

/// Returns the reason for an inconclusive verdict if no worker completed an iteration, because workers
/// that did nothing prove nothing. A worker that has ended is judged by that instead.
pub(super) fn any_iteration(reports: &[WorkerReport]) -> AssertResult {
    let proves = |worker: &WorkerReport| worker.iterations > 0 || worker.ended.is_some();
    if reports.is_empty() || reports.iter().any(proves) {
        return AssertResult::pass();
    }
    AssertResult::inconclusive(unmeasured(
        DetailKind::WorkerStuck,
        "no worker completed an iteration",
    ))
}

/// Returns the detail about a worker that had `had` without an iteration, not counting `frozen`.
fn stuck(worker: &WorkerReport, had: Duration, limit: Duration, frozen: Duration) -> AssertDetail {
    let detail = lower(DetailKind::WorkerStuck, "stall", had.as_secs_f64(), "s", 1);
    let detail = detail.limit(Limit::AtMost(limit.as_secs_f64())).because("no iteration completed");
    let detail = less_frozen(detail.because(&time_spent(worker)), frozen);
    match asleep(worker, had) {
        // Steal time does not keep a task asleep.
        asleep if asleep >= limit && !worker.needs_others => detail,
        _ => detail.explained_by(had - limit),
    }
}

/// Adds that the time in which a worker was frozen is left out of what was measured.
pub(super) fn less_frozen(detail: AssertDetail, frozen: Duration) -> AssertDetail {
    if frozen.is_zero() {
        return detail;
    }
    detail.because(&format!("not counting {frozen:.1?} while frozen"))
}

/// Returns how long the worker was asleep, at least, in a part of its time that is `had` long.
fn asleep(worker: &WorkerReport, had: Duration) -> Duration {
    had.saturating_sub(worker.cpu + worker.run_delay)
}

/// Formats `CPU time 12.3ms, runnable without a CPU 4.9s`.
fn time_spent(worker: &WorkerReport) -> String {
    format!("CPU time {:.1?}, runnable without a CPU {:.1?}", worker.cpu, worker.run_delay)
}

#[cfg(test)]
mod tests {
    use super::super::workers::tests::{ms, spin};
    use super::*;
    use crate::model::detail::Outcome::{self, Fail, Pass};
    use crate::model::worker::FrozenPeriod;

    const LIMIT: Duration = Duration::from_secs(5);

    /// Returns a worker that slept through `active` milliseconds without an iteration.
    fn asleep(active: u64) -> WorkerReport {
        WorkerReport {
            iterations: 0,
            longest_gap: None,
            active: ms(active),
            cpu: Duration::ZERO,
            run_delay: Duration::ZERO,
            ..spin()
        }
    }

    /// Returns a worker that was runnable all the time.
    fn starved(active: u64) -> WorkerReport {
        WorkerReport { run_delay: ms(active), ..asleep(active) }
    }

    /// Returns a worker that ran all the time.
    fn busy(active: u64) -> WorkerReport {
        WorkerReport { cpu: ms(active), ..asleep(active) }
    }

    /// Returns a worker that made iterations with one gap of `length` milliseconds.
    fn stalled(length: u64) -> WorkerReport {
        let gap = IterationGap { length: ms(length), ..spin().longest_gap.unwrap() };
        WorkerReport { longest_gap: Some(gap), cpu: ms(1000), active: ms(60_000), ..spin() }
    }

    /// Returns the worker frozen between two times, in milliseconds before the end of its work.
    fn frozen(worker: WorkerReport, from: u64, until: u64) -> WorkerReport {
        let at = |before| worker.active_until_ns - before * 1_000_000;
        WorkerReport {
            frozen_periods: vec![FrozenPeriod { from_ns: at(from), until_ns: at(until) }],
            ..worker
        }
    }

    #[track_caller]
    fn judged(worker: &WorkerReport, outcome: Outcome, notes: usize) -> Vec<AssertDetail> {
        let verdict = not_stuck(worker, LIMIT);
        assert_eq!((verdict.outcome, verdict.notes.len()), (outcome, notes), "{verdict:?}");
        assert!(verdict.details.iter().all(|detail| !detail.time_based));
        verdict.details
    }

    #[test]
    fn not_stuck_fails_from_the_limit_on() {
        for (worker, outcome, notes) in [
            (spin(), Pass, 0),
            (asleep(4999), Pass, 1),
            (asleep(5000), Fail, 0),
            (starved(4999), Pass, 1),
            (starved(5000), Fail, 0),
            (busy(4999), Pass, 1),
            (busy(5000), Fail, 0),
            (stalled(24_999), Pass, 0),
            (stalled(25_000), Fail, 0),
        ] {
            judged(&worker, outcome, notes);
        }
    }

    #[test]
    fn not_stuck_extends_the_limit_by_expected_waiting() {
        let fair_wait_bound = |worker, wait| WorkerReport { fair_wait_bound: ms(wait), ..worker };
        let slowed = |worker| WorkerReport { is_memory_throttled: true, ..worker };
        for (worker, outcome, notes) in [
            (fair_wait_bound(starved(6000), 4000), Fail, 0),
            (fair_wait_bound(starved(13_999), 14_000), Pass, 1),
            (fair_wait_bound(starved(14_000), 14_000), Fail, 0),
            (fair_wait_bound(stalled(69_999), 14_000), Pass, 0),
            (fair_wait_bound(stalled(70_000), 14_000), Fail, 0),
            (slowed(asleep(24_999)), Pass, 1),
            (slowed(asleep(25_000)), Fail, 0),
            (WorkerReport { fair_wait_bound: Duration::MAX, ..starved(60_000) }, Pass, 1),
        ] {
            judged(&worker, outcome, notes);
        }
    }

    #[test]
    fn not_stuck_ignores_the_time_after_the_stop() {
        let slow_to_die = WorkerReport { wall: ms(10_000), run_delay: ms(9999), ..asleep(500) };
        judged(&slow_to_die, Pass, 1);
    }

    #[test]
    fn stuck_is_explained_by_steal_time_unless_asleep() {
        let needs_others = |worker| WorkerReport { needs_others: true, ..worker };
        let cpu = |worker, cpu| WorkerReport { cpu: ms(cpu), ..worker };
        for (worker, explained_by) in [
            (starved(5000), Some(0)),
            (starved(9000), Some(4000)),
            (busy(9000), Some(4000)),
            (asleep(9000), None),
            (cpu(asleep(9000), 4000), None),
            (cpu(asleep(9000), 4001), Some(4000)),
            (needs_others(asleep(9000)), Some(4000)),
            (stalled(26_000), None),
            (stalled(25_999), Some(999)),
            (needs_others(stalled(26_000)), Some(1000)),
        ] {
            let details = judged(&worker, Fail, 0);
            assert_eq!(details[0].explained_by, explained_by.map(ms), "{worker:?}");
        }
    }

    #[test]
    fn not_stuck_subtracts_frozen_time_only() {
        for (worker, outcome) in [
            (frozen(asleep(10_000), 10_000, 0), Pass),
            (frozen(asleep(10_000), 12_000, 4999), Pass),
            (frozen(asleep(10_000), 2000, 1000), Fail),
            (frozen(asleep(10_000), 12_000, 10_000), Fail),
        ] {
            judged(&worker, outcome, usize::from(outcome == Pass));
        }
        let before_gap = (spin().active_until_ns - spin().longest_gap.unwrap().at_ns) / 1_000_000;
        let within = |worker, length| frozen(worker, before_gap + length, before_gap);
        judged(&within(stalled(30_000), 1000), Fail, 0);
        judged(&within(stalled(25_000), 1), Pass, 1);
    }

    #[test]
    fn stuck_details_show_the_numbers() {
        let text = |worker: &WorkerReport| judged(worker, Fail, 0)[0].to_string();
        assert_eq!(
            text(&frozen(starved(10_000), 2000, 1000)),
            "not_stuck: 9 s (limit 5 s): no iteration completed; CPU time 0.0ns, runnable without a CPU \
             10.0s; not counting 1.0s while frozen"
        );
        assert_eq!(
            text(&stalled(25_000)),
            "not_stuck: 25 s (limit 25 s), CPU 1, at 3.214 s: no iteration completed; CPU time 1.0s, \
             runnable without a CPU 0.0ns"
        );
        let note = not_stuck(&starved(1200), LIMIT).notes[0].to_string();
        assert_eq!(
            note,
            "worker 7 (spin) in cg_0 completed no iteration in 1.2s: too short to judge (limit 5.0s); \
             CPU time 0.0ns, runnable without a CPU 1.2s"
        );
    }
}
