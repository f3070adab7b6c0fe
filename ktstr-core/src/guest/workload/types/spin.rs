//! Loops that never sleep.

use crate::guest::workload::WorkerCtx;

pub(super) fn spin_wait(ctx: &WorkerCtx) {
    while ctx.should_continue() {
        ctx.spin();
        ctx.record_iteration(1);
    }
}

pub(super) fn yield_heavy(ctx: &WorkerCtx) {
    while ctx.should_continue() {
        ctx.spin();
        rustix::thread::sched_yield();
        ctx.record_iteration(1);
    }
}

pub(super) fn alu_hot(ctx: &WorkerCtx) {
    while ctx.should_continue() {
        ctx.compute();
        ctx.record_iteration(1);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::guest::topology::TestTopology;
    use crate::guest::workload::testing::{
        Running, own_cpus, proc_number, sleeps, stat_field, wait_for_end,
    };
    use crate::guest::workload::{WorkSpec, WorkType, Worker, Workers};
    use crate::linux::sys;
    use crate::model::exit::ExitKind;

    /// Runs a work loop. The kernel kills the process at its first system call.
    fn without_system_calls(work: fn(&WorkerCtx), ctx: &WorkerCtx) {
        if sys::forbid_system_calls().is_ok() {
            work(ctx);
        }
    }

    #[test]
    fn spin_and_compute_make_no_system_call() {
        let clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        let clock = std::fs::read_to_string(clock).unwrap();
        if !["tsc", "kvm-clock", "hyperv_clocksource_tsc_page"].contains(&clock.trim()) {
            eprintln!("skipped: the vDSO cannot read the clock source {clock}");
            return;
        }
        for work in [
            |ctx: &WorkerCtx| without_system_calls(spin_wait, ctx),
            |ctx: &WorkerCtx| without_system_calls(alu_hot, ctx),
        ] {
            let running = Running::of(WorkType::Custom(work), 1);
            running.wait_for_units(1000);
            assert_eq!(proc_number(running.pid(0), "status", "Seccomp"), 2);
        }
        let yields = |ctx: &WorkerCtx| without_system_calls(yield_heavy, ctx);
        let caught = Running::of(WorkType::Custom(yields), 1);
        let kind = wait_for_end(&caught.0[0]).kind;
        assert_eq!(kind, Some(ExitKind::Signaled(libc::SIGSYS)));
    }

    #[test]
    fn spinning_types_use_the_cpu_and_never_sleep() {
        for work in [WorkType::SpinWait, WorkType::AluHot, WorkType::YieldHeavy] {
            let running = Running::of(work.clone(), 1);
            running.wait_for_units(100);
            // The first iterations may sleep in page faults.
            let slept = sleeps(running.pid(0));
            let units = running.report(0).work_units;
            running.wait_for_units(units + 1000);
            assert_eq!(sleeps(running.pid(0)), slept, "{work:?}");
            let [report] = running.stop().try_into().unwrap();
            assert!(report.cpu > Duration::ZERO && report.longest_gap.is_some(), "{report:?}");
            assert_eq!(report.wake_latency_ns.count(), 0, "{work:?}");
        }
    }

    #[test]
    fn yield_heavy_switches_tasks_at_each_yield() {
        let one_cpu = crate::guest::workload::AffinityIntent::SingleCpu;
        let spec = WorkSpec::default().work_type(WorkType::YieldHeavy).workers(2);
        let running = Running::start(spec.affinity(one_cpu));
        running.wait_for_units(500);
        let [first, second] = running.stop().try_into().unwrap();
        // More time slices than preemption by ticks could cause, on any kernel.
        let ticks = first.wall.as_millis() as u64;
        let timeslices = first.timeslices + second.timeslices;
        assert!(timeslices > 2 * ticks.min(200), "{timeslices} in {ticks} ms");
    }

    #[test]
    fn smt_sibling_spin_places_a_pair_on_one_core() {
        let cpus: Vec<_> = own_cpus().into_iter().take(2).collect();
        let &[first, second] = cpus.as_slice() else {
            eprintln!("skipped: there is one CPU");
            return;
        };
        // A topology that only the spawn sees.
        let topology = |cores: Vec<Vec<u32>>| TestTopology {
            cpus: cpus.clone(),
            nodes: vec![cpus.clone()],
            llcs: vec![cpus.clone()],
            cores,
        };
        let spec = WorkSpec::default().work_type(WorkType::SmtSiblingSpin).workers(2);
        let allowed = BTreeSet::from([first, second]);
        let siblings = topology(vec![vec![first, second]]);
        let mut workers = Workers::fork(&spec, &siblings, &allowed).unwrap();
        workers.iter_mut().try_for_each(Worker::release).unwrap();
        let running = Running(workers);
        running.wait_for_units(10);
        let reports = running.stop();
        let placed: Vec<_> = reports.iter().map(|report| report.allowed_cpus.clone()).collect();
        assert_eq!(placed, [vec![first], vec![second]]);
        assert_eq!(reports[1].cpus_used, [second]);

        let apart = topology(vec![vec![first], vec![second]]);
        let error = Workers::fork(&spec, &apart, &allowed).unwrap_err();
        assert!(format!("{error:#}").contains("needs a core with two SMT threads"), "{error:#}");
    }

    #[test]
    fn rt_starvation_leaves_a_fair_task_little_cpu_time() {
        let running = Running::of(WorkType::RtStarvation, 2);
        let [starving, starved] = [running.pid(0), running.pid(1)];
        assert_eq!((stat_field(starving, 41), stat_field(starved, 41)), (1, 0));
        // The kernel gives the fair task its first time slice after up to a second. Its times begin there.
        running.wait_until(|running| {
            running.report(1).work_units > 0
                && running.report(1).run_delay > Duration::from_millis(300)
        });
        let [starving, starved] = running.stop().try_into().unwrap();
        assert_eq!(
            (&starving.allowed_cpus, starving.allowed_cpus.len()),
            (&starved.allowed_cpus, 1)
        );
        assert!(starved.cpu < starving.cpu / 2, "{starved:?}, {starving:?}");
        assert!(starved.run_delay > starved.cpu, "{starved:?}");
    }
}
