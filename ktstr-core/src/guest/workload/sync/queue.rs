//! A bounded queue between two processes.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Mailbox;

/// A queue with one producer and one consumer.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    put: Mailbox,
    taken: Mailbox,
    items: [AtomicU64; Queue::CAPACITY as usize],
}

impl Queue {
    pub(crate) const CAPACITY: u32 = 16;

    /// Puts an item in when there is room. If it had to sleep, returns when there was room.
    pub(crate) fn put(&self, item: u64) -> io::Result<Option<u64>> {
        let index = self.put.posted();
        let slept = self.taken.wait_for(index.wrapping_add(1).wrapping_sub(Self::CAPACITY))?;
        self.slot(index).store(item, Ordering::Relaxed);
        self.put.post()?;
        Ok(slept)
    }

    /// Takes the oldest item when there is one. If it had to sleep, returns when it was put in.
    pub(crate) fn take(&self) -> io::Result<(u64, Option<u64>)> {
        let index = self.taken.posted();
        let slept = self.put.wait_for(index.wrapping_add(1))?;
        let item = self.slot(index).load(Ordering::Relaxed);
        self.taken.post()?;
        Ok((item, slept))
    }

    fn slot(&self, index: u32) -> &AtomicU64 {
        &self.items[(index % Self::CAPACITY) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn take_returns_each_item_once_in_order() {
        let queue = Queue::default();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..1000).for_each(|item| _ = queue.put(item).unwrap()));
            let taken: Vec<_> = (0..1000).map(|_| queue.take().unwrap().0).collect();
            assert_eq!(taken, (0..1000).collect::<Vec<_>>());
        });
    }
}
