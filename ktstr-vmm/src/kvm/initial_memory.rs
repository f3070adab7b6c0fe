//! The memory of a machine at its first instruction.

use super::cpu::regs;
use super::cpus::Cpus;
use super::layout::ACPI;
use super::memory::{Memory, place};
use super::{acpi, boot};
use crate::config::VmConfig;
use crate::error::Error;

/// Guest memory that was filled as a [`VmConfig`] describes. It does not use KVM, so loading can be
/// tested on any host.
#[derive(Debug)]
pub struct InitialMemory {
    pub(super) cpus: Cpus,
    pub(super) memory: Memory,
    pub(super) entry: u64,
}

impl InitialMemory {
    /// Loads the files of `config`, with `cmdline` instead of its command line.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if such a machine cannot exist, or the error of one of the files.
    pub fn new(config: &VmConfig, cmdline: &str) -> Result<Self, Error> {
        config.check()?;
        let cpus = Cpus::new(&config.topology)?;
        let ranges = place(config.node_sizes_mib().map(|mib| mib << 20));
        let mut memory = Memory::new(&ranges)?;
        let entry = boot::load(config, cmdline, &mut memory, &ranges)?;
        memory.write(ACPI, &acpi::build(&cpus, &ranges)?)?;
        regs::write_tables(&memory)?;
        Ok(Self { cpus, memory, entry })
    }

    /// Returns the address of the first instruction.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// Fills `buf` from guest-physical address `gpa`, all of it or nothing.
    ///
    /// # Errors
    ///
    /// [`Error::OutsideMemory`] if a part of the range is not memory.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.memory.read(gpa, buf)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::even;
    use crate::kvm::BootError;
    use crate::kvm_error::Error as KvmError;

    fn contents(kernel: &Path, initramfs: &Path, kaslr: bool) -> Result<InitialMemory, Error> {
        let config = VmConfig {
            kernel: kernel.to_owned(),
            initramfs: initramfs.to_owned(),
            cmdline: String::new(),
            kaslr,
            topology: even([1, 1, 1, 1]),
            memory_mib: 32,
            ports: Vec::new(),
        };
        InitialMemory::new(&config, "")
    }

    /// Returns an ELF file of one segment at 16 MiB, which is never run.
    fn tiny_kernel() -> Vec<u8> {
        let mut file = vec![0; 4096];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(16, &[2, 0, 62, 0, 1]); // ET_EXEC, EM_X86_64, EV_CURRENT
        put(24, &0x100_0000_u64.to_le_bytes()); // e_entry
        put(32, &64_u64.to_le_bytes()); // e_phoff
        put(54, &[56, 0, 1, 0]); // e_phentsize, e_phnum
        put(64, &[1]); // PT_LOAD
        for (field, value) in [(8, 0_u64), (24, 0x100_0000), (32, 4096), (40, 4096)] {
            put(64 + field, &value.to_le_bytes()); // p_offset, p_paddr, p_filesz, p_memsz
        }
        file
    }

    #[test]
    fn new_accepts_an_initramfs_of_any_size() {
        let dir = tempfile::tempdir().unwrap();
        let (image, initramfs) = (dir.path().join("kernel"), dir.path().join("initramfs"));
        std::fs::write(&image, tiny_kernel()).unwrap();
        for size in [0, 1, 4095, 4096, 4097, 8192] {
            std::fs::write(&initramfs, vec![7; size]).unwrap();
            let contents = contents(&image, &initramfs, true).unwrap();
            assert_eq!(contents.entry(), 0x100_0000);
            let base = ((32 << 20) - size) / 4096 * 4096;
            let mut bytes = vec![0; size];
            contents.read(base as u64, &mut bytes).unwrap();
            assert!(bytes == vec![7; size], "{size}");
        }
    }

    #[test]
    fn new_reads_relocations_only_with_kaslr() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("kernel");
        let mut kernel = tiny_kernel();
        kernel[40] = 64; // e_shoff: everything behind it is relocations, and malformed.
        kernel.push(0);
        std::fs::write(&image, kernel).unwrap();
        assert_eq!(contents(&image, &image, false).unwrap().entry(), 0x100_0000);
        let error = contents(&image, &image, true).unwrap_err().to_string();
        assert!(error.contains("4033 bytes of relocations"), "{error}");
    }

    #[test]
    fn new_rejects_files_that_are_not_regular() {
        let dir = tempfile::tempdir().unwrap();
        let (image, pipe) = (dir.path().join("kernel"), dir.path().join("pipe"));
        std::fs::write(&image, tiny_kernel()).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        for other in [pipe.as_path(), dir.path(), Path::new("/dev/zero")] {
            for (kernel, initramfs) in [(other, image.as_path()), (&image, other)] {
                let error = contents(kernel, initramfs, true).unwrap_err();
                let is_read = matches!(error, Error::Kvm(KvmError::Boot(BootError::Read { .. })));
                assert!(is_read && error.to_string().contains("not a regular file"), "{error}");
            }
        }
    }
}
