//! A port of the console: a byte stream in each direction.
//!
//! Source: virtio 1.2, 5.3.6 ("Device Operation").

use std::collections::VecDeque;

use vm_memory::GuestMemoryMmap;

use super::super::board::Board;
use super::control::ToDriver;
use super::queue::{Broken, Chain, QUEUE_SIZE, Virtqueue};
use crate::error::Error;

/// The most that waits for the guest to read it.
const MAX_UNREAD: usize = 64 << 20;
/// The most that one step moves in each direction.
const STEP: usize = 256 << 10;

/// What is known of a port.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) name: String,
    /// Whether the driver has its end open. Linux throws away what it receives before.
    pub(super) is_open: bool,
    pub(super) to_driver: ToDriver,
    /// What the guest has yet to receive.
    unread: VecDeque<u8>,
    /// A chain of which a part is transmitted.
    current: Option<Chain>,
}

impl Port {
    /// Makes a port that nobody has open.
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            is_open: false,
            to_driver: ToDriver::default(),
            unread: VecDeque::new(),
            current: None,
        }
    }

    /// Forgets the driver, but not what it has yet to receive.
    pub(super) fn reset(&mut self) {
        let unread = std::mem::take(&mut self.unread);
        *self = Self { unread, ..Self::new(std::mem::take(&mut self.name)) };
    }

    /// Queues bytes for the driver to receive.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.unread.len() + bytes.len() > MAX_UNREAD {
            return Err(Error::Overflow {
                limit_mib: MAX_UNREAD >> 20,
                direction: "for the guest to read them",
            });
        }
        self.unread.extend(bytes);
        Ok(())
    }

    /// Whether there is something to receive and somebody to receive it.
    pub(super) fn can_receive(&self) -> bool {
        self.is_open && !self.unread.is_empty()
    }

    /// Fills the driver's buffers; true if there are more of them, and more to fill them with.
    pub(super) fn receive(
        &mut self,
        queue: &mut Virtqueue,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, Broken> {
        let mut left = STEP;
        for _ in 0..QUEUE_SIZE {
            if !self.can_receive() {
                return Ok(false);
            }
            if left == 0 {
                break;
            }
            let Some(mut chain) = queue.pop(memory)? else {
                if queue.wait(memory)? {
                    continue;
                }
                return Ok(false);
            };
            let written = self.fill(&mut chain, left, memory)?;
            left -= written;
            queue.push(&chain, written, memory)?;
        }
        Ok(true)
    }

    fn fill(
        &mut self,
        chain: &mut Chain,
        limit: usize,
        memory: &GuestMemoryMmap,
    ) -> Result<usize, Broken> {
        let (front, back) = self.unread.as_slices();
        let front = &front[..front.len().min(limit)];
        let mut written = chain.write(front, memory)?;
        if written == front.len() {
            written += chain.write(&back[..back.len().min(limit - written)], memory)?;
        }
        self.unread.drain(..written);
        if self.unread.is_empty() {
            // Not to keep the memory of the largest transfer for the machine's whole life.
            self.unread = VecDeque::new();
        }
        Ok(written)
    }

    /// Hands over what the driver transmits, as far as there is room; true if there is more.
    pub(super) fn transmit(
        &mut self,
        index: usize,
        queue: &mut Virtqueue,
        board: &dyn Board,
    ) -> Result<bool, Broken> {
        if !queue.is_kicked {
            return Ok(false);
        }
        let mut bytes = Vec::new();
        let result = self.collect(&mut bytes, queue, board);
        // What came before a broken chain counts: it may be the last words of the guest.
        if !bytes.is_empty() {
            board.port(index, bytes);
        }
        result.map(|()| queue.is_kicked)
    }

    fn collect(
        &mut self,
        bytes: &mut Vec<u8>,
        queue: &mut Virtqueue,
        board: &dyn Board,
    ) -> Result<(), Broken> {
        let memory = board.memory();
        let limit = board.port_room().min(STEP);
        for _ in 0..=QUEUE_SIZE {
            let chain = match self.current.take() {
                Some(chain) => Some(chain),
                None => queue.pop(memory)?,
            };
            let Some(mut chain) = chain else {
                queue.is_kicked = queue.wait(memory)?;
                if queue.is_kicked {
                    continue;
                }
                return Ok(());
            };
            chain.read(limit - bytes.len(), bytes, memory)?;
            if !chain.is_read() {
                self.current = Some(chain);
                break;
            }
            queue.push(&chain, 0, memory)?;
        }
        Ok(())
    }
}
