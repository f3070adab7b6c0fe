//! The checks of cgroups. Each is a function of what the kernel counted and a bound.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use super::checks::{Limit, hold, shown, unmeasured};
use super::{AssertDetail, AssertResult, DetailKind};
use crate::linux::cgroup::{CgroupStats, Pressure};

/// The weight of a cgroup for which none was asked.
///
/// Source: Linux 6.12, admin-guide/cgroup-v2.rst, `cpu.weight`.
const DEFAULT_WEIGHT: u32 = 100;

/// What was asked of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CgroupAsked {
    /// The limit of its CPU time.
    pub quota: Option<CpuQuota>,
    /// Its part of the CPU time that it and its siblings want, 1 to 10,000.
    pub weight: Option<u32>,
    /// The CPUs that its cpuset and those above leave it; empty if none were asked for.
    pub cpuset: Vec<u32>,
}

/// The CPU time that a cgroup may have in each period, over all CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuQuota {
    /// The CPU time.
    pub quota: Duration,
    /// The period.
    pub period: Duration,
}

/// What was asked of a cgroup, and what the kernel counted for it in a window of time in which
/// nothing was changed.
#[derive(Debug, Clone, PartialEq)]
pub struct CgroupSample {
    /// Its name, as the manager knows it.
    pub name: String,
    /// When it was made, in nanoseconds since boot, which tells it from others of that name.
    pub made_ns: u64,
    /// What was asked.
    pub asked: CgroupAsked,
    /// When the window began, in nanoseconds since boot. All cgroups have the same windows.
    pub began_ns: u64,
    /// How long it was.
    pub wall: Duration,
    /// The counters at its start.
    pub before: CgroupStats,
    /// The counters at its end.
    pub after: CgroupStats,
    /// How long its workers and those below were runnable and waited for a CPU, all added up.
    pub waited: Duration,
    /// Whether what it gets depends on its weight alone: its workers and those below are fair tasks
    /// that may use all CPUs it has.
    pub weighs: bool,
}

/// What was killed for want of memory in a cgroup, from its making to its removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OomKills {
    /// The cgroup's name, as the manager knows it; `None` for all of the machine that is in none of
    /// the cgroups that are judged.
    pub cgroup: Option<String>,
    /// Whether one was to be killed, in it or below.
    pub expected: bool,
    /// How many were: of those that may not be, else of it and all below; `None` where the kernel
    /// does not count them, which is without the memory controller.
    pub killed: Option<u64>,
}

pub(super) type Part = fn(&CgroupStats) -> Option<&Pressure>;

pub(super) const CPU: Part = |stats| stats.cpu_pressure.as_ref();
pub(super) const MEMORY: Part = |stats| stats.memory_pressure.as_ref();
pub(super) const IO: Part = |stats| stats.io_pressure.as_ref();

/// Without the memory controller a cgroup has no limit of its own, so nothing is known only of what
/// was expected.
pub(super) fn oom_kill(kills: &OomKills) -> AssertResult {
    let kind = DetailKind::OomKill;
    let fail = |measured: String, bound: &str| {
        AssertResult::fail(AssertDetail::measured(kind, measured, bound))
    };
    match (kills.killed, kills.expected) {
        (None, true) => unmeasured(kind, "the kernel counts none without the memory controller"),
        (Some(0) | None, false) | (Some(1..), true) => AssertResult::pass(),
        (Some(count), false) => {
            let elsewhere = if kills.cgroup.is_none() { " elsewhere" } else { "" };
            fail(format!("{count} killed for want of memory{elsewhere}"), "none")
        }
        (Some(0), true) => {
            fail("none killed for want of memory".to_owned(), "at least one was expected")
        }
    }
    .map_details(|detail| detail.cgroup(kills.cgroup.as_deref().unwrap_or_default()))
}

pub(super) fn throttled(sample: &CgroupSample, most: f64) -> AssertResult {
    let kind = DetailKind::Throttled;
    let (before, after) = (&sample.before, &sample.after);
    let periods = after.cpu.nr_periods.checked_sub(before.cpu.nr_periods);
    let throttled = after.cpu.nr_throttled.checked_sub(before.cpu.nr_throttled);
    match (periods, throttled) {
        (None, _) | (_, None) => went_back(kind),
        (Some(0), _) => unmeasured(kind, "it was runnable in no period"),
        (Some(periods), Some(throttled)) => {
            let percent = 100.0 * throttled as f64 / periods as f64;
            hold(kind, percent, Limit::Most(most), " % of its periods")
        }
    }
}

pub(super) fn quota(sample: &CgroupSample, quota: CpuQuota, most: f64) -> AssertResult {
    let kind = DetailKind::Quota;
    let CgroupSample { before, after, wall, .. } = sample;
    let used = after.cpu.usage_usec.checked_sub(before.cpu.usage_usec);
    let periods = after.cpu.nr_periods.checked_sub(before.cpu.nr_periods);
    let throttled = after.cpu.nr_throttled.checked_sub(before.cpu.nr_throttled);
    let (Some(used), Some(periods), Some(throttled)) = (used, periods, throttled) else {
        return went_back(kind);
    };
    if quota.period.is_zero() || *wall < quota.period {
        return unmeasured(kind, "the window is shorter than a period");
    }
    let used = used as f64 / 1e6;
    let per_period = quota.quota.as_secs_f64();
    let most_used = per_period * (wall.as_secs_f64() / quota.period.as_secs_f64() + 1.0);
    let least_used = per_period * throttled.saturating_sub(1) as f64;
    let failed = |word: &str, bound: f64| {
        let measured = format!("{} s of CPU time", shown(used, bound));
        let bound = format!("{word} {} s and {most} %", shown(bound, used));
        AssertResult::fail(AssertDetail::measured(kind, measured, bound))
    };
    if most.is_nan() {
        return unmeasured(kind, "the bound is no number");
    }
    if used > most_used * (1.0 + most / 100.0) {
        failed("at most the quota's", most_used)
    } else if used < least_used * (1.0 - most / 100.0) {
        let told = format!("throttled in {throttled} of {periods} periods");
        failed("at least the used-up quotas'", least_used)
            .map_details(|detail| detail.because(&told))
    } else if periods == 0 {
        unmeasured(kind, "it was runnable in no period")
    } else {
        AssertResult::pass()
    }
}

/// `some`: the time in which at least one task waited.
pub(super) fn pressure(
    sample: &CgroupSample,
    kind: DetailKind,
    part: Part,
    most: f64,
) -> AssertResult {
    let total = |stats| part(stats).map(|pressure| pressure.some.total_usec);
    match (total(&sample.before), total(&sample.after)) {
        (Some(before), Some(after)) if before > after => went_back(kind),
        (Some(before), Some(after)) => {
            let percent = 100.0 * (after - before) as f64 / 1e6 / sample.wall.as_secs_f64();
            hold(kind, percent, Limit::Most(most), " % of the time")
        }
        _ => unmeasured(kind, "this kernel counts no pressure"),
    }
}

/// Joins windows of a cgroup that follow each other and in which the same quota was asked for. It
/// holds for what is between them as well, and each window of its own could begin and end in the
/// middle of a period.
pub(super) fn joined(samples: &[CgroupSample]) -> Vec<CgroupSample> {
    let windows: BTreeSet<_> = samples.iter().map(|sample| sample.began_ns).collect();
    let follows = |one: &CgroupSample, next: &CgroupSample| {
        let mut after = windows.range((Bound::Excluded(one.began_ns), Bound::Unbounded));
        after.next() == Some(&next.began_ns)
            && (&one.name, one.made_ns, one.asked.quota)
                == (&next.name, next.made_ns, next.asked.quota)
    };
    // The last window of each run so far, and all of the run.
    let mut runs: Vec<(&CgroupSample, CgroupSample)> = Vec::new();
    for sample in samples {
        match runs.iter_mut().find(|(last, _)| follows(last, sample)) {
            Some((last, run)) => {
                *last = sample;
                run.wall = sample.wall + Duration::from_nanos(sample.began_ns - run.began_ns);
                run.after = sample.after.clone();
            }
            None => runs.push((sample, sample.clone())),
        }
    }
    runs.into_iter().map(|(_, run)| run).collect()
}

/// Siblings that compete on the same CPUs at the same time, of which at least one was given a weight.
pub(super) fn families(samples: &[CgroupSample]) -> Vec<Vec<&CgroupSample>> {
    let mut families: BTreeMap<_, Vec<&CgroupSample>> = BTreeMap::new();
    for sample in samples {
        let above = sample.name.rsplit_once('/').map_or("", |(above, _)| above);
        families.entry((sample.began_ns, above, &sample.asked.cpuset)).or_default().push(sample);
    }
    let is_weighted = |family: &Vec<&CgroupSample>| {
        family.len() > 1 && family.iter().any(|sample| sample.asked.weight.is_some())
    };
    families.into_values().filter(is_weighted).collect()
}

/// A cgroup with what it used and what it would have used had it not waited, in seconds.
struct Contender<'a> {
    name: &'a str,
    weight: f64,
    used: f64,
    wanted: f64,
}

/// Shares CPU time out by weights, the way the kernel means to: who wants less than its part has
/// what it wants, and the others share the rest. Judged are those that want more.
pub(super) fn weights(
    family: &[&CgroupSample],
    samples: &[CgroupSample],
    most: f64,
) -> AssertResult {
    let kind = DetailKind::Weight;
    if let Some(other) = family.iter().find(|sample| !sample.weighs) {
        let why = "has workers that are pinned, or no fair tasks, whom weights do not concern";
        return unmeasured(kind, format!("{} {why}", other.name));
    }
    // Who waits for a quota waits for what nobody else has.
    let is_limited = |sample: &CgroupSample| {
        let below = |other: &&CgroupSample| {
            other.began_ns == sample.began_ns && is_in(&other.name, &sample.name)
        };
        let is_throttled = |other: &CgroupSample| {
            let (before, after) = (&other.before.cpu, &other.after.cpu);
            other.asked.quota.is_some() && after.nr_throttled > before.nr_throttled
        };
        samples.iter().filter(below).any(is_throttled)
    };
    let contenders = family.iter().map(|sample| contender(sample, is_limited(sample)));
    let contenders: Option<Vec<_>> = contenders.collect();
    let Some(mut contenders) = contenders else { return went_back(kind) };
    let part = loop {
        let weights: f64 = contenders.iter().map(|contender| contender.weight).sum();
        let used: f64 = contenders.iter().map(|contender| contender.used).sum();
        let part = used / weights;
        let count = contenders.len();
        contenders.retain(|contender| contender.wanted > part * contender.weight);
        if contenders.len() < 2 {
            let why = "fewer than two of the siblings wanted more CPU time than was theirs";
            return unmeasured(kind, why);
        }
        if contenders.len() == count {
            break part;
        }
    };
    AssertResult::all_of(contenders.iter().map(|contender| {
        let share = 100.0 * contender.used / (part * contender.weight);
        let unit = " % of what its weight entitles it to";
        hold(kind, share, Limit::Least(100.0 - most), unit)
            .map_details(|detail| detail.cgroup(contender.name))
    }))
}

/// `None` if the counters went back.
///
/// A worker's waiting is counted when it is over; what pressure has counted has gone on until now, but
/// is no more than the window's length, however many waited.
fn contender(sample: &CgroupSample, is_limited: bool) -> Option<Contender<'_>> {
    let (before, after) = (&sample.before.cpu, &sample.after.cpu);
    let used = after.usage_usec.checked_sub(before.usage_usec)? as f64 / 1e6;
    let stalled = |stats| CPU(stats).map_or(0, |pressure| pressure.some.total_usec);
    let stalled = stalled(&sample.after).saturating_sub(stalled(&sample.before)) as f64 / 1e6;
    let waited = if is_limited { 0.0 } else { stalled.max(sample.waited.as_secs_f64()) };
    let weight = f64::from(sample.asked.weight.unwrap_or(DEFAULT_WEIGHT));
    Some(Contender { name: &sample.name, weight, used, wanted: used + waited })
}

/// Whether a cgroup is another one or below it.
pub(crate) fn is_in(cgroup: &str, other: &str) -> bool {
    cgroup.strip_prefix(other).is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

fn went_back(kind: DetailKind) -> AssertResult {
    unmeasured(kind, "the kernel's counters went back: it is not the same cgroup any more")
}

#[cfg(test)]
mod tests {
    use super::super::Assert;
    use super::super::Outcome::{self, Fail, Inconclusive, Pass};
    use super::*;
    use crate::linux::cgroup::{CpuStat, Stall};

    const WALL: Duration = Duration::from_secs(10);
    const QUOTA: CpuQuota =
        CpuQuota { quota: Duration::from_millis(50), period: Duration::from_millis(100) };

    #[track_caller]
    fn is(verdict: &AssertResult, outcome: Outcome, text: &str) {
        let texts: Vec<_> = verdict.details.iter().map(ToString::to_string).collect();
        assert_eq!((verdict.outcome, &*texts.concat()), (outcome, text));
    }

    /// A window of ten seconds.
    fn window(before: CgroupStats, after: CgroupStats) -> CgroupSample {
        CgroupSample {
            name: "cg".to_owned(),
            made_ns: 0,
            asked: CgroupAsked::default(),
            began_ns: 0,
            wall: WALL,
            before,
            after,
            waited: Duration::ZERO,
            weighs: true,
        }
    }

    fn cpu(usage_usec: u64, nr_periods: u64, nr_throttled: u64) -> CgroupStats {
        let cpu = CpuStat { usage_usec, nr_periods, nr_throttled, ..CpuStat::default() };
        CgroupStats { cpu, ..CgroupStats::default() }
    }

    #[test]
    fn oom_kills_are_those_that_were_expected() {
        let killed = "no_oom_kill: 2 killed for want of memory, none, cgroup cg";
        let missing = "no_oom_kill: none killed for want of memory, at least one was expected, \
                       cgroup cg";
        let uncounted =
            "no_oom_kill: the kernel counts none without the memory controller, cgroup cg";
        for (expected, killed, outcome, text) in [
            (false, Some(0), Pass, ""),
            (false, Some(2), Fail, killed),
            (true, Some(1), Pass, ""),
            (true, Some(0), Fail, missing),
            (true, None, Inconclusive, uncounted),
            (false, None, Pass, ""),
        ] {
            is(
                &oom_kill(&OomKills { cgroup: Some("cg".to_owned()), expected, killed }),
                outcome,
                text,
            );
        }
    }

    #[test]
    fn throttling_is_a_part_of_the_periods() {
        let text = "max_throttled_pct: 60 % of its periods, at most 59 % of its periods";
        let none = "max_throttled_pct: it was runnable in no period";
        for (before, after, most, outcome, text) in [
            (cpu(0, 100, 50), cpu(0, 200, 110), 60.0, Pass, ""),
            (cpu(0, 100, 50), cpu(0, 200, 110), 59.0, Fail, text),
            (cpu(0, 100, 50), cpu(0, 100, 50), 100.0, Inconclusive, none),
        ] {
            is(&throttled(&window(before, after), most), outcome, text);
        }
    }

    #[test]
    fn a_quota_is_neither_exceeded_nor_withheld() {
        let much = "max_quota_error_pct: 5.06 s of CPU time, at most the quota's 5.05 s and 0 %";
        let early = "max_quota_error_pct: 2 s of CPU time, at least the used-up quotas' 2.45 s and \
                     10 %: throttled in 50 of 100 periods";
        let idle = "max_quota_error_pct: it was runnable in no period";
        let short = "max_quota_error_pct: the window is shorter than a period";
        for (after, wall, most, outcome, text) in [
            (cpu(5_050_000, 100, 100), WALL, 0.0, Pass, ""),
            (cpu(5_060_000, 100, 100), WALL, 0.0, Fail, much),
            (cpu(5_060_000, 100, 100), WALL, 1.0, Pass, ""),
            (cpu(2_000_000, 100, 50), WALL, 10.0, Fail, early),
            (cpu(2_000_000, 100, 50), WALL, 20.0, Pass, ""),
            (cpu(2_000_000, 100, 0), WALL, 0.0, Pass, ""),
            (cpu(0, 0, 0), WALL, 0.0, Inconclusive, idle),
            // The kernel has no quota for it, and counts no periods.
            (cpu(5_060_000, 0, 0), WALL, 0.0, Fail, much),
            (cpu(9, 1, 0), Duration::from_millis(99), 0.0, Inconclusive, short),
            (cpu(9, 1, 0), Duration::from_millis(100), 0.0, Pass, ""),
        ] {
            let sample = CgroupSample { wall, ..window(cpu(0, 0, 0), after) };
            is(&quota(&sample, QUOTA, most), outcome, text);
        }
        let second = Duration::from_secs(1);
        let half = CpuQuota { quota: second / 2, period: second };
        let sample = CgroupSample { wall: second, ..window(cpu(0, 0, 0), cpu(1_000_000, 1, 0)) };
        assert_eq!(quota(&sample, half, 0.0).outcome, Pass);
        let back = quota(&window(cpu(2, 0, 0), cpu(1, 9, 0)), QUOTA, 5.0);
        assert_eq!(back.outcome, Inconclusive);
        let nan = quota(&window(cpu(0, 0, 0), cpu(1, 9, 0)), QUOTA, f64::NAN);
        assert_eq!(nan.outcome, Inconclusive);
    }

    #[test]
    fn pressure_is_a_part_of_the_window() {
        let stall = |total_usec| Pressure {
            some: Stall { total_usec, ..Stall::default() },
            ..Pressure::default()
        };
        let stats = |io_pressure| CgroupStats { io_pressure, ..CgroupStats::default() };
        let text = "max_io_pressure_pct: 10 % of the time, at most 9.5 % of the time";
        let none = "max_io_pressure_pct: this kernel counts no pressure";
        let back = "max_io_pressure_pct: the kernel's counters went back: it is not the same \
                    cgroup any more";
        for (before, after, most, outcome, text) in [
            (Some(stall(5)), Some(stall(1_000_005)), 10.0, Pass, ""),
            (Some(stall(5)), Some(stall(1_000_005)), 9.5, Fail, text),
            (None, None, 9.5, Inconclusive, none),
            (Some(stall(5)), Some(stall(4)), 9.5, Inconclusive, back),
        ] {
            let sample = window(stats(before), stats(after));
            is(&pressure(&sample, DetailKind::IoPressure, IO, most), outcome, text);
        }
    }

    fn sample(name: &str, weight: u32, used_ms: u64, waited_ms: u64) -> CgroupSample {
        CgroupSample {
            name: name.to_owned(),
            asked: CgroupAsked { weight: Some(weight), ..CgroupAsked::default() },
            waited: Duration::from_millis(waited_ms),
            ..window(cpu(77_000, 0, 0), cpu(77_000 + 1000 * used_ms, 0, 0))
        }
    }

    fn plain(name: &str, used_ms: u64, waited_ms: u64) -> CgroupSample {
        CgroupSample { asked: CgroupAsked::default(), ..sample(name, 1, used_ms, waited_ms) }
    }

    #[test]
    fn weights_are_honoured_among_those_that_want_more() {
        let text = "max_weight_error_pct: 80 % of what its weight entitles it to, \
                    at least 90 % of what its weight entitles it to, cgroup a";
        let content = "max_weight_error_pct: fewer than two of the siblings wanted more CPU time \
                       than was theirs";
        let two = |a, b| vec![sample("a", 100, a, 7000), sample("b", 300, b, 3000)];
        let limited = |mut sample: CgroupSample| {
            sample.asked.quota = Some(QUOTA);
            sample.after.cpu.nr_throttled += 1;
            sample
        };
        let below = |sample: CgroupSample| CgroupSample { name: "a/x".to_owned(), ..sample };
        let unfair = |sample: CgroupSample| CgroupSample { weighs: false, ..sample };
        // It waits since before the window began, and so nothing of it is in what was counted as over.
        let starved = |mut sample: CgroupSample| {
            let some = Stall { total_usec: 10_000_000, ..Stall::default() };
            let pressure = Pressure { some, ..Pressure::default() };
            sample.before.cpu_pressure = Some(Pressure::default());
            sample.after.cpu_pressure = Some(pressure);
            sample
        };
        let nothing = "max_weight_error_pct: 0 % of what its weight entitles it to, \
                       at least 90 % of what its weight entitles it to, cgroup a";
        let concerns = "max_weight_error_pct: b has workers that are pinned, or no fair tasks, whom \
                        weights do not concern";
        let third = || vec![sample("c", 400, 2000, 0)];
        for (samples, most, outcome, text) in [
            (two(2500, 7500), 0.0, Pass, ""),
            (two(2000, 8000), 20.0, Pass, ""),
            (two(2000, 8000), 10.0, Fail, text),
            // It slept.
            (
                vec![sample("a", 100, 2000, 0), sample("b", 300, 8000, 3000)],
                10.0,
                Inconclusive,
                content,
            ),
            // What it waited for was its quota.
            (
                vec![limited(sample("a", 100, 2000, 7000)), sample("b", 300, 8000, 3000)],
                10.0,
                Inconclusive,
                content,
            ),
            // So did one below.
            (
                [two(2000, 8000), vec![below(limited(sample("", 1, 0, 0)))]].concat(),
                10.0,
                Inconclusive,
                content,
            ),
            (
                vec![starved(sample("a", 800, 0, 0)), sample("b", 100, 10_000, 500)],
                10.0,
                Fail,
                nothing,
            ),
            (
                vec![sample("a", 100, 2000, 7000), unfair(sample("b", 300, 8000, 3000))],
                10.0,
                Inconclusive,
                concerns,
            ),
            // One without a weight has that of the kernel.
            (vec![plain("a", 2000, 7000), sample("b", 300, 8000, 3000)], 10.0, Fail, text),
            (vec![sample("a", 100, 0, 0), sample("b", 300, 0, 0)], 10.0, Inconclusive, content),
            // What a third one left is shared among the other two.
            ([two(2000, 6000), third()].concat(), 0.0, Pass, ""),
            ([two(1600, 6400), third()].concat(), 10.0, Fail, text),
        ] {
            let family: Vec<_> = samples.iter().filter(|one| !one.name.contains('/')).collect();
            is(&weights(&family, &samples, most), outcome, text);
        }
    }

    #[test]
    fn siblings_compete_on_the_same_cpus_at_the_same_time() {
        let on = |name: &str, cpu| {
            let mut sample = plain(name, 0, 0);
            sample.asked.cpuset = vec![cpu];
            sample
        };
        let samples = [
            sample("a", 200, 0, 0),
            plain("b", 0, 0),
            on("c", 1),
            CgroupSample { began_ns: 7, ..plain("e", 0, 0) },
            sample("a/x", 1, 0, 0),
            plain("d/x", 0, 0),
            plain("d/y", 0, 0),
        ];
        let families = families(&samples);
        let names: Vec<Vec<_>> =
            families.iter().map(|family| family.iter().map(|s| &*s.name).collect()).collect();
        assert_eq!(names, [["a", "b"]]);
    }

    #[test]
    fn a_cgroup_is_judged_by_what_was_asked_of_it() {
        let mut sample = window(cpu(0, 0, 0), cpu(9_000_000, 100, 90));
        let judge = |assert: Assert, sample: &CgroupSample| {
            assert.judge_cgroups(std::slice::from_ref(sample), &[])
        };
        let assert = Assert::DEFAULT.max_throttled_pct(50.0).max_quota_error_pct(5.0);
        assert_eq!(judge(assert, &sample).outcome, Inconclusive, "no quota was asked for");
        sample.asked.quota = Some(QUOTA);
        let verdict = judge(assert, &sample);
        assert_eq!(verdict.outcome, Fail);
        let texts: Vec<_> = verdict.details.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "max_throttled_pct: 90 % of its periods, at most 50 % of its periods, cgroup cg, \
             at 10.000 s",
                "max_quota_error_pct: 9 s of CPU time, at most the quota's 5.05 s and 5 %, cgroup cg, \
             at 10.000 s",
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
    fn a_quota_holds_over_all_windows_that_follow_each_other() {
        // Each could begin and end in the middle of a period, and have 100 ms.
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
        // Another quota, another cgroup of that name, a window in which nobody worked in it.
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
    fn a_bound_holds_in_each_window_in_which_it_can_be_measured() {
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
            // What is measured of one proves nothing of another.
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
        // Others prove nothing of one that has a weight and nobody to share with.
        let apart = CgroupSample { name: "c".to_owned(), ..a };
        let apart = CgroupSample { asked: CgroupAsked { cpuset: vec![7], ..apart.asked }, ..apart };
        let three = [two[0].clone(), two[1].clone(), apart];
        assert_eq!(weights(20.0).judge_cgroups(&three, &[]).outcome, Inconclusive);
    }
}
