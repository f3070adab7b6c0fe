//! Checks that a kernel and an initramfs fit into a machine.
//!
//! QEMU does not check it: it puts the initramfs at the top of low memory, if necessary over the
//! kernel, and the guest crashes or hangs sooner or later.

use std::fs::File;
use std::path::Path;

use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, ReadCache};

use crate::config::VmConfig;
use crate::error::Error;

/// Bytes that QEMU reserves at the top of low memory, for ACPI tables among others.
const KEPT: u64 = 1 << 20;

/// Fails if `low` bytes of low memory are not enough for the machine.
pub(super) fn check(config: &VmConfig, low: u64) -> Result<(), Error> {
    // QEMU itself reports a kernel that is not an ELF file or cannot be read.
    let Some(kernel_end) = kernel_end(&config.kernel) else { return Ok(()) };
    let Ok(initramfs) = config.initramfs.metadata() else { return Ok(()) };
    let need = kernel_end.saturating_add(initramfs.len()).saturating_add(KEPT);
    if need <= low {
        return Ok(());
    }
    Err(Error::Config(format!(
        "{} MiB of memory are not enough for the kernel and the initramfs, which need {} MiB",
        config.memory_mib,
        need.div_ceil(1 << 20)
    )))
}

/// Returns the end of the memory of an uncompressed kernel.
fn kernel_end(kernel: &Path) -> Option<u64> {
    let cache = ReadCache::new(File::open(kernel).ok()?);
    let header = FileHeader64::<LittleEndian>::parse(&cache).ok()?;
    let segments = header.program_headers(LittleEndian, &cache).ok()?;
    let loaded = segments.iter().filter(|segment| segment.p_type(LittleEndian) == PT_LOAD);
    loaded
        .map(|segment| segment.p_paddr(LittleEndian).saturating_add(segment.p_memsz(LittleEndian)))
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns an ELF file with one segment of 40 MiB at 16 MiB.
    fn kernel() -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0x10, &2_u16.to_le_bytes());
        put(0x12, &62_u16.to_le_bytes());
        put(0x20, &64_u64.to_le_bytes());
        put(0x36, &56_u16.to_le_bytes());
        put(0x38, &1_u16.to_le_bytes());
        put(64, &1_u32.to_le_bytes());
        put(64 + 0x18, &(16_u64 << 20).to_le_bytes());
        put(64 + 0x28, &(40_u64 << 20).to_le_bytes());
        bytes
    }

    #[test]
    fn check_rejects_an_initramfs_that_overlaps_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("vmlinux"), kernel()).unwrap();
        File::create(path("initramfs")).unwrap().set_len(7 << 20).unwrap();
        let config = |kernel: &str| VmConfig {
            kernel: path(kernel),
            initramfs: path("initramfs"),
            cmdline: String::new(),
            kaslr: true,
            topology: crate::config::even([1, 1, 1, 1]),
            memory_mib: 64,
            ports: Vec::new(),
        };
        check(&config("vmlinux"), 64 << 20).unwrap();
        let error = check(&config("vmlinux"), 63 << 20).unwrap_err().to_string();
        assert!(error.contains("64 MiB of memory are not enough"), "{error}");
        assert!(error.contains("which need 64 MiB"), "{error}");
        check(&config("initramfs"), 1 << 20).expect("not an ELF file");
        check(&config("missing"), 1 << 20).expect("QEMU reports a missing file");
    }
}
