//! MSI-X: the messages that a function sends as interrupts. The guest programs and masks each of
//! them.
//!
//! A message that is masked when its event happens is pending. It is sent once it is unmasked.
//!
//! Source: PCI Local Bus Specification 3.0, 6.8.2 ("MSI-X Capability and Table Structures").

use super::super::board::{Board, Msi};
use super::super::registers::read_registers;
use crate::kvm::codec::{StateError, fields};

/// The capability's ID.
pub(in super::super) const MSIX_CAPABILITY: u8 = 0x11;
/// The vector of an event without a message: `VIRTIO_MSI_NO_VECTOR`.
pub(in super::super) const NO_VECTOR: u16 = 0xffff;
/// The number of vectors in a table of one page.
pub(in super::super) const MAX_VECTORS: usize = 256;

/// Message control: messages are enabled.
const ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
const FUNCTION_MASK: u16 = 1 << 14;

/// Bytes of a table entry: message address, message data, vector control.
const ENTRY: usize = 16;
const VECTOR_CONTROL: usize = 12;
/// Vector control: this vector is masked.
const MASK: u8 = 1;

/// The table, the pending bits and message control.
#[derive(Debug)]
pub(in super::super) struct Msix {
    table: Vec<u8>,
    pending: Vec<bool>,
    control: u16,
}

/// The saved state of the table and the pending bits. Message control is in the configuration space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct MsixState {
    table: Vec<u8>,
    pending: Vec<bool>,
}

fields!(MsixState { table, pending });

impl Msix {
    /// Creates a table with all vectors masked.
    pub(in super::super) fn new(vectors: usize) -> Self {
        let mut entry = [0; ENTRY];
        entry[VECTOR_CONTROL] = MASK;
        Self { table: entry.repeat(vectors), pending: vec![false; vectors], control: 0 }
    }

    /// Returns the state to save.
    pub(in super::super) fn save(&self) -> MsixState {
        MsixState { table: self.table.clone(), pending: self.pending.clone() }
    }

    /// Restores a saved state, with the message control register of the restored configuration space.
    /// Sends no message: those that were sent before are in the state of the interrupt controllers.
    pub(in super::super) fn restore(
        &mut self,
        state: &MsixState,
        control: u16,
    ) -> Result<(), StateError> {
        if (state.table.len(), state.pending.len()) != (self.table.len(), self.pending.len()) {
            return Err(StateError::Device { what: "number of MSI-X vectors" });
        }
        self.fill_table(0, &state.table);
        self.pending.clone_from(&state.pending);
        self.control = control;
        Ok(())
    }

    /// Returns the body of the capability, with the offsets of table and pending bits in BAR 0, and
    /// its writable bits.
    pub(in super::super) fn capability(&self, table: u32, pending: u32) -> ([u8; 10], [u8; 2]) {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.pending.len() as u16 - 1).to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..].copy_from_slice(&pending.to_le_bytes());
        (body, (ENABLE | FUNCTION_MASK).to_le_bytes())
    }

    /// Returns whether the table has this vector.
    pub(in super::super) fn has(&self, vector: u16) -> bool {
        usize::from(vector) < self.pending.len()
    }

    /// Returns whether interrupts are sent as messages.
    pub(in super::super) fn is_enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    /// Sets the message control register, and sends messages that are no longer masked.
    pub(in super::super) fn set_control(&mut self, control: u16, board: &dyn Board) {
        self.control = control;
        self.send_pending(board);
    }

    /// Reads the table.
    pub(in super::super) fn read_table(&self, offset: usize, data: &mut [u8]) {
        read_registers(&self.table, offset, data);
    }

    /// Writes the table, and sends messages that are no longer masked.
    pub(in super::super) fn write_table(&mut self, offset: usize, data: &[u8], board: &dyn Board) {
        self.fill_table(offset, data);
        self.send_pending(board);
    }

    fn fill_table(&mut self, offset: usize, data: &[u8]) {
        let registers = self.table.iter_mut().enumerate().skip(offset);
        for ((at, register), &value) in registers.zip(data) {
            *register = match at % ENTRY {
                VECTOR_CONTROL => value & MASK,
                13..ENTRY => 0,
                _ => value,
            };
        }
    }

    /// Reads the pending bits.
    pub(in super::super) fn read_pending(&self, offset: usize, data: &mut [u8]) {
        let mut bits = vec![0; self.pending.len().div_ceil(64) * 8];
        for (vector, _) in self.pending.iter().enumerate().filter(|(_, is_pending)| **is_pending) {
            bits[vector / 8] |= 1 << (vector % 8);
        }
        read_registers(&bits, offset, data);
    }

    /// Sends the message of a vector, now or once it is unmasked.
    pub(in super::super) fn signal(&mut self, vector: u16, board: &dyn Board) {
        if self.has(vector) && self.is_enabled() {
            self.pending[usize::from(vector)] = true;
            self.send_pending(board);
        }
    }

    fn send_pending(&mut self, board: &dyn Board) {
        if self.control & (ENABLE | FUNCTION_MASK) != ENABLE {
            return;
        }
        for (entry, is_pending) in self.table.chunks_exact(ENTRY).zip(&mut self.pending) {
            if *is_pending && entry[VECTOR_CONTROL] & MASK == 0 {
                *is_pending = false;
                board.signal_msi(message(entry));
            }
        }
    }
}

fn message(entry: &[u8]) -> Msi {
    let dword =
        |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
    Msi { address: u64::from(dword(4)) << 32 | u64::from(dword(0)), data: dword(8) }
}
