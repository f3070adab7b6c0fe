//! A port of the console: a byte stream in each direction.
//!
//! Source: virtio 1.2, 5.3.6 ("Device Operation").

use std::collections::VecDeque;

use vm_memory::GuestMemoryMmap;

use super::super::board::Board;
use super::control::ToDriver;
use super::queue::{Broken, Chain, ChainState, QUEUE_SIZE, Virtqueue};
use crate::error::Error;
use crate::kvm::codec::{StateError, fields};

/// Bytes that may wait for the guest to read them.
const MAX_UNREAD: usize = 64 << 20;
/// Bytes that one call moves in each direction at most.
const STEP: usize = 256 << 10;

/// The state of a port.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) name: String,
    /// The driver has its end open. Linux discards bytes that it receives before.
    pub(super) is_open: bool,
    pub(super) to_driver: ToDriver,
    /// Bytes that the guest has not received yet.
    unread: VecDeque<u8>,
    /// A chain of which only a part was transmitted.
    current: Option<Chain>,
}

/// The saved state of a [`Port`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PortState {
    name: String,
    is_open: bool,
    to_driver: ToDriver,
    unread: Vec<u8>,
    current: Option<ChainState>,
}

fields!(PortState { name, is_open, to_driver, unread, current });

impl Port {
    /// Creates a port that the driver does not have open.
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            is_open: false,
            to_driver: ToDriver::default(),
            unread: VecDeque::new(),
            current: None,
        }
    }

    /// Returns the state to save.
    pub(super) fn save(&self) -> PortState {
        PortState {
            name: self.name.clone(),
            is_open: self.is_open,
            to_driver: self.to_driver.clone(),
            unread: self.unread.iter().copied().collect(),
            current: self.current.as_ref().map(Chain::save),
        }
    }

    /// Restores a saved state into a new port.
    pub(super) fn restore(&mut self, state: &PortState) -> Result<(), StateError> {
        if state.name != self.name {
            return Err(StateError::Device { what: "name of a port" });
        }
        if state.unread.len() > MAX_UNREAD {
            return Err(StateError::Device { what: "number of bytes for a port" });
        }
        self.is_open = state.is_open;
        self.to_driver.clone_from(&state.to_driver);
        self.unread = state.unread.clone().into();
        self.current = state.current.as_ref().map(Chain::restore);
        Ok(())
    }

    /// Returns to the initial state, except for the bytes that a driver has yet to receive.
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

    /// Returns whether there are bytes to receive and the driver has the port open.
    pub(super) fn can_receive(&self) -> bool {
        self.is_open && !self.unread.is_empty()
    }

    /// Fills the driver's buffers. Returns whether bytes are left for which there may be buffers.
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
                // A buffer may have arrived between `pop` and the request for a notification.
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

    /// Writes unread bytes to a chain, at most `limit`, and returns how many.
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
            // Frees the memory of the largest transfer.
            self.unread = VecDeque::new();
        }
        Ok(written)
    }

    /// Hands the driver's output to the board, as far as it has room. Returns whether more is left.
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
        // Bytes before a broken chain are valid: they may be the last output of the guest.
        if !bytes.is_empty() {
            board.port(index, bytes);
        }
        result.map(|()| queue.is_kicked)
    }

    /// Takes chains out of the transmit queue and appends their bytes to `bytes`.
    fn collect(
        &mut self,
        bytes: &mut Vec<u8>,
        queue: &mut Virtqueue,
        board: &dyn Board,
    ) -> Result<(), Broken> {
        let memory = board.memory();
        let limit = board.port_room().min(STEP);
        for _ in 0..=QUEUE_SIZE {
            // 1. Continue with the chain that did not fit last time, else take the next one.
            let chain = match self.current.take() {
                Some(chain) => Some(chain),
                None => queue.pop(memory)?,
            };
            let Some(mut chain) = chain else {
                // 2. The queue is empty, unless a chain arrived before the request for a
                // notification.
                queue.is_kicked = queue.wait(memory)?;
                if queue.is_kicked {
                    continue;
                }
                return Ok(());
            };
            // 3. Without room for the rest of the chain, keep it. It is used only once it was read
            // completely, because then the driver may reuse its memory.
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
