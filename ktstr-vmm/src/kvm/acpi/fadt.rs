//! The FADT: which fixed hardware of ACPI exists; most of it does not.
//!
//! Source: ACPI 6.5, 5.2.9 ("Fixed ACPI Description Table").

use super::table::Table;
use crate::kvm::layout;

const REVISION: u8 = 6;
const MINOR_REVISION: u8 = 5;

/// VGA and CMOS clock are missing, and, by the bits that are not set, no 8042 and no other
/// legacy device (5.2.9.3). So a kernel does not probe for them.
const BOOT_ARCHITECTURE: u16 = 1 << 5 | 1 << 2;

/// WBINVD works; HLT works; power button, sleep button and clock are not fixed hardware; there is a
/// reset register; the machine is headless; other fixed hardware is missing (`HW_REDUCED_ACPI`).
const FLAGS: u32 = 1 << 20 | 1 << 12 | 1 << 10 | 1 << 6 | 1 << 5 | 1 << 4 | 1 << 2 | 1 << 0;

/// Writes the table for a DSDT at `dsdt`.
pub(super) fn fadt(dsdt: u64) -> Vec<u8> {
    Table::new(b"FACP", REVISION)
        // The 64-bit forms of FIRMWARE_CTRL and DSDT below replace the first two fields; the others
        // are registers and values of fixed hardware.
        .zeros(109 - 36)
        .u16(BOOT_ARCHITECTURE)
        .zeros(1)
        .u32(FLAGS)
        .bytes(&port(layout::RESET))
        .u8(layout::RESET_VALUE)
        .zeros(2)
        .u8(MINOR_REVISION)
        // Hardware-reduced ACPI does not need a FACS.
        .u64(0)
        .u64(dsdt)
        .zeros(8 * 12)
        .bytes(&port(layout::SLEEP_CONTROL))
        .bytes(&port(layout::SLEEP_STATUS))
        .bytes(b"KVM\0\0\0\0\0")
        .finish()
}

/// Encodes the Generic Address Structure of one byte in I/O space (5.2.3.2).
fn port(port: u16) -> [u8; 12] {
    let (system_io, bits, offset, byte_access) = (1, 8, 0, 1);
    let [low, high] = port.to_le_bytes();
    [system_io, bits, offset, byte_access, low, high, 0, 0, 0, 0, 0, 0]
}
