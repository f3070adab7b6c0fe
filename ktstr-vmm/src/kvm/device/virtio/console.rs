//! The virtio console: ports, which are byte streams, and the control queues that manage them.
//!
//! Queues come in pairs, the driver's receive queue first: port 0, which is not connected (a driver
//! without multiport uses only this one); control; then ports 1 and up.
//!
//! Source: virtio 1.2, 5.3 ("Console Device").

use vm_memory::GuestMemoryMmap;

use super::super::board::{Backlog, Board};
use super::control::{FromDriver, MESSAGE};
use super::port::{Port, PortState};
use super::queue::{Broken, Chain, QUEUE_SIZE, Virtqueue};
use crate::error::Error;
use crate::kvm::codec::{StateError, fields};

/// `VIRTIO_CONSOLE_F_MULTIPORT`.
pub(super) const F_MULTIPORT: u64 = 1 << 1;

const UNUSED_TRANSMIT: usize = 1;
const CONTROL_RECEIVE: usize = 2;
const CONTROL_TRANSMIT: usize = 3;
/// The first queue of port 1.
const PORTS: usize = 4;

/// The device behind the queues.
#[derive(Debug)]
pub(super) struct Console {
    ports: Vec<Port>,
    wants_service: bool,
    wants_room: bool,
}

/// The saved state of a [`Console`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConsoleState {
    ports: Vec<PortState>,
    wants_service: bool,
    wants_room: bool,
}

fields!(ConsoleState { ports, wants_service, wants_room });

impl Console {
    /// Creates a console with these ports.
    pub(super) fn new(names: &[String]) -> Self {
        let ports = names.iter().map(|name| Port::new(name.clone())).collect();
        Self { ports, wants_service: false, wants_room: false }
    }

    /// Returns the state to save.
    pub(super) fn save(&self) -> ConsoleState {
        ConsoleState {
            ports: self.ports.iter().map(Port::save).collect(),
            wants_service: self.wants_service,
            wants_room: self.wants_room,
        }
    }

    /// Restores a saved state into a new console.
    pub(super) fn restore(&mut self, state: &ConsoleState) -> Result<(), StateError> {
        if state.ports.len() != self.ports.len() {
            return Err(StateError::Device { what: "number of ports" });
        }
        for (port, state) in self.ports.iter_mut().zip(&state.ports) {
            port.restore(state)?;
        }
        self.wants_service = state.wants_service;
        self.wants_room = state.wants_room;
        Ok(())
    }

    /// Creates the queues of this console.
    pub(super) fn queues(&self) -> Vec<Virtqueue> {
        (0..PORTS + 2 * self.ports.len()).map(|_| Virtqueue::new(QUEUE_SIZE)).collect()
    }

    /// Returns the configuration: columns and rows, which are not offered, and the number of ports.
    ///
    /// Source: virtio 1.2, 5.3.4 ("Device configuration layout").
    pub(super) fn config(&self) -> [u8; 12] {
        let mut config = [0; 12];
        config[4..8].copy_from_slice(&(self.ports.len() as u32 + 1).to_le_bytes());
        config
    }

    /// Resets the ports. Bytes that the driver has not received wait for the next driver.
    pub(super) fn reset(&mut self) {
        self.ports.iter_mut().for_each(Port::reset);
    }

    /// Queues bytes for a port: see [`Devices::send`](super::super::Devices::send).
    pub(super) fn send(&mut self, index: usize, bytes: &[u8]) -> Result<(), Error> {
        let port = self.ports.get_mut(index).ok_or(Error::NoPort(index))?;
        port.send(bytes)?;
        self.wants_service |= port.can_receive();
        Ok(())
    }

    /// Returns the work that is left to do with the queues of a driver that is ready.
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
        is_more |= self.handle_control(&mut queues[CONTROL_TRANSMIT], memory)?;
        is_more |= self.send_control(&mut queues[CONTROL_RECEIVE], memory)?;
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

    /// Handles control messages of the driver. Returns whether there are more.
    fn handle_control(
        &mut self,
        queue: &mut Virtqueue,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, Broken> {
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

    /// Sends control messages, as far as the driver has buffers. Returns whether there are more.
    fn send_control(
        &mut self,
        queue: &mut Virtqueue,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, Broken> {
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

/// Discards the output to port 0, which is not connected.
fn discard(queue: &mut Virtqueue, memory: &GuestMemoryMmap) -> Result<bool, Broken> {
    drain(queue, memory, |_| Ok(()))
}

/// Takes chains out of a transmit queue, at most as many as it has. Returns whether there are more.
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
