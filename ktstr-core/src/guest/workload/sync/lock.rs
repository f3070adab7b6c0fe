//! A mutex between processes.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::thread::futex;

use crate::linux::sys::since_boot_ns;

const FREE: u32 = 0;
const HELD: u32 = 1;
const AWAITED: u32 = 2;

/// The third mutex of Ulrich Drepper's "Futexes Are Tricky": no system call without contention.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Lock {
    state: AtomicU32,
    freed_at_ns: AtomicU64,
}

impl Lock {
    /// Takes the lock. If it had to sleep, returns when the lock was last freed, in nanoseconds since
    /// boot.
    pub(crate) fn lock(&self) -> io::Result<Option<u64>> {
        let free = self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed);
        if free.is_ok() {
            return Ok(None);
        }
        let mut slept = false;
        while self.state.swap(AWAITED, Ordering::Acquire) != FREE {
            match futex::wait(&self.state, futex::Flags::empty(), AWAITED, None) {
                Ok(()) => slept = true,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(slept.then(|| self.freed_at_ns.load(Ordering::Relaxed)))
    }

    /// Frees the lock, which the caller holds, and wakes one waiter.
    pub(crate) fn unlock(&self) -> io::Result<()> {
        self.freed_at_ns.store(since_boot_ns(), Ordering::Relaxed);
        if self.state.swap(FREE, Ordering::Release) == AWAITED {
            futex::wake(&self.state, futex::Flags::empty(), 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_at_a_time() {
        let (lock, counter) = (Lock::default(), AtomicU64::new(0));
        let count = || {
            for _ in 0..1000 {
                lock.lock().unwrap();
                // Two steps, between which another one would be lost.
                let seen = counter.load(Ordering::Relaxed);
                std::hint::spin_loop();
                counter.store(seen + 1, Ordering::Relaxed);
                lock.unlock().unwrap();
            }
        };
        std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(count))));
        assert_eq!(counter.into_inner(), 3000);
    }
}
