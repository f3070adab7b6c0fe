//! Loops that sleep by timers.

use std::io;
use std::num::NonZero;
use std::time::Duration;

use crate::guest::workload::WorkerCtx;
use crate::linux::sys::since_boot_ns;

const MILLISECOND_NS: u64 = 1_000_000;

pub(super) fn mixed(ctx: &WorkerCtx) {
    while ctx.should_continue() {
        for _ in 0..8 {
            ctx.compute();
            ctx.record_iteration(0);
        }
        rustix::thread::sched_yield();
        ctx.sleep(Duration::from_micros(100));
        ctx.record_iteration(1);
    }
}

pub(super) fn bursty(ctx: &WorkerCtx) {
    const BURST_NS: u64 = 2 * MILLISECOND_NS;
    const PAUSE: Duration = Duration::from_millis(3);
    while ctx.should_continue() {
        let begin_ns = since_boot_ns();
        while ctx.telemetry().last_iteration_ns() < begin_ns + BURST_NS {
            ctx.compute();
            ctx.record_iteration(0);
        }
        ctx.sleep(PAUSE);
        ctx.record_iteration(1);
    }
}

pub(super) fn idle_churn(ctx: &WorkerCtx) {
    while ctx.should_continue() {
        ctx.spin();
        ctx.sleep(Duration::from_micros(50));
        ctx.record_iteration(1);
    }
}

pub(super) fn timer_latency(ctx: &WorkerCtx) -> io::Result<()> {
    // By default, the kernel may delay the timers of fair tasks by 50 µs to merge wake-ups.
    rustix::thread::set_current_timer_slack(NonZero::new(1))?;
    let mut due_ns = since_boot_ns();
    while ctx.should_continue() {
        // Missed timers are dropped; the next one is at a whole millisecond again.
        let late_ns = since_boot_ns().saturating_sub(due_ns);
        due_ns += (late_ns / MILLISECOND_NS + 1) * MILLISECOND_NS;
        ctx.sleep_until(due_ns);
        ctx.record_iteration(1);
    }
    // Back to the slack that the process began with.
    Ok(rustix::thread::set_current_timer_slack(None)?)
}

#[cfg(test)]
mod tests {
    use crate::guest::workload::WorkType;
    use crate::guest::workload::testing::{Running, sleeps};

    #[test]
    fn sleeping_types_sleep_and_record_wakeup_latency() {
        for work in [WorkType::Mixed, WorkType::Bursty, WorkType::IdleChurn, WorkType::TimerLatency]
        {
            let running = Running::of(work.clone(), 1);
            // In this order: the worker continues between the two lines.
            let units = running.report(0).work_units;
            let before = sleeps(running.pid(0));
            running.wait_for_units(units + 40);
            let slept = sleeps(running.pid(0)) - before;
            let [report] = running.stop().try_into().unwrap();
            // A timer that has expired already does not put the worker to sleep.
            assert!(slept >= 10, "{work:?}: {slept}");
            assert!(report.wake_latency_ns.count() >= 20, "{report:?}");
            assert!(report.wall > report.cpu + report.run_delay, "{report:?}");
        }
    }

    #[test]
    fn bursty_uses_more_cpu_than_timer_latency() {
        let cpu_per_unit = |work| {
            let running = Running::of(work, 1);
            running.wait_for_units(30);
            let [report] = running.stop().try_into().unwrap();
            report.cpu / u32::try_from(report.work_units).unwrap()
        };
        assert!(cpu_per_unit(WorkType::Bursty) > 3 * cpu_per_unit(WorkType::TimerLatency));
    }

    #[test]
    fn idle_churn_leaves_the_cpu_idle_most_of_the_time() {
        let running = Running::of(WorkType::IdleChurn, 1);
        running.wait_for_units(300);
        let [report] = running.stop().try_into().unwrap();
        assert!(report.cpu < report.wall / 2, "{report:?}");
    }
}
