//! The checks of workers. Each is a function of reports and a bound.

use std::collections::BTreeSet;
use std::time::Duration;

use super::checks::{self, Limit, MEASURABLE_AFTER, hold, shown, unmeasured};
use super::{AssertDetail, AssertResult, DetailKind};
use crate::guest::workload::{CpusetPeriod, WorkerReport};
use crate::linux::cgroup::format_list;

/// The fewest wake-ups of which one in a hundred is not simply the slowest.
pub const FEWEST_WAKES: u64 = 100;

/// Whether two workers do the same work at the same time, so that they can be compared.
pub(super) fn are_equal(one: &WorkerReport, other: &WorkerReport) -> bool {
    (one.spawn, one.role) == (other.spawn, other.role)
}

/// One that is killed in a cgroup of which an OOM kill is expected is noted; whether it was one, the
/// cgroup's counters tell.
pub(super) fn died(worker: &WorkerReport) -> AssertResult {
    match &worker.ended {
        None => AssertResult::pass(),
        Some(end) if worker.oom_kill_expected && end.is_sigkill() => {
            let mut verdict = AssertResult::pass();
            verdict.note(format!("{worker} was killed, as was expected"));
            verdict
        }
        Some(end) => {
            let kind = DetailKind::WorkerDied;
            let detail = AssertDetail::measured(kind, end, "to run until it is stopped");
            AssertResult::fail(AssertDetail { cpu: worker.last_cpu, ..detail })
        }
    }
}

/// Says that the time a worker was frozen is left out of what was measured.
pub(super) fn less_frozen(detail: AssertDetail, frozen: Duration) -> AssertDetail {
    match frozen.is_zero() {
        true => detail,
        false => {
            detail.because(&format!("{frozen:.1?} more, in which it was frozen, do not count"))
        }
    }
}

/// A worker that was seen nowhere is noted: it proves nothing, for nor against.
pub(super) fn isolation(worker: &WorkerReport) -> AssertResult {
    let cpuset_periods = &worker.cpuset_periods;
    let mut verdict = AssertResult::pass();
    if worker.cpuset_periods_dropped > 0 {
        let (more, last) = (worker.cpuset_periods_dropped, cpuset_periods.len());
        verdict.note(format!("{worker} had {more} cpusets before its last {last}: not judged"));
    }
    if cpuset_periods.iter().all(|period| period.cpus_used.is_empty()) {
        verdict.note(format!("{worker} was seen on no CPU: nothing is known of its isolation"));
        return verdict;
    }
    let outside = |period: &CpusetPeriod| {
        let mut used = period.cpus_used.iter();
        used.find(|cpu| !period.cpuset.contains(cpu)).copied()
    };
    let mut left = cpuset_periods.iter().filter_map(|one| Some((one, outside(one)?)));
    let Some((first, cpu)) = left.next() else { return verdict };
    let measured = format!("ran on CPUs {}", list(&first.cpus_used));
    let bound = format!("only on {}", list(&first.cpuset));
    let detail = AssertDetail::measured(DetailKind::Isolation, measured, bound).cpu(cpu);
    let detail = match left.count() {
        0 => detail,
        more => detail.because(&format!("and outside of {more} more of its cpusets")),
    };
    verdict.merge(AssertResult::fail(detail))
}

/// A gap counts without the time in which the worker was frozen. If nothing is left then, another
/// one may hide behind it: only the longest is known.
pub(super) fn gap(worker: &WorkerReport, most: Duration) -> AssertResult {
    let Some(gap) = worker.longest_gap else {
        return unmeasured(DetailKind::Gap, "it made no turn")
            .map_details(AssertDetail::time_based);
    };
    let frozen = worker.frozen_within(gap.length, gap.at_ns);
    let own = gap.length.saturating_sub(frozen);
    let verdict = if gap.length <= most {
        AssertResult::pass()
    } else if own <= most {
        unmeasured(DetailKind::Gap, "it was frozen in its longest time without a turn")
    } else {
        let detail = AssertDetail::measured(
            DetailKind::Gap,
            format!("{} ms", shown(milliseconds(own), milliseconds(most))),
            format!("at most {} ms", milliseconds(most)),
        );
        AssertResult::fail(less_frozen(detail, frozen).cpu(gap.cpu).at_ns(gap.at_ns))
    };
    verdict.map_details(AssertDetail::time_based)
}

pub(super) fn iteration_rate(worker: &WorkerReport, least: f64) -> AssertResult {
    let kind = DetailKind::IterationRate;
    if let Some(verdict) = too_short(kind, worker) {
        return verdict;
    }
    let rate = worker.iterations as f64 / worker.wall.as_secs_f64();
    hold(kind, rate, Limit::Least(least), " turns per second").map_details(AssertDetail::time_based)
}

pub(super) fn work_rate(worker: &WorkerReport, least: f64) -> AssertResult {
    let kind = DetailKind::WorkRate;
    match throughput(worker) {
        None => unmeasured(kind, "it had no CPU time"),
        Some(rate) => hold(kind, rate, Limit::Least(least), " units per second on a CPU"),
    }
    .map_details(AssertDetail::time_based)
}

pub(super) fn migration_ratio(worker: &WorkerReport, most: f64) -> AssertResult {
    let kind = DetailKind::MigrationRatio;
    if worker.iterations == 0 {
        return unmeasured(kind, "it made no turn").map_details(AssertDetail::time_based);
    }
    let ratio = worker.migrations as f64 / worker.iterations as f64;
    hold(kind, ratio, Limit::Most(most), " per turn").map_details(AssertDetail::time_based)
}

pub(super) fn p99_wake_latency(worker: &WorkerReport, most: u64) -> AssertResult {
    let kind = DetailKind::WakeLatency;
    let verdict = too_few_wakes(kind, worker);
    verdict
        .unwrap_or_else(|| match worker.wake_latency_ns.percentile(99.0) {
            Some(p99) if p99 > most => AssertResult::fail(AssertDetail::measured(
                kind,
                format!("{p99} ns"),
                format!("at most {most} ns"),
            )),
            Some(_) => AssertResult::pass(),
            None => unmeasured(kind, "no wake-up was measured"),
        })
        .map_details(AssertDetail::time_based)
}

pub(super) fn wake_latency_cv(worker: &WorkerReport, most: f64) -> AssertResult {
    let kind = DetailKind::WakeLatencyCv;
    let verdict = too_few_wakes(kind, worker);
    verdict
        .unwrap_or_else(|| match worker.wake_latency_ns.variation() {
            Some(variation) => hold(kind, variation, Limit::Most(most), ""),
            None => unmeasured(kind, "all wake-ups took no time: the mean is zero"),
        })
        .map_details(AssertDetail::time_based)
}

/// A node that has no CPU the worker may run on, and one that nobody knows, is remote.
pub(super) fn page_locality(worker: &WorkerReport, nodes: &[Vec<u32>], least: f64) -> AssertResult {
    let kind = DetailKind::PageLocality;
    let pages: u64 = worker.numa_pages.iter().sum();
    if pages == 0 {
        return unmeasured(kind, "it has no page");
    }
    if worker.allowed_cpus.is_empty() {
        return unmeasured(kind, "the CPUs it may run on are not known");
    }
    let is_local = |cpus: &[u32]| cpus.iter().any(|cpu| worker.allowed_cpus.contains(cpu));
    let local = worker.numa_pages.iter().zip(nodes).filter(|(_, cpus)| is_local(cpus));
    let local: u64 = local.map(|(pages, _)| pages).sum();
    hold(kind, local as f64 / pages as f64, Limit::Least(least), " of its pages")
}

/// The shares of a CPU of equal workers, the most against the least.
pub(super) fn spread(group: &[&WorkerReport], most: f64) -> AssertResult {
    let kind = DetailKind::Spread;
    if let Some(verdict) = group.iter().find_map(|worker| too_short(kind, worker)) {
        return verdict;
    }
    let share =
        |worker: &WorkerReport| 100.0 * worker.cpu.as_secs_f64() / worker.wall.as_secs_f64();
    let order = |a: &&&WorkerReport, b: &&&WorkerReport| share(a).total_cmp(&share(b));
    let (Some(poorest), Some(richest)) = (group.iter().min_by(order), group.iter().max_by(order))
    else {
        return unmeasured(kind, "there is no worker").map_details(AssertDetail::time_based);
    };
    let told = format!(
        "{:.1} % of a CPU, and {:.1} % for worker {}",
        share(poorest),
        share(richest),
        richest.pid
    );
    let who = format!("{} ({})", poorest.pid, poorest.comm);
    hold(kind, share(richest) - share(poorest), Limit::Most(most), " points").map_details(
        |detail| detail.because(&told).worker(&who).at_ns(poorest.until_ns).time_based(),
    )
}

/// The work units per CPU time of equal workers; the slowest is named.
pub(super) fn throughput_cv(group: &[&WorkerReport], most: f64) -> AssertResult {
    let kind = DetailKind::ThroughputCv;
    let rates: Option<Vec<f64>> = group.iter().map(|worker| throughput(worker)).collect();
    let Some(rates) = rates else {
        let why = "one of the workers had no CPU time";
        return unmeasured(kind, why).map_details(AssertDetail::time_based);
    };
    let by_rate = group.iter().zip(&rates);
    let slowest = by_rate.min_by(|(_, a), (_, b)| a.total_cmp(b));
    let (Some(variation), Some((slowest, rate))) = (variation(&rates), slowest) else {
        let why = "the workers did no work: the mean is zero";
        return unmeasured(kind, why).map_details(AssertDetail::time_based);
    };
    let fastest = rates.iter().copied().fold(0.0, f64::max);
    let told = format!("{rate:.0} units per second on a CPU, and up to {fastest:.0} for others");
    let who = format!("{} ({})", slowest.pid, slowest.comm);
    hold(kind, variation, Limit::Most(most), "").map_details(|detail| {
        detail.because(&told).worker(&who).at_ns(slowest.until_ns).time_based()
    })
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Work units per second on a CPU; `None` without any.
fn throughput(worker: &WorkerReport) -> Option<f64> {
    let cpu = worker.cpu.as_secs_f64();
    (cpu > 0.0).then(|| worker.work_units as f64 / cpu)
}

/// Standard deviation by mean; `None` if there is no mean to divide by.
fn variation(values: &[f64]) -> Option<f64> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean > 0.0).then(|| (squares / count).sqrt() / mean)
}

fn too_short(kind: DetailKind, worker: &WorkerReport) -> Option<AssertResult> {
    let told = || unmeasured(kind, checks::too_short(worker.wall));
    (worker.wall < MEASURABLE_AFTER).then(|| told().map_details(AssertDetail::time_based))
}

fn too_few_wakes(kind: DetailKind, worker: &WorkerReport) -> Option<AssertResult> {
    let wakes = worker.wake_latency_ns.count();
    let told = || format!("{wakes} wake-ups are too few, {FEWEST_WAKES} are not");
    (wakes < FEWEST_WAKES).then(|| unmeasured(kind, told()))
}

fn list(cpus: &[u32]) -> String {
    format_list(&cpus.iter().map(|cpu| *cpu as usize).collect::<BTreeSet<_>>())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Outcome::{self, Fail, Inconclusive, Pass};
    use super::*;
    use crate::guest::workload::{FrozenPeriod, Histogram, IterationGap};

    /// A worker with nothing to complain about: 10 s on two CPUs, half of it on a CPU.
    pub(in crate::guest::assert) fn spin() -> WorkerReport {
        WorkerReport {
            pid: 7,
            comm: "spin".into(),
            cgroup: "cg_0".into(),
            allowed_cpus: vec![0, 1],
            wall: Duration::from_secs(10),
            active: Duration::from_secs(10),
            active_until_ns: 12_000_000_000,
            cpu: Duration::from_secs(5),
            iterations: 1000,
            work_units: 10_000,
            longest_gap: Some(IterationGap {
                length: Duration::from_micros(63_210),
                cpu: 1,
                at_ns: 3_214_000_000,
            }),
            migrations: 20,
            cpus_used: vec![0, 1],
            until_ns: 12_000_000_000,
            ..WorkerReport::default()
        }
    }

    /// `count` values of less than 64, each of which has a bucket of its own.
    pub(in crate::guest::assert) fn latencies(count: u32, value: u16) -> Histogram {
        histogram(&[(value, count)])
    }

    fn histogram(counts: &[(u16, u32)]) -> Histogram {
        postcard::from_bytes(&postcard::to_allocvec(&counts.to_vec()).unwrap()).unwrap()
    }

    pub(in crate::guest::assert) fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[track_caller]
    fn is(verdict: &AssertResult, outcome: Outcome, time_based: bool, text: &str) {
        let texts: Vec<_> = verdict.details.iter().map(ToString::to_string).collect();
        assert_eq!((verdict.outcome, &*texts.concat()), (outcome, text));
        assert!(verdict.details.iter().all(|detail| detail.time_based == time_based));
    }

    /// Until the given milliseconds before the end of `spin`.
    fn frozen(from: u64, until: u64) -> Vec<FrozenPeriod> {
        let at = |before| spin().until_ns - before * 1_000_000;
        vec![FrozenPeriod { from_ns: at(from), until_ns: at(until) }]
    }

    #[test]
    fn only_the_time_in_which_it_was_frozen_is_no_gap() {
        // A gap of three seconds, two seconds before the end.
        let at_ns = spin().until_ns - 2_000_000_000;
        let longest_gap = Some(IterationGap { length: ms(3000), cpu: 1, at_ns });
        let with = |frozen_periods| WorkerReport { longest_gap, frozen_periods, ..spin() };
        let part = "max_gap_ms: 2500 ms, at most 1000 ms, CPU 1, at 10.000 s: \
                    500.0ms more, in which it was frozen, do not count";
        let untold = "max_gap_ms: it was frozen in its longest time without a turn";
        for (worker, most, outcome, text) in [
            (with(frozen(9000, 4500)), 1000, Fail, part),
            (with(frozen(9000, 3000)), 1000, Inconclusive, untold),
            (with(frozen(9000, 0)), 3000, Pass, ""),
            (
                with(frozen(9000, 5000)),
                2999,
                Fail,
                "max_gap_ms: 3000 ms, at most 2999 ms, CPU 1, at 10.000 s",
            ),
        ] {
            is(&gap(&worker, ms(most)), outcome, true, text);
        }
    }

    #[test]
    fn the_isolated_stay_in_their_cpuset() {
        let on = |cpuset_periods: &[(&[u32], &[u32])]| {
            let of = |(cpuset, used): &(&[u32], &[u32])| CpusetPeriod {
                cpuset: cpuset.to_vec(),
                cpus_used: used.to_vec(),
            };
            WorkerReport { cpuset_periods: cpuset_periods.iter().map(of).collect(), ..spin() }
        };
        let text = "isolation: ran on CPUs 0-2,5, only on 0-1, CPU 2";
        let both = "isolation: ran on CPUs 1, only on 0, CPU 1: \
                    and outside of 1 more of its cpusets";
        let many = WorkerReport { cpuset_periods_dropped: 3, ..on(&[(&[0], &[0])]) };
        let (zero, one, none): (&[u32], &[u32], &[u32]) = (&[0], &[1], &[]);
        for (worker, outcome, notes, text) in [
            (on(&[(&[0, 1], &[1])]), Pass, 0, ""),
            (on(&[(&[0, 1], &[0, 1, 2, 5])]), Fail, 0, text),
            (on(&[(&[0, 1], &[])]), Pass, 1, ""),
            (on(&[(zero, zero), (one, one), (zero, none)]), Pass, 0, ""),
            (on(&[(one, one), (zero, one)]), Fail, 0, "isolation: ran on CPUs 1, only on 0, CPU 1"),
            (on(&[(zero, one), (zero, zero), (one, zero)]), Fail, 0, both),
            (on(&[(zero, none), (one, none)]), Pass, 1, ""),
            (many, Pass, 1, ""),
        ] {
            let verdict = isolation(&worker);
            is(&verdict, outcome, false, text);
            assert_eq!(verdict.notes.len(), notes);
        }
    }

    #[test]
    fn gaps() {
        let none = WorkerReport { longest_gap: None, ..spin() };
        let text = "max_gap_ms: 63.21 ms, at most 62 ms, CPU 1, at 3.214 s";
        let untold = "max_gap_ms: it made no turn";
        for (worker, most, outcome, text) in
            [(spin(), 64, Pass, ""), (spin(), 62, Fail, text), (none, 62, Inconclusive, untold)]
        {
            is(&gap(&worker, ms(most)), outcome, true, text);
        }
        is(&gap(&spin(), Duration::from_micros(63_210)), Pass, true, "");
    }

    #[test]
    fn rates_of_turns() {
        let short = WorkerReport { wall: ms(99), ..spin() };
        let just_enough = WorkerReport { wall: ms(100), ..spin() };
        let text = "min_iteration_rate: 100 turns per second, at least 101 turns per second";
        let untold = "min_iteration_rate: 99ms is too short, 100ms is not";
        for (worker, least, outcome, text) in [
            (spin(), 100.0, Pass, ""),
            (spin(), 101.0, Fail, text),
            (short, 1.0, Inconclusive, untold),
            (just_enough, 10_000.0, Pass, ""),
        ] {
            is(&iteration_rate(&worker, least), outcome, true, text);
        }
    }

    #[test]
    fn rates_of_work() {
        let none = WorkerReport { cpu: Duration::ZERO, ..spin() };
        let text = "min_work_rate: 2000 units per second on a CPU, \
                    at least 2001 units per second on a CPU";
        for (worker, least, outcome, text) in [
            (spin(), 2000.0, Pass, ""),
            (spin(), 2001.0, Fail, text),
            (none, 0.0, Inconclusive, "min_work_rate: it had no CPU time"),
        ] {
            is(&work_rate(&worker, least), outcome, true, text);
        }
    }

    #[test]
    fn migrations_per_turn() {
        let none = WorkerReport { iterations: 0, ..spin() };
        let text = "max_migration_ratio: 0.02 per turn, at most 0.01 per turn";
        for (worker, most, outcome, text) in [
            (spin(), 0.02, Pass, ""),
            (spin(), 0.01, Fail, text),
            (none, 1.0, Inconclusive, "max_migration_ratio: it made no turn"),
        ] {
            is(&migration_ratio(&worker, most), outcome, true, text);
        }
    }

    #[test]
    fn wake_latencies() {
        let with =
            |counts: &[(u16, u32)]| WorkerReport { wake_latency_ns: histogram(counts), ..spin() };
        let text = "max_p99_wake_latency_ns: 60 ns, at most 59 ns";
        let few = "max_p99_wake_latency_ns: 99 wake-ups are too few, 100 are not";
        for (worker, most, outcome, text) in [
            (with(&[(10, 99), (60, 1)]), 10, Pass, ""),
            (with(&[(10, 98), (60, 2)]), 59, Fail, text),
            (with(&[(10, 99)]), 59, Inconclusive, few),
        ] {
            is(&p99_wake_latency(&worker, most), outcome, true, text);
        }
        let text = "max_wake_latency_cv: 1, at most 0.9";
        let zero = "max_wake_latency_cv: all wake-ups took no time: the mean is zero";
        for (worker, most, outcome, text) in [
            (with(&[(10, 100)]), 0.0, Pass, ""),
            (with(&[(0, 50), (20, 50)]), 0.9, Fail, text),
            (with(&[(0, 100)]), 0.9, Inconclusive, zero),
        ] {
            is(&wake_latency_cv(&worker, most), outcome, true, text);
        }
        let few = wake_latency_cv(&with(&[]), 9.0);
        is(&few, Inconclusive, true, "max_wake_latency_cv: 0 wake-ups are too few, 100 are not");
    }

    #[test]
    fn pages_are_local_to_the_cpus_of_their_worker() {
        let pages = |pages: &[u64]| WorkerReport { numa_pages: pages.to_vec(), ..spin() };
        let nowhere = WorkerReport { allowed_cpus: vec![], ..pages(&[1]) };
        let text = "min_page_locality: 0.75 of its pages, at least 0.8 of its pages";
        for (worker, outcome, text) in [
            (pages(&[80, 20]), Pass, ""),
            (pages(&[75, 25]), Fail, text),
            // A node that the machine does not have.
            (pages(&[75, 0, 25]), Fail, text),
            (pages(&[0, 0]), Inconclusive, "min_page_locality: it has no page"),
            (nowhere, Inconclusive, "min_page_locality: the CPUs it may run on are not known"),
        ] {
            is(&page_locality(&worker, &[vec![0, 1], vec![2, 3]], 0.8), outcome, false, text);
        }
    }

    #[test]
    fn spreads_are_between_shares() {
        let with = |pid, cpu, wall| WorkerReport { pid, cpu: ms(cpu), wall: ms(wall), ..spin() };
        let text = "max_spread_pct: 10 points, at most 9 points, worker 1 (spin), at 12.000 s: \
                    50.0 % of a CPU, and 60.0 % for worker 2";
        let short = "max_spread_pct: 10ms is too short, 100ms is not";
        // Two seconds less, but the same share.
        let group = [with(1, 5000, 10_000), with(2, 6000, 10_000), with(3, 4000, 8000)];
        let [a, b, c] = &group;
        for (group, most, outcome, text) in [
            (&[a, b, c][..], 10.0, Pass, ""),
            (&[a, b, c], 9.0, Fail, text),
            (&[a, c], 0.0, Pass, ""),
            (&[a, &with(4, 10, 10)], 100.0, Inconclusive, short),
            (&[], 100.0, Inconclusive, "max_spread_pct: there is no worker"),
        ] {
            is(&spread(group, most), outcome, true, text);
        }
    }

    #[test]
    fn throughputs_are_per_cpu_time() {
        let with = |work_units, cpu| WorkerReport { work_units, cpu: ms(cpu), ..spin() };
        let text = "max_throughput_cv: 0.5, at most 0.4, worker 7 (spin), at 12.000 s: \
                    1000 units per second on a CPU, and up to 3000 for others";
        for (group, most, outcome, text) in [
            // Half of the work in half of the time.
            ([with(1000, 1000), with(500, 500)], 0.0, Pass, ""),
            ([with(1000, 1000), with(3000, 1000)], 0.4, Fail, text),
            (
                [with(1000, 1000), with(0, 0)],
                9.0,
                Inconclusive,
                "max_throughput_cv: one of the workers had no CPU time",
            ),
            (
                [with(0, 1), with(0, 1)],
                9.0,
                Inconclusive,
                "max_throughput_cv: the workers did no work: the mean is zero",
            ),
        ] {
            is(&throughput_cv(&group.iter().collect::<Vec<_>>(), most), outcome, true, text);
        }
    }
}
