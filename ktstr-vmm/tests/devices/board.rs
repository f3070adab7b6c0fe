//! A board that consists of memory and records what devices do to it.

use std::cell::{Cell, RefCell};

use ktstr_vmm::kvm::{Board, Msi};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// The board of these tests and of the fuzzers.
#[derive(Debug)]
pub(crate) struct FakeBoard {
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) room: Cell<usize>,
    pub(crate) messages: RefCell<Vec<Msi>>,
    pub(crate) irqs: RefCell<Vec<(u32, bool)>>,
    pub(crate) console: RefCell<Vec<u8>>,
    pub(crate) output: RefCell<Vec<(usize, Vec<u8>)>>,
}

impl FakeBoard {
    /// Creates a board with these ranges of memory and room for 1 GiB of output.
    pub(crate) fn new(ranges: &[(u64, usize)]) -> Self {
        let ranges: Vec<_> = ranges.iter().map(|&(at, len)| (GuestAddress(at), len)).collect();
        Self {
            memory: GuestMemoryMmap::from_ranges(&ranges).expect("a few pages can be allocated"),
            room: Cell::new(1 << 30),
            messages: RefCell::default(),
            irqs: RefCell::default(),
            console: RefCell::default(),
            output: RefCell::default(),
        }
    }
}

impl Board for FakeBoard {
    fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    fn signal_msi(&self, msi: Msi) {
        self.messages.borrow_mut().push(msi);
    }

    fn set_irq(&self, irq: u32, is_active: bool) {
        self.irqs.borrow_mut().push((irq, is_active));
    }

    fn console(&self, bytes: &[u8]) {
        self.console.borrow_mut().extend(bytes);
    }

    fn port_room(&self) -> usize {
        self.room.get()
    }

    fn port(&self, port: usize, bytes: Vec<u8>) {
        assert!(!bytes.is_empty() && bytes.len() <= self.room.get());
        self.room.set(self.room.get() - bytes.len());
        self.output.borrow_mut().push((port, bytes));
    }
}
