//! Loops that need the same lock.

use std::io;
use std::time::Duration;

use crate::guest::workload::WorkerCtx;
use crate::linux::sys::since_boot_ns;

pub(super) fn mutex_contention(ctx: &WorkerCtx) -> io::Result<()> {
    let lock = &ctx.page(0).desk.lock;
    while ctx.should_continue() {
        if let Some(due_ns) = lock.lock()? {
            ctx.record_wakeup(due_ns);
        }
        ctx.compute();
        // Counted while the lock is held, so that units are in the order of the holders.
        ctx.record_iteration(1);
        lock.unlock()?;
        ctx.compute();
    }
    Ok(())
}

pub(super) fn priority_inversion(ctx: &WorkerCtx) -> io::Result<()> {
    match ctx.index() {
        0 => hold_for_long(ctx),
        1 => {
            super::spin::alu_hot(ctx);
            Ok(())
        }
        _ => need_now(ctx),
    }
}

/// The CPU time for which the worker of low priority holds the lock. Long enough that the one of high
/// priority, which needs it after each millisecond, always interrupts it, so that the holder waits for its
/// CPU from then on. No longer, because it gets little CPU time.
const HOLD: Duration = Duration::from_millis(2);

/// Runs the worker of low priority.
fn hold_for_long(ctx: &WorkerCtx) -> io::Result<()> {
    let lock = &ctx.page(0).desk.lock;
    let bursts = HOLD.div_duration_f64(ctx.burst()).ceil() as u32;
    while ctx.should_continue() {
        lock.lock()?;
        (0..bursts).for_each(|_| ctx.compute());
        ctx.record_iteration(1);
        lock.unlock()?;
    }
    Ok(())
}

/// Runs the worker of high priority. Its wake-up latency is the time from its request of the lock.
fn need_now(ctx: &WorkerCtx) -> io::Result<()> {
    let lock = &ctx.page(0).desk.lock;
    while ctx.should_continue() {
        let wanted_ns = since_boot_ns();
        lock.lock()?;
        ctx.record_wakeup(wanted_ns);
        ctx.compute();
        ctx.record_iteration(1);
        lock.unlock()?;
        // Gives the other worker time to take it.
        let pause = Duration::from_millis(1).as_nanos() as u64;
        ctx.pause_until(since_boot_ns() + pause);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::guest::workload::WorkType;
    use crate::guest::workload::testing::{Running, sleeps, stat_field};

    #[test]
    fn mutex_contention_makes_workers_wait_and_all_get_the_lock() {
        let running = Running::of(WorkType::MutexContention, 4);
        let slept = |running: &Running| (0..4).map(|it| sleeps(running.pid(it))).sum::<u64>();
        let before = slept(&running);
        running.wait_until(|running| slept(running) > before + 20);
        running.wait_for_units(20);
        let waits = running.stop().iter().map(|it| it.wake_latency_ns.count()).sum::<u64>();
        assert!(waits > 0);
    }

    #[test]
    fn priority_inversion_delays_the_worker_of_high_priority() {
        let running = Running::of(WorkType::PriorityInversion, 3);
        let nice: Vec<_> = (0..3).map(|index| stat_field(running.pid(index), 19)).collect();
        assert_eq!(nice, [19, 0, -10]);
        // Without the third worker, it would wait for one hold at most.
        running.wait_until(|running| {
            let [low, middle, high] = [0, 1, 2].map(|index| running.report(index));
            let hold = low.cpu.as_nanos() as u64 / low.work_units.max(1);
            let longest_wait = high.wake_latency_ns.percentile(100.0);
            low.work_units >= 2 && longest_wait > Some(3 * hold) && middle.cpu > 2 * low.cpu
        });
        let [low, _, high] = running.stop().try_into().unwrap();
        assert_eq!((low.allowed_cpus.len(), &low.allowed_cpus), (1, &high.allowed_cpus));
    }
}
