//! The thread that reads a child's output.
//!
//! It runs as an ordinary task, with less priority than PID 1's own thread: a body that floods its output
//! competes with a reader of its own weight, and delays neither the heartbeat nor the workers. PID 1 only
//! numbers the payloads that the thread has encoded and writes them to the port.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use super::pipe::set_nonblocking;
use crate::linux::sync::lock;
use crate::linux::sys;
use crate::model::wire::{GuestMessage, Payload, Stream};

/// The most bytes that one read takes: the default capacity of a pipe.
const CHUNK: usize = 1 << 16;

/// The number of payloads that may wait for PID 1; beyond, the output stays in its pipes.
const WAITING: usize = 4;

/// The delay of the next read after one that found little: a frame for each short line would cost more
/// than the lines. The first line is read at once.
const GATHER: Duration = Duration::from_millis(2);

/// The time without room after which PID 1 is signalled again.
const SIGNAL_AGAIN: Duration = Duration::from_millis(10);

/// Fewer bytes than this are little: the pipe is not full, so the writer does not wait.
const LITTLE: usize = CHUNK / 2;

/// The output of a child, read by a thread for PID 1.
#[derive(Debug)]
pub(super) struct Output {
    shared: Arc<Shared>,
    /// `None` once it has handed over everything and was joined.
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    handover: Mutex<Handover>,
    /// Notified when PID 1 has taken the payloads.
    taken: Condvar,
    /// Readable when there are payloads for PID 1. Signalled after the lock is released.
    ready: OwnedFd,
    /// Readable when the thread has to read what the pipes hold and to end.
    finish: OwnedFd,
}

#[derive(Debug, Default)]
struct Handover {
    payloads: VecDeque<Payload>,
    is_complete: bool,
}

impl Output {
    /// Starts the thread, which reads `pipes` until each is at its end.
    ///
    /// # Errors
    ///
    /// If memory for a thread is lacking.
    pub(super) fn start(pipes: Vec<(Stream, OwnedFd)>) -> Result<Self> {
        for (_, pipe) in &pipes {
            set_nonblocking(pipe)?;
        }
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let shared = Arc::new(Shared {
            handover: Mutex::default(),
            taken: Condvar::new(),
            ready: event().context("failed to create an eventfd")?,
            finish: event().context("failed to create an eventfd")?,
        });
        let theirs = Arc::clone(&shared);
        // SCHED_RESET_ON_FORK of PID 1's thread makes it an ordinary task from its first instruction.
        let thread = std::thread::Builder::new()
            .name("ktstr-output".to_owned())
            .spawn(move || theirs.pump(pipes))
            .context("failed to start the thread of the output")?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Returns a descriptor that is readable once [`Output::take`] has something to return.
    pub(super) fn ready(&self) -> BorrowedFd<'_> {
        self.shared.ready.as_fd()
    }

    /// Returns the payloads that the thread has encoded, without waiting for it.
    pub(super) fn take(&mut self) -> VecDeque<Payload> {
        // Cleared first: payloads that are added from now on signal again.
        clear(&self.shared.ready);
        let (payloads, is_complete) = match self.shared.handover.try_lock() {
            Ok(mut handover) => (std::mem::take(&mut handover.payloads), handover.is_complete),
            // The thread adds a payload at this moment, perhaps preempted, and signals afterwards.
            Err(TryLockError::WouldBlock) => return VecDeque::new(),
            Err(TryLockError::Poisoned(_)) => (VecDeque::new(), true),
        };
        self.shared.taken.notify_one();
        if is_complete && let Some(thread) = self.thread.take() {
            // The thread is about to end. The message of its panic, if any, is on the console.
            let _ = thread.join();
        }
        payloads
    }

    /// Makes the thread read what the pipes hold now and end, with priority over all but PID 1's thread.
    pub(super) fn finish(&self) -> Result<()> {
        signal(&self.shared.finish);
        let Some(thread) = &self.thread else { return Ok(()) };
        sys::raise_priority(thread).context("failed to raise the priority of the output's thread")
    }

    /// Returns whether all output was taken.
    pub(super) fn is_complete(&self) -> bool {
        self.thread.is_none()
    }
}

impl Shared {
    fn pump(&self, mut pipes: Vec<(Stream, OwnedFd)>) {
        let mut buffer = Vec::with_capacity(CHUNK);
        let mut last_read = (Instant::now(), CHUNK);
        while !pipes.is_empty() && !self.wait_for_output(&pipes, last_read) {
            let mut most = 0;
            pipes.retain(|(stream, pipe)| {
                let taken = self.forward(*stream, pipe, &mut buffer);
                most = most.max(taken.unwrap_or(0));
                taken.is_some()
            });
            last_read = (Instant::now(), most);
        }
        // Only what the pipes held at the child's end: processes that it left running may write forever.
        for (stream, pipe) in &pipes {
            let mut left =
                usize::try_from(rustix::io::ioctl_fionread(pipe).unwrap_or(0)).unwrap_or(0);
            while left > 0
                && let Some(count @ 1..) = self.forward(*stream, pipe, &mut buffer)
            {
                left = left.saturating_sub(count);
            }
        }
        self.change(|handover| handover.is_complete = true);
    }

    /// Waits until a pipe can be read, and after little output until the delay is over. Returns whether the
    /// thread has to finish.
    fn wait_for_output(
        &self,
        pipes: &[(Stream, OwnedFd)],
        (when, count): (Instant, usize),
    ) -> bool {
        let mut fds = vec![PollFd::new(&self.finish, PollFlags::IN)];
        fds.extend(pipes.iter().map(|(_, pipe)| PollFd::new(pipe, PollFlags::IN)));
        // After an interrupted or failed wait, the read finds nothing.
        let _ = poll(&mut fds, None);
        let gathered = when + GATHER;
        let left = gathered.saturating_duration_since(Instant::now());
        if fds[0].revents().is_empty() && count < LITTLE && !left.is_zero() {
            let timeout = left.try_into().ok();
            let _ = poll(&mut fds[..1], timeout.as_ref());
        }
        !fds[0].revents().is_empty()
    }

    /// Reads once and hands over the bytes. Returns their number; `None` at the end of the pipe.
    fn forward(&self, stream: Stream, pipe: &OwnedFd, buffer: &mut Vec<u8>) -> Option<usize> {
        buffer.clear();
        match rustix::io::read(pipe, spare_capacity(buffer)) {
            // EIO is the end of a terminal that no process has open any more.
            Ok(0) | Err(Errno::IO) => return None,
            Ok(_) => {}
            Err(_) => return Some(0),
        }
        let count = buffer.len();
        let log = GuestMessage::Log { stream, bytes: std::mem::take(buffer) };
        let payload = Payload::encode(&log).expect("a chunk is far smaller than a frame");
        if let GuestMessage::Log { bytes, .. } = log {
            *buffer = bytes;
        }
        self.wait_for_room();
        self.change(|handover| handover.payloads.push_back(payload));
        Some(count)
    }

    fn wait_for_room(&self) {
        let is_full = |handover: &mut Handover| handover.payloads.len() >= WAITING;
        loop {
            let handover = lock(&self.handover);
            let waited = self.taken.wait_timeout_while(handover, SIGNAL_AGAIN, is_full);
            let (handover, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            drop(handover);
            if !timeout.timed_out() {
                return;
            }
            // PID 1 may have found the lock held by this check, and taken nothing.
            signal(&self.ready);
        }
    }

    /// Changes the handover, and signals PID 1 once the lock is released.
    fn change(&self, change: impl FnOnce(&mut Handover)) {
        change(&mut lock(&self.handover));
        signal(&self.ready);
    }
}

/// Makes an eventfd readable.
fn signal(event: &OwnedFd) {
    // The write fails only if the counter is near its limit, and it is readable then.
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

fn clear(event: &OwnedFd) {
    let _: Result<usize, _> = rustix::io::read(event, &mut [0_u8; 8][..]);
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::pipe::output_pipe;
    use super::*;
    use crate::model::wire::{Decoder, Encoder};

    /// Takes until the output is complete. Returns the bytes of each stream, and the number of frames.
    fn take_all(output: &mut Output) -> (Vec<u8>, Vec<u8>, usize) {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        let (mut stdout, mut stderr, mut frames) = (Vec::new(), Vec::new(), 0);
        while !output.is_complete() {
            poll(&mut [PollFd::from_borrowed_fd(output.ready(), PollFlags::IN)], None).unwrap();
            for payload in output.take() {
                decoder.push(&encoder.seal(payload));
                frames += 1;
                match decoder.next().unwrap() {
                    Some(GuestMessage::Log { stream: Stream::Stdout, bytes }) => {
                        stdout.extend(bytes)
                    }
                    Some(GuestMessage::Log { stream: Stream::Stderr, bytes }) => {
                        stderr.extend(bytes)
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        (stdout, stderr, frames)
    }

    #[test]
    fn take_returns_all_output_in_order() {
        let (out, out_writer) = output_pipe().unwrap();
        let (err, err_writer) = output_pipe().unwrap();
        let mut output = Output::start(vec![(Stream::Stdout, out), (Stream::Stderr, err)]).unwrap();
        let lines: Vec<String> = (0..40_000).map(|number| format!("line {number}\n")).collect();
        let text = lines.concat();
        let (stdout, stderr, frames) = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut writer = std::fs::File::from(out_writer);
                lines.iter().for_each(|line| writer.write_all(line.as_bytes()).unwrap());
                std::fs::File::from(err_writer).write_all(b"last words").unwrap();
            });
            take_all(&mut output)
        });
        assert!(stdout == text.as_bytes());
        assert_eq!(stderr, b"last words");
        assert!(frames < lines.len() / 2, "{frames} frames for {} lines", lines.len());
    }

    #[test]
    fn pump_leaves_output_in_its_pipe_while_it_is_not_taken() {
        let (out, writer) = output_pipe().unwrap();
        let mut output = Output::start(vec![(Stream::Stdout, out)]).unwrap();
        set_nonblocking(&writer).unwrap();
        let mut written = 0;
        // Until the pipe stays full although the thread had time to read.
        loop {
            let timeout = Duration::from_millis(500).try_into().unwrap();
            match poll(&mut [PollFd::new(&writer, PollFlags::OUT)], Some(&timeout)).unwrap() {
                0 => break,
                _ => written += rustix::io::write(&writer, &[b'x'; 4096]).unwrap_or(0),
            }
            assert!(written < 2 * (WAITING + 2) * CHUNK, "the output is unbounded");
        }
        drop(writer);
        assert_eq!(take_all(&mut output).0.len(), written);
    }

    #[test]
    fn finish_reads_what_a_pipe_holds_although_it_stays_open() {
        let (out, writer) = output_pipe().unwrap();
        let mut output = Output::start(vec![(Stream::Stdout, out)]).unwrap();
        let mut left_running = std::fs::File::from(writer);
        left_running.write_all(&[b'x'; 60_000]).unwrap();
        signal(&output.shared.finish);
        assert_eq!(take_all(&mut output).0.len(), 60_000);
        drop(left_running);
    }

    #[test]
    fn take_that_finds_the_lock_held_is_signalled_again() {
        let (out, writer) = output_pipe().unwrap();
        let mut output = Output::start(vec![(Stream::Stdout, out)]).unwrap();
        std::thread::spawn(move || {
            let _ = std::fs::File::from(writer).write_all(&[b'x'; (WAITING + 2) * CHUNK]);
        });
        let shared = Arc::clone(&output.shared);
        loop {
            let handover = shared.handover.lock().unwrap();
            if handover.payloads.len() == WAITING {
                // As while the thread looks for room; this clears the signal.
                assert!(output.take().is_empty());
                break;
            }
            drop(handover);
            std::thread::yield_now();
        }
        assert!(take_all(&mut output).0.len() == (WAITING + 2) * CHUNK);
    }
}
