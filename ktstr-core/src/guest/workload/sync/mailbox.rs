//! A counter on which a process can wait.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::thread::futex;

use crate::linux::sys::since_boot_ns;

/// Counts posts, modulo 2^32.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Mailbox {
    posted: AtomicU32,
    posted_at_ns: AtomicU64,
}

impl Mailbox {
    /// Posts one and wakes one waiter.
    pub(crate) fn post(&self) -> io::Result<()> {
        self.post_to(1)
    }

    /// Posts one and wakes all waiters.
    pub(crate) fn post_to_all(&self) -> io::Result<()> {
        self.post_to(i32::MAX as u32)
    }

    fn post_to(&self, waiters: u32) -> io::Result<()> {
        self.note();
        self.posted.fetch_add(1, Ordering::Release);
        futex::wake(&self.posted, futex::Flags::empty(), waiters)?;
        Ok(())
    }

    /// Records the time of something that is posted elsewhere.
    pub(crate) fn note(&self) {
        self.posted_at_ns.store(since_boot_ns(), Ordering::Relaxed);
    }

    /// Returns the time of the last post or note, in nanoseconds since boot.
    pub(crate) fn noted_ns(&self) -> u64 {
        self.posted_at_ns.load(Ordering::Relaxed)
    }

    pub(crate) fn posted(&self) -> u32 {
        self.posted.load(Ordering::Acquire)
    }

    /// Waits until `count` were posted. If it had to sleep, returns when the last was posted, in
    /// nanoseconds since boot.
    pub(crate) fn wait_for(&self, count: u32) -> io::Result<Option<u64>> {
        let mut slept = false;
        loop {
            let posted = self.posted();
            // As a signed distance, because both counters wrap.
            if posted.wrapping_sub(count) as i32 >= 0 {
                return Ok(slept.then(|| self.noted_ns()));
            }
            match futex::wait(&self.posted, futex::Flags::empty(), posted, None) {
                Ok(()) => slept = true,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_for_returns_at_once_if_enough_were_posted() {
        let mailbox = Mailbox::default();
        mailbox.post().unwrap();
        mailbox.post_to_all().unwrap();
        assert_eq!((mailbox.posted(), mailbox.wait_for(2).unwrap()), (2, None));
    }

    #[test]
    fn wait_for_returns_the_time_of_the_last_post() {
        let mailbox = Mailbox { posted: AtomicU32::new(u32::MAX), ..Mailbox::default() };
        let before = since_boot_ns();
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| mailbox.wait_for(1).unwrap());
            mailbox.post().unwrap();
            assert_eq!(mailbox.posted(), 0, "one is missing yet");
            mailbox.post().unwrap();
            if let Some(posted_at) = sleeper.join().unwrap() {
                assert!((before..=since_boot_ns()).contains(&posted_at));
            }
        });
    }
}
