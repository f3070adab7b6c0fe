//! The serial console: a 16550 at COM1, of which only the output is connected.
//!
//! The kernel writes its own messages by polling, those of a tty by interrupts. The interrupt line
//! is edge-triggered, as on the ISA bus, so an interrupt is a pulse.
//!
//! Source: Texas Instruments PC16550D data sheet, 8 ("Registers").

use super::board::Board;
use crate::kvm::codec::fields;
use crate::kvm::layout::COM1_IRQ;

const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
/// Reads as the interrupt's cause; writes set the FIFO's control, which has no effect here.
const INTERRUPT_IDENTIFICATION: u8 = 2;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;
const MODEM_STATUS: u8 = 6;
const SCRATCH: u8 = 7;

/// The interrupts that can be enabled.
const INTERRUPTS: u8 = 0x0f;
const TRANSMITTER_EMPTY_INTERRUPT: u8 = 1 << 1;
/// `IIR`: the FIFOs are enabled, as drivers expect of a 16550.
const FIFOS: u8 = 0b11 << 6;
const NO_INTERRUPT: u8 = 1 << 0;
const TRANSMITTER_EMPTY: u8 = 1 << 1;
/// `LCR`: the first two registers are the divisor of the baud rate.
const DIVISOR_LATCH: u8 = 1 << 7;
/// `MCR`: the modem controls are connected to the modem status, and nothing is sent.
const LOOPBACK: u8 = 1 << 4;
const MODEM_CONTROLS: u8 = 0x1f;
/// `LSR`: the transmitter is empty and idle.
const IDLE: u8 = 0b11 << 5;
/// `MSR`: carrier, data set ready, clear to send.
const CONNECTED: u8 = 0xb0;

/// A 16550 on a line without delay. Any values of its registers are possible, so it is its own saved
/// state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Serial {
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    /// The interrupt for an empty transmitter is pending.
    is_empty_pending: bool,
}

fields!(Serial {
    interrupt_enable,
    line_control,
    modem_control,
    scratch,
    divisor,
    is_empty_pending,
});

impl Serial {
    /// Reads a register. Registers are bytes: other sizes read as zeros.
    pub(super) fn read(&mut self, offset: u8, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self.register(offset);
        }
    }

    fn register(&mut self, offset: u8) -> u8 {
        match offset {
            DATA | INTERRUPT_ENABLE if self.is_divisor() => self.divisor[usize::from(offset)],
            INTERRUPT_ENABLE => self.interrupt_enable,
            INTERRUPT_IDENTIFICATION => {
                // Reading the cause clears it.
                let is_empty = std::mem::take(&mut self.is_empty_pending);
                FIFOS | if is_empty { TRANSMITTER_EMPTY } else { NO_INTERRUPT }
            }
            LINE_CONTROL => self.line_control,
            MODEM_CONTROL => self.modem_control,
            LINE_STATUS => IDLE,
            MODEM_STATUS => self.modem_status(),
            SCRATCH => self.scratch,
            // Nothing was received.
            _ => 0,
        }
    }

    /// Writes a register.
    pub(super) fn write(&mut self, offset: u8, data: &[u8], board: &dyn Board) {
        let [byte] = *data else { return };
        match offset {
            DATA | INTERRUPT_ENABLE if self.is_divisor() => {
                self.divisor[usize::from(offset)] = byte
            }
            DATA => {
                if self.modem_control & LOOPBACK == 0 {
                    board.console(&[byte]);
                }
                self.signal_empty(board);
            }
            INTERRUPT_ENABLE => {
                let added = byte & !self.interrupt_enable;
                self.interrupt_enable = byte & INTERRUPTS;
                if added & TRANSMITTER_EMPTY_INTERRUPT != 0 {
                    self.signal_empty(board);
                } else if byte & TRANSMITTER_EMPTY_INTERRUPT == 0 {
                    self.is_empty_pending = false;
                }
            }
            LINE_CONTROL => self.line_control = byte,
            MODEM_CONTROL => self.modem_control = byte & MODEM_CONTROLS,
            SCRATCH => self.scratch = byte,
            _ => {}
        }
    }

    fn is_divisor(&self) -> bool {
        self.line_control & DIVISOR_LATCH != 0
    }

    /// Returns the modem status. In loopback mode RTS sets CTS, and DTR sets DSR.
    fn modem_status(&self) -> u8 {
        if self.modem_control & LOOPBACK == 0 {
            return CONNECTED;
        }
        let set = |bit: u8, answer: u8| if self.modem_control & bit != 0 { answer } else { 0 };
        set(1 << 0, 1 << 5) | set(1 << 1, 1 << 4) | set(1 << 2, 1 << 6) | set(1 << 3, 1 << 7)
    }

    fn signal_empty(&mut self, board: &dyn Board) {
        let is_enabled = self.interrupt_enable & TRANSMITTER_EMPTY_INTERRUPT != 0;
        if is_enabled && !self.is_empty_pending {
            self.is_empty_pending = true;
            board.set_irq(COM1_IRQ, true);
            board.set_irq(COM1_IRQ, false);
        }
    }
}
