//! The virtio console for a hostile driver.
//!
//! Source: virtio 1.2, 2.7 ("Split Virtqueues") and 4.1 ("Virtio Over PCI Bus").

use crate::code::Code;

/// The address of the BAR that firmware would choose.
pub(crate) const BAR: u32 = 0xd000_0000;
/// Bytes of the BAR.
pub(crate) const BAR_SIZE: u32 = 0x8000;
/// The address for notifications in the BAR, and the MSI-X table.
const NOTIFY: u32 = BAR + 0x3000;
const MSIX_TABLE: u32 = BAR + 0x4000;
/// A bit of the device status.
pub(crate) const NEEDS_RESET: u32 = 64;

/// Offsets in the configuration space: message control of MSI-X, and the window to the BAR.
const MSIX: u8 = 0x40;
const WINDOW: u8 = 0x90;

/// The transmit queues of the two ports.
pub(crate) const TRANSMIT: [u16; 2] = [5, 7];
pub(crate) const SIZE: u16 = 64;
pub(crate) const DESC_NEXT: u16 = 1;
pub(crate) const DESC_WRITE: u16 = 2;
pub(crate) const DESC_INDIRECT: u16 = 4;

/// The addresses of a queue's rings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rings {
    pub(crate) table: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

impl Rings {
    pub(crate) const fn at(base: u64) -> Self {
        Self { table: base, available: base + 0x1000, used: base + 0x2000 }
    }
}

/// Encodes a descriptor.
pub(crate) fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

/// Encodes an available ring.
pub(crate) fn available(index: u16, heads: &[u16]) -> Vec<u8> {
    [&[0, index], heads].concat().iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl Code {
    /// Writes a register of the device's configuration space.
    pub(crate) fn pci(&mut self, register: u8, value: u32) -> &mut Self {
        self.out32(0xcf8, 0x8000_0800 | u32::from(register)).out32(0xcfc, value)
    }

    /// Enables the device and negotiates features.
    pub(crate) fn find_device(&mut self) -> &mut Self {
        self.pci(0x04, 6)
            // Acknowledge, driver; multiport and virtio 1; features OK.
            .store8(BAR + 0x14, 0)
            .store8(BAR + 0x14, 3)
            .store32(BAR + 0x08, 0)
            .store32(BAR + 0x0c, 2)
            .store32(BAR + 0x08, 1)
            .store32(BAR + 0x0c, 1)
            .store8(BAR + 0x14, 3 | 8)
    }

    /// Enables a queue with interrupt vector 0.
    pub(crate) fn enable(&mut self, queue: u16, rings: Rings) -> &mut Self {
        self.store16(BAR + 0x16, queue).store16(BAR + 0x18, SIZE).store16(BAR + 0x1a, 0);
        for (at, value) in [(0x20, rings.table), (0x28, rings.available), (0x30, rings.used)] {
            self.store32(BAR + at, value as u32).store32(BAR + at + 4, (value >> 32) as u32);
        }
        self.store16(BAR + 0x1c, 1)
    }

    /// Sets `DRIVER_OK`.
    pub(crate) fn go(&mut self) -> &mut Self {
        self.store8(BAR + 0x14, 3 | 8 | 4)
    }

    pub(crate) fn notify(&mut self, queue: u16) -> &mut Self {
        self.store16(NOTIFY, queue)
    }

    /// Waits until all available chains are used.
    pub(crate) fn wait_used(&mut self, rings: Rings) -> &mut Self {
        // `mov ax, [used + 2]; cmp ax, [available + 2]; jne` back
        self.edi(rings.used as u32 + 2).raw(&[0x66, 0x8b, 0x07]);
        self.edi(rings.available as u32 + 2).raw(&[0x66, 0x3b, 0x07, 0x75, 0xee])
    }

    /// Copies the device status to memory, where the host can read it.
    pub(crate) fn keep_status(&mut self, at: u32) -> &mut Self {
        // `movzx eax, byte [rdi]; mov [at], eax`
        self.edi(BAR + 0x14).raw(&[0x0f, 0xb6, 0x07]).edi(at).raw(&[0x89, 0x07])
    }

    /// Programs vector 0 of MSI-X to be this interrupt of the first CPU.
    pub(crate) fn enable_msix(&mut self, vector: u8) -> &mut Self {
        self.pci(MSIX, 1 << 31);
        for (at, value) in (MSIX_TABLE..).step_by(4).zip([0xfee0_0000, 0, u32::from(vector), 0]) {
            self.store32(at, value);
        }
        self
    }

    /// Points the window in the configuration space to the address for notifications.
    pub(crate) fn open_window(&mut self) -> &mut Self {
        self.pci(WINDOW + 4, 0).pci(WINDOW + 8, NOTIFY - BAR).pci(WINDOW + 12, 2)
    }
}

/// Returns real-mode code that makes a chain available and notifies a queue through the window,
/// in an endless loop.
pub(crate) fn flood_through_window(available: u16, queue: u16) -> Vec<u8> {
    let [low, high] = (available + 2).to_le_bytes();
    let [queue, _] = queue.to_le_bytes();
    let data = WINDOW + 16;
    vec![
        0xff, 0x06, low, high, // inc word [available + 2]
        0x66, 0xb8, data, 0x08, 0x00, 0x80, // mov eax, the window's data
        0xba, 0xf8, 0x0c, // mov dx, 0xcf8
        0x66, 0xef, // out dx, eax
        0xba, 0xfc, 0x0c, // mov dx, 0xcfc
        0xb8, queue, 0x00, // mov ax, queue
        0xef, // out dx, ax
        0xeb, 0xe8, // to the first
    ]
}
