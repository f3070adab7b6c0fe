//! `struct boot_params`, the page by which a loader passes its parameters to the kernel.
//!
//! Source: Linux 6.12, arch/x86/include/uapi/asm/bootparam.h and setup_data.h (offsets), and
//! Documentation/arch/x86/boot.rst ("The Real-Mode Kernel Header").

use super::super::layout::{ACPI, HIGH_MEMORY, LOW_MEMORY_END};
use super::super::memory::MemoryNode;

const ACPI_RSDP_ADDR: usize = 0x070;
const E820_ENTRIES: usize = 0x1e8;
/// The start of the setup header, in a bzImage and in this page.
pub(super) const SETUP_HEADER: usize = 0x1f1;
/// The end of the longest known setup header.
pub(super) const SETUP_HEADER_END: usize = 0x290;
const BOOT_FLAG: usize = 0x1fe;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_SIZE: usize = 20;

/// A loader without a registered number.
const UNDEFINED_LOADER: u8 = 0xff;
/// `loadflags`: the protected-mode code is at 1 MiB or above.
const LOADED_HIGH: u8 = 1 << 0;
/// `loadflags`: the kernel has a random address, so it may randomise more.
const KASLR_FLAG: u8 = 1 << 1;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// The page, which is filled field by field.
#[derive(Debug, Clone)]
pub(super) struct BootParams([u8; 4096]);

impl Default for BootParams {
    /// Creates the header that a kernel without one of its own (a vmlinux) expects.
    fn default() -> Self {
        let mut params = Self([0; 4096]);
        params.set(BOOT_FLAG, &0xaa55_u16.to_le_bytes());
        params.set(HEADER, b"HdrS");
        params.set(VERSION, &0x020f_u16.to_le_bytes());
        params.set_loader();
        params
    }
}

impl BootParams {
    fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn set_loader(&mut self) {
        self.set(TYPE_OF_LOADER, &[UNDEFINED_LOADER]);
        self.set(ACPI_RSDP_ADDR, &ACPI.to_le_bytes());
        self.0[LOADFLAGS] |= LOADED_HIGH;
    }

    /// Copies the setup header of a bzImage, from [`SETUP_HEADER`] on.
    pub(super) fn set_header(&mut self, header: &[u8]) {
        self.set(SETUP_HEADER, &header[..header.len().min(SETUP_HEADER_END - SETUP_HEADER)]);
        self.set_loader();
    }

    /// Sets the flag of a kernel at a random virtual address.
    pub(super) fn set_kaslr(&mut self) {
        self.0[LOADFLAGS] |= KASLR_FLAG;
    }

    pub(super) fn set_ramdisk(&mut self, address: u64, size: u64) {
        // Both are below the hole, so below 4 GiB.
        self.set(RAMDISK_IMAGE, &(address as u32).to_le_bytes());
        self.set(RAMDISK_SIZE, &(size as u32).to_le_bytes());
    }

    pub(super) fn set_cmdline(&mut self, address: u64) {
        self.set(CMD_LINE_PTR, &(address as u32).to_le_bytes());
    }

    /// Writes the memory map: the memory without the range that a PC reserves below 1 MiB.
    pub(super) fn set_e820(&mut self, ranges: &[MemoryNode]) {
        let entries = e820(ranges);
        self.set(E820_ENTRIES, &[entries.len() as u8]);
        for (index, (base, size, kind)) in entries.into_iter().enumerate() {
            let mut entry = [0; E820_ENTRY_SIZE];
            entry[..8].copy_from_slice(&base.to_le_bytes());
            entry[8..16].copy_from_slice(&size.to_le_bytes());
            entry[16..].copy_from_slice(&kind.to_le_bytes());
            self.set(E820_TABLE + index * E820_ENTRY_SIZE, &entry);
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Returns base, size and kind of each range, in ascending order. Adjacent ranges are merged: the
/// SRAT describes which node a page belongs to.
fn e820(ranges: &[MemoryNode]) -> Vec<(u64, u64, u32)> {
    let mut entries = vec![
        (0, LOW_MEMORY_END, E820_RAM),
        (LOW_MEMORY_END, HIGH_MEMORY - LOW_MEMORY_END, E820_RESERVED),
    ];
    for range in ranges {
        let base = range.base.max(HIGH_MEMORY);
        let size = (range.base + range.size).saturating_sub(base);
        match entries.last_mut() {
            Some((last, len, E820_RAM)) if *last + *len == base => *len += size,
            _ if size > 0 => entries.push((base, size, E820_RAM)),
            _ => {}
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::super::super::memory::place;
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn e820_leaves_out_the_reserved_range() {
        let below = [(0, 0x9_fc00, 1), (0x9_fc00, 0x6_0400, 2)];
        for (nodes, want) in [
            (vec![256], vec![(MIB, 255 * MIB, 1)]),
            (vec![128, 128], vec![(MIB, 255 * MIB, 1)]),
            (vec![2048, 2048], vec![(MIB, 3071 * MIB, 1), (4096 * MIB, 1024 * MIB, 1)]),
            (vec![1, 15], vec![(MIB, 15 * MIB, 1)]),
        ] {
            let entries = e820(&place(nodes.iter().map(|mib| mib * MIB)));
            assert_eq!(entries, [&below[..], &want].concat(), "{nodes:?}");
        }
    }

    #[test]
    fn boot_params_have_the_offsets_of_the_protocol() {
        let mut params = BootParams::default();
        params.set_ramdisk(0x1234_5000, 0x678);
        params.set_cmdline(0x2_0000);
        params.set_kaslr();
        params.set_e820(&place([256 * MIB].into_iter()));
        let bytes = params.as_bytes();
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(&bytes[0x1fe..0x200], [0x55, 0xaa]);
        assert_eq!(&bytes[0x202..0x206], b"HdrS");
        assert_eq!((bytes[0x210], bytes[0x211]), (0xff, 0b11));
        assert_eq!((u32_at(0x218), u32_at(0x21c)), (0x1234_5000, 0x678));
        assert_eq!((u32_at(0x228), u32_at(0x070)), (0x2_0000, 0xe_0000));
        assert_eq!(bytes[0x1e8], 3);
        assert_eq!(
            (u32_at(0x2d0 + 40), u32_at(0x2d0 + 48), u32_at(0x2d0 + 56)),
            (0x10_0000, 255 << 20, 1)
        );
    }

    #[test]
    fn set_header_keeps_all_but_the_fields_of_the_loader() {
        let mut header = vec![0x11; 0x60];
        header[0x211 - 0x1f1] = 0x80;
        let mut params = BootParams::default();
        params.set_header(&header);
        let bytes = params.as_bytes();
        assert_eq!((bytes[0x1f1], bytes[0x230], bytes[0x251]), (0x11, 0x11, 0));
        assert_eq!((bytes[0x210], bytes[0x211]), (0xff, 0x81));
    }
}
