//! The pages of BAR 0, and the capabilities that describe them.
//!
//! Source: virtio 1.2, 4.1.4 ("Virtio Structure PCI Capabilities").

use super::super::pci::{ConfigSpace, MSIX_CAPABILITY, Msix};

/// Bytes of a page of BAR 0, and the pages.
const PAGE: u32 = 0x1000;
pub(super) const COMMON: u32 = 0;
pub(super) const ISR: u32 = 1;
pub(super) const DEVICE: u32 = 2;
pub(super) const NOTIFY: u32 = 3;
pub(super) const MSIX_TABLE: u32 = 4;
pub(super) const MSIX_PENDING: u32 = 5;
/// Bytes of BAR 0: a power of two.
pub(super) const BAR_SIZE: u32 = 8 * PAGE;

/// The ID of vendor-specific capabilities: here, virtio's.
const VENDOR_CAPABILITY: u8 = 9;
/// Types of virtio capabilities.
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// An access to the BAR through the configuration space, for drivers that cannot map it: they write
/// its place into this capability, and the data is in the same capability.
///
/// Source: virtio 1.2, 4.1.4.9 ("PCI configuration access capability").
#[derive(Debug)]
pub(super) struct Window {
    pub(super) offset: usize,
    pub(super) len: usize,
}

impl Window {
    const BAR: usize = 4;
    const OFFSET: usize = 8;
    const LENGTH: usize = 12;
    /// The offset of the data in the capability.
    pub(super) const DATA: usize = 16;

    /// Returns the access, if it is a naturally aligned part of the BAR.
    pub(super) fn at(config: &ConfigSpace, capability: usize) -> Option<Self> {
        let offset = config.dword(capability + Self::OFFSET) as usize;
        let len = config.dword(capability + Self::LENGTH) as usize;
        let is_bar0 = config.word(capability + Self::BAR) as u8 == 0;
        let is_access = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len);
        (is_bar0 && is_access && is_in_bar(offset, len)).then_some(Self { offset, len })
    }
}

/// Returns whether all of an access is in the BAR.
pub(super) fn is_in_bar(offset: usize, len: usize) -> bool {
    offset.checked_add(len).is_some_and(|end| end <= BAR_SIZE as usize)
}

/// Returns the page of the BAR, and the offset in it.
pub(super) fn split(offset: usize) -> (u32, usize) {
    (offset as u32 / PAGE, offset % PAGE as usize)
}

/// Adds the MSI-X capability and returns its offset.
pub(super) fn add_msix(config: &mut ConfigSpace, msix: &Msix) -> usize {
    let (body, writable) = msix.capability(MSIX_TABLE * PAGE, MSIX_PENDING * PAGE);
    config.add_capability(MSIX_CAPABILITY, &body, &writable)
}

/// Adds virtio's capabilities. Returns the offset of the last one, that of [`Window`].
///
/// Source: virtio 1.2, 4.1.4 ("Virtio Structure PCI Capabilities").
pub(super) fn add_virtio(config: &mut ConfigSpace) -> usize {
    for (kind, page, extra) in [
        (COMMON_CFG, COMMON, &[][..]),
        (ISR_CFG, ISR, &[]),
        (DEVICE_CFG, DEVICE, &[]),
        // `notify_off_multiplier`: all queues are notified at the same address.
        (NOTIFY_CFG, NOTIFY, &0_u32.to_le_bytes()),
    ] {
        config.add_capability(VENDOR_CAPABILITY, &body(kind, page, extra), &[]);
    }
    let mut writable = [0; 18];
    // All fields but the capability's length, type and ID, and the padding after it.
    writable[Window::BAR - 2] = 0xff;
    writable[Window::OFFSET - 2..].fill(0xff);
    let mut body = body(PCI_CFG, 0, &[0; 4]);
    body[Window::LENGTH - 2..Window::DATA - 2].fill(0);
    config.add_capability(VENDOR_CAPABILITY, &body, &writable)
}

/// Returns a `struct virtio_pci_cap` without its first two bytes for a page of BAR 0.
fn body(kind: u8, page: u32, extra: &[u8]) -> Vec<u8> {
    let mut body = vec![(Window::DATA + extra.len()) as u8, kind, 0, 0, 0, 0];
    body.extend((page * PAGE).to_le_bytes());
    body.extend(PAGE.to_le_bytes());
    body.extend(extra);
    body
}
