//! The registers of the first CPU at the kernel's 64-bit entry, and the tables that they point to.
//!
//! All other CPUs keep the state of a new vCPU, in which they wait until the first one starts them.
//!
//! Sources: Linux 6.12, Documentation/arch/x86/boot.rst ("64-bit Boot Protocol"); Intel SDM vol.
//! 3A, 2.5 (control registers), 3.4.5 (segment descriptors), 4.5 (4-level paging).

use kvm_bindings::{kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};

use super::super::layout::{
    GDT, HOLE_END, LARGE_PAGE, PAGE, PAGE_DIRECTORIES, PDPT, PML4, ZERO_PAGE,
};
use super::super::memory::Memory;
use crate::kvm_error::Error;

/// `__BOOT_CS` and `__BOOT_DS`, which the protocol requires, and a task, because KVM requires one.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const TASK: u16 = 0x20;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS: u64 = 1 << 1;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1 << 0;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs are enabled, and memory is write-back unless one of them sets another type.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Writes the descriptor table and the page tables of [`sregs`].
pub(in crate::kvm) fn write_tables(memory: &Memory) -> Result<(), Error> {
    for (index, segment) in [code(), data(), task()].iter().enumerate() {
        memory.set(GDT + 8 * (2 + index as u64), descriptor(segment))?;
    }
    memory.set(PML4, PDPT | PRESENT | WRITABLE)?;
    for gib in 0..HOLE_END >> 30 {
        let directory = PAGE_DIRECTORIES + gib * PAGE;
        memory.set(PDPT + gib * 8, directory | PRESENT | WRITABLE)?;
        let entries: Vec<u8> = (0..512)
            .map(|index| (gib << 30) + index * LARGE_PAGE)
            .flat_map(|page| (page | PRESENT | WRITABLE | LARGE).to_le_bytes())
            .collect();
        memory.write(directory, &entries)?;
    }
    Ok(())
}

/// Returns the general registers: the first instruction, and the boot parameters.
pub(in crate::kvm) fn regs(entry: u64) -> kvm_regs {
    kvm_regs { rip: entry, rsi: ZERO_PAGE, rflags: RFLAGS, ..kvm_regs::default() }
}

/// Returns the system registers of 64-bit mode with flat segments; the others keep `initial`.
pub(in crate::kvm) fn sregs(initial: kvm_sregs) -> kvm_sregs {
    let mut sregs = initial;
    sregs.cs = code();
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data(), data(), data(), data(), data());
    sregs.tr = task();
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 5 * 8 - 1);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    sregs
}

/// Returns the model-specific registers that firmware sets on every CPU.
pub(in crate::kvm) fn msrs() -> [kvm_msr_entry; 2] {
    let msr = |index, data| kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
    [
        msr(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        msr(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ]
}

/// Returns a code segment: execute and read, accessed; 64-bit.
fn code() -> kvm_segment {
    kvm_segment { selector: BOOT_CS, type_: 0xb, l: 1, ..flat() }
}

/// Returns a data segment: read and write, accessed; 32-bit, as data segments are in 64-bit mode.
fn data() -> kvm_segment {
    kvm_segment { selector: BOOT_DS, type_: 0x3, db: 1, ..flat() }
}

/// Returns the segment of a busy task.
fn task() -> kvm_segment {
    kvm_segment { selector: TASK, type_: 0xb, s: 0, ..flat() }
}

/// Returns a segment of all addresses, present, for privilege level 0.
fn flat() -> kvm_segment {
    kvm_segment { base: 0, limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..kvm_segment::default() }
}

/// Encodes `segment`, which has base 0, as an entry of a descriptor table.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = if segment.g == 1 { segment.limit >> 12 } else { segment.limit };
    let bits = [
        (u64::from(limit & 0xffff), 0),
        (u64::from(segment.type_), 40),
        (u64::from(segment.s), 44),
        (u64::from(segment.dpl), 45),
        (u64::from(segment.present), 47),
        (u64::from(limit >> 16), 48),
        (u64::from(segment.l), 53),
        (u64::from(segment.db), 54),
        (u64::from(segment.g), 55),
    ];
    bits.iter().fold(0, |descriptor, (value, shift)| descriptor | value << shift)
}

#[cfg(test)]
mod tests {
    use super::super::super::memory::place;
    use super::*;

    #[test]
    fn descriptor_matches_the_manual() {
        assert_eq!(descriptor(&code()), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&data()), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&task()), 0x008f_8b00_0000_ffff);
    }

    #[test]
    fn write_tables_maps_four_gib_one_to_one() {
        let memory = Memory::new(&place([1 << 20].into_iter())).unwrap();
        write_tables(&memory).unwrap();
        for gva in [0_u64, 0x1234_5678, 0xbfff_ffff, 0xffff_ffff] {
            let mut table = PML4;
            for shift in [39, 30, 21] {
                let entry: u64 = memory.get(table + (gva >> shift & 511) * 8).unwrap();
                assert_eq!(entry & 3, 3, "{gva:#x}");
                table = entry & !0xfff;
            }
            assert_eq!(table | gva & (LARGE_PAGE - 1), gva);
        }
        assert_eq!(memory.get::<u64>(PML4 + 8).unwrap(), 0);
        assert_eq!(memory.get::<u64>(PDPT + 32).unwrap(), 0);
    }
}
