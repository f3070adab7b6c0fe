//! Loops that hand data to each other.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::guest::workload::WorkerCtx;
use crate::guest::workload::resources::Resources;
use crate::guest::workload::sync::Queue;

pub(super) fn pipe_io(ctx: &WorkerCtx) -> io::Result<()> {
    /// The most bytes that a pipe takes atomically.
    const MESSAGE: usize = libc::PIPE_BUF;
    let Resources::Pipes(pipes) = &*ctx.resources else { return Err(Errno::BADF.into()) };
    let (from, to) = (&pipes[ctx.index()].reader, &pipes[1 - ctx.index()].writer);
    let mut message = [ctx.index() as u8; MESSAGE];
    if ctx.index() == 0 {
        rustix::io::write(to, &message)?;
    }
    while ctx.should_continue() {
        let mut received = 0;
        while received < MESSAGE {
            received += rustix::io::read(from, &mut message[received..])?;
        }
        ctx.record_iteration(MESSAGE as u64);
        rustix::io::write(to, &message)?;
    }
    Ok(())
}

pub(super) fn producer_consumer(ctx: &WorkerCtx) -> io::Result<()> {
    const BURST: u64 = 2 * Queue::CAPACITY as u64;
    let queue = &ctx.page(0).desk.queue;
    let mut item = 0;
    while ctx.should_continue() {
        let slept = if ctx.index() == 0 {
            if item % BURST == 0 {
                (0..2 * BURST).for_each(|_| ctx.compute());
            }
            queue.put(item)?
        } else {
            let (taken, slept) = queue.take()?;
            if taken != item {
                return Err(Errno::BADMSG.into());
            }
            ctx.compute();
            slept
        };
        item += 1;
        if let Some(due_ns) = slept {
            ctx.record_wakeup(due_ns);
        }
        ctx.record_iteration(1);
    }
    Ok(())
}

pub(super) fn epoll_storm(ctx: &WorkerCtx) -> io::Result<()> {
    let Resources::Events(events) = &*ctx.resources else { return Err(Errno::BADF.into()) };
    if ctx.index() > 0 {
        return epoll_listen(ctx, events);
    }
    for event in ctx.cycle(events) {
        ctx.spin();
        ctx.record_iteration(1);
        ctx.own().desk.inbox.note();
        rustix::io::write(event, &1_u64.to_ne_bytes())?;
    }
    Ok(())
}

/// Returns the events that are ready. A thaw interrupts the wait, which is repeated then.
fn wait_ready(epoll: &OwnedFd, timeout: Option<&Timespec>) -> io::Result<Vec<usize>> {
    loop {
        let mut ready = [MaybeUninit::<epoll::Event>::uninit(); 16];
        match epoll::wait(epoll, &mut ready, timeout) {
            Ok((list, _)) => {
                return Ok(list.iter().map(|event| event.data.u64() as usize).collect());
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn epoll_listen(ctx: &WorkerCtx, events: &[OwnedFd]) -> io::Result<()> {
    const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (index, event) in events.iter().enumerate() {
        epoll::add(&epoll, event, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
    }
    while ctx.should_continue() {
        let mut ready = wait_ready(&epoll, Some(&AT_ONCE))?;
        if ready.is_empty() {
            ready = wait_ready(&epoll, None)?;
            ctx.record_wakeup(ctx.page(0).desk.inbox.noted_ns());
        }
        let mut got = 0;
        for event in ready {
            let mut count = [0; 8];
            match rustix::io::read(&events[event], &mut count) {
                Ok(_) => got += u64::from_ne_bytes(count),
                // Another worker has read it.
                Err(Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        ctx.record_iteration(got);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::guest::workload::WorkType;
    use crate::guest::workload::testing::{Running, sleeps};

    #[test]
    fn pipe_io_exchanges_messages_in_pairs() {
        let running = Running::of(WorkType::PipeIo, 4);
        let before: Vec<_> = (0..4).map(|index| sleeps(running.pid(index))).collect();
        running.wait_for_units(100 * 4096);
        // They may have done that many units before this process read the number of sleeps.
        running.wait_until(|it| (0..4).all(|index| sleeps(it.pid(index)) > before[index]));
        for pair in running.stop().chunks(2) {
            let messages = pair.iter().map(|report| report.work_units / 4096);
            let [first, second] = messages.collect::<Vec<_>>().try_into().unwrap();
            assert!(first.abs_diff(second) <= 1, "{first}, {second}");
        }
    }

    #[test]
    fn producer_consumer_makes_both_wait() {
        let running = Running::of(WorkType::ProducerConsumer, 2);
        running.wait_until(|it| it.reports().iter().all(|it| it.wake_latency_ns.count() > 5));
        let [producer, consumer] = running.stop().try_into().unwrap();
        let ahead = producer.work_units.abs_diff(consumer.work_units);
        assert!(ahead <= 17, "{} - {}", producer.work_units, consumer.work_units);
    }

    #[test]
    fn epoll_storm_gives_each_event_to_one_worker() {
        let running = Running::of(WorkType::EpollStorm, 4);
        let slept = |running: &Running| (1..4).map(|it| sleeps(running.pid(it))).sum::<u64>();
        running.wait_until(|running| running.report(0).work_units > 500 && slept(running) > 50);
        let reports = running.stop();
        let got: u64 = reports[1..].iter().map(|report| report.work_units).sum();
        assert!(0 < got && got <= reports[0].work_units + 1, "{got}, {:?}", reports[0]);
        assert!(reports[1..].iter().any(|report| report.wake_latency_ns.count() > 0));
    }
}
