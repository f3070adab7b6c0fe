//! The DSDT: the devices that a kernel cannot discover.
//!
//! Source: ACPI 6.5, 5.2.11.1 ("Differentiated System Description Table").

use super::resource::{bus, edge_interrupt, io, memory, template};
use super::table::Table;
use super::{aml, aml::name};
use crate::kvm::layout;

/// With this revision integers have 64 bits.
const REVISION: u8 = 2;

/// Writes the table.
pub(super) fn dsdt() -> Vec<u8> {
    let devices = aml::scope(b"_SB_", &[pci_root(), com1()]);
    Table::new(b"DSDT", REVISION).bytes(&power_off()).bytes(&devices).finish()
}

/// Encodes the value that a guest writes to [`layout::SLEEP_CONTROL`] to power off (7.4.2, 16.1.7).
fn power_off() -> Vec<u8> {
    let sleep_type = aml::integer(u32::from(layout::SLEEP_TYPE_S5));
    name(b"_S5_", &aml::package(&[sleep_type, aml::integer(0)]))
}

/// Encodes the host bridge to the only bus: a kernel scans as many buses as are declared.
///
/// It is plain PCI, without the memory-mapped configuration and `_OSC` of PCI Express. There is no
/// `_PRT`, because all devices signal their interrupts by messages.
fn pci_root() -> Vec<u8> {
    const CONFIG_PORTS: u8 = 8;
    let window = memory(layout::PCI_WINDOW as u32, layout::PCI_WINDOW_SIZE as u32);
    let resources = template(&[bus(0), io(layout::PCI_ADDRESS, CONFIG_PORTS), window]);
    aml::device(
        b"PCI0",
        &[
            name(b"_HID", &aml::eisa_id(b"PNP0A03")),
            name(b"_UID", &aml::integer(0)),
            name(b"_CRS", &resources),
        ],
    )
}

/// Encodes the serial console. Without legacy interrupts this is the only source of its line.
fn com1() -> Vec<u8> {
    const PORTS: u8 = 8;
    let resources = template(&[io(layout::COM1, PORTS), edge_interrupt(layout::COM1_IRQ)]);
    aml::device(
        b"COM1",
        &[
            name(b"_HID", &aml::eisa_id(b"PNP0501")),
            name(b"_UID", &aml::integer(0)),
            name(b"_CRS", &resources),
        ],
    )
}
