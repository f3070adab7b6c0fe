//! The devices of a machine: a serial console, a way to switch it off, and a virtio console with
//! ports behind a small PCI bus.
//!
//! There is no device thread. A vCPU's thread brings its exits to [`Devices`], which does the work
//! there and then, a bounded part of it in each call; what remains is done by [`Devices::service`].
//! The machine is seen through [`Board`] only, so all of this runs without KVM.

mod board;
mod bus;
mod pci;
mod power;
mod registers;
mod serial;
mod virtio;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::layout::COM1;
use crate::error::Error;
use crate::lock::lock;

pub use board::{Board, Msi};
pub use power::Power;

/// All devices of a machine, for all its threads.
#[derive(Debug)]
pub struct Devices {
    serial: Mutex<serial::Serial>,
    bus: Mutex<bus::Bus>,
    wants_service: AtomicBool,
    wants_room: AtomicBool,
}

impl Devices {
    /// Makes the devices of a machine whose virtio-console has these ports.
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

    /// Answers a read from an I/O port.
    ///
    /// A port that nobody claims reads as 0, not as all ones as on a PC: kernels then take absent
    /// devices (a PS/2 controller, an RTC) for idle ones and do not wait for them.
    pub fn pio_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = serial_offset(port) {
            lock(&self.serial).read(offset, data);
        } else if bus::claims(port) {
            lock(&self.bus).pio_read(port, data);
        }
    }

    /// Takes a write to an I/O port; tells if it ends the machine.
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

    /// Answers a read from an address that is not memory.
    ///
    /// Where nothing is, it reads as all ones: on PCI that is what drivers take for a device that
    /// is gone, and 0 for one that is there and idle.
    pub fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        data.fill(0xff);
        lock(&self.bus).mmio_read(gpa, data);
    }

    /// Takes a write to an address that is not memory.
    pub fn mmio_write(&self, gpa: u64, data: &[u8], board: &dyn Board) {
        self.with_bus(board, |bus| bus.mmio_write(gpa, data, board));
    }

    /// Queues bytes for the guest to read from a port.
    ///
    /// # Errors
    ///
    /// There is no such port, or over 64 MiB would wait for the guest.
    pub fn send(&self, port: usize, bytes: &[u8]) -> Result<(), Error> {
        let mut bus = lock(&self.bus);
        bus.send(port, bytes)?;
        if bus.backlog().wants_service {
            self.wants_service.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Does a bounded part of the work that waits: fills receive queues, and goes on with transmit
    /// queues for whose bytes there is room by now.
    ///
    /// Returns whether there is more that can be done now.
    pub fn service(&self, board: &dyn Board) -> bool {
        self.with_bus(board, |bus| bus.service(board));
        self.wants_service()
    }

    /// Whether [`Devices::service`] has something to do now: after an exit that left work for
    /// later, or after [`Devices::send`].
    pub fn wants_service(&self) -> bool {
        self.wants_service.load(Ordering::SeqCst)
    }

    /// Whether the guest's output waits for [`Board::port_room`], so that [`Devices::service`] is
    /// worth a call once there is some.
    pub fn wants_room(&self) -> bool {
        self.wants_room.load(Ordering::SeqCst)
    }

    /// Whether all that the guest has put into transmit queues and told of was handed over.
    pub fn is_drained(&self) -> bool {
        lock(&self.bus).backlog().is_drained
    }

    /// Does something with the bus that may do work, and notes what is left of it.
    fn with_bus(&self, board: &dyn Board, action: impl FnOnce(&mut bus::Bus)) {
        let mut bus = lock(&self.bus);
        action(&mut bus);
        // Stored under the lock, so the last word is that of the last action.
        let backlog = bus.backlog();
        self.wants_room.store(backlog.wants_room, Ordering::SeqCst);
        // Whoever made room before that was told to nobody.
        let has_room = backlog.wants_room && board.port_room() > 0;
        self.wants_service.store(backlog.wants_service || has_room, Ordering::SeqCst);
    }
}

fn serial_offset(port: u16) -> Option<u8> {
    (COM1..COM1 + 8).contains(&port).then(|| (port - COM1) as u8)
}
