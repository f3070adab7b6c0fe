//! Loops that wake each other by futexes.

use std::io;
use std::sync::atomic::Ordering;

use crate::guest::workload::WorkerCtx;

pub(super) fn futex_ping_pong(ctx: &WorkerCtx) -> io::Result<()> {
    pass_on(ctx, 1 - ctx.index())
}

pub(super) fn wake_chain(ctx: &WorkerCtx) -> io::Result<()> {
    pass_on(ctx, (ctx.index() + 1) % ctx.group_size())
}

/// Waits for its turn, computes, and gives the turn to the next. The first has it first.
fn pass_on(ctx: &WorkerCtx, next: usize) -> io::Result<()> {
    let mut turn = 0;
    if ctx.index() == 0 {
        ctx.page(next).desk.inbox.post()?;
    }
    while ctx.should_continue() {
        turn += 1;
        if let Some(due_ns) = ctx.own().desk.inbox.wait_for(turn)? {
            ctx.record_wakeup(due_ns);
        }
        ctx.spin();
        // Counted first, so that no one is ever ahead of the one before it.
        ctx.record_iteration(1);
        ctx.page(next).desk.inbox.post()?;
    }
    Ok(())
}

pub(super) fn futex_fan_out(ctx: &WorkerCtx) -> io::Result<()> {
    let receivers = ctx.group_size() - 1;
    let answers = &ctx.page(0).desk.answers;
    let mut round = 0_u32;
    while ctx.should_continue() {
        round = round.wrapping_add(1);
        let slept = if ctx.index() == 0 {
            for receiver in 1..=receivers {
                ctx.page(receiver).desk.inbox.post()?;
            }
            answers.wait_for(round.wrapping_mul(receivers as u32))?
        } else {
            let slept = ctx.own().desk.inbox.wait_for(round)?;
            ctx.spin();
            slept
        };
        if let Some(due_ns) = slept {
            ctx.record_wakeup(due_ns);
        }
        ctx.record_iteration(1);
        if ctx.index() > 0 {
            answers.post()?;
        }
    }
    Ok(())
}

pub(super) fn thundering_herd(ctx: &WorkerCtx) -> io::Result<()> {
    let first = &ctx.page(0).desk;
    let mut round = 0_u32;
    while ctx.should_continue() {
        if ctx.index() == 0 {
            round = round.wrapping_add(1);
            ctx.spin();
            first.prize.store(1, Ordering::Release);
            first.inbox.post_to_all()?;
            if let Some(due_ns) = first.answers.wait_for(round)? {
                ctx.record_wakeup(due_ns);
            }
            ctx.record_iteration(1);
            continue;
        }
        if let Some(due_ns) = first.inbox.wait_for(round.wrapping_add(1))? {
            ctx.record_wakeup(due_ns);
        }
        // A late worker has missed some.
        round = first.inbox.posted();
        let won = first.prize.swap(0, Ordering::AcqRel) == 1;
        ctx.record_iteration(won.into());
        if won {
            ctx.spin();
            first.answers.post()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::guest::workload::WorkType;
    use crate::guest::workload::testing::{Running, sleeps};

    #[test]
    fn partners_take_turns_and_sleep_in_between() {
        for (work, workers) in [(WorkType::FutexPingPong, 4), (WorkType::WakeChain, 3)] {
            let running = Running::of(work.clone(), workers);
            running.wait_for_units(200);
            let slept: u64 = (0..workers as usize).map(|index| sleeps(running.pid(index))).sum();
            let reports = running.stop();
            assert!(slept > 100, "{work:?}: {slept}");
            let group = if work == WorkType::WakeChain { 3 } else { 2 };
            for group in reports.chunks(group) {
                let units: Vec<_> = group.iter().map(|report| report.work_units).collect();
                let (least, most) = (units.iter().min().unwrap(), units.iter().max().unwrap());
                assert!(most - least <= 1, "{work:?}: {units:?}");
                assert!(group.iter().any(|report| report.wake_latency_ns.count() > 0), "{work:?}");
            }
        }
    }

    #[test]
    fn a_fan_out_reaches_each_receiver_in_each_round() {
        let running = Running::of(WorkType::FutexFanOut, 4);
        running.wait_for_units(100);
        let slept = sleeps(running.pid(0));
        let reports = running.stop();
        let rounds = reports[0].work_units;
        for receiver in &reports[1..] {
            assert!((rounds..=rounds + 1).contains(&receiver.work_units), "{reports:#?}");
        }
        assert!(slept > 0 && reports[0].wake_latency_ns.count() > 0, "{:?}", reports[0]);
    }

    #[test]
    fn of_a_herd_one_gets_something_and_the_rest_wakes_in_vain() {
        let running = Running::of(WorkType::ThunderingHerd, 4);
        let herd = |running: &Running| running.reports()[1..].to_vec();
        running.wait_until(|running| {
            let in_vain =
                |it: &crate::guest::workload::WorkerReport| it.iterations > it.work_units + 20;
            running.report(0).work_units > 200 && herd(running).iter().any(in_vain)
        });
        let reports = running.stop();
        let won: u64 = reports[1..].iter().map(|report| report.work_units).sum();
        let rounds = reports[0].work_units;
        assert!((rounds..=rounds + 1).contains(&won), "{won} of {rounds}");
    }
}
