//! A virtqueue: the `virtio-queue` crate's rings, and chains that were checked.
//!
//! The guest can change its memory at any time: an index, a descriptor, a flag is read once, and
//! what was read is what counts.
//!
//! Source: virtio 1.2, 2.7 ("Split Virtqueues").

use std::collections::VecDeque;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::pci::NO_VECTOR;

/// Buffers of a queue. Linux gives a page to each of a receive queue, up to 32 KiB to each of a
/// transmit queue.
pub(super) const QUEUE_SIZE: u16 = 64;

/// The driver broke the rules of a queue; its device is of no use until it is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

/// A virtqueue and what belongs to it.
#[derive(Debug)]
pub(super) struct Virtqueue {
    ring: Queue,
    /// The MSI-X vector of its interrupt.
    pub(super) vector: u16,
    /// Whether the driver told of new buffers that were not all looked at since.
    pub(super) is_kicked: bool,
    /// Whether buffers were used since the driver was told.
    has_used: bool,
}

impl Virtqueue {
    /// Makes a queue that is not enabled; the driver may choose a smaller size, a power of two.
    pub(super) fn new(max_size: u16) -> Self {
        let ring = Queue::new(max_size).expect("the sizes in this crate are powers of two");
        Self { ring, vector: NO_VECTOR, is_kicked: false, has_used: false }
    }

    /// Makes it again what [`Virtqueue::new`] made.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.ring.max_size());
    }

    /// The rings' addresses and size, for the driver to read and, until they are in use, to set.
    pub(super) fn ring(&self) -> &Queue {
        &self.ring
    }

    /// The rings, as long as they are not in use.
    pub(super) fn unused_ring(&mut self) -> Option<&mut Queue> {
        (!self.ring.ready()).then_some(&mut self.ring)
    }

    /// Puts the queue to use, if its rings are in memory.
    pub(super) fn enable(
        &mut self,
        event_idx: bool,
        memory: &GuestMemoryMmap,
    ) -> Result<(), Broken> {
        self.ring.set_event_idx(event_idx);
        self.ring.set_ready(true);
        if self.ring.is_valid(memory) { Ok(()) } else { Err(Broken) }
    }

    /// Takes the next chain that the driver has made available.
    pub(super) fn pop(&mut self, memory: &GuestMemoryMmap) -> Result<Option<Chain>, Broken> {
        if !self.ring.ready() {
            return Ok(None);
        }
        let size = self.ring.size();
        let mut available = self.ring.iter(memory).map_err(|_| Broken)?;
        available.next().map(|chain| Chain::new(chain.head_index(), chain, size)).transpose()
    }

    /// Asks to be told of the next chain; true if there is one already, and nobody will tell.
    pub(super) fn wait(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Broken> {
        if !self.ring.ready() {
            return Ok(false);
        }
        self.ring.enable_notification(memory).map_err(|_| Broken)
    }

    /// Gives a chain back with this many bytes written to it.
    pub(super) fn push(
        &mut self,
        chain: &Chain,
        written: usize,
        memory: &GuestMemoryMmap,
    ) -> Result<(), Broken> {
        self.has_used = true;
        self.ring.add_used(memory, chain.head, written as u32).map_err(|_| Broken)
    }

    /// Whether the driver wants an interrupt for what was given back since the last call.
    pub(super) fn take_interrupt(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Broken> {
        if !std::mem::take(&mut self.has_used) {
            return Ok(false);
        }
        self.ring.needs_notification(memory).map_err(|_| Broken)
    }
}

/// A descriptor chain: what is left to be read from it, and what room there is in it.
#[derive(Debug)]
pub(super) struct Chain {
    head: u16,
    readable: VecDeque<Buffer>,
    writable: VecDeque<Buffer>,
}

#[derive(Debug)]
struct Buffer {
    address: GuestAddress,
    len: usize,
}

impl Chain {
    /// Collects a chain's descriptors, of which it may have as many as its queue.
    ///
    /// That bounds loops and, which no driver was offered but may try, indirect descriptors.
    fn new(
        head: u16,
        mut descriptors: impl Iterator<Item = Descriptor>,
        max_len: u16,
    ) -> Result<Self, Broken> {
        let mut chain = Self { head, readable: VecDeque::new(), writable: VecDeque::new() };
        for _ in 0..max_len {
            // An iterator that ends before the chain does has met something it would not follow.
            let descriptor = descriptors.next().ok_or(Broken)?;
            if descriptor.len() > 0 {
                let buffer = Buffer { address: descriptor.addr(), len: descriptor.len() as usize };
                match descriptor.is_write_only() {
                    true => chain.writable.push_back(buffer),
                    false => chain.readable.push_back(buffer),
                }
            }
            if !descriptor.has_next() {
                return Ok(chain);
            }
        }
        Err(Broken)
    }

    /// Whether all of it was read.
    pub(super) fn is_read(&self) -> bool {
        self.readable.is_empty()
    }

    /// Reads up to `limit` bytes more, to the end of `bytes`.
    pub(super) fn read(
        &mut self,
        limit: usize,
        bytes: &mut Vec<u8>,
        memory: &GuestMemoryMmap,
    ) -> Result<(), Broken> {
        let end = bytes.len() + limit;
        while bytes.len() < end {
            let Some(buffer) = self.readable.front_mut() else { break };
            let start = bytes.len();
            let count = buffer.len.min(end - start);
            bytes.resize(start + count, 0);
            if memory.read_slice(&mut bytes[start..], buffer.address).is_err() {
                bytes.truncate(start);
                return Err(Broken);
            }
            if buffer.skip(count) {
                self.readable.pop_front();
            }
        }
        Ok(())
    }

    /// Writes as many of the bytes as there is room for; returns how many.
    pub(super) fn write(
        &mut self,
        bytes: &[u8],
        memory: &GuestMemoryMmap,
    ) -> Result<usize, Broken> {
        let mut written = 0;
        while written < bytes.len() {
            let Some(buffer) = self.writable.front_mut() else { break };
            let count = buffer.len.min(bytes.len() - written);
            let piece = &bytes[written..written + count];
            memory.write_slice(piece, buffer.address).map_err(|_| Broken)?;
            written += count;
            if buffer.skip(count) {
                self.writable.pop_front();
            }
        }
        Ok(written)
    }
}

impl Buffer {
    /// Leaves out its first bytes, which were found to be in memory; true if none are left.
    fn skip(&mut self, count: usize) -> bool {
        self.address.0 = self.address.0.wrapping_add(count as u64);
        self.len -= count;
        self.len == 0
    }
}
