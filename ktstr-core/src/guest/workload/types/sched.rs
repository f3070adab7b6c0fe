//! Loops that change how they are scheduled.

use std::io;

use rustix::io::Errno;
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::guest::workload::affinity::cpu_list;
use crate::guest::workload::{SchedPolicy, WorkerCtx};

pub(super) fn affinity_churn(ctx: &WorkerCtx) -> io::Result<()> {
    let all = sched_getaffinity(None)?;
    let cpus = cpu_list(all);
    for cpu in ctx.cycle(&cpus) {
        let mut one = CpuSet::new();
        one.set(*cpu as usize);
        let units = match sched_setaffinity(None, &one) {
            Ok(()) => 1,
            // The cpuset of its cgroup lacks this CPU now.
            Err(Errno::INVAL) => 0,
            Err(errno) => return Err(errno.into()),
        };
        ctx.compute();
        ctx.record_iteration(units);
    }
    Ok(sched_setaffinity(None, &all)?)
}

pub(super) fn nice_sweep(ctx: &WorkerCtx) -> io::Result<()> {
    for nice in ctx.cycle(0..=19) {
        setpriority_process(None, nice)?;
        ctx.compute();
        ctx.record_iteration(1);
    }
    Ok(setpriority_process(None, 0)?)
}

pub(super) fn policy_churn(ctx: &WorkerCtx) -> io::Result<()> {
    let mut policies = vec![SchedPolicy::Normal, SchedPolicy::Batch, SchedPolicy::Idle];
    for realtime in [SchedPolicy::Fifo(1), SchedPolicy::RoundRobin(1)] {
        if realtime.set(None, 0).is_ok() {
            policies.push(realtime);
        }
    }
    for policy in ctx.cycle(&policies) {
        policy.set(None, 0)?;
        ctx.compute();
        ctx.record_iteration(1);
    }
    SchedPolicy::Normal.set(None, 0)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use crate::guest::workload::WorkType;
    use crate::guest::workload::testing::{Running, own_cpus, stat_field};

    /// Waits until a field of the worker's `stat` has had this number of values. Returns them.
    fn wait_for_values(running: &Running, field: usize, values: usize) -> BTreeSet<i64> {
        let seen = RefCell::new(BTreeSet::new());
        running.wait_until(|running| {
            seen.borrow_mut().insert(stat_field(running.pid(0), field));
            seen.borrow().len() >= values
        });
        seen.into_inner()
    }

    #[test]
    fn affinity_churn_migrates_with_each_change() {
        let running = Running::of(WorkType::AffinityChurn, 1);
        running.wait_for_units(50);
        let cpus: Vec<_> = own_cpus().into_iter().collect();
        let [report] = running.stop().try_into().unwrap();
        assert_eq!(report.cpus_used, cpus);
        let migrations = if cpus.len() > 1 { report.iterations - 1 } else { 0 };
        assert_eq!(report.migrations, migrations, "{report:?}");
    }

    #[test]
    fn nice_sweep_sets_all_nice_values() {
        let running = Running::of(WorkType::NiceSweep, 1);
        assert_eq!(wait_for_values(&running, 19, 20), (0..20).collect());
    }

    #[test]
    fn policy_churn_changes_policies() {
        let running = Running::of(WorkType::PolicyChurn, 1);
        let seen = wait_for_values(&running, 41, 3);
        assert!(seen.is_subset(&BTreeSet::from([0, 1, 2, 3, 5])), "{seen:?}");
        running.wait_for_units(100);
    }
}
