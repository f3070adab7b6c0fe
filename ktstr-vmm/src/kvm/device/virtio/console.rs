//! The virtio console: ports that are byte streams, and the control queues that tell of them.
//!
//! Queues are in pairs, the driver's receive queue first: port 0, which a driver without multiport
//! takes for its only one and to which nothing is connected; control; then ports 1 and up.
//!
//! Source: virtio 1.2, 5.3 ("Console Device").

use std::collections::VecDeque;

use vm_memory::GuestMemoryMmap;

use super::super::{Backlog, Board};
use super::control::{FromDriver, MESSAGE, ToDriver};
use super::queue::{Broken, Chain, Virtqueue};
use crate::Error;

/// The most ports there can be: as many as QEMU's console has if it is not told otherwise.
pub(in crate::kvm) const MAX_PORTS: usize = 30;

/// `VIRTIO_CONSOLE_F_MULTIPORT`.
pub(super) const F_MULTIPORT: u64 = 1 << 1;

/// Buffers of a queue. Linux gives a page to each of a receive queue, up to 32 KiB to each of a
/// transmit queue.
const QUEUE_SIZE: u16 = 64;
/// The most that waits for the guest to read it, of each port.
const MAX_UNREAD: usize = 64 << 20;
/// The most that one step moves, of each queue.
const STEP: usize = 256 << 10;

const UNUSED_TRANSMIT: usize = 1;
const CONTROL_RECEIVE: usize = 2;
const CONTROL_TRANSMIT: usize = 3;
/// The first queue of the ports that are used.
const PORTS: usize = 4;

/// The device behind the queues.
#[derive(Debug)]
pub(super) struct Console {
    ports: Vec<Port>,
    wants_service: bool,
    wants_room: bool,
}

#[derive(Debug)]
struct Port {
    name: String,
    /// Whether the driver has its end open. Linux throws away what it receives before.
    is_open: bool,
    to_driver: ToDriver,
    /// What the guest has yet to receive.
    unread: VecDeque<u8>,
    /// A chain of which a part is transmitted.
    current: Option<Chain>,
}

impl Console {
    /// Makes a console with these ports, at most [`MAX_PORTS`].
    pub(super) fn new(names: &[String]) -> Self {
        let ports = names.iter().map(|name| Port::new(name.clone())).collect();
        Self { ports, wants_service: false, wants_room: false }
    }

    /// Makes its queues.
    pub(super) fn queues(&self) -> Vec<Virtqueue> {
        (0..PORTS + 2 * self.ports.len()).map(|_| Virtqueue::new(QUEUE_SIZE)).collect()
    }

    /// Its configuration: columns and rows, which are not offered, and the number of ports.
    ///
    /// Source: virtio 1.2, 5.3.4 ("Device configuration layout").
    pub(super) fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        config[4..8].copy_from_slice(&(self.ports.len() as u32 + 1).to_le_bytes());
        config
    }

    /// Forgets the driver; what it has not received waits for the next one.
    pub(super) fn reset(&mut self) {
        for port in &mut self.ports {
            let unread = std::mem::take(&mut port.unread);
            *port = Port { unread, ..Port::new(std::mem::take(&mut port.name)) };
        }
    }

    /// See [`Devices::send`](super::super::Devices::send).
    pub(super) fn send(&mut self, index: usize, bytes: &[u8]) -> Result<(), Error> {
        let port = self.ports.get_mut(index).ok_or(Error::NoPort(index))?;
        if port.unread.len() + bytes.len() > MAX_UNREAD {
            return Err(Error::Overflow {
                limit_mib: MAX_UNREAD >> 20,
                direction: "for the guest to read them",
            });
        }
        port.unread.extend(bytes);
        self.wants_service |= port.can_receive();
        Ok(())
    }

    /// What is left to do, given that the queues are those of a driver that is ready.
    pub(super) fn backlog(&self, queues: &[Virtqueue]) -> Backlog {
        let transmit = queues.iter().skip(PORTS + 1).step_by(2);
        Backlog {
            wants_service: self.wants_service,
            wants_room: self.wants_room,
            is_drained: !transmit.into_iter().any(|queue| queue.is_kicked),
        }
    }

    /// Does a bounded part of the work that can be done now.
    pub(super) fn work(
        &mut self,
        queues: &mut [Virtqueue],
        board: &dyn Board,
    ) -> Result<(), Broken> {
        let memory = board.memory();
        let mut is_more = discard(&mut queues[UNUSED_TRANSMIT], memory)?;
        is_more |= self.hear(&mut queues[CONTROL_TRANSMIT], memory)?;
        is_more |= self.tell(&mut queues[CONTROL_RECEIVE], memory)?;
        self.wants_room = false;
        for (index, port) in self.ports.iter_mut().enumerate() {
            let receive = PORTS + 2 * index;
            is_more |= port.receive(&mut queues[receive], memory)?;
            if port.transmit(index, &mut queues[receive + 1], board)? {
                match board.port_room() {
                    0 => self.wants_room = true,
                    _ => is_more = true,
                }
            }
        }
        self.wants_service = is_more;
        Ok(())
    }

    /// Takes what the driver says; true if there is more.
    fn hear(&mut self, queue: &mut Virtqueue, memory: &GuestMemoryMmap) -> Result<bool, Broken> {
        drain(queue, memory, |chain| {
            let mut message = Vec::with_capacity(MESSAGE);
            chain.read(MESSAGE, &mut message, memory)?;
            match FromDriver::parse(&message) {
                Some(FromDriver::DeviceReady) => {
                    self.ports.iter_mut().for_each(|port| port.to_driver.add = true);
                }
                Some(FromDriver::PortReady(id)) => {
                    if let Some(port) = self.port(id) {
                        port.to_driver.name = true;
                        port.to_driver.open = true;
                    }
                }
                Some(FromDriver::PortOpen(id, is_open)) => {
                    if let Some(port) = self.port(id) {
                        port.is_open = is_open;
                    }
                }
                None => {}
            }
            Ok(())
        })
    }

    fn port(&mut self, id: u32) -> Option<&mut Port> {
        self.ports.get_mut((id as usize).checked_sub(1)?)
    }

    /// Says what there is to say, as far as the driver has buffers for it; true if there is more.
    fn tell(&mut self, queue: &mut Virtqueue, memory: &GuestMemoryMmap) -> Result<bool, Broken> {
        for _ in 0..QUEUE_SIZE {
            let mut ports = self.ports.iter_mut().zip(1..);
            let Some((port, id)) = ports.find(|(port, _)| !port.to_driver.is_empty()) else {
                return Ok(false);
            };
            let Some(mut chain) = queue.pop(memory)? else {
                if queue.wait(memory)? {
                    continue;
                }
                return Ok(false);
            };
            let message = port.to_driver.take(id, &port.name).unwrap_or_default();
            let written = chain.write(&message, memory)?;
            queue.push(&chain, written, memory)?;
        }
        Ok(true)
    }
}

impl Port {
    fn new(name: String) -> Self {
        Self {
            name,
            is_open: false,
            to_driver: ToDriver::default(),
            unread: VecDeque::new(),
            current: None,
        }
    }

    fn can_receive(&self) -> bool {
        self.is_open && !self.unread.is_empty()
    }

    /// Fills the driver's buffers; true if there are more of them, and more to fill them with.
    fn receive(&mut self, queue: &mut Virtqueue, memory: &GuestMemoryMmap) -> Result<bool, Broken> {
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
    fn transmit(
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

/// Gives back what is transmitted to nobody.
fn discard(queue: &mut Virtqueue, memory: &GuestMemoryMmap) -> Result<bool, Broken> {
    drain(queue, memory, |_| Ok(()))
}

/// Takes chains out of a transmit queue, at most a queue's worth; true if there are more.
fn drain(
    queue: &mut Virtqueue,
    memory: &GuestMemoryMmap,
    mut take: impl FnMut(&mut Chain) -> Result<(), Broken>,
) -> Result<bool, Broken> {
    if !queue.is_kicked {
        return Ok(false);
    }
    for _ in 0..QUEUE_SIZE {
        match queue.pop(memory)? {
            Some(mut chain) => {
                take(&mut chain)?;
                queue.push(&chain, 0, memory)?;
            }
            None => {
                queue.is_kicked = queue.wait(memory)?;
                if !queue.is_kicked {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}
