//! The interface between a device and the machine around it.

use vm_memory::GuestMemoryMmap;

/// The machine around a device. No method blocks.
pub trait Board {
    /// Guest memory.
    fn memory(&self) -> &GuestMemoryMmap;
    /// Delivers a message-signalled interrupt that the guest has programmed.
    fn signal_msi(&self, msi: Msi);
    /// Sets an input of the I/O APIC.
    fn set_irq(&self, irq: u32, is_active: bool);
    /// Adds output of the serial console. The board drops what exceeds its limit.
    fn console(&self, bytes: &[u8]);
    /// Returns how many bytes of port output there is room for now.
    fn port_room(&self) -> usize;
    /// Adds output of a port, at most [`Board::port_room`] bytes.
    fn port(&self, port: usize, bytes: Vec<u8>);
}

/// A message-signalled interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msi {
    /// The address of the write.
    pub address: u64,
    /// The value of the write.
    pub data: u32,
}

/// The work that a device has left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Backlog {
    /// See [`Devices::wants_service`](super::Devices::wants_service).
    pub(super) wants_service: bool,
    /// See [`Devices::wants_room`](super::Devices::wants_room).
    pub(super) wants_room: bool,
    /// See [`Devices::is_drained`](super::Devices::is_drained).
    pub(super) is_drained: bool,
}
