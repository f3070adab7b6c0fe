//! The limits of a test, and how they are applied to what was measured.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cgroups::{self, CgroupSample, OomKills};
use super::measure::{scope_of, too_short, unmeasured};
use super::{stuck, workers};
use crate::model::detail::{AssertDetail, DetailKind, Outcome};
use crate::model::measurement::{Limit, Scope};
use crate::model::verdict::AssertResult;
use crate::model::worker::WorkerReport;

/// What the checks of workers need in addition to the workers' reports.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// A worker counts as stuck if it completed no iteration in this time, or in five times as long after
    /// its first; longer if its weight and its competitors explain that.
    pub stuck_after: Duration,
    /// The CPUs of each NUMA node; [`TestTopology::nodes`](crate::guest::topology::TestTopology::nodes).
    pub nodes: &'a [Vec<u32>],
}

// Generates the struct, its default and one builder method per field from the table below.
macro_rules! checks {
    (
        switches { $($(#[$switch_doc:meta])* $switch:ident = $on:literal,)* }
        bounds { $($(#[$bound_doc:meta])* $bound:ident: $type:ty,)* }
    ) => {
        /// The checks of a test on its workers and cgroups, and their limits.
        ///
        /// The attribute's keys have the same names. A limit that is `None` is not judged; with one
        /// that is set, a value that could not be measured makes the verdict inconclusive. The checks
        /// that are on by default only add a note then.
        ///
        /// A check is *time-based* if steal time could explain its failure; each documents whether it
        /// is, and why.
        ///
        /// ```
        /// use ktstr_core::assert::Assert;
        ///
        /// const STRICT: Assert = Assert::DEFAULT.max_gap_ms(50).max_spread_pct(7.5);
        /// assert!(STRICT.not_stuck);
        /// ```
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub struct Assert {
            $($(#[$switch_doc])* pub $switch: bool,)*
            $($(#[$bound_doc])* pub $bound: Option<$type>,)*
        }

        impl Assert {
            /// The checks of a test without any of the keys.
            pub const DEFAULT: Self = Self { $($switch: $on,)* $($bound: None,)* };

            $(
                #[doc = concat!(
                    "Sets [`Assert::", stringify!($switch), "`](#structfield.", stringify!($switch), ").",
                )]
                pub const fn $switch(mut self, on: bool) -> Self {
                    self.$switch = on;
                    self
                }
            )*
            $(
                #[doc = concat!(
                    "Sets [`Assert::", stringify!($bound), "`](#structfield.", stringify!($bound), ").",
                )]
                pub const fn $bound(mut self, bound: $type) -> Self {
                    self.$bound = Some(bound);
                    self
                }
            )*
        }
    };
}

checks! {
    switches {
        /// Fails the test if a worker completed no iteration in [`Surroundings::stuck_after`], or none for
        /// five times as long later on, or where a `memory.high` may slow it down. The limit is longer
        /// for a worker that gets little of a CPU because of its weight, quota and competitors
        /// ([`WorkerReport::fair_wait_bound`]), and time in which the scenario froze it does not count. A
        /// [`Custom`](crate::guest::workload::WorkType::Custom) worker with longer iterations has to
        /// call [`record_iteration`](crate::guest::workload::WorkerCtx::record_iteration) more often, or the test
        /// has to disable this check.
        ///
        /// Inconclusive if no worker completed an iteration, however short the time. Not time-based,
        /// but inconclusive if the steal time of a vCPU is as long as the worker was beyond its limit
        /// ([`AssertDetail::explained_by`]), unless the worker was asleep.
        not_stuck = true,
        /// Fails the test if a worker was observed on a CPU outside of the cpusets that were requested for
        /// its cgroup and the ancestors at that time. Not judged: times without a cpuset or in which
        /// one changes, and the time after the last CPU of a cpuset went offline, until the next
        /// change. Not time-based: steal time migrates no task.
        isolation = true,
        /// Fails the test if the OOM killer killed a process, unless that is expected of its cgroup; then
        /// fails if it killed none. Not time-based: memory does not depend on time.
        no_oom_kill = true,
        /// Judges time-based checks on emulated CPUs as well. Otherwise their failures are notes there.
        judge_emulated_time = false,
    }
    bounds {
        /// The longest time between two iterations of each worker, in milliseconds. Time-based: a vCPU
        /// that the host does not run completes no iteration.
        max_gap_ms: u32,
        /// The largest difference between the shares of a CPU, CPU time by wall time, of workers of one
        /// spawn and role, in percentage points. Others are not compared: weights, quotas and kinds of
        /// work may intentionally give them different shares. Time-based: a worker on a vCPU that the
        /// host runs less gets less.
        max_spread_pct: f64,
        /// The largest coefficient of variation, standard deviation by mean, of work units per second of
        /// CPU time among workers of one spawn and role, which do equal work. `max_spread_pct` is about
        /// the share of a CPU; this is about what each worker achieved with it. Time-based: steal time
        /// counts as CPU time of the worker.
        max_throughput_cv: f64,
        /// The lowest rate of iterations per second of wall time of each worker. Time-based: a vCPU that
        /// the host does not run completes no iteration.
        min_iteration_rate: f64,
        /// The lowest rate of work units per second of CPU time of each worker: its speed while it runs.
        /// Time-based: steal time counts as CPU time of the worker.
        min_work_rate: f64,
        /// The largest number of migrations per iteration of each worker. Time-based: the load balancer
        /// acts periodically, and steal time reduces the number of iterations in a period.
        max_migration_ratio: f64,
        /// The largest 99th percentile of the wake-up latency of each worker that sleeps, in nanoseconds,
        /// measured to 1/32 and rounded up. Inconclusive below
        /// [`FEWEST_WAKES`](super::FEWEST_WAKES) wake-ups, and therefore for workers of a sleeping type
        /// that never woke up. Time-based: a vCPU that the host does not run wakes no task.
        max_p99_wake_latency_ns: u64,
        /// The largest coefficient of variation of each worker's wake-up latencies; of the same workers.
        max_wake_latency_cv: f64,
        /// The lowest part, 0 to 1, of each worker's pages on the NUMA nodes of the CPUs it may run on, for
        /// work types that count them. Not time-based: a page is where it was touched first.
        min_page_locality: f64,
        /// The largest percentage of runnable periods in which a cgroup with a quota was throttled.
        /// Time-based: steal time counts against the quota.
        max_throttled_pct: f64,
        /// The largest error of the CPU time of a cgroup with a quota, in percent. It used too much if it
        /// had more than its quota for every period of the window and one more, because of the parts at
        /// both ends. It was throttled too early if it had less than its quota for every period but
        /// one in which it was throttled. Time-based: the tick that enforces the quota may be late, and
        /// so may the timer that refills it, by periods that count as throttled.
        max_quota_error_pct: f64,
        /// The largest part of the CPU time to which its `cpu.weight` entitles it that a cgroup may lack,
        /// in percent, among siblings with the same cpuset. One that would not have used its share
        /// even without waiting is satisfied, and the others divide the rest. Time-based: steal time
        /// counts as usage.
        max_weight_error_pct: f64,
        /// The largest percentage of the time in which a task of a cgroup waited for a CPU, from the total
        /// of `cpu.pressure`: the windows of its averages are not those of the test. Time-based: queues
        /// grow on a vCPU that the host does not run.
        max_cpu_pressure_pct: f64,
        /// The same for `memory.pressure`. Time-based: steal time prolongs reclaim.
        max_memory_pressure_pct: f64,
        /// The same for `io.pressure`. Time-based: steal time delays completions.
        max_io_pressure_pct: f64,
    }
}

impl Default for Assert {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Assert {
    /// Judges workers by their reports. A worker that ended before it was stopped fails the test, unless
    /// it was killed where that is expected, and is not compared with others.
    ///
    /// Must be called once, with all workers of a test: a limit is inconclusive if there is nothing that
    /// it applies to.
    pub fn judge_workers(
        &self,
        reports: &[WorkerReport],
        surroundings: &Surroundings<'_>,
    ) -> AssertResult {
        let mut verdict = AssertResult::pass();
        for worker in reports {
            verdict.absorb(scoped(worker, workers::exited_early(worker)));
            if self.isolation && !worker.cpuset_periods.is_empty() {
                verdict.absorb(scoped(worker, workers::isolation(worker)));
            }
        }
        let alive: Vec<_> = reports.iter().filter(|worker| worker.ended.is_none()).collect();
        if self.not_stuck {
            for worker in &alive {
                let judged = stuck::not_stuck(worker, surroundings.stuck_after);
                verdict.absorb(scoped(worker, judged));
            }
            if verdict.outcome != Outcome::Fail {
                verdict.absorb(stuck::any_iteration(reports));
            }
        }
        verdict.absorb(self.judge_each(&alive, surroundings.nodes));
        verdict.absorb(self.judge_equal(&alive));
        self.emulated_or_not(verdict)
    }

    /// Applies the limits that concern one worker.
    fn judge_each(&self, alive: &[&WorkerReport], nodes: &[Vec<u32>]) -> AssertResult {
        use DetailKind as Kind;
        let mut verdict = AssertResult::pass();
        let mut every = |kind, limit, applies: Applies<'_>, measure: MeasureWorker<'_>| {
            let concerned = alive.iter().filter(|worker| applies(worker));
            let judged =
                concerned.map(|worker| AssertResult::judge(of(worker, measure(worker)), limit));
            verdict.absorb(all_or_unmeasured(kind, limit, judged.collect()));
        };
        // Equal workers do the same work: if one of them sleeps, all do. If no worker of any role has
        // woken up, it is unknown which of them should have.
        let sleeps = |worker: &WorkerReport| {
            let has_woken = |other: &&WorkerReport| other.wake_latency_ns.count() > 0;
            let mut woken = alive.iter().copied().filter(has_woken);
            woken.clone().any(|other| workers::are_equal(worker, other))
                || worker.measures_wakeups && !woken.any(|other| other.spawn == worker.spawn)
        };
        let has_pages = |worker: &WorkerReport| !worker.numa_pages.is_empty();
        let locality = |worker: &_| workers::page_locality(worker, nodes);
        let limit = at_most(self.max_gap_ms.map(f64::from));
        every(Kind::Gap, limit, &|_| true, &|worker| workers::gap(worker, limit));
        let limit = at_least(self.min_iteration_rate);
        every(Kind::IterationRate, limit, &|_| true, &workers::iteration_rate);
        let limit = at_least(self.min_work_rate);
        every(Kind::WorkRate, limit, &|_| true, &workers::work_rate);
        let limit = at_most(self.max_migration_ratio);
        every(Kind::MigrationRatio, limit, &|_| true, &workers::migration_ratio);
        let limit = at_most(self.max_p99_wake_latency_ns.map(|most| most as f64));
        every(Kind::WakeLatency, limit, &sleeps, &workers::p99_wake_latency);
        let limit = at_most(self.max_wake_latency_cv);
        every(Kind::WakeLatencyCv, limit, &sleeps, &workers::wake_latency_cv);
        let limit = at_least(self.min_page_locality);
        every(Kind::PageLocality, limit, &has_pages, &locality);
        verdict
    }

    /// Applies the limits that compare workers of one spawn and role, of which there must be two.
    fn judge_equal(&self, alive: &[&WorkerReport]) -> AssertResult {
        let mut equal: BTreeMap<_, Vec<&WorkerReport>> = BTreeMap::new();
        for worker in alive {
            equal.entry((worker.spawn, worker.role)).or_default().push(worker);
        }
        equal.retain(|_, workers| workers.len() > 1);
        let mut verdict = AssertResult::pass();
        let mut every = |kind, limit, measure: &dyn Fn(&[&WorkerReport]) -> AssertDetail| {
            let judged = equal.values().map(|workers| {
                let scope = Scope::of_cgroup(&workers[0].cgroup);
                AssertResult::judge(measure(workers).scope(scope), limit)
            });
            verdict.absorb(all_or_unmeasured(kind, limit, judged.collect()));
        };
        every(DetailKind::Spread, at_most(self.max_spread_pct), &workers::spread);
        every(DetailKind::ThroughputCv, at_most(self.max_throughput_cv), &workers::throughput_cv);
        verdict
    }

    /// Judges cgroups by what the kernel counted for them, and siblings by their weights. A limit does
    /// not apply to a cgroup that it does not concern, such as one without a quota.
    ///
    /// A limit holds in each window; that of a quota over consecutive windows. It is inconclusive for a
    /// cgroup if it could be measured in none of the windows, and for the test if it concerns no
    /// cgroup. So this must be called once, with all samples.
    pub fn judge_cgroups(&self, samples: &[CgroupSample], kills: &[OomKills]) -> AssertResult {
        let mut verdict = AssertResult::pass();
        for kills in kills {
            verdict.absorb(cgroups::oom_kills(kills, self.no_oom_kill));
        }
        let joined = cgroups::joined(samples);
        let mut each = |kind, limit, samples: &[CgroupSample], measure: MeasureCgroup<'_>| {
            let judged = samples.iter().filter_map(|sample| {
                let detail = measure(sample)?.scope(Scope::of_cgroup(&sample.name));
                Some((&*sample.name, in_window(sample, vec![detail], limit)))
            });
            verdict.absorb(over_windows(kind, limit, judged));
        };
        let limit = at_most(self.max_throttled_pct);
        let throttled =
            |sample: &CgroupSample| sample.asked.quota.map(|_| cgroups::throttled(sample));
        each(DetailKind::Throttled, limit, &joined, &throttled);
        let limit = at_most(self.max_quota_error_pct);
        let quota = |sample: &CgroupSample| Some(cgroups::quota(sample, sample.asked.quota?));
        each(DetailKind::Quota, limit, &joined, &quota);
        for (kind, most, part) in [
            (DetailKind::CpuPressure, self.max_cpu_pressure_pct, cgroups::CPU),
            (DetailKind::MemoryPressure, self.max_memory_pressure_pct, cgroups::MEMORY),
            (DetailKind::IoPressure, self.max_io_pressure_pct, cgroups::IO),
        ] {
            let pressure = |sample: &_| Some(cgroups::pressure(sample, kind, part));
            each(kind, at_most(most), samples, &pressure);
        }
        verdict.absorb(self.judge_weights(samples));
        self.emulated_or_not(verdict)
    }

    /// Applies the limit of weights to families of siblings, and to cgroups with a weight but no sibling.
    fn judge_weights(&self, samples: &[CgroupSample]) -> AssertResult {
        let (kind, limit) = (DetailKind::Weight, at_most(self.max_weight_error_pct));
        let families = cgroups::families(samples);
        let judged = families.iter().map(|family| {
            let names: Vec<_> = family.iter().map(|sample| &*sample.name).collect();
            (names, in_window(family[0], cgroups::weights(family, samples), limit))
        });
        let in_family = |name: &str| families.iter().flatten().any(|sample| sample.name == name);
        let alone = samples
            .iter()
            .filter(|sample| sample.asked.weight.is_some() && !in_family(&sample.name));
        let alone = alone.map(|sample| {
            let why = "the cgroup has no sibling that competes for the same CPUs";
            let detail = unmeasured(kind, why).scope(Scope::of_cgroup(&sample.name));
            (vec![&*sample.name], in_window(sample, vec![detail], limit))
        });
        over_windows(kind, limit, judged.chain(alone))
    }

    /// Marks details as judged on emulated CPUs if the test requests that.
    fn emulated_or_not(&self, verdict: AssertResult) -> AssertResult {
        let judge_emulated = self.judge_emulated_time;
        verdict.map_details(|detail| AssertDetail { judge_emulated, ..detail })
    }
}

type Applies<'a> = &'a dyn Fn(&WorkerReport) -> bool;

type MeasureWorker<'a> = &'a dyn Fn(&WorkerReport) -> AssertDetail;

type MeasureCgroup<'a> = &'a dyn Fn(&CgroupSample) -> Option<AssertDetail>;

fn at_most(most: Option<f64>) -> Option<Limit> {
    most.map(Limit::AtMost)
}

fn at_least(least: Option<f64>) -> Option<Limit> {
    least.map(Limit::AtLeast)
}

/// Judges what was measured in a window. A window that is too short proves nothing.
fn in_window(
    sample: &CgroupSample,
    measured: Vec<AssertDetail>,
    limit: Option<Limit>,
) -> AssertResult {
    let ended_ns = sample.began_ns + sample.wall.as_nanos() as u64;
    AssertResult::all_of(measured.into_iter().map(|detail| {
        let detail = match too_short(sample.wall) {
            Some(why) => unmeasured(detail.kind, why).scope(Scope::of_cgroup(&sample.name)),
            None => detail,
        };
        AssertResult::judge(detail.at_ns(ended_ns), limit)
    }))
}

/// Merges the verdicts of all windows. Windows without a measurement are skipped if another one of the
/// same key has one.
fn over_windows<K: Ord>(
    kind: DetailKind,
    limit: Option<Limit>,
    judged: impl Iterator<Item = (K, AssertResult)>,
) -> AssertResult {
    let mut windows: BTreeMap<K, Vec<AssertResult>> = BTreeMap::new();
    judged.for_each(|(key, judged)| windows.entry(key).or_default().push(judged));
    let is_measured = |judged: &AssertResult| judged.outcome != Outcome::Inconclusive;
    for windows in windows.values_mut() {
        if windows.iter().any(is_measured) {
            windows.retain(is_measured);
        }
    }
    all_or_unmeasured(kind, limit, windows.into_values().flatten().collect())
}

/// Merges verdicts; without any, a limit is inconclusive.
fn all_or_unmeasured(
    kind: DetailKind,
    limit: Option<Limit>,
    judged: Vec<AssertResult>,
) -> AssertResult {
    if judged.is_empty() {
        // Not time-based: steal time and emulation do not explain it.
        let nothing = AssertDetail::new(kind, "the limit applies to nothing here");
        return AssertResult::judge(nothing, limit);
    }
    AssertResult::all_of(judged)
}

/// Returns the verdict with its details about `worker`.
fn scoped(worker: &WorkerReport, verdict: AssertResult) -> AssertResult {
    verdict.map_details(|detail| of(worker, detail))
}

/// Returns the detail about `worker`, with its CPU and time as far as they are known.
fn of(worker: &WorkerReport, detail: AssertDetail) -> AssertDetail {
    let only_cpu = match worker.cpus_used[..] {
        [cpu] => Some(cpu),
        _ => None,
    };
    AssertDetail {
        cpu: detail.cpu.or(only_cpu),
        at_ns: detail.at_ns.or(Some(worker.until_ns)),
        ..detail.scope(scope_of(worker))
    }
}

#[cfg(test)]
mod tests {
    use super::super::cgroups::tests::{QUOTA, cpu, sample, window};
    use super::super::cgroups::{CgroupAsked, joined};
    use super::super::workers::tests::{latencies, spin};
    use super::*;
    use crate::linux::cgroup::{CgroupStats, Pressure, Stall};
    use crate::model::detail::Outcome::{Fail, Inconclusive, Pass};
    use crate::model::exit::ExitKind;
    use crate::model::measurement::Measurement;
    use crate::model::worker::WorkerEnd;

    fn judge(assert: Assert, reports: &[WorkerReport]) -> AssertResult {
        let stuck_after = Duration::from_secs(5);
        let surroundings = Surroundings { stuck_after, nodes: &[vec![0, 1]] };
        assert.judge_workers(reports, &surroundings)
    }

    #[test]
    fn assert_can_be_built_in_a_static() {
        static ASSERT: Assert = Assert::DEFAULT.not_stuck(false).max_gap_ms(50).max_spread_pct(5.5);
        assert!(!ASSERT.not_stuck && ASSERT.isolation);
        assert_eq!((ASSERT.max_gap_ms, ASSERT.max_spread_pct), (Some(50), Some(5.5)));
        assert_eq!(Assert::default().max_throughput_cv, None);
    }

    #[test]
    fn judge_emulated_time_keeps_failures_on_emulated_cpus() {
        let bound = Assert::DEFAULT.max_gap_ms(1);
        for (assert, outcome) in
            [(bound, Outcome::Pass), (bound.judge_emulated_time(true), Outcome::Fail)]
        {
            let verdict = judge(assert, &[spin()]);
            assert_eq!(verdict.outcome, Outcome::Fail);
            assert_eq!(verdict.waive_time_based("emulated").outcome, outcome);
        }
    }

    #[test]
    fn judge_workers_judges_set_limits_only() {
        let idle = WorkerReport { iterations: 0, ..spin() };
        for (assert, outcome) in [
            (Assert::DEFAULT, Outcome::Fail),
            (Assert::DEFAULT.not_stuck(false), Outcome::Pass),
            (Assert::DEFAULT.not_stuck(false).max_gap_ms(1), Outcome::Fail),
            (Assert::DEFAULT.not_stuck(false).min_iteration_rate(1.0), Outcome::Fail),
            (Assert::DEFAULT.not_stuck(false).min_work_rate(1e9), Outcome::Fail),
            (Assert::DEFAULT.not_stuck(false).max_migration_ratio(0.5), Outcome::Inconclusive),
        ] {
            assert_eq!(judge(assert, std::slice::from_ref(&idle)).outcome, outcome, "{assert:?}");
        }
    }

    #[test]
    fn judge_is_inconclusive_if_a_limit_applies_to_nothing() {
        let none = Assert::DEFAULT;
        for assert in [
            none.max_gap_ms(1),
            none.max_spread_pct(100.0),
            none.max_throughput_cv(1.0),
            none.min_iteration_rate(0.0),
            none.min_work_rate(0.0),
            none.max_migration_ratio(1.0),
            none.max_p99_wake_latency_ns(1),
            none.max_wake_latency_cv(1.0),
            none.min_page_locality(0.0),
        ] {
            let verdict = judge(assert, &[]).waive_time_based("emulated");
            assert_eq!(verdict.outcome, Outcome::Inconclusive, "{assert:?}");
        }
        for assert in [
            none.max_throttled_pct(100.0),
            none.max_quota_error_pct(100.0),
            none.max_weight_error_pct(100.0),
            none.max_cpu_pressure_pct(100.0),
            none.max_memory_pressure_pct(100.0),
            none.max_io_pressure_pct(100.0),
        ] {
            let verdict = assert.judge_cgroups(&[], &[]).waive_time_based("emulated");
            assert_eq!(verdict.outcome, Outcome::Inconclusive, "{assert:?}");
        }
        assert_eq!(judge(none, &[]), AssertResult::pass());
        assert_eq!(none.judge_cgroups(&[], &[]), AssertResult::pass());
    }

    #[test]
    fn judge_workers_skips_workers_that_a_limit_does_not_concern() {
        let sleeper = WorkerReport { spawn: 1, wake_latency_ns: latencies(100, 5), ..spin() };
        let elsewhere = WorkerReport { spawn: 2, ..spin() };
        let mute = WorkerReport { pid: 9, spawn: 1, ..spin() };
        let bound = Assert::DEFAULT.max_p99_wake_latency_ns(1000);
        let unwoken = WorkerReport { spawn: 3, measures_wakeups: true, ..spin() };
        let partner = WorkerReport { spawn: 1, role: 1, measures_wakeups: true, ..spin() };
        for (workers, outcome) in [
            (vec![spin(), elsewhere, sleeper.clone()], Outcome::Pass),
            (vec![sleeper.clone(), unwoken], Outcome::Inconclusive),
            (vec![sleeper.clone(), partner], Outcome::Pass),
            (vec![spin()], Outcome::Inconclusive),
            (vec![sleeper.clone(), mute], Outcome::Inconclusive),
        ] {
            assert_eq!(judge(bound, &workers).outcome, outcome);
        }
        let bound = Assert::DEFAULT.min_page_locality(1.0);
        let looker = WorkerReport { numa_pages: vec![9], ..spin() };
        assert_eq!(judge(bound, &[spin(), looker]).outcome, Outcome::Pass);
        assert_eq!(judge(bound, &[spin()]).outcome, Outcome::Inconclusive);
        let bound = Assert::DEFAULT.max_spread_pct(10.0);
        assert_eq!(judge(bound, &[spin(), spin(), sleeper.clone()]).outcome, Outcome::Pass);
        assert_eq!(judge(bound, &[spin(), sleeper]).outcome, Outcome::Inconclusive);
    }

    fn ended(kind: ExitKind) -> WorkerEnd {
        WorkerEnd { kind: Some(kind), errno: None }
    }

    #[test]
    fn judge_workers_does_not_compare_workers_that_ended() {
        let dead = WorkerReport {
            ended: Some(ended(ExitKind::Exited(1))),
            iterations: 0,
            cpu: Duration::ZERO,
            ..spin()
        };
        let verdict = judge(Assert::DEFAULT.max_spread_pct(10.0), &[spin(), dead, spin()]);
        let texts: Vec<_> = verdict.details.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "worker exited early: exit status 1 (expected to run until stopped), worker 7 (spin), \
              cgroup cg_0, at 12.000 s"
            ]
        );
    }

    #[test]
    fn judge_workers_accepts_expected_kills_only() {
        let killed = ended(ExitKind::Signaled(libc::SIGKILL));
        for (oom_kill_expected, end, outcome) in [
            (true, killed, Outcome::Pass),
            (true, ended(ExitKind::Signaled(libc::SIGSEGV)), Outcome::Fail),
            (true, ended(ExitKind::Exited(9)), Outcome::Fail),
            (true, WorkerEnd { errno: Some(libc::ENOMEM), ..killed }, Outcome::Pass),
            (true, WorkerEnd { kind: None, ..killed }, Outcome::Fail),
            (false, killed, Outcome::Fail),
        ] {
            let worker = WorkerReport { ended: Some(end), oom_kill_expected, ..spin() };
            let verdict = judge(Assert::DEFAULT, &[worker]);
            assert_eq!(verdict.outcome, outcome, "{oom_kill_expected}: {end}");
            assert_eq!(verdict.notes.len(), usize::from(outcome == Outcome::Pass));
        }
    }

    #[test]
    fn judge_measures_without_limits() {
        let names = |verdict: AssertResult| -> Vec<_> {
            assert!(verdict.is_pass());
            let named = |measured: Measurement| (measured.name, measured.scope);
            verdict.measurements.into_iter().map(named).collect()
        };
        let sleeper = WorkerReport { wake_latency_ns: latencies(100, 5), ..spin() };
        let workers = names(judge(Assert::DEFAULT, &[sleeper, spin()]));
        let (comm, cgroup) = ("spin".to_owned(), "cg_0".to_owned());
        let scope = Scope::Worker { pid: 7, comm, cgroup };
        for name in ["gap", "iteration_rate", "work_rate", "migration_ratio", "p99_wake_latency"] {
            assert!(workers.contains(&(name.to_owned(), scope.clone())), "{workers:?}");
        }
        assert!(workers.contains(&("spread".to_owned(), Scope::of_cgroup("cg_0"))));
        let mut limited = sample("cg", 100, 2000, 0);
        limited.asked.quota = Some(QUOTA);
        limited.after.cpu.nr_periods = 100;
        let cgroups = names(Assert::DEFAULT.judge_cgroups(&[limited], &[]));
        let scope = Scope::of_cgroup("cg");
        let want = ["throttled", "quota_error"].map(|name| (name.to_owned(), scope.clone()));
        assert_eq!(cgroups, want);
    }

    #[test]
    fn isolation_concerns_confined_workers_only() {
        let to = |cpuset: [u32; 2]| {
            vec![crate::model::worker::CpusetPeriod {
                cpuset: cpuset.to_vec(),
                cpus_used: vec![1, 2],
            }]
        };
        for (isolation, cpuset_periods, outcome) in [
            (true, to([0, 1]), Outcome::Fail),
            (true, to([1, 2]), Outcome::Pass),
            (true, vec![], Outcome::Pass),
            (false, to([0, 1]), Outcome::Pass),
        ] {
            let worker = WorkerReport { cpuset_periods, ..spin() };
            let verdict = judge(Assert::DEFAULT.isolation(isolation), &[worker]);
            assert_eq!(verdict.outcome, outcome);
        }
    }

    #[test]
    fn not_stuck_is_inconclusive_without_any_iteration() {
        let short = Duration::from_millis(100);
        let idle = || WorkerReport { iterations: 0, active: short, ..spin() };
        let killed = WorkerReport {
            ended: Some(ended(ExitKind::Signaled(libc::SIGKILL))),
            oom_kill_expected: true,
            ..idle()
        };
        let stuck = WorkerReport { iterations: 0, ..spin() };
        let none = Assert::DEFAULT;
        for (assert, workers, outcome) in [
            (none, vec![idle(), spin()], Outcome::Pass),
            (none, vec![idle(), idle()], Outcome::Inconclusive),
            (none, vec![idle(), stuck], Outcome::Fail),
            (none, vec![idle(), killed], Outcome::Pass),
            (none.not_stuck(false), vec![idle()], Outcome::Pass),
        ] {
            let verdict = judge(assert, &workers);
            assert_eq!((verdict.outcome, verdict.details.len()), {
                (outcome, usize::from(outcome != Outcome::Pass))
            });
        }
        let text = judge(none, &[idle()]).details[0].to_string();
        assert_eq!(text, "not_stuck: no worker completed an iteration");
    }

    #[test]
    fn judge_workers_does_not_count_frozen_time() {
        let always = crate::model::worker::FrozenPeriod { from_ns: 0, until_ns: u64::MAX };
        let frozen = WorkerReport { frozen_periods: vec![always], ..spin() };
        let still = WorkerReport { iterations: 0, ..frozen.clone() };
        assert_eq!(judge(Assert::DEFAULT, &[spin(), still.clone()]).outcome, Outcome::Pass);
        let thawed = WorkerReport { frozen_periods: vec![], ..still.clone() };
        assert_eq!(judge(Assert::DEFAULT, &[thawed]).outcome, Outcome::Fail);
        let verdict = judge(Assert::DEFAULT.max_gap_ms(1), &[frozen]);
        assert_eq!(verdict.outcome, Outcome::Inconclusive);
    }

    #[test]
    fn judge_cgroups_applies_requested_quotas() {
        let mut sample = window(cpu(0, 0, 0), cpu(9_000_000, 100, 90));
        let judge = |assert: Assert, sample: &CgroupSample| {
            assert.judge_cgroups(std::slice::from_ref(sample), &[])
        };
        let assert = Assert::DEFAULT.max_throttled_pct(50.0).max_quota_error_pct(5.0);
        assert_eq!(judge(assert, &sample).outcome, Inconclusive, "no quota was requested");
        sample.asked.quota = Some(QUOTA);
        let verdict = judge(assert, &sample);
        assert_eq!(verdict.outcome, Fail);
        let texts: Vec<_> = verdict.details.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "max_throttled_pct: 90 % of periods (limit 50 % of periods), cgroup cg, at 10.000 s",
                "max_quota_error_pct: 78.22 % (limit 5 %), cgroup cg, at 10.000 s: used 9.000 s of CPU \
                 time, the quota allows 5.050 s",
            ]
        );
        assert!(verdict.details.iter().all(|detail| detail.time_based));
        assert!(judge(Assert::DEFAULT, &sample).is_pass());
        assert_eq!(judge(Assert::DEFAULT.max_cpu_pressure_pct(1.0), &sample).outcome, Inconclusive);
        let killed = OomKills { cgroup: Some("cg".to_owned()), expected: false, killed: Some(1) };
        let kills = std::slice::from_ref(&killed);
        assert_eq!(Assert::DEFAULT.judge_cgroups(&[], kills).outcome, Fail);
        assert!(Assert::DEFAULT.no_oom_kill(false).judge_cgroups(&[], kills).is_pass());
    }

    #[test]
    fn judge_cgroups_joins_consecutive_windows_of_a_quota() {
        // Each window could begin and end in the middle of a period, and have 100 ms.
        let window = |index: u64, used_ms: u64| CgroupSample {
            asked: CgroupAsked { quota: Some(QUOTA), ..CgroupAsked::default() },
            began_ns: index * 110_000_000,
            wall: Duration::from_millis(110),
            ..window(
                cpu(index * 1000 * used_ms, index, 0),
                cpu((index + 1) * 1000 * used_ms, index + 1, 0),
            )
        };
        let judge = |samples: &[CgroupSample]| {
            Assert::DEFAULT.max_quota_error_pct(0.0).judge_cgroups(samples, &[]).outcome
        };
        let all = |used_ms| (0..20).map(|index| window(index, used_ms)).collect::<Vec<_>>();
        assert_eq!(judge(&all(100)), Fail);
        assert_eq!(judge(&all(55)), Pass);
        assert_eq!(joined(&all(55)).len(), 1);
        // Another quota, another cgroup of that name, a window without workers.
        let mut other = all(55);
        other[5].asked.quota = None;
        assert_eq!(joined(&other).len(), 3);
        let mut other = all(55);
        other[10..].iter_mut().for_each(|sample| sample.made_ns = 7);
        assert_eq!(joined(&other).len(), 2);
        let mut other = all(55);
        other[5].name = "other".to_owned();
        assert_eq!(joined(&other).len(), 3);
    }

    #[test]
    fn judge_cgroups_applies_limits_in_each_measurable_window() {
        let pressed = |began_ns, total_usec: Option<u64>| {
            let pressure = |total_usec| Pressure {
                some: Stall { total_usec, ..Stall::default() },
                ..Pressure::default()
            };
            let stats = |total_usec: Option<u64>| CgroupStats {
                cpu_pressure: total_usec.map(pressure),
                ..CgroupStats::default()
            };
            let window = window(stats(total_usec.map(|_| 0)), stats(total_usec));
            CgroupSample { began_ns, ..window }
        };
        let short = CgroupSample { wall: Duration::from_millis(99), ..pressed(0, Some(99_000)) };
        let other = CgroupSample { name: "other".to_owned(), ..pressed(0, None) };
        let (good, bad) = (pressed(1, Some(4_000_000)), pressed(2, Some(6_000_000)));
        let idle = pressed(3, None);
        for (samples, outcome) in [
            (vec![&good], Pass),
            (vec![&good, &bad], Fail),
            (vec![&bad, &idle, &short], Fail),
            (vec![&idle, &good, &short], Pass),
            (vec![&idle], Inconclusive),
            (vec![&short], Inconclusive),
            // Measurements of one cgroup prove nothing about another.
            (vec![&good, &other], Inconclusive),
        ] {
            let samples: Vec<_> = samples.into_iter().cloned().collect();
            let assert = Assert::DEFAULT.max_cpu_pressure_pct(50.0);
            assert_eq!(assert.judge_cgroups(&samples, &[]).outcome, outcome, "{samples:?}");
        }
        let [a, b] = [sample("a", 100, 2000, 7000), sample("b", 300, 8000, 3000)];
        let weights = |most: f64| Assert::DEFAULT.max_weight_error_pct(most);
        let two = [a.clone(), b];
        assert_eq!(weights(10.0).judge_cgroups(&two, &[]).outcome, Fail);
        assert_eq!(weights(20.0).judge_cgroups(&two, &[]).outcome, Pass);
        assert_eq!(
            weights(20.0).judge_cgroups(std::slice::from_ref(&a), &[]).outcome,
            Inconclusive
        );
        // Others prove nothing about one that has a weight but no sibling to compete with.
        let apart = CgroupSample { name: "c".to_owned(), ..a };
        let apart = CgroupSample { asked: CgroupAsked { cpuset: vec![7], ..apart.asked }, ..apart };
        let three = [two[0].clone(), two[1].clone(), apart];
        assert_eq!(weights(20.0).judge_cgroups(&three, &[]).outcome, Inconclusive);
    }
}
