//! The bounds of a test, and how what was measured is held against them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cgroups::{self, CgroupSample, OomKills};
use super::{AssertDetail, AssertResult, DetailKind, Outcome};
use super::{stuck, workers};
use crate::guest::workload::WorkerReport;

/// Shares and rates over less than this prove nothing: start and stop weigh too much, and a kernel
/// of 250 Hz has seen 25 ticks.
pub const MEASURABLE_AFTER: Duration = Duration::from_millis(100);

/// What the checks of workers need to know beside the workers' reports.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// A worker is called stuck if it made no iteration in this time, or in five times as long after
    /// its first; longer if its weight and its competitors explain as much.
    pub stuck_after: Duration,
    /// The CPUs of each NUMA node; [`TestTopology::nodes`](crate::guest::topology::TestTopology::nodes).
    pub nodes: &'a [Vec<u32>],
}

/// Makes the struct, its default and a builder method per field of the one table below.
macro_rules! checks {
    (
        switches { $($(#[$switch_doc:meta])* $switch:ident = $on:literal,)* }
        bounds { $($(#[$bound_doc:meta])* $bound:ident: $type:ty,)* }
    ) => {
        /// What a test checks of its workers and cgroups, and by which bounds.
        ///
        /// The attribute's keys of the same names fill it. A bound that is `None` is not checked;
        /// one that is set and for which nothing could be measured makes the verdict inconclusive.
        /// The checks that are on by default only note what they could not see.
        ///
        /// A check is *time-based* if time that the host took from the guest's CPUs could explain
        /// its failure; each says whether, and why.
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
            /// What is checked if a test says nothing.
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
        /// A worker that made no iteration of its work loop fails the test, if it had
        /// [`Surroundings::stuck_after`] for it; so does one that made none for five times as long
        /// later on, or where a `memory.high` may slow it down. The time is longer for a worker whose
        /// weight, quota and competitors leave it little of a CPU
        /// ([`WorkerReport::fair_wait_bound`]), and the time in which the scenario had it frozen does not
        /// count. A [`Custom`](crate::guest::workload::WorkType::Custom) worker whose iterations take longer
        /// has to call [`turn`](crate::guest::workload::WorkerCtx::turn) more often, or the test to switch
        /// this off.
        /// If none of the workers made any, however short the time, nothing was shown: that is
        /// inconclusive. Not time-based, but inconclusive if the host kept a vCPU from running for as
        /// long as the worker was beyond its limit ([`AssertDetail::explained_by`]), unless the
        /// worker was asleep, which steal time does not explain.
        not_stuck = true,
        /// A worker that was seen on a CPU outside of those that the cpusets asked for its cgroup,
        /// and for those above, left it at that time fails the test. Not judged are times without a
        /// cpuset, those in which one changes, and, until it is changed, those of one whose last
        /// CPU was switched off. Not time-based: stolen time moves nobody.
        isolation = true,
        /// A process killed for want of memory fails the test, unless that was expected of its
        /// cgroup; then it is a failure if none was. Not time-based: memory is no time.
        no_oom_kill = true,
        /// Whether what is time-based counts where the guest's CPUs are emulated in software. There
        /// it is reported and not judged if this is off.
        judge_emulated_time = false,
    }
    bounds {
        /// The most milliseconds between two turns of each worker's loop. Time-based: a vCPU that
        /// the host does not run makes no turn.
        max_gap_ms: u32,
        /// The most percentage points between the shares of a CPU, CPU time by wall time, that
        /// workers of one spawn and role got. Others are not compared: weights, quotas and
        /// kinds of work may give them different shares by intention. Time-based: a worker on a
        /// vCPU that the host runs less gets less.
        max_spread_pct: f64,
        /// The highest coefficient of variation, standard deviation by mean, of work units per
        /// second of CPU time among workers of one spawn and role, which do equal work.
        /// The share of a CPU is the matter of `max_spread_pct`; this is what each made of its
        /// share. Time-based: stolen time counts as the worker's.
        max_throughput_cv: f64,
        /// The least turns of each worker's loop per second of wall time. Time-based: a vCPU that
        /// the host does not run makes no turn.
        min_iteration_rate: f64,
        /// The least work units per second of CPU time of each worker: how fast it is while it
        /// runs. Time-based: stolen time counts as the worker's.
        min_work_rate: f64,
        /// The most changes of CPU per turn of each worker's loop. Time-based: the balancer acts by
        /// the clock, and turns are fewer where time is stolen.
        max_migration_ratio: f64,
        /// The most nanoseconds that 99 % of each worker's wake-ups took, for workers that sleep;
        /// measured to 1/32 and rounded up. Inconclusive below
        /// [`FEWEST_WAKES`](super::FEWEST_WAKES), so also for workers of a type that sleeps which
        /// never woke. Time-based: a vCPU that the host does not run wakes nobody.
        max_p99_wake_latency_ns: u64,
        /// The highest coefficient of variation of each worker's wake-up latencies, as above.
        max_wake_latency_cv: f64,
        /// The least part, 0 to 1, of each worker's pages that is on the NUMA nodes of the CPUs it
        /// may run on, for workers that look. Not time-based: a page is where it was touched first.
        min_page_locality: f64,
        /// The most percent of its runnable periods in which a cgroup with a quota was throttled.
        /// Time-based: stolen time counts against the quota.
        max_throttled_pct: f64,
        /// How many percent the CPU time of a cgroup with a quota may be off. It used too much if
        /// it had more than its quota in every period of the window and one more, for parts at both
        /// ends. It was throttled too early if it had less than its quota for every period in which
        /// it was throttled, but one. Time-based: the tick that takes the CPU away may come late,
        /// and so may the timer that refills, by periods that count as throttled.
        max_quota_error_pct: f64,
        /// How many percent of what its `cpu.weight` entitles it to a cgroup may lack, among
        /// siblings with the same cpuset. One that would not have used its part even without
        /// waiting is satisfied, and what it left is shared among the others. Time-based: stolen
        /// time counts as usage.
        max_weight_error_pct: f64,
        /// The most percent of the time in which a task of a cgroup waited for a CPU. From the
        /// total of `cpu.pressure`, not the averages, whose windows are not the test's. Time-based:
        /// queues grow on a vCPU that the host does not run.
        max_cpu_pressure_pct: f64,
        /// As above, for memory. Time-based: reclaim takes longer on a CPU that is not run.
        max_memory_pressure_pct: f64,
        /// As above, for input and output. Time-based: so does what completes a request.
        max_io_pressure_pct: f64,
    }
}

impl Default for Assert {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Assert {
    /// Judges workers by what they did. A worker that ended before it was stopped fails the test,
    /// unless it was killed where that was expected, and is not compared with others.
    ///
    /// To be called once, with all workers of a test: a bound is inconclusive if nothing of what
    /// it is about was there.
    pub fn judge_workers(
        &self,
        reports: &[WorkerReport],
        surroundings: &Surroundings<'_>,
    ) -> AssertResult {
        let mut verdict = AssertResult::pass();
        for worker in reports {
            verdict.absorb(of(worker, workers::died(worker)));
            if self.isolation && !worker.cpuset_periods.is_empty() {
                verdict.absorb(of(worker, workers::isolation(worker)));
            }
        }
        let alive: Vec<_> = reports.iter().filter(|worker| worker.ended.is_none()).collect();
        if self.not_stuck {
            for worker in &alive {
                let judged = stuck::not_stuck(worker, surroundings.stuck_after);
                verdict.absorb(of(worker, judged));
            }
            if verdict.outcome != Outcome::Fail {
                verdict.absorb(stuck::any_iteration(reports));
            }
        }
        verdict.absorb(self.judge_each(&alive, surroundings.nodes));
        verdict.absorb(self.judge_groups(&alive));
        self.emulated_or_not(verdict)
    }

    /// The bounds that concern one worker.
    fn judge_each(&self, alive: &[&WorkerReport], nodes: &[Vec<u32>]) -> AssertResult {
        let mut verdict = AssertResult::pass();
        let mut every =
            |kind, applies: Applies<'_>, check: &dyn Fn(&WorkerReport) -> AssertResult| {
                let concerned = alive.iter().filter(|worker| applies(worker));
                let judged: Vec<_> = concerned.map(|worker| of(worker, check(worker))).collect();
                verdict.absorb(or_unmeasured(kind, judged));
            };
        if let Some(most) = self.max_gap_ms {
            let most = Duration::from_millis(most.into());
            every(DetailKind::Gap, &|_| true, &|worker| workers::gap(worker, most));
        }
        if let Some(least) = self.min_iteration_rate {
            let check = |worker: &_| workers::iteration_rate(worker, least);
            every(DetailKind::IterationRate, &|_| true, &check);
        }
        if let Some(least) = self.min_work_rate {
            every(DetailKind::WorkRate, &|_| true, &|worker| workers::work_rate(worker, least));
        }
        if let Some(most) = self.max_migration_ratio {
            let check = |worker: &_| workers::migration_ratio(worker, most);
            every(DetailKind::MigrationRatio, &|_| true, &check);
        }
        // Equal workers do the same work: if one of them sleeps, all do. Where none of any role has
        // woken, it is not known which of them should have.
        let sleeps = |worker: &WorkerReport| {
            let has_woken = |other: &&WorkerReport| other.wake_latency_ns.count() > 0;
            let mut woken = alive.iter().copied().filter(has_woken);
            woken.clone().any(|other| workers::are_equal(worker, other))
                || worker.measures_wakeups && !woken.any(|other| other.spawn == worker.spawn)
        };
        if let Some(most) = self.max_p99_wake_latency_ns {
            let check = |worker: &_| workers::p99_wake_latency(worker, most);
            every(DetailKind::WakeLatency, &sleeps, &check);
        }
        if let Some(most) = self.max_wake_latency_cv {
            let check = |worker: &_| workers::wake_latency_cv(worker, most);
            every(DetailKind::WakeLatencyCv, &sleeps, &check);
        }
        if let Some(least) = self.min_page_locality {
            let check = |worker: &_| workers::page_locality(worker, nodes, least);
            every(DetailKind::PageLocality, &|worker| !worker.numa_pages.is_empty(), &check);
        }
        verdict
    }

    /// The bounds that compare workers. One alone is nothing to compare.
    fn judge_groups(&self, alive: &[&WorkerReport]) -> AssertResult {
        let mut groups: BTreeMap<_, Vec<&WorkerReport>> = BTreeMap::new();
        for worker in alive {
            groups.entry((worker.spawn, worker.role)).or_default().push(worker);
        }
        groups.retain(|_, group| group.len() > 1);
        let mut verdict = AssertResult::pass();
        let mut every = |kind, check: &dyn Fn(&[&WorkerReport]) -> AssertResult| {
            let judged = groups
                .values()
                .map(|group| check(group).map_details(|detail| detail.cgroup(&group[0].cgroup)));
            verdict.absorb(or_unmeasured(kind, judged.collect()));
        };
        if let Some(most) = self.max_spread_pct {
            every(DetailKind::Spread, &|group| workers::spread(group, most));
        }
        if let Some(most) = self.max_throughput_cv {
            every(DetailKind::ThroughputCv, &|group| workers::throughput_cv(group, most));
        }
        verdict
    }

    /// Judges cgroups by what the kernel counted for them, and siblings by their weights. What does
    /// not concern one, the bounds of a quota it does not have for instance, is passed over.
    ///
    /// A bound holds in each window; that of a quota over all of those that follow each other. It is
    /// inconclusive for a cgroup if it could be measured in none
    /// of its windows, and for the test if no cgroup is concerned; so this is to be called once, with
    /// all there is.
    pub fn judge_cgroups(&self, samples: &[CgroupSample], kills: &[OomKills]) -> AssertResult {
        let mut verdict = AssertResult::pass();
        if self.no_oom_kill {
            kills.iter().for_each(|kills| verdict.absorb(cgroups::oom_kill(kills)));
        }
        let joined = cgroups::joined(samples);
        let each = |kind, samples: &[CgroupSample], check: Check<'_>| {
            let judged = samples.iter().filter_map(|sample| {
                let judged = check(sample)?.map_details(|detail| detail.cgroup(&sample.name));
                Some((&*sample.name, in_window(kind, sample, judged)))
            });
            over_windows(kind, judged)
        };
        if let Some(most) = self.max_throttled_pct {
            verdict.absorb(each(DetailKind::Throttled, &joined, &|sample| {
                sample.asked.quota.map(|_| cgroups::throttled(sample, most))
            }));
        }
        if let Some(most) = self.max_quota_error_pct {
            verdict.absorb(each(DetailKind::Quota, &joined, &|sample| {
                sample.asked.quota.map(|quota| cgroups::quota(sample, quota, most))
            }));
        }
        for (kind, bound, part) in [
            (DetailKind::CpuPressure, self.max_cpu_pressure_pct, cgroups::CPU),
            (DetailKind::MemoryPressure, self.max_memory_pressure_pct, cgroups::MEMORY),
            (DetailKind::IoPressure, self.max_io_pressure_pct, cgroups::IO),
        ] {
            if let Some(most) = bound {
                let check = |sample: &_| Some(cgroups::pressure(sample, kind, part, most));
                verdict.absorb(each(kind, samples, &check));
            }
        }
        if let Some(most) = self.max_weight_error_pct {
            let kind = DetailKind::Weight;
            let families = cgroups::families(samples);
            let judged = families.iter().map(|family| {
                let names: Vec<_> = family.iter().map(|sample| &*sample.name).collect();
                (names, in_window(kind, family[0], cgroups::weights(family, samples, most)))
            });
            let in_family =
                |name: &str| families.iter().flatten().any(|sample| sample.name == name);
            let alone = samples
                .iter()
                .filter(|sample| sample.asked.weight.is_some() && !in_family(&sample.name));
            let alone = alone.map(|sample| {
                let why = "it has no sibling on the same CPUs to share them with";
                let judged = unmeasured(kind, why).map_details(|d| d.cgroup(&sample.name));
                (vec![&*sample.name], in_window(kind, sample, judged))
            });
            verdict.absorb(over_windows(kind, judged.chain(alone)));
        }
        self.emulated_or_not(verdict)
    }

    /// What is time-based counts on an emulated CPU as well if these bounds say so.
    fn emulated_or_not(&self, verdict: AssertResult) -> AssertResult {
        let judge_emulated = self.judge_emulated_time;
        verdict.map_details(|detail| AssertDetail { judge_emulated, ..detail })
    }
}

/// What a check said of a window. All such checks are about time, of which little proves nothing.
fn in_window(kind: DetailKind, sample: &CgroupSample, judged: AssertResult) -> AssertResult {
    let judged = match sample.wall < MEASURABLE_AFTER {
        true => unmeasured(kind, too_short(sample.wall))
            .map_details(|detail| detail.cgroup(&sample.name)),
        false => judged,
    };
    let ended_ns = sample.began_ns + sample.wall.as_nanos() as u64;
    judged.map_details(|detail| detail.at_ns(ended_ns).time_based())
}

/// What a check said of each window of whom it concerns. Windows in which it could not be measured
/// are passed over if there is another of the same in which it could.
fn over_windows<K: Ord>(
    kind: DetailKind,
    judged: impl Iterator<Item = (K, AssertResult)>,
) -> AssertResult {
    let mut windows: BTreeMap<K, Vec<AssertResult>> = BTreeMap::new();
    judged.for_each(|(whose, judged)| windows.entry(whose).or_default().push(judged));
    let is_measured = |judged: &AssertResult| judged.outcome != Outcome::Inconclusive;
    for windows in windows.values_mut() {
        if windows.iter().any(is_measured) {
            windows.retain(is_measured);
        }
    }
    or_unmeasured(kind, windows.into_values().flatten().collect())
}

/// Why nothing can be said of `wall`.
pub(super) fn too_short(wall: Duration) -> String {
    format!("{wall:?} is too short, {MEASURABLE_AFTER:?} is not")
}

type Check<'a> = &'a dyn Fn(&CgroupSample) -> Option<AssertResult>;

type Applies<'a> = &'a dyn Fn(&WorkerReport) -> bool;

/// What a check said of whatever it is about; inconclusive if that was nothing.
fn or_unmeasured(kind: DetailKind, judged: Vec<AssertResult>) -> AssertResult {
    if judged.is_empty() {
        let detail = AssertDetail::new(kind, "there was nothing that it could be measured on");
        return AssertResult::inconclusive(detail);
    }
    AssertResult::all_of(judged)
}

/// The verdict, with its details saying whose it is, where and until when that was measured.
fn of(worker: &WorkerReport, verdict: AssertResult) -> AssertResult {
    let who = format!("{} ({})", worker.pid, worker.comm);
    let only_cpu = match worker.cpus_used[..] {
        [cpu] => Some(cpu),
        _ => None,
    };
    verdict.map_details(|detail| AssertDetail {
        cpu: detail.cpu.or(only_cpu),
        at_ns: detail.at_ns.or(Some(worker.until_ns)),
        ..detail.worker(&who).cgroup(&worker.cgroup)
    })
}

/// A value and what it is held against.
pub(super) enum Limit {
    Most(f64),
    Least(f64),
}

/// Holds a number of `unit` against a limit. Not a number is inconclusive, on either side.
pub(super) fn hold(kind: DetailKind, value: f64, limit: Limit, unit: &str) -> AssertResult {
    let (word, bound) = match limit {
        Limit::Most(bound) => ("at most", bound),
        Limit::Least(bound) => ("at least", bound),
    };
    let limit_text = format!("{word} {bound}{unit}");
    let detail =
        || AssertDetail::measured(kind, format!("{}{unit}", shown(value, bound)), limit_text);
    match (value.partial_cmp(&bound), limit) {
        (None, _) => AssertResult::inconclusive(detail().because("that is no number")),
        (Some(order), Limit::Most(_)) if order.is_gt() => AssertResult::fail(detail()),
        (Some(order), Limit::Least(_)) if order.is_lt() => AssertResult::fail(detail()),
        _ => AssertResult::pass(),
    }
}

/// Four digits, or all where four would hide the difference from `bound`.
pub(crate) fn shown(value: f64, bound: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let scale = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    let rounded =
        if value.abs() < 1000.0 { (value * scale).round() / scale } else { value.round() };
    // Below what floats hold in full, there are no four digits to round to.
    if rounded == bound || !rounded.is_finite() { value.to_string() } else { rounded.to_string() }
}

/// The verdict of a check that could not measure `kind`: why.
pub(super) fn unmeasured(kind: DetailKind, why: impl Into<String>) -> AssertResult {
    AssertResult::inconclusive(AssertDetail::new(kind, why))
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::super::workers::tests::{latencies, spin};
    use super::*;
    use crate::guest::workload::WorkerEnd;
    use crate::model::exit::ExitKind;

    fn judge(assert: Assert, reports: &[WorkerReport]) -> AssertResult {
        let stuck_after = Duration::from_secs(5);
        let surroundings = Surroundings { stuck_after, nodes: &[vec![0, 1]] };
        assert.judge_workers(reports, &surroundings)
    }

    #[test]
    fn it_can_be_made_in_a_static() {
        static ASSERT: Assert = Assert::DEFAULT.not_stuck(false).max_gap_ms(50).max_spread_pct(5.5);
        assert!(!ASSERT.not_stuck && ASSERT.isolation);
        assert_eq!((ASSERT.max_gap_ms, ASSERT.max_spread_pct), (Some(50), Some(5.5)));
        assert_eq!(Assert::default().max_throughput_cv, None);
    }

    #[test]
    fn numbers_are_held_against_their_limit() {
        for (value, limit, outcome, text) in [
            (2.0, Limit::Most(2.0), Outcome::Pass, ""),
            (2.000_01, Limit::Most(2.0), Outcome::Fail, "claim: 2.00001 %, at most 2 %"),
            (12_345.6, Limit::Most(2.0), Outcome::Fail, "claim: 12346 %, at most 2 %"),
            (1.0, Limit::Least(1.0), Outcome::Pass, ""),
            (0.123_456, Limit::Least(0.5), Outcome::Fail, "claim: 0.1235 %, at least 0.5 %"),
            (0.0, Limit::Least(0.5), Outcome::Fail, "claim: 0 %, at least 0.5 %"),
            (
                f64::NAN,
                Limit::Least(0.5),
                Outcome::Inconclusive,
                "claim: NaN %, at least 0.5 %: that is no number",
            ),
            (
                1.0,
                Limit::Most(f64::NAN),
                Outcome::Inconclusive,
                "claim: 1 %, at most NaN %: that is no number",
            ),
        ] {
            let verdict = hold(DetailKind::Claim, value, limit, " %");
            let texts: Vec<_> = verdict.details.iter().map(ToString::to_string).collect();
            assert_eq!((verdict.outcome, texts.concat()), (outcome, text.to_owned()));
        }
    }

    #[test]
    fn what_is_shown_is_near_and_never_the_bound_by_rounding() {
        for (value, bound, text) in [
            (50.000_4, 1.0, "50"),
            (50.000_4, 50.0, "50.0004"),
            (999.96, 1.0, "1000"),
            (0.000_123_44, 1.0, "0.0001234"),
            (-2.5, 1.0, "-2.5"),
        ] {
            assert_eq!(shown(value, bound), text);
        }
        assert_eq!(shown(5e-324, 1.0).parse(), Ok(5e-324));
    }

    #[test]
    fn bounds_that_want_it_are_judged_on_emulated_cpus_as_well() {
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
    fn only_what_is_asked_for_is_checked() {
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
    fn a_bound_on_nothing_is_inconclusive() {
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
            assert_eq!(judge(assert, &[]).outcome, Outcome::Inconclusive, "{assert:?}");
        }
        for assert in [
            none.max_throttled_pct(100.0),
            none.max_quota_error_pct(100.0),
            none.max_weight_error_pct(100.0),
            none.max_cpu_pressure_pct(100.0),
            none.max_memory_pressure_pct(100.0),
            none.max_io_pressure_pct(100.0),
        ] {
            assert_eq!(assert.judge_cgroups(&[], &[]).outcome, Outcome::Inconclusive, "{assert:?}");
        }
        assert_eq!(judge(none, &[]), AssertResult::pass());
        assert_eq!(none.judge_cgroups(&[], &[]), AssertResult::pass());
    }

    #[test]
    fn who_does_not_sleep_or_stands_alone_is_passed_over() {
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
    fn the_dead_are_told_of_and_not_compared() {
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
            ["worker died: exit status 1, to run until it is stopped, worker 7 (spin), \
                 cgroup cg_0, at 12.000 s"]
        );
    }

    #[test]
    fn who_was_to_be_killed_may_die_so_and_not_otherwise() {
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
    fn only_who_was_confined_can_have_escaped() {
        let to = |cpuset: [u32; 2]| {
            vec![crate::guest::workload::CpusetPeriod {
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
    fn no_turn_of_anybody_shows_nothing() {
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
        assert_eq!(text, "not_stuck: no worker made an iteration: nothing was shown");
    }

    #[test]
    fn who_was_frozen_is_not_blamed_for_it() {
        let always = crate::guest::workload::FrozenPeriod { from_ns: 0, until_ns: u64::MAX };
        let frozen = WorkerReport { frozen_periods: vec![always], ..spin() };
        let still = WorkerReport { iterations: 0, ..frozen.clone() };
        assert_eq!(judge(Assert::DEFAULT, &[spin(), still.clone()]).outcome, Outcome::Pass);
        let thawed = WorkerReport { frozen_periods: vec![], ..still.clone() };
        assert_eq!(judge(Assert::DEFAULT, &[thawed]).outcome, Outcome::Fail);
        let verdict = judge(Assert::DEFAULT.max_gap_ms(1), &[frozen]);
        assert_eq!(verdict.outcome, Outcome::Inconclusive);
    }
}
