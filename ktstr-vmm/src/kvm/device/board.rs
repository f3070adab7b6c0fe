//! What a device and the machine around it need of each other.

use vm_memory::GuestMemoryMmap;

/// What devices need of the machine around them. Nothing here ever blocks.
pub trait Board {
    /// Guest memory.
    fn memory(&self) -> &GuestMemoryMmap;
    /// Delivers a message-signalled interrupt, as the guest programmed it.
    fn signal_msi(&self, msi: Msi);
    /// Sets an input of the I/O APIC.
    fn set_irq(&self, irq: u32, is_active: bool);
    /// Takes what the guest wrote to its serial console. Bounded: too much of it is dropped there.
    fn console(&self, bytes: &[u8]);
    /// How many bytes of port output the caller has room for now.
    fn port_room(&self) -> usize;
    /// Takes what the guest wrote to a port: at most [`Board::port_room`] bytes.
    fn port(&self, port: usize, bytes: Vec<u8>);
}

/// A message-signalled interrupt: what is written where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msi {
    /// The address that is written to.
    pub address: u64,
    /// The value that is written.
    pub data: u32,
}

/// What a device has left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Backlog {
    /// See [`Devices::wants_service`](super::Devices::wants_service).
    pub(super) wants_service: bool,
    /// See [`Devices::wants_room`](super::Devices::wants_room).
    pub(super) wants_room: bool,
    /// See [`Devices::is_drained`](super::Devices::is_drained).
    pub(super) is_drained: bool,
}
