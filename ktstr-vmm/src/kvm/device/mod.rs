//! The devices of a machine: a serial console, a way to switch it off, and a virtio console with
//! ports behind a small PCI bus.
//!
//! There is no device thread. A vCPU's thread brings its exits to [`Devices`], which does the work
//! there and then, a bounded part of it in each call; what remains is done by [`Devices::service`].
//! The machine is seen through [`Board`] only, so all of this runs without KVM.

#[cfg(any(test, fuzzing))]
mod fake;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod pci;
mod power;
mod serial;
#[cfg(test)]
mod tests;
mod virtio;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_memory::GuestMemoryMmap;

use super::layout::COM1;
use crate::Error;

#[cfg(any(test, fuzzing))]
pub use fuzz::{fuzz_queues, fuzz_registers};
pub(in crate::kvm) use power::Power;

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

/// All devices of a machine, for all its threads.
#[derive(Debug)]
pub(in crate::kvm) struct Devices {
    serial: Mutex<serial::Serial>,
    bus: Mutex<pci::Bus>,
    wants_service: AtomicBool,
    wants_room: AtomicBool,
}

impl Devices {
    /// Makes the devices of a machine whose virtio-console has these ports.
    ///
    /// `ports[i]` is number i + 1 in the guest, as with QEMU.
    pub(in crate::kvm) fn new(ports: &[String]) -> Self {
        Self {
            serial: Mutex::default(),
            bus: Mutex::new(pci::Bus::new(ports)),
            wants_service: AtomicBool::new(false),
            wants_room: AtomicBool::new(false),
        }
    }

    /// Answers a read from an I/O port.
    ///
    /// A port that nobody claims reads as 0, not as all ones as on a PC: kernels then take absent
    /// devices (a PS/2 controller, an RTC) for idle ones and do not wait for them.
    pub(in crate::kvm) fn pio_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = serial_offset(port) {
            lock(&self.serial).read(offset, data);
        } else if pci::claims(port) {
            lock(&self.bus).pio_read(port, data);
        }
    }

    /// Takes a write to an I/O port; tells if it ends the machine.
    pub(in crate::kvm) fn pio_write(
        &self,
        port: u16,
        data: &[u8],
        board: &dyn Board,
    ) -> Option<Power> {
        if let Some(offset) = serial_offset(port) {
            lock(&self.serial).write(offset, data, board);
        } else if let Some(power) = power::write(port, data) {
            return Some(power);
        } else if pci::claims(port) {
            self.with_bus(board, |bus| bus.pio_write(port, data, board));
        }
        None
    }

    /// Answers a read from an address that is not memory.
    ///
    /// Where nothing is, it reads as all ones: on PCI that is what drivers take for a device that
    /// is gone, and 0 for one that is there and idle.
    pub(in crate::kvm) fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        data.fill(0xff);
        lock(&self.bus).mmio_read(gpa, data);
    }

    /// Takes a write to an address that is not memory.
    pub(in crate::kvm) fn mmio_write(&self, gpa: u64, data: &[u8], board: &dyn Board) {
        self.with_bus(board, |bus| bus.mmio_write(gpa, data, board));
    }

    /// Queues bytes for the guest to read from a port.
    ///
    /// # Errors
    ///
    /// There is no such port, or over 64 MiB would wait for the guest.
    pub(in crate::kvm) fn send(&self, port: usize, bytes: &[u8]) -> Result<(), Error> {
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
    pub(in crate::kvm) fn service(&self, board: &dyn Board) -> bool {
        self.with_bus(board, |bus| bus.service(board));
        self.wants_service()
    }

    /// Whether [`Devices::service`] has something to do now: after an exit that left work for
    /// later, or after [`Devices::send`].
    pub(in crate::kvm) fn wants_service(&self) -> bool {
        self.wants_service.load(Ordering::SeqCst)
    }

    /// Whether the guest's output waits for [`Board::port_room`], so that [`Devices::service`] is
    /// worth a call once there is some.
    pub(in crate::kvm) fn wants_room(&self) -> bool {
        self.wants_room.load(Ordering::SeqCst)
    }

    /// Whether all that the guest has put into transmit queues and told of was handed over.
    pub(in crate::kvm) fn is_drained(&self) -> bool {
        lock(&self.bus).backlog().is_drained
    }

    /// Does something with the bus that may do work, and notes what is left of it.
    fn with_bus(&self, board: &dyn Board, action: impl FnOnce(&mut pci::Bus)) {
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

/// What a device has left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Backlog {
    /// See [`Devices::wants_service`].
    wants_service: bool,
    /// See [`Devices::wants_room`].
    wants_room: bool,
    /// See [`Devices::is_drained`].
    is_drained: bool,
}

fn serial_offset(port: u16) -> Option<u8> {
    (COM1..COM1 + 8).contains(&port).then(|| (port - COM1) as u8)
}

/// A device whose thread panicked is no worse than one that a hostile guest has confused.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads `data` from registers that have no side effects; behind their end there are zeros.
fn read_registers(registers: &[u8], offset: usize, data: &mut [u8]) {
    data.fill(0);
    let there = registers.get(offset..).unwrap_or_default();
    let len = data.len().min(there.len());
    data[..len].copy_from_slice(&there[..len]);
}
