//! Signals between two workers.

use std::io;
use std::sync::atomic::Ordering;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::guest::workload::WorkerCtx;
use crate::linux::sys;

pub(super) fn signal_storm(ctx: &WorkerCtx) -> io::Result<()> {
    if ctx.index() == 0 { send(ctx) } else { receive(ctx) }
}

fn send(ctx: &WorkerCtx) -> io::Result<()> {
    // A signal before the receiver has its handler would kill it.
    ctx.partner().desk.inbox.wait_for(1)?;
    let pid = Pid::from_raw(ctx.partner().pid.load(Ordering::Relaxed));
    let partner = pidfd_open(pid.ok_or(rustix::io::Errno::SRCH)?, PidfdFlags::empty())?;
    while ctx.should_continue() {
        ctx.compute();
        pidfd_send_signal(&partner, Signal::USR1)?;
        ctx.record_iteration(1);
    }
    Ok(())
}

fn receive(ctx: &WorkerCtx) -> io::Result<()> {
    sys::count_signals()?;
    ctx.own().desk.inbox.post()?;
    let mut before = 0;
    while ctx.should_continue() {
        ctx.compute();
        let handled = sys::signals_counted();
        ctx.record_iteration(handled - before);
        before = handled;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::guest::workload::WorkType;
    use crate::guest::workload::testing::Running;

    #[test]
    fn signal_storm_interrupts_a_receiver_that_computes() {
        let running = Running::of(WorkType::SignalStorm, 2);
        running.wait_for_units(100);
        let [sender, receiver] = running.stop().try_into().unwrap();
        // Pending signals with the same number are merged.
        assert!(receiver.work_units <= sender.work_units + 1, "{receiver:?}, {sender:?}");
        assert!(receiver.iterations > 0);
    }
}
