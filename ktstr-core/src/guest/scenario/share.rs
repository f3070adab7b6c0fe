//! Bounds of the time that a fair scheduler may keep each worker waiting.
//!
//! Weights are divided level by level, as the fair class does with its group entities (Linux 6.12,
//! scheduler/sched-design-CFS.rst and admin-guide/cgroup-v2.rst, "CPU"). Where the controller `cpu` is not
//! enabled, the hierarchy is flat and all tasks compete directly. The result is an upper bound: it assumes that
//! all workers that could compete for one CPU do so all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::placed::PlacedWorker;
use super::state::Scenario;
use crate::guest::assert::CpuQuota;

/// The CPU time that a worker must have had the chance to get before it can be called stuck: a few slices of
/// the fair class, or two ticks of the slowest kernel (100 Hz).
const OWED: Duration = Duration::from_millis(20);

/// The weight of a task of nice 0 (Linux 6.12, kernel/sched/core.c, `sched_prio_to_weight`).
const NICE_0: f64 = 1024.0;
/// The kernel's default of `cpu.weight`.
const DEFAULT_CPU_WEIGHT: u32 = 100;
/// The part of CPU time that realtime tasks leave to fair tasks (`sched_rt_runtime_us`, or the fair server).
const LEFT_BY_REALTIME: f64 = 0.05;
/// The assumed number of tasks of a payload, each of nice 0 in the payload's own cgroup.
const TASKS_OF_PAYLOAD: u32 = 64;

/// A worker or a payload that competes for CPU time.
#[derive(Debug, Clone)]
struct Competitor {
    cgroup: String,
    /// The least and the greatest weight of the task; `None` for a realtime or deadline task.
    weights: Option<RangeInclusive<u32>>,
}

/// The knobs by which a cgroup competes with its siblings.
#[derive(Debug, Clone, Copy, Default)]
struct CpuKnobs {
    weight: Option<u32>,
    quota: Option<CpuQuota>,
}

impl From<&PlacedWorker> for Competitor {
    fn from(placed: &PlacedWorker) -> Self {
        Self { cgroup: placed.cgroup.clone(), weights: placed.worker.weights() }
    }
}

impl Scenario<'_> {
    /// Updates how long each worker may have to wait, after a change that may have made it longer.
    pub(super) fn update_waits(&mut self) {
        let workers = self.layers.workers().map(Competitor::from);
        let payloads = self.layers.payloads().map(|payload| Competitor {
            cgroup: payload.cgroup().to_owned(),
            weights: Some(1024 * TASKS_OF_PAYLOAD..=1024 * TASKS_OF_PAYLOAD),
        });
        let competitors: Vec<_> = workers.chain(payloads).collect();
        let knobs = self.layers.cgroups().map(|cgroup| {
            let asked = &cgroup.asked;
            (cgroup.name.clone(), CpuKnobs { weight: asked.weight, quota: asked.quota })
        });
        let knobs = knobs.collect();
        let wait = wait_among(&competitors, &knobs);
        for placed in self.layers.workers_mut() {
            placed.fair_wait_bound = placed.fair_wait_bound.max(wait(&Competitor::from(&*placed)));
        }
    }
}

/// Returns a function that computes how long one of the competitors may have to wait until it was given
/// [`OWED`].
fn wait_among<'a>(
    competitors: &'a [Competitor],
    knobs: &'a BTreeMap<String, CpuKnobs>,
) -> impl Fn(&Competitor) -> Duration + 'a {
    let knobs_of = |cgroup: &str| knobs.get(cgroup).copied().unwrap_or_default();
    let weight_of = move |cgroup: &str| {
        NICE_0 * f64::from(knobs_of(cgroup).weight.unwrap_or(DEFAULT_CPU_WEIGHT)) / 100.0
    };
    // Step 1: in each cgroup, the total weight of the tasks and child cgroups that compete there, and the
    // number of tasks in it and its descendants. A child cgroup counts once if it has any task.
    let mut totals: BTreeMap<&str, f64> = BTreeMap::new();
    let mut tasks: BTreeMap<&str, f64> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for competitor in competitors {
        let Some(weights) = &competitor.weights else { continue };
        *totals.entry(&competitor.cgroup).or_default() += f64::from(*weights.end());
        for cgroup in with_ancestors(&competitor.cgroup) {
            *tasks.entry(cgroup).or_default() += 1.0;
            if seen.insert(cgroup) {
                *totals.entry(parent(cgroup)).or_default() += weight_of(cgroup);
            }
        }
    }
    // Step 2: what applies to all. A knob of the controller `cpu` proves that it is enabled. Without one, it may
    // be enabled or not.
    let has_levels = knobs.values().any(|knobs| knobs.weight.is_some() || knobs.quota.is_some());
    let fair = competitors.iter().filter_map(|competitor| competitor.weights.as_ref());
    let total: f64 = fair.map(|weights| f64::from(*weights.end())).sum();
    let has_realtime = competitors.iter().any(|competitor| competitor.weights.is_none());
    let left = if has_realtime { LEFT_BY_REALTIME } else { 1.0 };
    // Step 3: the part of one CPU that a competitor gets if all others have their greatest weight.
    let share = move |competitor: &Competitor| {
        // Realtime and deadline tasks do not wait for fair ones.
        let Some(weights) = &competitor.weights else { return 1.0 };
        let (least, most) = (f64::from(*weights.start()), f64::from(*weights.end()));
        let among = |total: f64| left * least / (total - most + least);
        // Its part of its cgroup, times the part of each cgroup in its parent.
        let by_level = with_ancestors(&competitor.cgroup)
            .map(|cgroup| weight_of(cgroup) / totals[parent(cgroup)])
            .fold(among(totals[&*competitor.cgroup]), |share, of_level| share * of_level);
        let by_weight = if has_levels { by_level } else { by_level.min(among(total)) };
        // A quota is divided among all tasks below it.
        let by_quota = with_ancestors(&competitor.cgroup).filter_map(|cgroup| {
            let CpuQuota { quota, period } = knobs_of(cgroup).quota?;
            Some(quota.div_duration_f64(period) / tasks[cgroup])
        });
        by_quota.fold(by_weight, f64::min)
    };
    move |competitor| {
        let wait = OWED.as_secs_f64() / share(competitor);
        Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX)
    }
}

/// Returns the cgroup and its ancestors, innermost first: `a/b/c`, `a/b` and `a`.
fn with_ancestors(cgroup: &str) -> impl Iterator<Item = &str> {
    let first = (!cgroup.is_empty()).then_some(cgroup);
    std::iter::successors(first, |cgroup| Some(parent(cgroup)).filter(|cgroup| !cgroup.is_empty()))
}

/// Returns the parent of a cgroup; the empty name for the workload root.
fn parent(cgroup: &str) -> &str {
    cgroup.rsplit_once('/').map_or("", |(parent, _)| parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn tasks(tasks: &[(&str, u32, usize)]) -> Vec<Competitor> {
        let of = |(cgroup, weight, count): &(&str, u32, usize)| {
            let weights = (*weight > 0).then_some(*weight..=*weight);
            vec![Competitor { cgroup: (*cgroup).to_owned(), weights }; *count]
        };
        tasks.iter().flat_map(of).collect()
    }

    fn weight(weight: u32) -> CpuKnobs {
        CpuKnobs { weight: Some(weight), quota: None }
    }

    fn quota(percent: u64) -> CpuKnobs {
        CpuKnobs { weight: None, quota: Some(CpuQuota { quota: ms(percent), period: ms(100) }) }
    }

    /// Checks the wait of the first competitor.
    #[track_caller]
    fn waits_for(competitors: &[Competitor], knobs: &[(&str, CpuKnobs)], wanted_ms: f64) {
        let knobs = knobs.iter().map(|(cgroup, knobs)| ((*cgroup).to_owned(), *knobs)).collect();
        let first = wait_among(competitors, &knobs)(&competitors[0]).as_secs_f64() * 1e3;
        assert!((first / wanted_ms - 1.0).abs() < 0.01, "{first} ms (expected {wanted_ms} ms)");
    }

    #[test]
    fn waits_grow_with_the_competitors_weights() {
        waits_for(&tasks(&[("cg", 1024, 1)]), &[], 20.0);
        waits_for(&tasks(&[("cg", 1024, 33)]), &[], 33.0 * 20.0);
        // A SCHED_IDLE task with two busy ones.
        waits_for(&tasks(&[("cg", 3, 1), ("cg", 1024, 2)]), &[], 20.0 * 2051.0 / 3.0);
        // Realtime tasks leave a twentieth, and wait for no fair task.
        waits_for(&tasks(&[("cg", 1024, 1), ("cg", 0, 1)]), &[], 20.0 * 20.0);
        waits_for(&tasks(&[("cg", 0, 1), ("cg", 1024, 9)]), &[], 20.0);
    }

    #[test]
    fn waits_multiply_over_the_levels_of_cgroups() {
        let two = tasks(&[("a", 1024, 1), ("b", 1024, 1)]);
        waits_for(&two, &[("a", weight(1)), ("b", weight(10_000))], 20.0 * 10_001.0);
        let nested = tasks(&[("a/b", 1024, 2), ("a/c", 1024, 1), ("d", 1024, 5)]);
        waits_for(&nested, &[("d", weight(100))], 20.0 * 2.0 * 2.0 * 2.0);
        // A task that competes with a child cgroup in the workload root.
        let beside_child = tasks(&[("", 1024, 1), ("a", 1024, 7)]);
        waits_for(&beside_child, &[("a", weight(100))], 20.0 * 2.0);
        // The number of tasks in another cgroup does not matter.
        let few_and_many = tasks(&[("a", 1024, 1), ("b", 1024, 9)]);
        waits_for(&few_and_many, &[("b", quota(400))], 20.0 * 2.0);
    }

    #[test]
    fn waits_without_the_cpu_controller_count_the_tasks_of_all_cgroups() {
        waits_for(&tasks(&[("a", 1024, 1), ("b", 1024, 9)]), &[], 10.0 * 20.0);
        let idle = tasks(&[("a", 3, 1), ("b", 1024, 2)]);
        waits_for(&idle, &[], 20.0 * 2051.0 / 3.0);
        waits_for(&idle, &[("b", CpuKnobs::default())], 20.0 * 2051.0 / 3.0);
        // It may be enabled all the same, and then the cgroup's share is divided by nine.
        waits_for(&tasks(&[("a", 1024, 9), ("b", 1024, 1)]), &[], 9.0 * 2.0 * 20.0);
    }

    #[test]
    fn waits_follow_the_tightest_quota() {
        let two = tasks(&[("a/b", 1024, 2)]);
        waits_for(&two, &[("a", quota(2)), ("a/b", quota(50))], 20.0 / 0.02 * 2.0);
        waits_for(&two, &[("a", quota(400))], 20.0 * 2.0);
    }

    #[test]
    fn waits_take_the_least_weight_against_the_greatest_of_others() {
        let churn = Competitor { cgroup: "cg".to_owned(), weights: Some(3..=1024) };
        waits_for(&vec![churn; 2], &[], 20.0 * 1027.0 / 3.0);
    }
}
