//! The virtio console as a PCI function: its configuration space and its BAR.
//!
//! It has neither an interrupt line nor the legacy interface.
//!
//! Source: virtio 1.2, 4.1 ("Virtio Over PCI Bus").

use super::super::board::{Backlog, Board};
use super::super::pci::{
    BAR0, COMMAND, COMMAND_MASTER, COMMAND_MEMORY, ConfigSpace, Identity, MAX_VECTORS,
};
use super::super::registers::read_registers;
use super::capabilities::{
    BAR_SIZE, COMMON, DEVICE, ISR, MSIX_PENDING, MSIX_TABLE, NOTIFY, Window, add_msix, add_virtio,
    is_in_bar, split,
};
use super::common::{Common, CommonState};
use super::console::{Console, ConsoleState, F_MULTIPORT};
use super::interrupts::{Interrupts, InterruptsState};
use super::queue::Broken;
use crate::error::Error;
use crate::kvm::codec::{StateError, fields};
use crate::kvm::layout::{PCI_WINDOW, PCI_WINDOW_SIZE};

/// Red Hat's vendor ID, and the device ID of a virtio 1 console: 0x1040 + 3.
const IDENTITY: Identity =
    Identity { vendor: 0x1af4, device: 0x1043, class: 0x07_8000, revision: 1, subsystem: 0x1100 };

/// The PCI function of a virtio console.
#[derive(Debug)]
pub(in super::super) struct ConsoleFunction {
    config: ConfigSpace,
    /// The offset of the MSI-X message control register.
    msix_control: usize,
    /// The offset of the capability of [`Window`].
    window: usize,
    common: Common,
    interrupts: Interrupts,
    console: Console,
}

/// The saved state of a [`ConsoleFunction`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct ConsoleFunctionState {
    config: [u8; 256],
    common: CommonState,
    interrupts: InterruptsState,
    console: ConsoleState,
}

fields!(ConsoleFunctionState { config, common, interrupts, console });

impl ConsoleFunction {
    /// Creates a console with these ports. Its BAR is at the beginning of the window for BARs.
    ///
    /// Kernels keep a valid address that firmware has chosen.
    pub(in super::super) fn new(ports: &[String]) -> Self {
        let console = Console::new(ports);
        let queues = console.queues();
        // One vector for each queue and one for the device, which Linux uses if there are enough.
        let interrupts = Interrupts::new((queues.len() + 1).min(MAX_VECTORS));
        let mut config = ConfigSpace::new(IDENTITY);
        config.set_bar0(PCI_WINDOW as u32, BAR_SIZE);
        let msix = add_msix(&mut config, &interrupts.msix);
        let window = add_virtio(&mut config);
        Self {
            config,
            msix_control: msix + 2,
            window,
            common: Common::new(F_MULTIPORT, queues),
            interrupts,
            console,
        }
    }

    /// Returns the state to save.
    pub(in super::super) fn save(&self) -> ConsoleFunctionState {
        ConsoleFunctionState {
            config: self.config.save(),
            common: self.common.save(),
            interrupts: self.interrupts.save(),
            console: self.console.save(),
        }
    }

    /// Restores a saved state into a new function.
    pub(in super::super) fn restore(
        &mut self,
        state: &ConsoleFunctionState,
    ) -> Result<(), StateError> {
        self.config.restore(&state.config);
        self.interrupts.restore(&state.interrupts, self.config.word(self.msix_control))?;
        self.common.restore(&state.common, &self.interrupts)?;
        self.console.restore(&state.console)
    }

    /// Reads from the configuration space.
    pub(in super::super) fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        // A read of the window's data is a read of the BAR.
        if self.touches_window(offset, data.len())
            && let Some(window) = Window::at(&self.config, self.window)
        {
            let mut bytes = [0; 4];
            self.read_bar(window.offset, &mut bytes[..window.len]);
            self.config.set(self.window + Window::DATA, &bytes);
        }
        self.config.read(offset, data);
    }

    /// Writes to the configuration space.
    pub(in super::super) fn write_config(&mut self, offset: usize, data: &[u8], board: &dyn Board) {
        self.config.write(offset, data);
        // A write to the window's data is a write to the BAR.
        if self.touches_window(offset, data.len())
            && let Some(window) = Window::at(&self.config, self.window)
        {
            let bytes = self.config.dword(self.window + Window::DATA).to_le_bytes();
            self.write_bar(window.offset, &bytes[..window.len], board);
        }
        self.interrupts.msix.set_control(self.config.word(self.msix_control), board);
        // The write may have enabled bus mastering.
        self.service(board);
    }

    fn touches_window(&self, offset: usize, len: usize) -> bool {
        let data = self.window + Window::DATA;
        offset < data + 4 && data < offset + len
    }

    /// Returns the offset of an access in the BAR, if all of it is in a BAR at a valid address.
    pub(in super::super) fn bar_offset(&self, gpa: u64, len: usize) -> Option<usize> {
        let address = u64::from(self.config.dword(BAR0));
        let is_in_window =
            address >= PCI_WINDOW && address + u64::from(BAR_SIZE) <= PCI_WINDOW + PCI_WINDOW_SIZE;
        if !is_in_window || self.config.word(COMMAND) & COMMAND_MEMORY == 0 {
            return None;
        }
        let offset = usize::try_from(gpa.checked_sub(address)?).ok()?;
        is_in_bar(offset, len).then_some(offset)
    }

    /// Reads from the BAR; undefined bytes read as zeros.
    pub(in super::super) fn read_bar(&mut self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        let (page, offset) = split(offset);
        match page {
            COMMON => self.common.read(offset, data),
            ISR if offset == 0 => {
                if let Some(isr) = data.first_mut() {
                    *isr = self.interrupts.take_isr();
                }
            }
            DEVICE => read_registers(&self.console.config(), offset, data),
            MSIX_TABLE => self.interrupts.msix.read_table(offset, data),
            MSIX_PENDING => self.interrupts.msix.read_pending(offset, data),
            _ => {}
        }
    }

    /// Writes to the BAR, and does the work that this makes possible.
    pub(in super::super) fn write_bar(&mut self, offset: usize, data: &[u8], board: &dyn Board) {
        let (page, offset) = split(offset);
        match page {
            COMMON => {
                match self.common.write(offset, data, &self.interrupts, board.memory()) {
                    Ok(false) => {}
                    Ok(true) => {
                        self.console.reset();
                        self.interrupts.reset();
                    }
                    Err(Broken) => self.set_broken(board),
                }
                self.service(board);
            }
            NOTIFY => {
                // With a multiplier of 0 all queues are notified at offset 0.
                if let (0, &[low, high]) = (offset, data) {
                    self.notify(u16::from_le_bytes([low, high]), board);
                }
            }
            MSIX_TABLE => self.interrupts.msix.write_table(offset, data, board),
            _ => {}
        }
    }

    fn notify(&mut self, index: u16, board: &dyn Board) {
        if let Some(queue) = self.common.queues.get_mut(usize::from(index)) {
            queue.is_kicked = true;
            self.service(board);
        }
    }

    /// Queues bytes for a port: see [`Devices::send`](super::super::Devices::send).
    pub(in super::super) fn send(&mut self, port: usize, bytes: &[u8]) -> Result<(), Error> {
        self.console.send(port, bytes)
    }

    /// Does a bounded part of the work that can be done now.
    pub(in super::super) fn service(&mut self, board: &dyn Board) {
        if self.is_running() && self.work(board).is_err() {
            self.set_broken(board);
        }
    }

    fn work(&mut self, board: &dyn Board) -> Result<(), Broken> {
        self.console.work(&mut self.common.queues, board)?;
        for queue in &mut self.common.queues {
            if queue.take_interrupt(board.memory())? {
                self.interrupts.queue(queue.vector, board);
            }
        }
        Ok(())
    }

    fn set_broken(&mut self, board: &dyn Board) {
        if let Some(vector) = self.common.set_broken() {
            self.interrupts.config(vector, board);
        }
    }

    /// Returns the work that is left to do: none without a driver.
    pub(in super::super) fn backlog(&self) -> Backlog {
        if !self.is_running() {
            return Backlog { wants_service: false, wants_room: false, is_drained: true };
        }
        self.console.backlog(&self.common.queues)
    }

    fn is_running(&self) -> bool {
        self.common.is_live() && self.config.word(COMMAND) & COMMAND_MASTER != 0
    }
}
