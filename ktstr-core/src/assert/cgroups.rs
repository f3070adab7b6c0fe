//! The checks of cgroups. Each is a function of what the kernel counted and a bound.

use std::collections::BTreeMap;
use std::time::Duration;

use super::checks::{Limit, hold, shown, unmeasured};
use super::{AssertDetail, AssertResult, DetailKind};
use crate::cgroup::{CgroupStats, Pressure};
use crate::workload::WorkerReport;

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
    /// A process of it is to be killed for want of memory.
    pub oom_kill_expected: bool,
}

/// The CPU time that a cgroup may have in each period, over all CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuQuota {
    /// The CPU time.
    pub quota: Duration,
    /// The period.
    pub period: Duration,
}

/// What was asked of a cgroup, and what the kernel counted for it in a window.
#[derive(Debug, Clone, PartialEq)]
pub struct CgroupSample {
    /// Its name, as the manager knows it.
    pub name: String,
    /// What was asked.
    pub asked: CgroupAsked,
    /// When the window began, in nanoseconds since boot.
    pub began_ns: u64,
    /// The counters at the window's start.
    pub before: CgroupStats,
    /// The counters at its end.
    pub after: CgroupStats,
    /// How long it was.
    pub wall: Duration,
}

type Part = fn(&CgroupStats) -> Option<&Pressure>;

pub(super) const CPU: Part = |stats| stats.cpu_pressure.as_ref();
pub(super) const MEMORY: Part = |stats| stats.memory_pressure.as_ref();
pub(super) const IO: Part = |stats| stats.io_pressure.as_ref();

/// Without the memory controller a cgroup has no limit of its own, so nothing is known only of what
/// was expected.
pub(super) fn oom_kill(expected: bool, before: &CgroupStats, after: &CgroupStats) -> AssertResult {
    let kind = DetailKind::OomKill;
    let kills = |stats: &CgroupStats| stats.memory.map(|memory| memory.events.oom_kill);
    let Some(after) = kills(after) else {
        return match expected {
            true => unmeasured(kind, "the kernel counts no OOM kill without the memory controller"),
            false => AssertResult::pass(),
        };
    };
    match (after.checked_sub(kills(before).unwrap_or(0)), expected) {
        (None, _) => went_back(kind),
        (Some(0), false) | (Some(1..), true) => AssertResult::pass(),
        (Some(kills), false) => {
            let killed = format!("{kills} killed for want of memory");
            AssertResult::fail(AssertDetail::measured(kind, killed, "none"))
        }
        (Some(0), true) => {
            let none = "none killed for want of memory";
            AssertResult::fail(AssertDetail::measured(kind, none, "at least one was expected"))
        }
    }
}

pub(super) fn throttled(before: &CgroupStats, after: &CgroupStats, most: f64) -> AssertResult {
    let kind = DetailKind::Throttled;
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
    .map_details(AssertDetail::time_based)
}

pub(super) fn quota(
    quota: CpuQuota,
    before: &CgroupStats,
    after: &CgroupStats,
    wall: Duration,
    most: f64,
) -> AssertResult {
    let kind = DetailKind::Quota;
    let used = after.cpu.usage_usec.checked_sub(before.cpu.usage_usec);
    let periods = after.cpu.nr_periods.checked_sub(before.cpu.nr_periods);
    let throttled = after.cpu.nr_throttled.checked_sub(before.cpu.nr_throttled);
    let (Some(used), Some(periods), Some(throttled)) = (used, periods, throttled) else {
        return went_back(kind);
    };
    if periods == 0 || quota.period.is_zero() || wall < quota.period {
        return unmeasured(kind, "it was runnable in no whole period");
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
        failed("at most the quota's", most_used).map_details(AssertDetail::time_based)
    } else if used < least_used * (1.0 - most / 100.0) {
        let told = format!("throttled in {throttled} of {periods} periods");
        failed("at least the used-up quotas'", least_used)
            // The timer that refills may be late by periods, which all count as throttled.
            .map_details(|detail| detail.because(&told).time_based())
    } else {
        AssertResult::pass()
    }
}

/// `some`: the time in which at least one task waited.
pub(super) fn pressure(
    kind: DetailKind,
    before: Option<&Pressure>,
    after: Option<&Pressure>,
    wall: Duration,
    most: f64,
) -> AssertResult {
    let total = |pressure: &Pressure| pressure.some.total_usec;
    match (before.map(total), after.map(total)) {
        (Some(before), Some(after)) if before > after => went_back(kind),
        (Some(_), Some(_)) if wall.is_zero() => unmeasured(kind, "no time passed"),
        (Some(before), Some(after)) => {
            let percent = 100.0 * (after - before) as f64 / 1e6 / wall.as_secs_f64();
            hold(kind, percent, Limit::Most(most), " % of the time")
        }
        _ => unmeasured(kind, "this kernel counts no pressure"),
    }
    .map_details(AssertDetail::time_based)
}

/// Windows that begin so close to each other, and end so, are one.
const SAME_WINDOW: Duration = Duration::from_millis(100);

/// Siblings that compete on the same CPUs at the same time, of which at least one was given a weight.
pub(super) fn families(samples: &[CgroupSample]) -> Vec<Vec<&CgroupSample>> {
    let mut families: BTreeMap<_, Vec<Vec<&CgroupSample>>> = BTreeMap::new();
    for sample in samples {
        let above = sample.name.rsplit_once('/').map_or("", |(above, _)| above);
        let family: &mut Vec<_> = families.entry((above, &sample.asked.cpuset)).or_default();
        match family.iter_mut().find(|window| is_same_window(window[0], sample)) {
            Some(window) => window.push(sample),
            None => family.push(vec![sample]),
        }
    }
    let is_weighted = |family: &Vec<&CgroupSample>| {
        family.len() > 1 && family.iter().any(|sample| sample.asked.weight.is_some())
    };
    families.into_values().flatten().filter(is_weighted).collect()
}

fn is_same_window(one: &CgroupSample, other: &CgroupSample) -> bool {
    let began = Duration::from_nanos(one.began_ns.abs_diff(other.began_ns));
    began <= SAME_WINDOW && one.wall.abs_diff(other.wall) <= SAME_WINDOW
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
    reports: &[WorkerReport],
    most: f64,
) -> AssertResult {
    let kind = DetailKind::Weight;
    let own =
        |sample: &CgroupSample| reports.iter().filter(|worker| is_below(sample, worker)).collect();
    let owns: Vec<Vec<&WorkerReport>> = family.iter().map(|sample| own(sample)).collect();
    let longer = |(sample, own): (&&CgroupSample, &Vec<&WorkerReport>)| {
        own.iter().any(|worker| worker.wall > sample.wall + SAME_WINDOW)
    };
    if family.iter().zip(&owns).any(longer) {
        let why = "workers waited for longer than their cgroup was counted";
        return unmeasured(kind, why).map_details(AssertDetail::time_based);
    }
    let contenders: Option<Vec<_>> =
        family.iter().zip(&owns).map(|(sample, own)| contender(sample, own)).collect();
    let Some(mut contenders) = contenders else { return went_back(kind) };
    let part = loop {
        let weights: f64 = contenders.iter().map(|contender| contender.weight).sum();
        let used: f64 = contenders.iter().map(|contender| contender.used).sum();
        let part = used / weights;
        let count = contenders.len();
        contenders.retain(|contender| contender.wanted > part * contender.weight);
        if contenders.len() < 2 {
            let why = "fewer than two of the siblings wanted more CPU time than was theirs";
            return unmeasured(kind, why).map_details(AssertDetail::time_based);
        }
        if contenders.len() == count {
            break part;
        }
    };
    AssertResult::all_of(contenders.iter().map(|contender| {
        let share = 100.0 * contender.used / (part * contender.weight);
        let unit = " % of what its weight entitles it to";
        hold(kind, share, Limit::Least(100.0 - most), unit)
            .map_details(|detail| detail.cgroup(contender.name).time_based())
    }))
}

fn is_below(sample: &CgroupSample, worker: &WorkerReport) -> bool {
    let below = worker.cgroup.strip_prefix(&*sample.name);
    below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

/// `None` if the counters went back.
fn contender<'a>(sample: &'a CgroupSample, own: &[&WorkerReport]) -> Option<Contender<'a>> {
    let (before, after) = (&sample.before.cpu, &sample.after.cpu);
    let used = after.usage_usec.checked_sub(before.usage_usec)? as f64 / 1e6;
    // Waiting for the next quota is counted as waiting for a CPU, and nobody else has that.
    let waited: f64 = match sample.asked.quota {
        Some(_) => 0.0,
        None => own.iter().map(|worker| worker.run_delay.as_secs_f64()).sum(),
    };
    let weight = f64::from(sample.asked.weight.unwrap_or(DEFAULT_WEIGHT));
    Some(Contender { name: &sample.name, weight, used, wanted: used + waited })
}

fn went_back(kind: DetailKind) -> AssertResult {
    unmeasured(kind, "the kernel's counters went back: it is not the same cgroup any more")
}

#[cfg(test)]
mod tests {
    use super::super::Assert;
    use super::super::Outcome::{self, Fail, Inconclusive, Pass};
    use super::super::workers::tests::spin;
    use super::*;
    use crate::cgroup::{CpuStat, MemoryEvents, MemoryStats, Stall};

    const WALL: Duration = Duration::from_secs(10);
    const QUOTA: CpuQuota =
        CpuQuota { quota: Duration::from_millis(50), period: Duration::from_millis(100) };

    #[track_caller]
    fn is(verdict: &AssertResult, outcome: Outcome, time_based: bool, text: &str) {
        let texts: Vec<_> = verdict.details.iter().map(ToString::to_string).collect();
        assert_eq!((verdict.outcome, &*texts.concat()), (outcome, text));
        assert!(verdict.details.iter().all(|detail| detail.time_based == time_based));
    }

    fn cpu(usage_usec: u64, nr_periods: u64, nr_throttled: u64) -> CgroupStats {
        let cpu = CpuStat { usage_usec, nr_periods, nr_throttled, ..CpuStat::default() };
        CgroupStats { cpu, ..CgroupStats::default() }
    }

    fn kills(oom_kill: u64) -> CgroupStats {
        let events = MemoryEvents { oom_kill, ..MemoryEvents::default() };
        let memory = Some(MemoryStats { events, ..MemoryStats::default() });
        CgroupStats { memory, ..CgroupStats::default() }
    }

    #[test]
    fn oom_kills_are_those_that_were_expected() {
        let none = CgroupStats::default();
        let killed = "no_oom_kill: 2 killed for want of memory, none";
        let missing = "no_oom_kill: none killed for want of memory, at least one was expected";
        let back =
            "no_oom_kill: the kernel's counters went back: it is not the same cgroup any more";
        let uncounted = "no_oom_kill: the kernel counts no OOM kill without the memory controller";
        for (expected, before, after, outcome, text) in [
            (false, kills(3), kills(3), Pass, ""),
            (false, kills(3), kills(5), Fail, killed),
            (true, kills(3), kills(4), Pass, ""),
            (true, kills(3), kills(3), Fail, missing),
            (false, kills(3), kills(2), Inconclusive, back),
            (true, none.clone(), none.clone(), Inconclusive, uncounted),
            (false, none.clone(), none.clone(), Pass, ""),
            (true, none.clone(), kills(1), Pass, ""),
        ] {
            is(&oom_kill(expected, &before, &after), outcome, false, text);
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
            is(&throttled(&before, &after, most), outcome, true, text);
        }
    }

    #[test]
    fn a_quota_is_neither_exceeded_nor_withheld() {
        let much = "max_quota_error_pct: 5.06 s of CPU time, at most the quota's 5.05 s and 0 %";
        let early = "max_quota_error_pct: 2 s of CPU time, at least the used-up quotas' 2.45 s and \
                     10 %: throttled in 50 of 100 periods";
        let none = "max_quota_error_pct: it was runnable in no whole period";
        for (after, wall, most, outcome, time_based, text) in [
            (cpu(5_050_000, 100, 100), WALL, 0.0, Pass, true, ""),
            (cpu(5_060_000, 100, 100), WALL, 0.0, Fail, true, much),
            (cpu(5_060_000, 100, 100), WALL, 1.0, Pass, true, ""),
            (cpu(2_000_000, 100, 50), WALL, 10.0, Fail, true, early),
            (cpu(2_000_000, 100, 50), WALL, 20.0, Pass, false, ""),
            (cpu(2_000_000, 100, 0), WALL, 0.0, Pass, false, ""),
            (cpu(0, 0, 0), WALL, 0.0, Inconclusive, false, none),
            (cpu(9, 1, 0), Duration::from_millis(99), 0.0, Inconclusive, false, none),
            (cpu(9, 1, 0), Duration::from_millis(100), 0.0, Pass, false, ""),
        ] {
            is(&quota(QUOTA, &cpu(0, 0, 0), &after, wall, most), outcome, time_based, text);
        }
        let second = Duration::from_secs(1);
        let half = CpuQuota { quota: second / 2, period: second };
        let exact = quota(half, &cpu(0, 0, 0), &cpu(1_000_000, 1, 0), second, 0.0);
        assert_eq!(exact.outcome, Pass);
        let back = quota(QUOTA, &cpu(2, 0, 0), &cpu(1, 9, 0), WALL, 5.0);
        assert_eq!(back.outcome, Inconclusive);
        let nan = quota(QUOTA, &cpu(0, 0, 0), &cpu(1, 9, 0), WALL, f64::NAN);
        assert_eq!(nan.outcome, Inconclusive);
    }

    #[test]
    fn pressure_is_a_part_of_the_window() {
        let stall = |total_usec| Pressure {
            some: Stall { total_usec, ..Stall::default() },
            ..Pressure::default()
        };
        let text = "max_io_pressure_pct: 10 % of the time, at most 9.5 % of the time";
        let none = "max_io_pressure_pct: this kernel counts no pressure";
        let back = "max_io_pressure_pct: the kernel's counters went back: it is not the same \
                    cgroup any more";
        for (before, after, wall, most, outcome, text) in [
            (Some(stall(5)), Some(stall(1_000_005)), WALL, 10.0, Pass, ""),
            (Some(stall(5)), Some(stall(1_000_005)), WALL, 9.5, Fail, text),
            (None, None, WALL, 9.5, Inconclusive, none),
            (Some(stall(5)), Some(stall(4)), WALL, 9.5, Inconclusive, back),
            (
                Some(stall(5)),
                Some(stall(5)),
                Duration::ZERO,
                9.5,
                Inconclusive,
                "max_io_pressure_pct: no time passed",
            ),
        ] {
            let kind = DetailKind::IoPressure;
            let verdict = pressure(kind, before.as_ref(), after.as_ref(), wall, most);
            is(&verdict, outcome, true, text);
        }
    }

    fn sample(name: &str, weight: u32, used_ms: u64) -> CgroupSample {
        let asked = CgroupAsked { weight: Some(weight), ..CgroupAsked::default() };
        let (before, after) = (cpu(77_000, 0, 0), cpu(77_000 + 1000 * used_ms, 0, 0));
        CgroupSample { name: name.to_owned(), asked, began_ns: 0, before, after, wall: WALL }
    }

    fn plain(name: &str, used_ms: u64) -> CgroupSample {
        CgroupSample { asked: CgroupAsked::default(), ..sample(name, 1, used_ms) }
    }

    fn waited(cgroup: &str, ms: u64) -> WorkerReport {
        WorkerReport { cgroup: cgroup.to_owned(), run_delay: Duration::from_millis(ms), ..spin() }
    }

    #[test]
    fn weights_are_honoured_among_those_that_want_more() {
        let text = "max_weight_error_pct: 80 % of what its weight entitles it to, \
                    at least 90 % of what its weight entitles it to, cgroup a";
        let content = "max_weight_error_pct: fewer than two of the siblings wanted more CPU time \
                       than was theirs";
        let two = |a, b| vec![sample("a", 100, a), sample("b", 300, b)];
        let both = || vec![waited("a", 7000), waited("b/c", 3000)];
        for (samples, reports, most, outcome, text) in [
            (two(2500, 7500), both(), 0.0, Pass, ""),
            (two(2000, 8000), both(), 20.0, Pass, ""),
            (two(2000, 8000), both(), 10.0, Fail, text),
            // It slept, unlike another one whose name begins with its name.
            (
                two(2000, 8000),
                vec![waited("ab", 9000), waited("b", 3000)],
                10.0,
                Inconclusive,
                content,
            ),
            // One without a weight has that of the kernel.
            (vec![plain("a", 2000), sample("b", 300, 8000)], both(), 10.0, Fail, text),
            (two(0, 0), vec![], 10.0, Inconclusive, content),
            // What a third one left is shared among the other two.
            ([two(2000, 6000), vec![sample("c", 400, 2000)]].concat(), both(), 0.0, Pass, ""),
            ([two(1600, 6400), vec![sample("c", 400, 2000)]].concat(), both(), 10.0, Fail, text),
        ] {
            let family: Vec<_> = samples.iter().collect();
            is(&weights(&family, &reports, most), outcome, true, text);
        }
    }

    #[test]
    fn siblings_compete_on_the_same_cpus() {
        let on = |name: &str, cpu| {
            let mut sample = sample(name, 100, 0);
            sample.asked.cpuset = vec![cpu];
            sample
        };
        let samples = [
            sample("a", 200, 0),
            plain("b", 0),
            on("c", 1),
            sample("a/x", 1, 0),
            plain("d/x", 0),
            plain("d/y", 0),
        ];
        let families = families(&samples);
        let names: Vec<Vec<_>> =
            families.iter().map(|family| family.iter().map(|s| &*s.name).collect()).collect();
        assert_eq!(names, [["a", "b"]]);
    }

    #[test]
    fn a_cgroup_is_judged_by_what_was_asked_of_it() {
        let assert = Assert::DEFAULT.max_throttled_pct(50.0).max_quota_error_pct(5.0);
        let (before, mut after) = (cpu(0, 0, 0), cpu(9_000_000, 100, 90));
        let judge = |assert: Assert, asked: &CgroupAsked, after: &CgroupStats| {
            assert.judge_cgroup("cg", asked, &before, after, WALL)
        };
        let none = CgroupAsked::default();
        assert!(judge(assert, &none, &after).is_pass());
        let limited = CgroupAsked { quota: Some(QUOTA), ..none.clone() };
        let verdict = judge(assert, &limited, &after);
        let kinds: Vec<_> = verdict.details.iter().map(|detail| detail.kind).collect();
        assert_eq!(kinds, [DetailKind::Throttled, DetailKind::Quota]);
        assert!(verdict.details.iter().all(|detail| detail.cgroup.as_deref() == Some("cg")));
        after.memory = kills(1).memory;
        assert_eq!(judge(Assert::DEFAULT, &none, &after).outcome, Fail);
        assert!(judge(Assert::DEFAULT.no_oom_kill(false), &none, &after).is_pass());
        let pressed = Assert::DEFAULT.max_cpu_pressure_pct(1.0);
        assert_eq!(judge(pressed, &limited, &before).outcome, Inconclusive);
    }

    #[test]
    fn all_cgroups_are_judged_once() {
        let samples = [sample("a", 100, 2000), sample("b", 300, 8000)];
        let reports = [waited("a", 7000), waited("b", 3000)];
        let judge = |assert: Assert| assert.judge_cgroups(&samples, &reports).outcome;
        assert_eq!(judge(Assert::DEFAULT.max_weight_error_pct(10.0)), Fail);
        assert_eq!(judge(Assert::DEFAULT.max_weight_error_pct(20.0)), Pass);
        assert_eq!(judge(Assert::DEFAULT.max_throttled_pct(100.0)), Inconclusive);
        assert_eq!(judge(Assert::DEFAULT), Pass);
    }
}
