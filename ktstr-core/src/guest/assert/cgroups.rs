//! What the checks measure of cgroups. Each function depends on kernel counters only.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use super::measure::{lower, unmeasured};
use crate::linux::cgroup::{CgroupStats, Pressure};
use crate::model::detail::{AssertDetail, DetailKind};
use crate::model::measurement::{Limit, Scope};
use crate::model::verdict::AssertResult;

/// The weight of a cgroup for which none was requested.
///
/// Source: Linux 6.12, admin-guide/cgroup-v2.rst, `cpu.weight`.
const DEFAULT_WEIGHT: u32 = 100;

/// What a scenario requested of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CgroupAsked {
    /// The limit of its CPU time.
    pub quota: Option<CpuQuota>,
    /// Its weight relative to its siblings, 1 to 10,000.
    pub weight: Option<u32>,
    /// The CPUs that its cpuset and those of its ancestors leave it; empty if none were requested.
    pub cpuset: Vec<u32>,
}

/// The CPU time that a cgroup may use in each period, over all CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuQuota {
    /// The CPU time.
    pub quota: Duration,
    /// The period.
    pub period: Duration,
}

/// What was requested of a cgroup, and what the kernel counted for it in a window of time without
/// changes.
#[derive(Debug, Clone, PartialEq)]
pub struct CgroupSample {
    /// Its name, relative to the manager's parent.
    pub name: String,
    /// When it was created, in nanoseconds since boot, which identifies it among cgroups of that name.
    pub made_ns: u64,
    /// What was requested.
    pub asked: CgroupAsked,
    /// When the window began, in nanoseconds since boot. All cgroups have the same windows.
    pub began_ns: u64,
    /// The length of the window.
    pub wall: Duration,
    /// The counters at its start.
    pub before: CgroupStats,
    /// The counters at its end.
    pub after: CgroupStats,
    /// How long its workers and those of its descendants were runnable without a CPU, in total.
    pub waited: Duration,
    /// Whether its share of the CPU depends on its weight alone: all of these workers are fair tasks
    /// that may use all of its CPUs.
    pub weighs: bool,
}

/// OOM kills in a cgroup, from its creation to its removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OomKills {
    /// The cgroup's name, relative to the manager's parent; `None` for the rest of the machine, outside
    /// of the judged cgroups.
    pub cgroup: Option<String>,
    /// Whether a kill is expected in it or in a descendant.
    pub expected: bool,
    /// The number of unexpected kills in it; with `expected`, of all kills in it and its descendants.
    /// `None` if the kernel does not count them, which is without the memory controller.
    pub killed: Option<u64>,
}

pub(super) type Part = fn(&CgroupStats) -> Option<&Pressure>;

pub(super) const CPU: Part = |stats| stats.cpu_pressure.as_ref();
pub(super) const MEMORY: Part = |stats| stats.memory_pressure.as_ref();
pub(super) const IO: Part = |stats| stats.io_pressure.as_ref();

/// Compares the number of OOM kills with what is expected, if that `is_judged`.
///
/// Without the memory controller a cgroup has no memory limit of its own, so an unknown number is
/// inconclusive only where a kill is expected.
pub(super) fn oom_kills(kills: &OomKills, is_judged: bool) -> AssertResult {
    let kind = DetailKind::OomKill;
    let (detail, limit) = match (kills.killed, kills.expected) {
        (None, false) => return AssertResult::pass(),
        (None, true) => (
            unmeasured(kind, "the kernel does not count OOM kills without the memory controller"),
            Limit::AtLeast(1.0),
        ),
        (Some(killed), expected) => {
            let limit = if expected { Limit::AtLeast(1.0) } else { Limit::AtMost(0.0) };
            (lower(kind, "oom_kills", killed as f64, "kills", 1), limit)
        }
    };
    let detail = match &kills.cgroup {
        Some(name) => detail.scope(Scope::of_cgroup(name)),
        None => detail.because("outside of the cgroups of the scenario"),
    };
    AssertResult::judge(detail, is_judged.then_some(limit))
}

/// Measures the part of its runnable periods in which a cgroup was throttled.
pub(super) fn throttled(sample: &CgroupSample) -> AssertDetail {
    let kind = DetailKind::Throttled;
    match periods(sample) {
        None => went_back(kind),
        Some((0, _)) => unmeasured(kind, NO_PERIOD),
        Some((periods, throttled)) => {
            let percent = 100.0 * throttled as f64 / periods as f64;
            lower(kind, "throttled", percent, "% of periods", periods)
        }
    }
}

const NO_PERIOD: &str = "the cgroup was runnable in no period";

/// Returns the periods in which the cgroup was runnable, and those in which it was throttled; `None` if
/// the counters went back.
fn periods(sample: &CgroupSample) -> Option<(u64, u64)> {
    let (before, after) = (&sample.before.cpu, &sample.after.cpu);
    let throttled = after.nr_throttled.checked_sub(before.nr_throttled)?;
    Some((after.nr_periods.checked_sub(before.nr_periods)?, throttled))
}

/// Measures by how many percent the CPU time of a cgroup is beyond what its quota allows, or below what
/// the quota guaranteed it before throttling.
pub(super) fn quota(sample: &CgroupSample, quota: CpuQuota) -> AssertDetail {
    let kind = DetailKind::Quota;
    let CgroupSample { before, after, wall, .. } = sample;
    let used = after.cpu.usage_usec.checked_sub(before.cpu.usage_usec);
    let (Some(used), Some((periods, throttled))) = (used, periods(sample)) else {
        return went_back(kind);
    };
    if quota.period.is_zero() || *wall < quota.period {
        return unmeasured(kind, "the window is shorter than a period");
    }
    let used = used as f64 / 1e6;
    let per_period = quota.quota.as_secs_f64();
    // One more period at most, for its parts at both ends of the window.
    let most_used = per_period * (wall.as_secs_f64() / quota.period.as_secs_f64() + 1.0);
    // The last throttled period may have begun before the window.
    let least_used = per_period * throttled.saturating_sub(1) as f64;
    let error = |part: f64| lower(kind, "quota_error", 100.0 * part, "%", periods);
    if used > most_used {
        let text = format!("used {used:.3} s of CPU time, the quota allows {most_used:.3} s");
        error(used / most_used - 1.0).because(&text)
    } else if used < least_used {
        error(1.0 - used / least_used).because(&format!(
            "used {used:.3} s of CPU time, but was throttled in {throttled} of {periods} periods, in \
             which the quota allows {least_used:.3} s"
        ))
    } else if periods == 0 {
        unmeasured(kind, NO_PERIOD)
    } else {
        error(0.0)
    }
}

/// Measures the part of the window in which at least one task waited: the kernel's `some`.
pub(super) fn pressure(sample: &CgroupSample, kind: DetailKind, part: Part) -> AssertDetail {
    let total = |stats| part(stats).map(|pressure| pressure.some.total_usec);
    let name = match kind {
        DetailKind::CpuPressure => "cpu_pressure",
        DetailKind::MemoryPressure => "memory_pressure",
        _ => "io_pressure",
    };
    match (total(&sample.before), total(&sample.after)) {
        (Some(before), Some(after)) if before > after => went_back(kind),
        (Some(before), Some(after)) => {
            let percent = 100.0 * (after - before) as f64 / 1e6 / sample.wall.as_secs_f64();
            lower(kind, name, percent, "% of the time", 1)
        }
        _ => unmeasured(kind, "this kernel does not count pressure"),
    }
}

/// Joins consecutive windows of a cgroup with the same quota, which also holds between them. Judged
/// separately, each window could begin and end in the middle of a period.
pub(super) fn joined(samples: &[CgroupSample]) -> Vec<CgroupSample> {
    let windows: BTreeSet<_> = samples.iter().map(|sample| sample.began_ns).collect();
    let follows = |one: &CgroupSample, next: &CgroupSample| {
        let mut after = windows.range((Bound::Excluded(one.began_ns), Bound::Unbounded));
        after.next() == Some(&next.began_ns)
            && (&one.name, one.made_ns, one.asked.quota)
                == (&next.name, next.made_ns, next.asked.quota)
    };
    // Per run: its last window so far, and the joined one.
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

/// Groups siblings that compete on the same CPUs at the same time, and keeps the families in which at
/// least one has a requested weight.
pub(super) fn families(samples: &[CgroupSample]) -> Vec<Vec<&CgroupSample>> {
    let mut families: BTreeMap<_, Vec<&CgroupSample>> = BTreeMap::new();
    for sample in samples {
        let parent = sample.name.rsplit_once('/').map_or("", |(parent, _)| parent);
        families.entry((sample.began_ns, parent, &sample.asked.cpuset)).or_default().push(sample);
    }
    let is_weighted = |family: &Vec<&CgroupSample>| {
        family.len() > 1 && family.iter().any(|sample| sample.asked.weight.is_some())
    };
    families.into_values().filter(is_weighted).collect()
}

/// A cgroup with what it used and what it would have used without waiting, in seconds.
struct Contender<'a> {
    name: &'a str,
    weight: f64,
    used: f64,
    wanted: f64,
}

/// Measures by how many percent siblings lack the CPU time to which their weights entitle them.
///
/// CPU time is divided as the kernel intends to: a cgroup that wants less than its share gets what it
/// wants, and the others divide the rest. Only those that want more are measured.
pub(super) fn weights(family: &[&CgroupSample], samples: &[CgroupSample]) -> Vec<AssertDetail> {
    let kind = DetailKind::Weight;
    if let Some(other) = family.iter().find(|sample| !sample.weighs) {
        let why = "has workers that are pinned or not fair tasks, which weights do not control";
        return vec![unmeasured(kind, format!("{} {why}", other.name))];
    }
    // Waiting for a quota is not competition with siblings.
    let is_limited = |sample: &CgroupSample| {
        let is_within = |other: &&CgroupSample| {
            other.began_ns == sample.began_ns && is_in(&other.name, &sample.name)
        };
        let is_throttled = |other: &CgroupSample| {
            let (before, after) = (&other.before.cpu, &other.after.cpu);
            other.asked.quota.is_some() && after.nr_throttled > before.nr_throttled
        };
        samples.iter().filter(is_within).any(is_throttled)
    };
    let contenders = family.iter().map(|sample| contender(sample, is_limited(sample)));
    let Some(mut contenders) = contenders.collect::<Option<Vec<_>>>() else {
        return vec![went_back(kind)];
    };
    // Each iteration removes the satisfied ones, and what they left raises the share of the others.
    let per_weight = loop {
        let weights: f64 = contenders.iter().map(|contender| contender.weight).sum();
        let used: f64 = contenders.iter().map(|contender| contender.used).sum();
        let per_weight = used / weights;
        let count = contenders.len();
        contenders.retain(|contender| contender.wanted > per_weight * contender.weight);
        if contenders.len() < 2 {
            let why = "fewer than two of the siblings wanted more CPU time than their share";
            return vec![unmeasured(kind, why)];
        }
        if contenders.len() == count {
            break per_weight;
        }
    };
    // Nothing was divided, so no share of it is too small.
    if per_weight == 0.0 {
        return vec![unmeasured(kind, "none of the siblings that wanted CPU time got any")];
    }
    let error = |contender: &Contender<'_>| {
        let share = 100.0 * contender.used / (per_weight * contender.weight);
        let detail = lower(kind, "weight_error", (100.0 - share).max(0.0), "%", 1);
        let text = format!("used {share:.1} % of the CPU time to which its weight entitles it");
        detail.because(&text).scope(Scope::of_cgroup(contender.name))
    };
    contenders.iter().map(error).collect()
}

/// Returns what a cgroup used and wanted; `None` if the counters went back.
///
/// The waiting of a worker is counted when it ends. Pressure also counts unfinished waiting, but at most
/// the length of the window, however many tasks wait. So the larger one is used.
fn contender(sample: &CgroupSample, is_limited: bool) -> Option<Contender<'_>> {
    let (before, after) = (&sample.before.cpu, &sample.after.cpu);
    let used = after.usage_usec.checked_sub(before.usage_usec)? as f64 / 1e6;
    let stalled = |stats| CPU(stats).map_or(0, |pressure| pressure.some.total_usec);
    let stalled = stalled(&sample.after).saturating_sub(stalled(&sample.before)) as f64 / 1e6;
    let waited = if is_limited { 0.0 } else { stalled.max(sample.waited.as_secs_f64()) };
    let weight = f64::from(sample.asked.weight.unwrap_or(DEFAULT_WEIGHT));
    Some(Contender { name: &sample.name, weight, used, wanted: used + waited })
}

/// Returns whether a cgroup is `other` or a descendant of it.
pub(crate) fn is_in(cgroup: &str, other: &str) -> bool {
    cgroup.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn went_back(kind: DetailKind) -> AssertDetail {
    unmeasured(kind, "the kernel's counters went back: the cgroup was replaced by another one")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::linux::cgroup::{CpuStat, Stall};
    use crate::model::detail::Outcome::{self, Fail, Inconclusive, Pass};

    const WALL: Duration = Duration::from_secs(10);
    pub(in crate::guest::assert) const QUOTA: CpuQuota =
        CpuQuota { quota: Duration::from_millis(50), period: Duration::from_millis(100) };

    #[track_caller]
    fn is(details: Vec<AssertDetail>, most: f64, outcome: Outcome, text: &str) {
        let limit = Some(Limit::AtMost(most));
        let judged = details.into_iter().map(|detail| AssertResult::judge(detail, limit));
        let verdict = AssertResult::all_of(judged);
        let texts: Vec<_> = verdict.details.iter().map(ToString::to_string).collect();
        assert_eq!((verdict.outcome, &*texts.concat()), (outcome, text));
    }

    /// Returns a window of ten seconds.
    pub(in crate::guest::assert) fn window(
        before: CgroupStats,
        after: CgroupStats,
    ) -> CgroupSample {
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

    pub(in crate::guest::assert) fn cpu(
        usage_usec: u64,
        nr_periods: u64,
        nr_throttled: u64,
    ) -> CgroupStats {
        let cpu = CpuStat { usage_usec, nr_periods, nr_throttled, ..CpuStat::default() };
        CgroupStats { cpu, ..CgroupStats::default() }
    }

    #[test]
    fn oom_kills_compares_with_what_is_expected() {
        let killed = "no_oom_kill: 2 kills (limit 0 kills), cgroup cg";
        let missing = "no_oom_kill: 0 kills (minimum 1 kills), cgroup cg";
        let uncounted = "no_oom_kill: the kernel does not count OOM kills without the memory \
                         controller, cgroup cg";
        for (expected, killed, outcome, text) in [
            (false, Some(0), Pass, ""),
            (false, Some(2), Fail, killed),
            (true, Some(1), Pass, ""),
            (true, Some(0), Fail, missing),
            (true, None, Inconclusive, uncounted),
            (false, None, Pass, ""),
        ] {
            let kills = OomKills { cgroup: Some("cg".to_owned()), expected, killed };
            let verdict = oom_kills(&kills, true);
            let texts: Vec<_> = verdict.details.iter().map(ToString::to_string).collect();
            assert_eq!((verdict.outcome, &*texts.concat()), (outcome, text));
            assert!(oom_kills(&kills, false).is_pass());
        }
        let elsewhere = OomKills { cgroup: None, expected: false, killed: Some(1) };
        let text = "no_oom_kill: 1 kills (limit 0 kills): outside of the cgroups of the \
                    scenario";
        assert_eq!(oom_kills(&elsewhere, true).details[0].to_string(), text);
    }

    #[test]
    fn throttled_is_a_part_of_the_periods() {
        let text = "max_throttled_pct: 60 % of periods (limit 59 % of periods)";
        let none = "max_throttled_pct: the cgroup was runnable in no period";
        for (before, after, most, outcome, text) in [
            (cpu(0, 100, 50), cpu(0, 200, 110), 60.0, Pass, ""),
            (cpu(0, 100, 50), cpu(0, 200, 110), 59.0, Fail, text),
            (cpu(0, 100, 50), cpu(0, 100, 50), 100.0, Inconclusive, none),
        ] {
            is(vec![throttled(&window(before, after))], most, outcome, text);
        }
    }

    #[test]
    fn quota_is_neither_exceeded_nor_withheld() {
        let much = "max_quota_error_pct: 0.198 % (limit 0 %): used 5.060 s of CPU time, the quota \
                    allows 5.050 s";
        let early = "max_quota_error_pct: 18.37 % (limit 10 %): used 2.000 s of CPU time, but was \
                     throttled in 50 of 100 periods, in which the quota allows 2.450 s";
        let idle = "max_quota_error_pct: the cgroup was runnable in no period";
        let short = "max_quota_error_pct: the window is shorter than a period";
        for (after, wall, most, outcome, text) in [
            (cpu(5_050_000, 100, 100), WALL, 0.0, Pass, ""),
            (cpu(5_060_000, 100, 100), WALL, 0.0, Fail, much),
            (cpu(5_060_000, 100, 100), WALL, 1.0, Pass, ""),
            (cpu(2_000_000, 100, 50), WALL, 10.0, Fail, early),
            (cpu(2_000_000, 100, 50), WALL, 20.0, Pass, ""),
            (cpu(2_000_000, 100, 0), WALL, 0.0, Pass, ""),
            (cpu(0, 0, 0), WALL, 0.0, Inconclusive, idle),
            // The kernel enforces no quota, and counts no periods.
            (cpu(5_060_000, 0, 0), WALL, 0.0, Fail, much),
            (cpu(9, 1, 0), Duration::from_millis(99), 0.0, Inconclusive, short),
            (cpu(9, 1, 0), Duration::from_millis(100), 0.0, Pass, ""),
        ] {
            let sample = CgroupSample { wall, ..window(cpu(0, 0, 0), after) };
            is(vec![quota(&sample, QUOTA)], most, outcome, text);
        }
        let second = Duration::from_secs(1);
        let half = CpuQuota { quota: second / 2, period: second };
        let sample = CgroupSample { wall: second, ..window(cpu(0, 0, 0), cpu(1_000_000, 1, 0)) };
        is(vec![quota(&sample, half)], 0.0, Pass, "");
        let back = quota(&window(cpu(2, 0, 0), cpu(1, 9, 0)), QUOTA);
        assert_eq!((back.measured, back.time_based), (None, true));
    }

    #[test]
    fn pressure_is_a_part_of_the_window() {
        let stall = |total_usec| Pressure {
            some: Stall { total_usec, ..Stall::default() },
            ..Pressure::default()
        };
        let stats = |io_pressure| CgroupStats { io_pressure, ..CgroupStats::default() };
        let text = "max_io_pressure_pct: 10 % of the time (limit 9.5 % of the time)";
        let none = "max_io_pressure_pct: this kernel does not count pressure";
        let back = "max_io_pressure_pct: the kernel's counters went back: the cgroup was \
                    replaced by another one";
        for (before, after, most, outcome, text) in [
            (Some(stall(5)), Some(stall(1_000_005)), 10.0, Pass, ""),
            (Some(stall(5)), Some(stall(1_000_005)), 9.5, Fail, text),
            (None, None, 9.5, Inconclusive, none),
            (Some(stall(5)), Some(stall(4)), 9.5, Inconclusive, back),
        ] {
            let sample = window(stats(before), stats(after));
            is(vec![pressure(&sample, DetailKind::IoPressure, IO)], most, outcome, text);
        }
    }

    pub(in crate::guest::assert) fn sample(
        name: &str,
        weight: u32,
        used_ms: u64,
        waited_ms: u64,
    ) -> CgroupSample {
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
    fn weights_measure_siblings_that_want_more() {
        let text = "max_weight_error_pct: 20 % (limit 10 %), cgroup a: used 80.0 % of the CPU time to \
                    which its weight entitles it";
        let content = "max_weight_error_pct: fewer than two of the siblings wanted more CPU time \
                       than their share";
        let two = |a, b| vec![sample("a", 100, a, 7000), sample("b", 300, b, 3000)];
        let limited = |mut sample: CgroupSample| {
            sample.asked.quota = Some(QUOTA);
            sample.after.cpu.nr_throttled += 1;
            sample
        };
        let below = |sample: CgroupSample| CgroupSample { name: "a/x".to_owned(), ..sample };
        let unfair = |sample: CgroupSample| CgroupSample { weighs: false, ..sample };
        // Its worker waited during the whole window: no waiting that was over has been counted.
        let starved = |mut sample: CgroupSample| {
            let some = Stall { total_usec: 10_000_000, ..Stall::default() };
            let pressure = Pressure { some, ..Pressure::default() };
            sample.before.cpu_pressure = Some(Pressure::default());
            sample.after.cpu_pressure = Some(pressure);
            sample
        };
        let nothing = "max_weight_error_pct: 100 % (limit 10 %), cgroup a: used 0.0 % of the CPU time \
                       to which its weight entitles it";
        let concerns = "max_weight_error_pct: b has workers that are pinned or not fair tasks, which \
                        weights do not control";
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
            // It waited for its quota.
            (
                vec![limited(sample("a", 100, 2000, 7000)), sample("b", 300, 8000, 3000)],
                10.0,
                Inconclusive,
                content,
            ),
            // A descendant waited for its quota.
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
            // Another load took all CPU time.
            (
                vec![starved(sample("a", 800, 0, 0)), starved(sample("b", 100, 0, 0))],
                10.0,
                Inconclusive,
                "max_weight_error_pct: none of the siblings that wanted CPU time got any",
            ),
            (
                vec![sample("a", 100, 2000, 7000), unfair(sample("b", 300, 8000, 3000))],
                10.0,
                Inconclusive,
                concerns,
            ),
            // Without a requested weight, the kernel's default applies.
            (vec![plain("a", 2000, 7000), sample("b", 300, 8000, 3000)], 10.0, Fail, text),
            (vec![sample("a", 100, 0, 0), sample("b", 300, 0, 0)], 10.0, Inconclusive, content),
            // The other two divide what a third one left.
            ([two(2000, 6000), third()].concat(), 0.0, Pass, ""),
            ([two(1600, 6400), third()].concat(), 10.0, Fail, text),
        ] {
            let family: Vec<_> = samples.iter().filter(|one| !one.name.contains('/')).collect();
            is(weights(&family, &samples), most, outcome, text);
        }
    }

    #[test]
    fn families_compete_on_the_same_cpus_at_the_same_time() {
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
}
