//! A virtqueue: the rings of the `virtio-queue` crate, and descriptor chains that were checked.
//!
//! The guest can change its memory at any time. So each index, descriptor and flag is read once,
//! and only the copy is checked and used.
//!
//! Source: virtio 1.2, 2.7 ("Split Virtqueues").

use std::collections::VecDeque;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::pci::NO_VECTOR;
use crate::kvm::codec::{StateError, fields};

/// The number of descriptors of a queue. Linux's buffers are a page in a receive queue and up to
/// 32 KiB in a transmit queue.
pub(super) const QUEUE_SIZE: u16 = 64;

/// The driver violated the rules of a queue. The device does no work until it is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

/// A virtqueue and its notifications in both directions.
#[derive(Debug)]
pub(super) struct Virtqueue {
    ring: Queue,
    /// The MSI-X vector of its interrupt.
    pub(super) vector: u16,
    /// The driver notified the device of buffers, and not all of them were processed since.
    pub(super) is_kicked: bool,
    /// Buffers were used since the driver was notified.
    has_used: bool,
}

/// The saved state of a [`Virtqueue`]: its rings as the driver has set them up, and how far they were
/// processed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VirtqueueState {
    size: u16,
    is_ready: bool,
    event_idx: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
    next_avail: u16,
    next_used: u16,
    /// See [`Virtqueue::vector`].
    pub(super) vector: u16,
    is_kicked: bool,
}

fields!(VirtqueueState {
    size,
    is_ready,
    event_idx,
    desc_table,
    avail_ring,
    used_ring,
    next_avail,
    next_used,
    vector,
    is_kicked,
});

impl Virtqueue {
    /// Creates a queue that is not enabled. The driver may choose a smaller size, a power of two.
    pub(super) fn new(max_size: u16) -> Self {
        let ring = Queue::new(max_size).expect("the sizes in this crate are powers of two");
        Self { ring, vector: NO_VECTOR, is_kicked: false, has_used: false }
    }

    /// Returns the queue to the state that [`Virtqueue::new`] creates.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.ring.max_size());
    }

    /// Returns the state to save.
    ///
    /// Used buffers of which the driver has not been notified yet exist only while the device works,
    /// and in a device that needs a reset, which notifies no driver any more.
    pub(super) fn save(&self) -> VirtqueueState {
        let ring = self.ring.state();
        VirtqueueState {
            size: ring.size,
            is_ready: ring.ready,
            event_idx: ring.event_idx_enabled,
            desc_table: ring.desc_table,
            avail_ring: ring.avail_ring,
            used_ring: ring.used_ring,
            next_avail: ring.next_avail,
            next_used: ring.next_used,
            vector: self.vector,
            is_kicked: self.is_kicked,
        }
    }

    /// Restores a saved state into a new queue. Rings that are not in memory are found when they are
    /// accessed, as those of a driver.
    pub(super) fn restore(&mut self, state: &VirtqueueState) -> Result<(), StateError> {
        let ring = QueueState {
            max_size: self.ring.max_size(),
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx,
            size: state.size,
            ready: state.is_ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        };
        self.ring = Queue::try_from(ring)
            .map_err(|_| StateError::Device { what: "rings of a virtqueue" })?;
        self.vector = state.vector;
        self.is_kicked = state.is_kicked;
        Ok(())
    }

    /// Returns the rings: the driver can read their addresses and size.
    pub(super) fn ring(&self) -> &Queue {
        &self.ring
    }

    /// Returns the rings for the driver to configure, or `None` once the queue is enabled.
    pub(super) fn unused_ring(&mut self) -> Option<&mut Queue> {
        (!self.ring.ready()).then_some(&mut self.ring)
    }

    /// Enables the queue. Fails if its rings are not in memory.
    pub(super) fn enable(
        &mut self,
        event_idx: bool,
        memory: &GuestMemoryMmap,
    ) -> Result<(), Broken> {
        self.ring.set_event_idx(event_idx);
        self.ring.set_ready(true);
        if self.ring.is_valid(memory) { Ok(()) } else { Err(Broken) }
    }

    /// Takes the next chain out of the available ring.
    pub(super) fn pop(&mut self, memory: &GuestMemoryMmap) -> Result<Option<Chain>, Broken> {
        if !self.ring.ready() {
            return Ok(None);
        }
        let size = self.ring.size();
        // Fails if the available index is more than a queue ahead: the driver has overwritten
        // entries that were not taken.
        let mut available = self.ring.iter(memory).map_err(|_| Broken)?;
        available.next().map(|chain| Chain::new(chain.head_index(), chain, size)).transpose()
    }

    /// Requests a notification of the next chain. Returns true if there already is one: the driver
    /// does not notify the device of that.
    pub(super) fn wait(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Broken> {
        if !self.ring.ready() {
            return Ok(false);
        }
        self.ring.enable_notification(memory).map_err(|_| Broken)
    }

    /// Puts a chain with this many bytes written to it into the used ring.
    pub(super) fn push(
        &mut self,
        chain: &Chain,
        written: usize,
        memory: &GuestMemoryMmap,
    ) -> Result<(), Broken> {
        self.has_used = true;
        self.ring.add_used(memory, chain.head, written as u32).map_err(|_| Broken)
    }

    /// Returns whether to interrupt the driver for the chains that were used since the last call.
    pub(super) fn take_interrupt(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Broken> {
        if !std::mem::take(&mut self.has_used) {
            return Ok(false);
        }
        self.ring.needs_notification(memory).map_err(|_| Broken)
    }
}

/// The rest of a descriptor chain: the bytes not yet read from it, and the room left in it.
#[derive(Debug)]
pub(super) struct Chain {
    head: u16,
    readable: VecDeque<Buffer>,
    writable: VecDeque<Buffer>,
}

#[derive(Debug, Clone, Copy)]
struct Buffer {
    address: GuestAddress,
    len: usize,
}

/// The saved state of a [`Chain`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChainState {
    head: u16,
    readable: Vec<BufferState>,
    writable: Vec<BufferState>,
}

fields!(ChainState { head, readable, writable });

#[derive(Debug, Clone, PartialEq, Eq)]
struct BufferState {
    address: u64,
    len: u32,
}

fields!(BufferState { address, len });

impl Chain {
    /// Collects the descriptors of a chain, at most as many as its queue has.
    ///
    /// The limit ends loops, also those in indirect tables, which the device does not offer but the
    /// iterator follows.
    fn new(
        head: u16,
        mut descriptors: impl Iterator<Item = Descriptor>,
        max_len: u16,
    ) -> Result<Self, Broken> {
        let mut chain = Self { head, readable: VecDeque::new(), writable: VecDeque::new() };
        for _ in 0..max_len {
            // The iterator ends before the chain does at a descriptor that is not in the table, at
            // a table that is not in memory, or at one inside of another.
            let descriptor = descriptors.next().ok_or(Broken)?;
            if descriptor.len() > 0 {
                let buffer = Buffer { address: descriptor.addr(), len: descriptor.len() as usize };
                if descriptor.is_write_only() {
                    chain.writable.push_back(buffer);
                } else {
                    chain.readable.push_back(buffer);
                }
            }
            if !descriptor.has_next() {
                return Ok(chain);
            }
        }
        Err(Broken)
    }

    /// Returns the state to save.
    pub(super) fn save(&self) -> ChainState {
        // No length was truncated: each is at most that of its descriptor.
        let state =
            |buffer: &Buffer| BufferState { address: buffer.address.0, len: buffer.len as u32 };
        ChainState {
            head: self.head,
            readable: self.readable.iter().map(state).collect(),
            writable: self.writable.iter().map(state).collect(),
        }
    }

    /// Restores a saved state. Buffers that are not in memory are found when they are accessed.
    pub(super) fn restore(state: &ChainState) -> Self {
        let buffer = |state: &BufferState| Buffer {
            address: GuestAddress(state.address),
            len: state.len as usize,
        };
        Self {
            head: state.head,
            readable: state.readable.iter().map(buffer).collect(),
            writable: state.writable.iter().map(buffer).collect(),
        }
    }

    /// Returns whether all readable bytes were read.
    pub(super) fn is_read(&self) -> bool {
        self.readable.is_empty()
    }

    /// Appends up to `limit` bytes of the chain to `bytes`.
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
                // The bytes of the buffers before are valid output of the guest.
                bytes.truncate(start);
                return Err(Broken);
            }
            if buffer.skip(count) {
                self.readable.pop_front();
            }
        }
        Ok(())
    }

    /// Writes as many of the bytes as the chain has room for, and returns how many.
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
    /// Removes the first bytes of the buffer, and returns whether none are left.
    fn skip(&mut self, count: usize) -> bool {
        // No overflow that matters: the bytes were just accessed, so their range is in memory.
        self.address.0 = self.address.0.wrapping_add(count as u64);
        self.len -= count;
        self.len == 0
    }
}
