//! The devices of a machine: a serial console, registers that power it off, and a virtio console
//! with ports behind a small PCI bus.
//!
//! Devices have no thread. The vCPUs' threads pass their exits to [`Devices`], which does a
//! bounded part of the work in each call; [`Devices::service`] does the rest. Devices access the
//! machine only through [`Board`], so they run without KVM.

mod board;
mod bus;
mod pci;
mod power;
mod registers;
mod serial;
mod virtio;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::codec::{Encode, Input, StateError, fields};
use super::layout::COM1;
use crate::error::Error;
use crate::lock::lock;

pub use board::{Board, Msi};
pub use power::Power;

/// All devices of a machine, shared by its threads.
#[derive(Debug)]
pub struct Devices {
    serial: Mutex<serial::Serial>,
    bus: Mutex<bus::Bus>,
    wants_service: AtomicBool,
    wants_room: AtomicBool,
}

/// The saved state of all devices: registers, queues, and the bytes on their way to the guest.
///
/// It is restored with the guest's memory as it was at that time, where the rings of the queues are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicesState {
    serial: serial::Serial,
    bus: bus::BusState,
}

fields!(DevicesState { serial, bus });

impl DevicesState {
    /// Encodes the state.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put(&mut out);
        out
    }

    /// Decodes what [`DevicesState::encode`] returned.
    ///
    /// # Errors
    ///
    /// The bytes are not a state. Any bytes are accepted without a panic.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let mut input = Input::new(bytes);
        let state = Self::take(&mut input)?;
        input.finish()?;
        Ok(state)
    }
}

impl Devices {
    /// Creates the devices of a machine with these ports of the virtio console.
    ///
    /// `ports[i]` is number i + 1 in the guest, as with QEMU.
    pub fn new(ports: &[String]) -> Self {
        Self {
            serial: Mutex::default(),
            bus: Mutex::new(bus::Bus::new(ports)),
            wants_service: AtomicBool::new(false),
            wants_room: AtomicBool::new(false),
        }
    }

    /// Returns the state to save. No vCPU may run meanwhile, so that it is that of one time.
    ///
    /// Output that was handed to the board is not part of it.
    pub fn save(&self) -> DevicesState {
        DevicesState { serial: lock(&self.serial).clone(), bus: lock(&self.bus).save() }
    }

    /// Creates the devices of a machine with these ports in a saved state.
    ///
    /// # Errors
    ///
    /// The state is that of other devices, or not one that devices can have. What a driver could have
    /// written is accepted, and checked where it is used.
    pub fn restore(ports: &[String], state: &DevicesState) -> Result<Self, StateError> {
        let mut bus = bus::Bus::new(ports);
        bus.restore(&state.bus)?;
        let backlog = bus.backlog();
        Ok(Self {
            serial: Mutex::new(state.serial.clone()),
            bus: Mutex::new(bus),
            // The new owner has not received any output yet, so there is room.
            wants_service: AtomicBool::new(backlog.wants_service || backlog.wants_room),
            wants_room: AtomicBool::new(backlog.wants_room),
        })
    }

    /// Handles a read from an I/O port.
    ///
    /// A port without a device reads as 0, not as all ones as on a PC: kernels then take absent
    /// devices (a PS/2 controller, an RTC) for idle ones and do not wait for them.
    pub fn pio_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = serial_offset(port) {
            lock(&self.serial).read(offset, data);
        } else if bus::claims(port) {
            lock(&self.bus).pio_read(port, data);
        }
    }

    /// Handles a write to an I/O port. Returns how the write ends the machine, if it does.
    pub fn pio_write(&self, port: u16, data: &[u8], board: &dyn Board) -> Option<Power> {
        if let Some(offset) = serial_offset(port) {
            lock(&self.serial).write(offset, data, board);
        } else if let Some(power) = power::write(port, data) {
            return Some(power);
        } else if bus::claims(port) {
            self.with_bus(board, |bus| bus.pio_write(port, data, board));
        }
        None
    }

    /// Handles a read from an address that is not memory.
    ///
    /// Without a device it reads as all ones: drivers take that for a PCI device that was removed,
    /// but zeros for one that is present and idle.
    pub fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        data.fill(0xff);
        lock(&self.bus).mmio_read(gpa, data);
    }

    /// Handles a write to an address that is not memory.
    pub fn mmio_write(&self, gpa: u64, data: &[u8], board: &dyn Board) {
        self.with_bus(board, |bus| bus.mmio_write(gpa, data, board));
    }

    /// Queues bytes for the guest to read from a port.
    ///
    /// # Errors
    ///
    /// The port does not exist, or more than 64 MiB would wait for the guest.
    pub fn send(&self, port: usize, bytes: &[u8]) -> Result<(), Error> {
        let mut bus = lock(&self.bus);
        bus.send(port, bytes)?;
        if bus.backlog().wants_service {
            self.wants_service.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Does a bounded part of the pending work: fills receive queues, and continues with transmit
    /// queues that there is room for now.
    ///
    /// Returns whether more can be done now.
    pub fn service(&self, board: &dyn Board) -> bool {
        self.with_bus(board, |bus| bus.service(board));
        self.wants_service()
    }

    /// Returns whether [`Devices::service`] has something to do now, after an exit that left work
    /// or after [`Devices::send`].
    pub fn wants_service(&self) -> bool {
        self.wants_service.load(Ordering::SeqCst)
    }

    /// Returns whether output of the guest waits for [`Board::port_room`]. Once there is room,
    /// [`Devices::service`] can continue.
    pub fn wants_room(&self) -> bool {
        self.wants_room.load(Ordering::SeqCst)
    }

    /// Returns whether all output that the guest has notified the device of was handed to the
    /// board.
    pub fn is_drained(&self) -> bool {
        lock(&self.bus).backlog().is_drained
    }

    /// Runs an action that may do work of the bus, and records the work that is left.
    fn with_bus(&self, board: &dyn Board, action: impl FnOnce(&mut bus::Bus)) {
        let mut bus = lock(&self.bus);
        action(&mut bus);
        // Stored while the bus is locked, so that the last action's result is the final one.
        let backlog = bus.backlog();
        self.wants_room.store(backlog.wants_room, Ordering::SeqCst);
        // Room that was made before `wants_room` was set did not cause a kick: check again.
        let has_room = backlog.wants_room && board.port_room() > 0;
        self.wants_service.store(backlog.wants_service || has_room, Ordering::SeqCst);
    }
}

fn serial_offset(port: u16) -> Option<u8> {
    (COM1..COM1 + 8).contains(&port).then(|| (port - COM1) as u8)
}
