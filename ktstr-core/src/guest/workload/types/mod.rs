//! The work loops, by subject. Each runs until its worker is killed, or its phase is over.

mod kernel;
mod lock;
mod memory;
mod message;
mod sched;
mod signal;
mod sleep;
mod spin;
mod wake;

use std::io;
use std::time::Duration;

use super::{WorkType, WorkerCtx};
use crate::linux::sys::since_boot_ns;

/// Runs the work loop of a type, in the worker after its release.
pub(super) fn run(work: &WorkType, ctx: &WorkerCtx) -> io::Result<()> {
    match work {
        WorkType::SpinWait => spin::spin_wait(ctx),
        WorkType::YieldHeavy => spin::yield_heavy(ctx),
        WorkType::AluHot | WorkType::SmtSiblingSpin => spin::alu_hot(ctx),
        WorkType::Mixed => sleep::mixed(ctx),
        WorkType::Bursty => sleep::bursty(ctx),
        WorkType::IdleChurn => sleep::idle_churn(ctx),
        WorkType::TimerLatency => sleep::timer_latency(ctx)?,
        WorkType::WakeChain => wake::wake_chain(ctx)?,
        WorkType::ThunderingHerd => wake::thundering_herd(ctx)?,
        WorkType::FutexPingPong => wake::futex_ping_pong(ctx)?,
        WorkType::FutexFanOut => wake::futex_fan_out(ctx)?,
        WorkType::PipeIo => message::pipe_io(ctx)?,
        WorkType::ProducerConsumer => message::producer_consumer(ctx)?,
        WorkType::EpollStorm => message::epoll_storm(ctx)?,
        WorkType::SignalStorm => signal::signal_storm(ctx)?,
        WorkType::MutexContention => lock::mutex_contention(ctx)?,
        WorkType::PriorityInversion => lock::priority_inversion(ctx)?,
        WorkType::CachePressure => memory::cache_pressure(ctx),
        WorkType::PageFaultChurn => memory::page_fault_churn(ctx)?,
        WorkType::NumaSweep => memory::numa_sweep(ctx)?,
        WorkType::IoSyncWrite => kernel::io_sync_write(ctx)?,
        WorkType::ForkExit => kernel::fork_exit(ctx)?,
        WorkType::CgroupAttachStorm { groups } => kernel::cgroup_attach_storm(ctx, groups)?,
        WorkType::AffinityChurn => sched::affinity_churn(ctx)?,
        WorkType::NiceSweep => sched::nice_sweep(ctx)?,
        WorkType::PolicyChurn => sched::policy_churn(ctx)?,
        WorkType::RtStarvation => spin::spin_wait(ctx),
        WorkType::Sequence(phases) => sequence(ctx, phases)?,
        WorkType::Custom(function) => function(ctx),
    }
    Ok(())
}

fn sequence(ctx: &WorkerCtx, phases: &[(WorkType, Duration)]) -> io::Result<()> {
    for (work, length) in phases.iter().cycle() {
        ctx.end_at(since_boot_ns() + length.as_nanos() as u64);
        run(work, ctx)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::workload::testing::{Running, sleeps, wait_for_end};
    use crate::guest::workload::{WorkSpec, WorkerEnd};
    use crate::model::exit::ExitKind;

    #[test]
    fn sequence_repeats_all_phases() {
        let ms = Duration::from_millis;
        let phases = vec![(WorkType::AluHot, ms(3)), (WorkType::IdleChurn, ms(3))];
        let running = Running::of(WorkType::Sequence(phases), 1);
        let pid = running.pid(0);
        let slept = |running: &Running| running.report(0).wake_latency_ns.count();
        running.wait_until(|running| slept(running) > 0);
        // Computing again: iterations without sleeps.
        let (iterations, sleeps_before) = (running.report(0).iterations, sleeps(pid));
        running.wait_until(|running| {
            let report = running.report(0);
            report.iterations > iterations + 2 * (report.wake_latency_ns.count() + 50)
        });
        running.wait_until(|_| sleeps(pid) > sleeps_before);
    }

    #[test]
    fn measures_wakeups_is_true_for_types_that_record_them() {
        for (work, workers) in [
            (WorkType::Mixed, 1),
            (WorkType::Bursty, 1),
            (WorkType::IdleChurn, 1),
            (WorkType::TimerLatency, 1),
            (WorkType::WakeChain, 2),
            (WorkType::ThunderingHerd, 3),
            (WorkType::FutexPingPong, 2),
            (WorkType::FutexFanOut, 2),
            (WorkType::MutexContention, 4),
            (WorkType::PriorityInversion, 3),
            (WorkType::ProducerConsumer, 2),
            (WorkType::EpollStorm, 3),
            (WorkType::Sequence(vec![(WorkType::Bursty, Duration::from_secs(1))]), 1),
        ] {
            let running = Running::of(work, workers);
            assert!(running.reports().iter().all(|report| report.measures_wakeups));
            let wakes = |running: &Running| {
                running.reports().iter().map(|report| report.wake_latency_ns.count()).sum::<u64>()
            };
            running.wait_until(|running| wakes(running) > 0);
        }
        for (work, workers) in [
            (WorkType::SpinWait, 1),
            (WorkType::PipeIo, 2),
            (WorkType::ForkExit, 1),
            (WorkType::SignalStorm, 2),
            (WorkType::Sequence(vec![(WorkType::AluHot, Duration::from_secs(1))]), 1),
        ] {
            let running = Running::of(work, workers);
            running.wait_for_units(10);
            for report in running.reports() {
                assert_eq!((report.measures_wakeups, report.wake_latency_ns.count()), (false, 0));
            }
        }
    }

    #[test]
    fn custom_runs_the_function_and_ends_the_worker() {
        let count_to_three = |ctx: &WorkerCtx| {
            assert_eq!((ctx.index(), ctx.group_size()), (0, 1));
            (0..3).for_each(|_| ctx.record_iteration(5));
        };
        let running = Running::of(WorkType::Custom(count_to_three), 1);
        wait_for_end(&running.0[0]);
        let report = running.report(0);
        assert_eq!((report.iterations, report.work_units), (3, 15));
        assert_eq!(report.ended.unwrap().kind, Some(ExitKind::Exited(0)));
        assert!(report.cpu > Duration::ZERO && report.wall >= report.cpu, "{report:?}");
    }

    #[test]
    fn run_reports_the_errno_of_a_failed_loop() {
        let groups = ["/no/such/group", "/no/such/group"].map(Into::into);
        let work = WorkType::CgroupAttachStorm { groups };
        let running = Running::start(WorkSpec::default().work_type(work));
        wait_for_end(&running.0[0]);
        let ended = running.report(0).ended;
        let failed = WorkerEnd { kind: Some(ExitKind::Exited(1)), errno: Some(libc::ENOENT) };
        assert_eq!(ended, Some(failed));
        let text = "exit status 1: No such file or directory (os error 2)";
        assert_eq!(failed.to_string(), text);
    }
}
