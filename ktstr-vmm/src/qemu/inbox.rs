//! Data that QEMU has written and the caller has not yet taken.

use std::collections::VecDeque;

use crate::engine::Event;
use crate::error::Error;

/// Bytes that may wait for the caller. Only a wait for QEMU's answer can come near: otherwise
/// nothing is read until the caller has taken all events.
const MAX_QUEUED: usize = 64 << 20;
/// What an event takes besides its bytes: its place in the queue, which grows by doubling, and an
/// allocation. A guest can cause an event for each byte that it writes.
const EVENT_OVERHEAD: usize = 2 * size_of::<Event>() + 32;
/// Bytes at the end of standard error that are kept.
const STDERR_TAIL: usize = 16 << 10;

/// Events in the order of their arrival.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    events: VecDeque<Event>,
    queued: usize,
    received: u64,
    stderr: VecDeque<u8>,
}

impl Inbox {
    /// Adds bytes of the console or of a port, if there are any.
    pub(super) fn add(&mut self, event: Event) -> Result<(), Error> {
        let length = length(&event);
        if length == 0 {
            return Ok(());
        }
        self.queued += EVENT_OVERHEAD + length;
        self.received += length as u64;
        self.events.push_back(event);
        if self.queued > MAX_QUEUED {
            let direction = "for the caller to read them";
            return Err(Error::Overflow { limit_mib: MAX_QUEUED >> 20, direction });
        }
        Ok(())
    }

    /// Adds bytes of QEMU's standard error, of which only the end is kept.
    pub(super) fn add_stderr(&mut self, bytes: &[u8]) {
        self.stderr.extend(bytes);
        let excess = self.stderr.len().saturating_sub(STDERR_TAIL);
        self.stderr.drain(..excess);
        if excess > 0 {
            // Do not begin in the middle of a UTF-8 sequence.
            let cut = self.stderr.iter().take(3).take_while(|byte| *byte & 0xc0 == 0x80).count();
            self.stderr.drain(..cut);
        }
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        self.queued -= EVENT_OVERHEAD + length(&event);
        Some(event)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Returns the total number of bytes that were added for console and ports.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    pub(super) fn stderr(&self) -> String {
        let bytes: Vec<u8> = self.stderr.iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn length(event: &Event) -> usize {
    match event {
        Event::Console(bytes) | Event::Port { bytes, .. } => bytes.len(),
        Event::Exited(_) | Event::Deadline => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pop_returns_events_in_order() {
        let mut inbox = Inbox::default();
        inbox.add(Event::Console(b"one".to_vec())).unwrap();
        inbox.add(Event::Port { port: 2, bytes: Vec::new() }).unwrap();
        inbox.add(Event::Port { port: 1, bytes: b"two".to_vec() }).unwrap();
        assert_eq!(inbox.received(), 6);
        assert_eq!(inbox.pop(), Some(Event::Console(b"one".to_vec())));
        assert_eq!(inbox.pop(), Some(Event::Port { port: 1, bytes: b"two".to_vec() }));
        assert_eq!(inbox.pop(), None);
        assert_eq!((inbox.queued, inbox.received()), (0, 6));
    }

    #[test]
    fn add_limits_the_waiting_bytes() {
        let mut inbox = Inbox::default();
        inbox.add(Event::Console(vec![b'x'; MAX_QUEUED - EVENT_OVERHEAD])).unwrap();
        assert!(inbox.add(Event::Console(vec![b'x'])).is_err());
    }

    #[test]
    fn add_counts_the_memory_of_small_events() {
        let mut inbox = Inbox::default();
        let event = Event::Port { port: 0, bytes: vec![b'x'] };
        let added = (0..2 << 20).take_while(|_| inbox.add(event.clone()).is_ok()).count();
        let slots = inbox.events.capacity() * size_of::<Event>();
        assert!(slots <= MAX_QUEUED, "{slots} bytes for {added} events");
        assert!(added > MAX_QUEUED / 256, "{added}");
    }

    #[test]
    fn add_stderr_keeps_only_the_end() {
        let mut inbox = Inbox::default();
        inbox.add_stderr(&[b'a'; STDERR_TAIL]);
        inbox.add_stderr(b"the end");
        assert_eq!(inbox.stderr().len(), STDERR_TAIL);
        assert!(inbox.stderr().ends_with("aathe end"));
        inbox.add_stderr("\u{20ac}".repeat(STDERR_TAIL).as_bytes());
        assert!(!inbox.stderr().contains(char::REPLACEMENT_CHARACTER), "cut inside a character");
    }
}
