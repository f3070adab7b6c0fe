//! What is where in BAR 0, a page to each, and the capabilities that tell of it.
//!
//! Source: virtio 1.2, 4.1.4 ("Virtio Structure PCI Capabilities").

use super::super::pci::{ConfigSpace, MSIX_CAPABILITY, Msix};

/// What is in BAR 0, page by page.
const PAGE: u32 = 0x1000;
pub(super) const COMMON: u32 = 0;
pub(super) const ISR: u32 = 1;
pub(super) const DEVICE: u32 = 2;
pub(super) const NOTIFY: u32 = 3;
pub(super) const MSIX_TABLE: u32 = 4;
pub(super) const MSIX_PENDING: u32 = 5;
/// Its size: a power of two.
pub(super) const BAR_SIZE: u32 = 8 * PAGE;

/// The ID of capabilities that are the vendor's own: here, virtio's.
const VENDOR_CAPABILITY: u8 = 9;
/// Kinds of them.
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// A window to the BAR for those who cannot reach it: they write here what to access, and find the
/// data in the same capability.
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
    /// Where in the capability the data is.
    pub(super) const DATA: usize = 16;

    /// What is to be accessed, if it is a naturally aligned part of the BAR.
    pub(super) fn at(config: &ConfigSpace, capability: usize) -> Option<Self> {
        let offset = config.dword(capability + Self::OFFSET) as usize;
        let len = config.dword(capability + Self::LENGTH) as usize;
        let is_bar0 = config.word(capability + Self::BAR) as u8 == 0;
        let is_access = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len);
        (is_bar0 && is_access && is_in_bar(offset, len)).then_some(Self { offset, len })
    }
}

/// Whether all of an access is in the BAR.
pub(super) fn is_in_bar(offset: usize, len: usize) -> bool {
    offset.checked_add(len).is_some_and(|end| end <= BAR_SIZE as usize)
}

/// The page of the BAR, and the offset in it.
pub(super) fn split(offset: usize) -> (u32, usize) {
    (offset as u32 / PAGE, offset % PAGE as usize)
}

/// Adds the MSI-X capability; returns where it is.
pub(super) fn add_msix(config: &mut ConfigSpace, msix: &Msix) -> usize {
    let (body, writable) = msix.capability(MSIX_TABLE * PAGE, MSIX_PENDING * PAGE);
    config.add_capability(MSIX_CAPABILITY, &body, &writable)
}

/// Adds virtio's capabilities; returns where that of [`Window`] is, which comes last.
///
/// Source: virtio 1.2, 4.1.4 ("Virtio Structure PCI Capabilities").
pub(super) fn add_virtio(config: &mut ConfigSpace) -> usize {
    for (kind, page, extra) in [
        (COMMON_CFG, COMMON, &[][..]),
        (ISR_CFG, ISR, &[]),
        (DEVICE_CFG, DEVICE, &[]),
        // `notify_off_multiplier`: all queues are notified at one place.
        (NOTIFY_CFG, NOTIFY, &0_u32.to_le_bytes()),
    ] {
        config.add_capability(VENDOR_CAPABILITY, &body(kind, page, extra), &[]);
    }
    let mut writable = [0; 18];
    // All but the capability's length and kind, its ID and the padding behind it.
    writable[Window::BAR - 2] = 0xff;
    writable[Window::OFFSET - 2..].fill(0xff);
    let mut body = body(PCI_CFG, 0, &[0; 4]);
    body[Window::LENGTH - 2..Window::DATA - 2].fill(0);
    config.add_capability(VENDOR_CAPABILITY, &body, &writable)
}

/// A `struct virtio_pci_cap` without its first two bytes: a page of BAR 0.
fn body(kind: u8, page: u32, extra: &[u8]) -> Vec<u8> {
    let mut body = vec![(Window::DATA + extra.len()) as u8, kind, 0, 0, 0, 0];
    body.extend((page * PAGE).to_le_bytes());
    body.extend(PAGE.to_le_bytes());
    body.extend(extra);
    body
}
