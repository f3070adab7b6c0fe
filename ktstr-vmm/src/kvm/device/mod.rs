//! The devices of a machine.

use vm_memory::GuestMemoryMmap;

/// What devices need of the machine around them. Nothing here ever blocks.
pub(super) trait Board {
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
pub(super) struct Msi {
    pub(super) address: u64,
    pub(super) data: u32,
}
