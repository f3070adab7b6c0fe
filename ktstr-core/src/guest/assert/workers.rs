//! What the checks measure of workers. Each function depends on worker reports only.

use std::collections::BTreeSet;
use std::time::Duration;

use super::measure::{FEWEST_WAKES, higher, lower, too_short, unmeasured};
use super::stuck::less_frozen;
use crate::linux::cgroup::format_list;
use crate::model::detail::{AssertDetail, DetailKind};
use crate::model::measurement::Limit;
use crate::model::verdict::AssertResult;
use crate::model::worker::{CpusetPeriod, WorkerReport};

/// Returns whether two workers did the same work at the same time, so that they can be compared.
pub(super) fn are_equal(one: &WorkerReport, other: &WorkerReport) -> bool {
    (one.spawn, one.role) == (other.spawn, other.role)
}

/// Fails if the worker ended before it was stopped. SIGKILL is only noted in a cgroup in which an OOM
/// kill is expected; the cgroup's counters show whether it was one.
pub(super) fn exited_early(worker: &WorkerReport) -> AssertResult {
    match &worker.ended {
        None => AssertResult::pass(),
        Some(end) if worker.oom_kill_expected && end.is_sigkill() => {
            let mut verdict = AssertResult::pass();
            verdict.note(format!("{worker} was killed as expected"));
            verdict
        }
        Some(end) => {
            let text = format!("{end} (expected to run until stopped)");
            let detail = AssertDetail::new(DetailKind::WorkerExited, text);
            AssertResult::fail(AssertDetail { cpu: worker.last_cpu, ..detail })
        }
    }
}

/// Fails if the worker ran outside of one of its cpusets. Adds a note if it was observed on no CPU,
/// which proves nothing.
pub(super) fn isolation(worker: &WorkerReport) -> AssertResult {
    let cpuset_periods = &worker.cpuset_periods;
    let mut verdict = AssertResult::pass();
    if worker.cpuset_periods_dropped > 0 {
        let (more, last) = (worker.cpuset_periods_dropped, cpuset_periods.len());
        verdict.note(format!("{worker} had {more} cpusets before its last {last}: not judged"));
    }
    if cpuset_periods.iter().all(|period| period.cpus_used.is_empty()) {
        verdict.note(format!("{worker} was observed on no CPU: its isolation is unknown"));
        return verdict;
    }
    let outside = |period: &CpusetPeriod| {
        let mut used = period.cpus_used.iter();
        used.find(|cpu| !period.cpuset.contains(cpu)).copied()
    };
    let mut left = cpuset_periods.iter().filter_map(|one| Some((one, outside(one)?)));
    let Some((first, cpu)) = left.next() else { return verdict };
    let (used, cpuset) = (list(&first.cpus_used), list(&first.cpuset));
    let text = format!("ran on CPUs {used} (cpuset {cpuset})");
    let detail = AssertDetail::new(DetailKind::Isolation, text).cpu(cpu);
    let detail = match left.count() {
        0 => detail,
        more => detail.because(&format!("and outside of {more} more of its cpusets")),
    };
    verdict.merge(AssertResult::fail(detail))
}

/// Measures the longest time without an iteration, without the part in which the worker was frozen.
///
/// If the limit allows only the rest of that gap, another gap beyond the limit may exist: only the
/// longest one is known.
pub(super) fn gap(worker: &WorkerReport, limit: Option<Limit>) -> AssertDetail {
    let kind = DetailKind::Gap;
    let Some(gap) = worker.longest_gap else { return unmeasured(kind, NO_ITERATION) };
    let frozen = worker.frozen_within(gap.length, gap.at_ns);
    let own = gap.length.saturating_sub(frozen);
    let is_allowed = |length| limit.and_then(|limit| limit.allows(ms(length)));
    if is_allowed(own) == Some(true) && is_allowed(gap.length) == Some(false) {
        return unmeasured(kind, "the worker was frozen during its longest gap");
    }
    let detail = lower(kind, "gap", ms(own), "ms", worker.iterations);
    less_frozen(detail, frozen).cpu(gap.cpu).at_ns(gap.at_ns)
}

const NO_ITERATION: &str = "no iteration completed";

/// Measures iterations per second of wall time.
pub(super) fn iteration_rate(worker: &WorkerReport) -> AssertDetail {
    let kind = DetailKind::IterationRate;
    if let Some(why) = too_short(worker.wall) {
        return unmeasured(kind, why);
    }
    let rate = worker.iterations as f64 / worker.wall.as_secs_f64();
    higher(kind, "iteration_rate", rate, "iterations/s", worker.iterations)
}

/// Measures work units per second of CPU time.
pub(super) fn work_rate(worker: &WorkerReport) -> AssertDetail {
    let kind = DetailKind::WorkRate;
    match throughput(worker) {
        None => unmeasured(kind, "no CPU time"),
        Some(rate) => higher(kind, "work_rate", rate, "units per CPU second", worker.work_units),
    }
}

pub(super) fn migration_ratio(worker: &WorkerReport) -> AssertDetail {
    let kind = DetailKind::MigrationRatio;
    if worker.iterations == 0 {
        return unmeasured(kind, NO_ITERATION);
    }
    let ratio = worker.migrations as f64 / worker.iterations as f64;
    lower(kind, "migration_ratio", ratio, "migrations/iteration", worker.iterations)
}

pub(super) fn p99_wake_latency(worker: &WorkerReport) -> AssertDetail {
    let kind = DetailKind::WakeLatency;
    let wakes = worker.wake_latency_ns.count();
    match (too_few_wakes(wakes), worker.wake_latency_ns.percentile(99.0)) {
        (Some(why), _) => unmeasured(kind, why),
        (None, Some(p99)) => lower(kind, "p99_wake_latency", p99 as f64, "ns", wakes),
        (None, None) => unmeasured(kind, "no wake-up was measured"),
    }
}

pub(super) fn wake_latency_cv(worker: &WorkerReport) -> AssertDetail {
    let kind = DetailKind::WakeLatencyCv;
    let wakes = worker.wake_latency_ns.count();
    match (too_few_wakes(wakes), worker.wake_latency_ns.variation()) {
        (Some(why), _) => unmeasured(kind, why),
        (None, Some(variation)) => lower(kind, "wake_latency_cv", variation, "", wakes),
        (None, None) => unmeasured(kind, "the mean of all wake-up latencies is zero"),
    }
}

/// Measures the part of the worker's pages on the nodes of the CPUs it may run on. Nodes without such a
/// CPU, and unknown nodes, count as remote.
pub(super) fn page_locality(worker: &WorkerReport, nodes: &[Vec<u32>]) -> AssertDetail {
    let kind = DetailKind::PageLocality;
    let pages: u64 = worker.numa_pages.iter().sum();
    if pages == 0 {
        return unmeasured(kind, "the worker has no page");
    }
    if worker.allowed_cpus.is_empty() {
        return unmeasured(kind, "the CPUs that the worker may run on are unknown");
    }
    let is_local = |cpus: &[u32]| cpus.iter().any(|cpu| worker.allowed_cpus.contains(cpu));
    let local = worker.numa_pages.iter().zip(nodes).filter(|(_, cpus)| is_local(cpus));
    let local: u64 = local.map(|(pages, _)| pages).sum();
    higher(kind, "page_locality", local as f64 / pages as f64, "", pages)
}

/// Measures the difference between the largest and the smallest share of a CPU of equal workers.
pub(super) fn spread(workers: &[&WorkerReport]) -> AssertDetail {
    let kind = DetailKind::Spread;
    if let Some(why) = workers.iter().find_map(|worker| too_short(worker.wall)) {
        return unmeasured(kind, why);
    }
    let share =
        |worker: &WorkerReport| 100.0 * worker.cpu.as_secs_f64() / worker.wall.as_secs_f64();
    let order = |a: &&&WorkerReport, b: &&&WorkerReport| share(a).total_cmp(&share(b));
    let ends = (workers.iter().min_by(order), workers.iter().max_by(order));
    let (Some(least), Some(most)) = ends else { return unmeasured(kind, "no workers") };
    let difference = share(most) - share(least);
    let detail = lower(kind, "spread", difference, "percentage points", workers.len() as u64);
    let [low, high] = [least, most].map(|worker| {
        format!("{:.1} % of a CPU for worker {} ({})", share(worker), worker.pid, worker.comm)
    });
    detail.because(&format!("{low}, {high}")).at_ns(least.until_ns)
}

/// Measures the coefficient of variation of the work rates of equal workers.
pub(super) fn throughput_cv(workers: &[&WorkerReport]) -> AssertDetail {
    let kind = DetailKind::ThroughputCv;
    let rates: Option<Vec<f64>> = workers.iter().map(|worker| throughput(worker)).collect();
    let Some(rates) = rates else { return unmeasured(kind, "a worker without CPU time") };
    let by_rate = workers.iter().zip(&rates);
    let slowest = by_rate.min_by(|(_, a), (_, b)| a.total_cmp(b));
    let (Some(variation), Some((slowest, rate))) = (variation(&rates), slowest) else {
        return unmeasured(kind, "the mean of all work rates is zero");
    };
    let fastest = rates.iter().copied().fold(0.0, f64::max);
    let (pid, comm) = (slowest.pid, &slowest.comm);
    let detail = lower(kind, "throughput_cv", variation, "", workers.len() as u64);
    let rates =
        format!("{rate:.0} units per CPU second for worker {pid} ({comm}), up to {fastest:.0}");
    detail.because(&rates).at_ns(slowest.until_ns)
}

/// Returns a duration in milliseconds, correctly rounded.
fn ms(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e6
}

/// Returns work units per second of CPU time; `None` without CPU time.
fn throughput(worker: &WorkerReport) -> Option<f64> {
    let cpu = worker.cpu.as_secs_f64();
    (cpu > 0.0).then(|| worker.work_units as f64 / cpu)
}

/// Returns the standard deviation by the mean; `None` if the mean is zero.
fn variation(values: &[f64]) -> Option<f64> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean > 0.0).then(|| (squares / count).sqrt() / mean)
}

fn too_few_wakes(wakes: u64) -> Option<String> {
    (wakes < FEWEST_WAKES).then(|| format!("{wakes} wake-ups (minimum {FEWEST_WAKES})"))
}

fn list(cpus: &[u32]) -> String {
    format_list(&cpus.iter().map(|cpu| *cpu as usize).collect::<BTreeSet<_>>())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::detail::Outcome::{self, Fail, Inconclusive, Pass};
    use crate::model::histogram::Histogram;
    use crate::model::worker::{FrozenPeriod, IterationGap};

    /// Returns a worker that passes every check: 10 s on two CPUs, half of it on a CPU.
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

    /// Returns `count` values of less than 64, each of which has a bucket of its own.
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
    fn is(detail: AssertDetail, limit: Limit, outcome: Outcome, text: &str) {
        assert_eq!(detail.time_based, detail.kind != DetailKind::PageLocality);
        let verdict = AssertResult::judge(detail, Some(limit));
        let texts: Vec<_> = verdict.details.iter().map(ToString::to_string).collect();
        assert_eq!((verdict.outcome, &*texts.concat()), (outcome, text));
    }

    fn most(value: f64) -> Limit {
        Limit::AtMost(value)
    }

    fn least(value: f64) -> Limit {
        Limit::AtLeast(value)
    }

    /// Returns a freeze between two times, in milliseconds before the end of `spin`.
    fn frozen(from: u64, until: u64) -> Vec<FrozenPeriod> {
        let at = |before| spin().until_ns - before * 1_000_000;
        vec![FrozenPeriod { from_ns: at(from), until_ns: at(until) }]
    }

    #[test]
    fn gap_does_not_count_frozen_time() {
        // A gap of three seconds, two seconds before the end.
        let at_ns = spin().until_ns - 2_000_000_000;
        let longest_gap = Some(IterationGap { length: ms(3000), cpu: 1, at_ns });
        let with = |frozen_periods| WorkerReport { longest_gap, frozen_periods, ..spin() };
        let part = "max_gap_ms: 2500 ms (limit 1000 ms), CPU 1, at 10.000 s: \
                    not counting 500.0ms while frozen";
        let unknown = "max_gap_ms: the worker was frozen during its longest gap";
        for (worker, limit, outcome, text) in [
            (with(frozen(9000, 4500)), 1000, Fail, part),
            (with(frozen(9000, 3000)), 1000, Inconclusive, unknown),
            (with(frozen(9000, 0)), 3000, Pass, ""),
            (
                with(frozen(9000, 5000)),
                2999,
                Fail,
                "max_gap_ms: 3000 ms (limit 2999 ms), CPU 1, at 10.000 s",
            ),
        ] {
            let limit = most(f64::from(limit));
            is(gap(&worker, Some(limit)), limit, outcome, text);
        }
    }

    #[test]
    fn gap_is_the_longest_time_without_an_iteration() {
        let none = WorkerReport { longest_gap: None, ..spin() };
        let text = "max_gap_ms: 63.21 ms (limit 62 ms), CPU 1, at 3.214 s";
        let unknown = "max_gap_ms: no iteration completed";
        for (worker, limit, outcome, text) in [
            (spin(), 64.0, Pass, ""),
            (spin(), 63.21, Pass, ""),
            (spin(), 62.0, Fail, text),
            (none, 62.0, Inconclusive, unknown),
        ] {
            is(gap(&worker, Some(most(limit))), most(limit), outcome, text);
        }
    }

    #[test]
    fn isolation_fails_outside_of_any_cpuset() {
        let on = |cpuset_periods: &[(&[u32], &[u32])]| {
            let of = |(cpuset, used): &(&[u32], &[u32])| CpusetPeriod {
                cpuset: cpuset.to_vec(),
                cpus_used: used.to_vec(),
            };
            WorkerReport { cpuset_periods: cpuset_periods.iter().map(of).collect(), ..spin() }
        };
        let text = "isolation: ran on CPUs 0-2,5 (cpuset 0-1), CPU 2";
        let both =
            "isolation: ran on CPUs 1 (cpuset 0); and outside of 1 more of its cpusets, CPU 1";
        let many = WorkerReport { cpuset_periods_dropped: 3, ..on(&[(&[0], &[0])]) };
        let (zero, one, none): (&[u32], &[u32], &[u32]) = (&[0], &[1], &[]);
        for (worker, outcome, notes, text) in [
            (on(&[(&[0, 1], &[1])]), Pass, 0, ""),
            (on(&[(&[0, 1], &[0, 1, 2, 5])]), Fail, 0, text),
            (on(&[(&[0, 1], &[])]), Pass, 1, ""),
            (on(&[(zero, zero), (one, one), (zero, none)]), Pass, 0, ""),
            (on(&[(one, one), (zero, one)]), Fail, 0, "isolation: ran on CPUs 1 (cpuset 0), CPU 1"),
            (on(&[(zero, one), (zero, zero), (one, zero)]), Fail, 0, both),
            (on(&[(zero, none), (one, none)]), Pass, 1, ""),
            (many, Pass, 1, ""),
        ] {
            let verdict = isolation(&worker);
            let texts: Vec<_> = verdict.details.iter().map(ToString::to_string).collect();
            assert_eq!((verdict.outcome, &*texts.concat()), (outcome, text));
            assert!(verdict.details.iter().all(|detail| !detail.time_based));
            assert_eq!(verdict.notes.len(), notes);
        }
    }

    #[test]
    fn iteration_rate_is_per_wall_time() {
        let short = WorkerReport { wall: ms(99), ..spin() };
        let just_enough = WorkerReport { wall: ms(100), ..spin() };
        let text = "min_iteration_rate: 100 iterations/s (minimum 101 iterations/s)";
        let unknown = "min_iteration_rate: window too short to measure: 99ms (minimum 100ms)";
        for (worker, limit, outcome, text) in [
            (spin(), 100.0, Pass, ""),
            (spin(), 101.0, Fail, text),
            (short, 1.0, Inconclusive, unknown),
            (just_enough, 10_000.0, Pass, ""),
        ] {
            is(iteration_rate(&worker), least(limit), outcome, text);
        }
    }

    #[test]
    fn work_rate_is_per_cpu_time() {
        let none = WorkerReport { cpu: Duration::ZERO, ..spin() };
        let text = "min_work_rate: 2000 units per CPU second (minimum 2001 units per CPU second)";
        for (worker, limit, outcome, text) in [
            (spin(), 2000.0, Pass, ""),
            (spin(), 2001.0, Fail, text),
            (none, 0.0, Inconclusive, "min_work_rate: no CPU time"),
        ] {
            is(work_rate(&worker), least(limit), outcome, text);
        }
    }

    #[test]
    fn migration_ratio_is_per_iteration() {
        let none = WorkerReport { iterations: 0, ..spin() };
        let text =
            "max_migration_ratio: 0.02 migrations/iteration (limit 0.01 migrations/iteration)";
        for (worker, limit, outcome, text) in [
            (spin(), 0.02, Pass, ""),
            (spin(), 0.01, Fail, text),
            (none, 1.0, Inconclusive, "max_migration_ratio: no iteration completed"),
        ] {
            is(migration_ratio(&worker), most(limit), outcome, text);
        }
    }

    #[test]
    fn wake_latencies_need_enough_wake_ups() {
        let with =
            |counts: &[(u16, u32)]| WorkerReport { wake_latency_ns: histogram(counts), ..spin() };
        let text = "max_p99_wake_latency_ns: 60 ns (limit 59 ns)";
        let few = "max_p99_wake_latency_ns: 99 wake-ups (minimum 100)";
        for (worker, limit, outcome, text) in [
            (with(&[(10, 99), (60, 1)]), 10.0, Pass, ""),
            (with(&[(10, 98), (60, 2)]), 59.0, Fail, text),
            (with(&[(10, 99)]), 59.0, Inconclusive, few),
        ] {
            is(p99_wake_latency(&worker), most(limit), outcome, text);
        }
        let text = "max_wake_latency_cv: 1 (limit 0.9)";
        let zero = "max_wake_latency_cv: the mean of all wake-up latencies is zero";
        for (worker, limit, outcome, text) in [
            (with(&[(10, 100)]), 0.0, Pass, ""),
            (with(&[(0, 50), (20, 50)]), 0.9, Fail, text),
            (with(&[(0, 100)]), 0.9, Inconclusive, zero),
        ] {
            is(wake_latency_cv(&worker), most(limit), outcome, text);
        }
        let few = wake_latency_cv(&with(&[]));
        is(few, most(9.0), Inconclusive, "max_wake_latency_cv: 0 wake-ups (minimum 100)");
    }

    #[test]
    fn page_locality_counts_nodes_of_allowed_cpus() {
        let pages = |pages: &[u64]| WorkerReport { numa_pages: pages.to_vec(), ..spin() };
        let nowhere = WorkerReport { allowed_cpus: vec![], ..pages(&[1]) };
        let text = "min_page_locality: 0.75 (minimum 0.8)";
        for (worker, outcome, text) in [
            (pages(&[80, 20]), Pass, ""),
            (pages(&[75, 25]), Fail, text),
            // A node that the machine does not have.
            (pages(&[75, 0, 25]), Fail, text),
            (pages(&[0, 0]), Inconclusive, "min_page_locality: the worker has no page"),
            (
                nowhere,
                Inconclusive,
                "min_page_locality: the CPUs that the worker may run on are unknown",
            ),
        ] {
            is(page_locality(&worker, &[vec![0, 1], vec![2, 3]]), least(0.8), outcome, text);
        }
    }

    #[test]
    fn spread_compares_shares_of_a_cpu() {
        let with = |pid, cpu, wall| WorkerReport { pid, cpu: ms(cpu), wall: ms(wall), ..spin() };
        let text = "max_spread_pct: 10 percentage points (limit 9 percentage points), at 12.000 s: \
                    50.0 % of a CPU for worker 1 (spin), 60.0 % of a CPU for worker 2 (spin)";
        let short = "max_spread_pct: window too short to measure: 10ms (minimum 100ms)";
        // Two seconds less, but the same share.
        let workers = [with(1, 5000, 10_000), with(2, 6000, 10_000), with(3, 4000, 8000)];
        let [a, b, c] = &workers;
        for (workers, limit, outcome, text) in [
            (&[a, b, c][..], 10.0, Pass, ""),
            (&[a, b, c], 9.0, Fail, text),
            (&[a, c], 0.0, Pass, ""),
            (&[a, &with(4, 10, 10)], 100.0, Inconclusive, short),
            (&[], 100.0, Inconclusive, "max_spread_pct: no workers"),
        ] {
            is(spread(workers), most(limit), outcome, text);
        }
    }

    #[test]
    fn throughput_cv_compares_work_per_cpu_time() {
        let with = |work_units, cpu| WorkerReport { work_units, cpu: ms(cpu), ..spin() };
        let text = "max_throughput_cv: 0.5 (limit 0.4), at 12.000 s: \
                    1000 units per CPU second for worker 7 (spin), up to 3000";
        for (workers, limit, outcome, text) in [
            // Half of the work in half of the time.
            ([with(1000, 1000), with(500, 500)], 0.0, Pass, ""),
            ([with(1000, 1000), with(3000, 1000)], 0.4, Fail, text),
            (
                [with(1000, 1000), with(0, 0)],
                9.0,
                Inconclusive,
                "max_throughput_cv: a worker without CPU time",
            ),
            (
                [with(0, 1), with(0, 1)],
                9.0,
                Inconclusive,
                "max_throughput_cv: the mean of all work rates is zero",
            ),
        ] {
            is(throughput_cv(&workers.iter().collect::<Vec<_>>()), most(limit), outcome, text);
        }
    }
}
