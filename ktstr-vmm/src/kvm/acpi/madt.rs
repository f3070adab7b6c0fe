//! The MADT: CPUs and interrupt controllers.
//!
//! Source: ACPI 6.5, 5.2.12 ("Multiple APIC Description Table").

use super::table::Table;
use crate::kvm::cpus::Cpus;
use crate::kvm::layout;

const REVISION: u8 = 6;
/// The value of the identification register of KVM's I/O APIC.
const IO_APIC_ID: u8 = 0;
/// The first interrupt of the I/O APIC.
const GSI_BASE: u32 = 0;

/// Writes the table: a local APIC per CPU, in the order in which kernels number them.
///
/// `PCAT_COMPAT` is off, because the machine has no 8259. It needs no interrupt source override:
/// without an 8259 no line is an ISA interrupt by default, and the DSDT describes the trigger mode
/// of the one line in use.
pub(super) fn madt(cpus: &Cpus) -> Vec<u8> {
    let mut table = Table::new(b"APIC", REVISION);
    table.u32(layout::LOCAL_APIC as u32).u32(0);
    for (uid, cpu) in cpus.list.iter().enumerate() {
        // Processor Local APIC (5.2.12.2); `Cpus` limits number and APIC ID to 254.
        table.u8(0).u8(8).u8(uid as u8).u8(cpu.apic_id as u8).u32(1);
    }
    // I/O APIC (5.2.12.3).
    table.u8(1).u8(12).u8(IO_APIC_ID).u8(0).u32(layout::IO_APIC as u32).u32(GSI_BASE);
    table.finish()
}
