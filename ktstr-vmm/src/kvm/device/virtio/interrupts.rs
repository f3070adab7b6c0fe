//! The interrupts by which the device notifies the driver of used buffers and of its own state.

use super::super::board::Board;
use super::super::pci::{Msix, MsixState, NO_VECTOR};
use crate::kvm::codec::{StateError, fields};

/// ISR status: a queue has used buffers.
const ISR_QUEUE: u8 = 1 << 0;
/// ISR status: the configuration or the device status has changed.
const ISR_CONFIG: u8 = 1 << 1;

/// MSI-X and the ISR status; the device has no interrupt line.
///
/// Source: virtio 1.2, 4.1.4.5 ("ISR status capability") and 4.1.5.3, 4.1.5.4.
#[derive(Debug)]
pub(super) struct Interrupts {
    pub(super) msix: Msix,
    isr: u8,
}

/// The saved state of [`Interrupts`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InterruptsState {
    msix: MsixState,
    isr: u8,
}

fields!(InterruptsState { msix, isr });

impl Interrupts {
    /// Creates this many vectors.
    pub(super) fn new(vectors: usize) -> Self {
        Self { msix: Msix::new(vectors), isr: 0 }
    }

    /// Returns the state to save.
    pub(super) fn save(&self) -> InterruptsState {
        InterruptsState { msix: self.msix.save(), isr: self.isr }
    }

    /// Restores a saved state, with this message control register.
    pub(super) fn restore(
        &mut self,
        state: &InterruptsState,
        control: u16,
    ) -> Result<(), StateError> {
        self.isr = state.isr & (ISR_QUEUE | ISR_CONFIG);
        self.msix.restore(&state.msix, control)
    }

    /// Clears the ISR status, as a device reset does. MSI-X belongs to PCI and keeps its state.
    pub(super) fn reset(&mut self) {
        self.isr = 0;
    }

    /// Returns and clears the ISR status.
    pub(super) fn take_isr(&mut self) -> u8 {
        std::mem::take(&mut self.isr)
    }

    /// Signals used buffers.
    pub(super) fn queue(&mut self, vector: u16, board: &dyn Board) {
        if !self.msix.is_enabled() {
            self.isr |= ISR_QUEUE;
        }
        self.msix.signal(vector, board);
    }

    /// Signals a change of the device status.
    pub(super) fn config(&mut self, vector: u16, board: &dyn Board) {
        self.isr |= ISR_CONFIG;
        self.msix.signal(vector, board);
    }

    /// Returns the vector if it exists, else [`NO_VECTOR`].
    ///
    /// Source: virtio 1.2, 4.1.5.1.2.1 ("Device Requirements: MSI-X Vector Configuration").
    pub(super) fn mapped(&self, vector: u16) -> u16 {
        if self.msix.has(vector) { vector } else { NO_VECTOR }
    }
}
