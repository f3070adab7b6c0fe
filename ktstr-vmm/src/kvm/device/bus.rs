//! The PCI bus, reached by configuration mechanism #1. It has two functions: device 0 is the host
//! bridge, which has no behaviour, device 1 the virtio console.
//!
//! Source: PCI Local Bus Specification 3.0, 3.2.2.3.2 ("Software Generation of Configuration
//! Transactions").

use super::board::{Backlog, Board};
use super::pci::{ConfigSpace, Identity};
use super::virtio::{ConsoleFunction, ConsoleFunctionState};
use crate::error::Error;
use crate::kvm::codec::{StateError, fields};
use crate::kvm::layout::{PCI_ADDRESS, PCI_DATA};

/// A host bridge for which kernels have no quirks: Red Hat's, of QEMU's machines.
const BRIDGE: Identity =
    Identity { vendor: 0x1b36, device: 0x0008, class: 0x06_0000, revision: 0, subsystem: 0x1100 };

/// Returns whether this port belongs to one of the bus's two registers.
pub(super) fn claims(port: u16) -> bool {
    (PCI_ADDRESS..PCI_DATA + 4).contains(&port)
}

/// The bus and the functions on it.
#[derive(Debug)]
pub(super) struct Bus {
    address: u32,
    bridge: ConfigSpace,
    console: ConsoleFunction,
}

/// The saved state of a [`Bus`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BusState {
    address: u32,
    bridge: [u8; 256],
    console: ConsoleFunctionState,
}

fields!(BusState { address, bridge, console });

impl Bus {
    /// Creates a bus with a virtio console that has these ports.
    pub(super) fn new(ports: &[String]) -> Self {
        Self { address: 0, bridge: ConfigSpace::new(BRIDGE), console: ConsoleFunction::new(ports) }
    }

    /// Returns the state to save.
    pub(super) fn save(&self) -> BusState {
        BusState { address: self.address, bridge: self.bridge.save(), console: self.console.save() }
    }

    /// Restores a saved state into a new bus.
    pub(super) fn restore(&mut self, state: &BusState) -> Result<(), StateError> {
        self.address = state.address;
        self.bridge.restore(&state.bridge);
        self.console.restore(&state.console)
    }

    /// Reads the address or the data register; ports between them read as zeros.
    pub(super) fn pio_read(&mut self, port: u16, data: &mut [u8]) {
        if port == PCI_ADDRESS && data.len() == 4 {
            data.copy_from_slice(&self.address.to_le_bytes());
        } else if let Some(offset) = data_offset(port, data.len()) {
            data.fill(0xff);
            match self.selected() {
                Some((Device::Bridge, register)) => self.bridge.read(register + offset, data),
                Some((Device::Console, register)) => {
                    self.console.read_config(register + offset, data);
                }
                None => {}
            }
        }
    }

    /// Writes the address or the data register.
    ///
    /// The address register accepts only 32-bit writes: single bytes are other registers on a PC.
    pub(super) fn pio_write(&mut self, port: u16, data: &[u8], board: &dyn Board) {
        if let (PCI_ADDRESS, &[a, b, c, d]) = (port, data) {
            // The two lowest bits and those below the enable bit are reserved and read as zeros.
            self.address = u32::from_le_bytes([a, b, c, d]) & 0x80ff_fffc;
        } else if let Some(offset) = data_offset(port, data.len()) {
            match self.selected() {
                Some((Device::Bridge, register)) => self.bridge.write(register + offset, data),
                Some((Device::Console, register)) => {
                    self.console.write_config(register + offset, data, board);
                }
                None => {}
            }
        }
    }

    /// Reads from the BAR at this address, if there is one.
    pub(super) fn mmio_read(&mut self, gpa: u64, data: &mut [u8]) {
        if let Some(offset) = self.console.bar_offset(gpa, data.len()) {
            self.console.read_bar(offset, data);
        }
    }

    /// Writes to the BAR at this address, if there is one.
    pub(super) fn mmio_write(&mut self, gpa: u64, data: &[u8], board: &dyn Board) {
        if let Some(offset) = self.console.bar_offset(gpa, data.len()) {
            self.console.write_bar(offset, data, board);
        }
    }

    /// Queues bytes for a port: see [`Devices::send`](super::Devices::send).
    pub(super) fn send(&mut self, port: usize, bytes: &[u8]) -> Result<(), Error> {
        self.console.send(port, bytes)
    }

    /// Does a part of the pending work: see [`Devices::service`](super::Devices::service).
    pub(super) fn service(&mut self, board: &dyn Board) {
        self.console.service(board);
    }

    /// Returns the work that is left to do.
    pub(super) fn backlog(&self) -> Backlog {
        self.console.backlog()
    }

    /// Returns the function that the address register selects, and the register in it.
    fn selected(&self) -> Option<(Device, usize)> {
        let register = (self.address & 0xfc) as usize;
        // Enable bit, bus, device, function.
        match self.address >> 8 {
            0x80_0000 => Some((Device::Bridge, register)),
            0x80_0008 => Some((Device::Console, register)),
            _ => None,
        }
    }
}

/// A device on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Device {
    Bridge,
    Console,
}

/// Returns the offset of an access in the data register, if it does not cross its end.
fn data_offset(port: u16, len: usize) -> Option<usize> {
    let offset = usize::from(port.checked_sub(PCI_DATA)?);
    (matches!(len, 1 | 2 | 4) && offset + len <= 4).then_some(offset)
}
