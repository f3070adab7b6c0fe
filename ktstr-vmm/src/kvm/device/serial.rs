//! The serial console: a 16550 at COM1, of which only the output leads anywhere.
//!
//! The kernel's own messages are written with polling, those of a tty by interrupts: the line is an
//! edge-triggered one of the ISA bus, so an interrupt is a pulse.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_superio::Trigger;
use vm_superio::serial::NoEvents;

use super::Board;
use crate::kvm::layout::COM1_IRQ;

/// A 16550.
#[derive(Debug)]
pub(super) struct Serial(vm_superio::Serial<Pulse, NoEvents, Vec<u8>>);

impl Default for Serial {
    fn default() -> Self {
        Self(vm_superio::Serial::new(Pulse::default(), Vec::new()))
    }
}

impl Serial {
    /// Reads a register. They are bytes: other sizes read as zeros.
    pub(super) fn read(&mut self, offset: u8, data: &mut [u8], board: &dyn Board) {
        if let [byte] = data {
            *byte = self.0.read(offset);
            self.pass_on(board);
        }
    }

    /// Writes a register.
    pub(super) fn write(&mut self, offset: u8, data: &[u8], board: &dyn Board) {
        if let [byte] = *data {
            // Neither a `Vec` nor `Pulse` ever fails.
            let _ = self.0.write(offset, byte);
            self.pass_on(board);
        }
    }

    fn pass_on(&mut self, board: &dyn Board) {
        let output = self.0.writer_mut();
        if !output.is_empty() {
            board.console(output);
            output.clear();
        }
        if self.0.interrupt_evt().0.swap(false, Ordering::Relaxed) {
            board.set_irq(COM1_IRQ, true);
            board.set_irq(COM1_IRQ, false);
        }
    }
}

/// Notes that an interrupt is due. The [`Board`] is at hand only while an access is handled.
#[derive(Debug, Default)]
struct Pulse(AtomicBool);

impl Trigger for Pulse {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}
