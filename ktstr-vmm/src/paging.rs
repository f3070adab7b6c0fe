//! Reads guest memory by guest-virtual addresses.
//!
//! The page tables of a paused CPU are walked in guest memory. The guest controls them, so they are
//! not trusted: a walk takes at most five steps, and fails where an entry points outside of memory.
//!
//! Source: Intel SDM vol. 3A, 4.5 ("4-Level Paging and 5-Level Paging").

use crate::engine::{Registers, Vm};
use crate::error::Error;

const CR0_PG: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;

const PRESENT: u64 = 1 << 0;
/// In an entry above the last level: the entry maps a large page.
const LARGE: u64 = 1 << 7;
/// The address bits of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PAGE: u64 = 1 << 12;

/// Fills `buf` from guest-virtual address `gva` as the CPU with `registers` translates it, all of
/// it or nothing. The machine must be paused.
///
/// # Errors
///
/// [`Error::NotMapped`] if a page of the range is not mapped.
pub fn read_virtual(
    vm: &mut dyn Vm,
    registers: &Registers,
    gva: u64,
    buf: &mut [u8],
) -> Result<(), Error> {
    let mut done = 0;
    while done < buf.len() {
        let at = gva.wrapping_add(done as u64);
        let here = (buf.len() - done).min((PAGE - at % PAGE) as usize);
        let gpa = translate(registers, at, &mut |gpa| {
            let mut entry = [0; 8];
            vm.read_memory(gpa, &mut entry)?;
            Ok(u64::from_le_bytes(entry))
        })?;
        vm.read_memory(gpa, &mut buf[done..done + here])?;
        done += here;
    }
    Ok(())
}

/// Returns the guest-physical address of `gva`. `entry` reads a page table entry.
fn translate(
    registers: &Registers,
    gva: u64,
    entry: &mut dyn FnMut(u64) -> Result<u64, Error>,
) -> Result<u64, Error> {
    if registers.cr0 & CR0_PG == 0 {
        return Ok(gva);
    }
    if registers.efer & EFER_LMA == 0 {
        return Err(Error::Unsupported { operation: "translate addresses of 32-bit code" });
    }
    let levels = if registers.cr4 & CR4_LA57 == 0 { 4 } else { 5 };
    // A canonical address repeats its highest translated bit in the bits above.
    let unused = 64 - (12 + 9 * levels);
    if (gva << unused) as i64 >> unused != gva as i64 {
        return Err(Error::NotMapped { gva });
    }
    let mut table = registers.cr3 & ADDRESS;
    for level in (0..levels).rev() {
        let shift = 12 + 9 * level;
        let value = entry(table + (gva >> shift & 0x1ff) * 8)?;
        if value & PRESENT == 0 {
            return Err(Error::NotMapped { gva });
        }
        let is_page = level == 0 || (level <= 2 && value & LARGE != 0);
        if is_page {
            let offset = (1 << shift) - 1;
            return Ok(value & ADDRESS & !offset | gva & offset);
        }
        table = value & ADDRESS;
    }
    unreachable!("the last level is a page")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const LONG_MODE: Registers = Registers {
        cr0: CR0_PG,
        cr3: 0x1000,
        efer: EFER_LMA,
        rip: 0,
        rsp: 0,
        rflags: 0,
        cr2: 0,
        cr4: 0,
        gs_base: 0,
    };

    fn walk(registers: &Registers, tables: &[(u64, u64)], gva: u64) -> Result<u64, Error> {
        let tables: HashMap<u64, u64> = tables.iter().copied().collect();
        translate(registers, gva, &mut |gpa| {
            tables.get(&gpa).copied().ok_or(Error::OutsideMemory { gpa, len: 8 })
        })
    }

    #[test]
    fn translate_finds_pages_of_each_size() {
        let gva = 0xffff_ffff_8123_4567;
        let top = (0x1000 + 511 * 8, 0x2063);
        for (tables, want) in [
            (vec![top, (0x2000 + 510 * 8, 0x4000_00e3)], 0x4000_0000 | gva & 0x3fff_ffff),
            (vec![top, (0x2ff0, 0x3063), (0x3000 + 9 * 8, 0x60_00e3)], 0x60_0000 | gva & 0x1f_ffff),
            (
                vec![
                    top,
                    (0x2ff0, 0x3063),
                    (0x3000 + 9 * 8, 0x4063),
                    (0x4000 + 0x34 * 8, 0x8000_0000_0777_7063),
                ],
                0x777_7567,
            ),
        ] {
            assert_eq!(walk(&LONG_MODE, &tables, gva).unwrap(), want);
        }
    }

    #[test]
    fn translate_walks_five_levels_if_enabled() {
        let registers = Registers { cr4: CR4_LA57, ..LONG_MODE };
        let tables = [(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x4003), (0x4000, 0x20_0083)];
        assert_eq!(walk(&registers, &tables, 0x1234).unwrap(), 0x20_1234);
        assert!(walk(&registers, &tables, 1 << 48).is_err());
    }

    #[test]
    fn translate_rejects_unmapped_addresses() {
        let absent = [(0x1000, 0x2002)];
        assert!(matches!(walk(&LONG_MODE, &absent, 0x10), Err(Error::NotMapped { gva: 0x10 })));
        let hostile = [(0x1000, 0x000f_ffff_ffff_f003)];
        assert!(matches!(walk(&LONG_MODE, &hostile, 0), Err(Error::OutsideMemory { .. })));
        for gva in [0x8000_0000_0000, 1 << 63, 0xffff_7fff_ffff_ffff] {
            assert!(matches!(walk(&LONG_MODE, &[], gva), Err(Error::NotMapped { .. })), "{gva:#x}");
        }
        let loops = [(0x1000, 0x1003)];
        assert_eq!(walk(&LONG_MODE, &loops, 0x123).unwrap(), 0x1123);
    }

    #[test]
    fn translate_returns_the_address_without_paging() {
        assert_eq!(walk(&Registers::default(), &[], 0x1234).unwrap(), 0x1234);
        let legacy = Registers { efer: 0, ..LONG_MODE };
        assert!(matches!(walk(&legacy, &[], 0), Err(Error::Unsupported { .. })));
    }
}
