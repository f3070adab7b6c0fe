//! The code that loads files: the KVM engine's loader, and the host's inspection of kernels and modules.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context, Result};
use ktstr::provision::kernel::resolve_spec;
use ktstr::provision::{Cache, Kernel, KernelSpec, modules_for};
use ktstr::topology::Topology;
use ktstr_vmm::kvm::{BootError, Error as KvmError, InitialMemory};
use ktstr_vmm::{Error, VmConfig};
use tempfile::TempDir;

use super::damage::Victim;

/// A module such as the initramfs gets.
const MODULE: &str = "virtio_blk";
/// Fields of a bzImage's setup header (Linux 6.12, Documentation/arch/x86/boot.rst): offset, size.
const SETUP_HEADER: [(usize, usize); 16] = [
    (0x1f1, 1), // setup_sects
    (0x1fe, 2), // boot_flag
    (0x201, 1), // jump, whose distance is the header's size
    (0x202, 4), // header
    (0x206, 2), // version
    (0x20e, 2), // kernel_version
    (0x211, 1), // loadflags
    (0x230, 4), // kernel_alignment
    (0x234, 1), // relocatable_kernel
    (0x236, 2), // xloadflags
    (0x248, 4), // payload_offset
    (0x24c, 4), // payload_length
    (0x250, 8), // setup_data
    (0x258, 8), // pref_address
    (0x260, 4), // init_size
    (0x264, 4), // handover_offset
];

/// The fields of an ELF file's header, of a program header, and of a section header.
const ELF_HEADER: [usize; 17] = [4, 1, 1, 2, 8, 2, 2, 4, 8, 8, 8, 4, 2, 2, 2, 2, 2];
const PROGRAM_HEADER: [usize; 8] = [4, 4, 8, 8, 8, 8, 8, 8];
const SECTION_HEADER: [usize; 10] = [4, 4, 8, 8, 8, 8, 4, 4, 8, 8];

/// The code that loads a damaged file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    /// The engine, as the kernel of a machine.
    EngineKernel,
    /// The engine, as the initramfs of a machine.
    EngineInitramfs,
    /// The host side, as a kernel given by its path.
    Provision,
    /// The host side, as a module for the initramfs.
    Module,
}

/// The files, and what stays whole.
#[derive(Debug)]
pub(super) struct Probes {
    kernel: Kernel,
    /// The kernel, with the damaged module as its only one.
    with_module: Kernel,
    cache: Cache,
    initramfs: PathBuf,
    victims: [(&'static str, Victim); 4],
    _directory: TempDir,
}

impl Probes {
    /// Uses the default kernel, and fetches it if it is not cached.
    pub(super) fn new() -> Result<Self> {
        let kernel = resolve_spec(&Cache::from_env()?, &KernelSpec::default_kernel())?;
        let directory = tempfile::tempdir().context("cannot create a directory")?;
        let initramfs = directory.path().join("initramfs");
        fs::write(&initramfs, archive())?;
        let modules = modules_for(&kernel, &[MODULE])?;
        let module = elf(modules.into_iter().next_back().context("the module is built in")?.bytes)?;
        let drivers = directory.path().join("modules/kernel/drivers");
        fs::create_dir_all(&drivers)?;
        symlink(module.path(), drivers.join(format!("{MODULE}.ko")))?;
        Ok(Self {
            with_module: Kernel {
                modules: Some(directory.path().join("modules")),
                ..kernel.clone()
            },
            cache: Cache::at(directory.path().join("cache")),
            initramfs,
            victims: [
                ("vmlinux", elf(fs::read(&kernel.boot.path)?)?),
                ("bzImage", bzimage(fs::read(&kernel.image)?)?),
                (
                    "archive",
                    Victim::new(archive(), (0..13).map(|n| (6 + 8 * n, 8)).collect(), 0..512)?,
                ),
                ("module", module),
            ],
            kernel,
            _directory: directory,
        })
    }

    /// Returns the probe for this number, and the index of its file.
    pub(super) fn pick(number: u32) -> (Probe, usize) {
        match number % 10 {
            0..3 => (Probe::EngineKernel, 0),
            3..5 => (Probe::EngineKernel, 1),
            5 => (Probe::Provision, 0),
            6..8 => (Probe::Provision, 1),
            8 => (Probe::EngineInitramfs, 2),
            _ => (Probe::Module, 3),
        }
    }

    /// Returns the name of a file, and the file.
    pub(super) fn victim(&mut self, index: usize) -> (&'static str, &mut Victim) {
        let (name, victim) = &mut self.victims[index];
        (name, victim)
    }

    /// Gives a file to `probe` and returns the result in one or two words.
    pub(super) fn run(&self, probe: Probe, index: usize) -> &'static str {
        let path = self.victims[index].1.path();
        let is_taken = match probe {
            Probe::EngineKernel => return load(path, self.initramfs.clone(), true),
            Probe::EngineInitramfs => return load(self.kernel.image.clone(), path, false),
            Probe::Provision => resolve_spec(&self.cache, &KernelSpec::Path(path)).is_ok(),
            Probe::Module => modules_for(&self.with_module, &[MODULE]).is_ok(),
        };
        if is_taken { "taken" } else { "refused" }
    }
}

/// Loads the files into the memory of a machine.
fn load(kernel: PathBuf, initramfs: PathBuf, kaslr: bool) -> &'static str {
    let config = VmConfig {
        kernel,
        initramfs,
        cmdline: String::new(),
        kaslr,
        topology: Topology::DEFAULT,
        memory_mib: 256,
        ports: Vec::new(),
    };
    match InitialMemory::new(&config, "") {
        Ok(_) => "taken",
        Err(Error::Kvm(KvmError::Boot(BootError::Image { .. }))) => "wrong",
        Err(Error::Kvm(KvmError::Boot(BootError::NoRoom { .. }))) => "too large",
        Err(Error::Kvm(KvmError::Boot(BootError::Read { .. }))) => "unreadable",
        Err(_) => "another error",
    }
}

/// Three files in the form that kernels unpack.
fn archive() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, size) in [("init", 40_000), ("a", 1), ("TRAILER!!!", 0)] {
        bytes.extend(b"070701");
        for field in [1, 0o100_755, 0, 0, 1, 0, size, 0, 0, 0, 0, name.len() + 1, 0] {
            bytes.extend(format!("{field:08X}").as_bytes());
        }
        bytes.extend(name.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4) + size, 0x55);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn bzimage(bytes: Vec<u8>) -> Result<Victim> {
    let sectors = usize::from(*bytes.get(SETUP_HEADER[0].0).context("a kernel is truncated")?);
    let payload = (sectors + 1) * 512 + number(&bytes, 0x248, 4);
    let len = number(&bytes, 0x24c, 4);
    Victim::new(bytes, SETUP_HEADER.into(), payload..payload + len)
}

/// Reads an ELF file. Its words are the bytes after the sections, a kernel's relocations, or else the
/// section headers.
fn elf(bytes: Vec<u8>) -> Result<Victim> {
    let (segments, sections) = (number(&bytes, 32, 8), number(&bytes, 40, 8));
    let (segment_count, section_count) = (number(&bytes, 56, 2), number(&bytes, 60, 2));
    let mut fields = layout(0, &ELF_HEADER);
    for n in 0..segment_count {
        fields.extend(layout(segments + 56 * n, &PROGRAM_HEADER));
    }
    // A sample, because they would otherwise get all of the damage.
    for n in 0..section_count.min(16) {
        fields.extend(layout(sections + 64 * n, &SECTION_HEADER));
    }
    let end = sections + 64 * section_count;
    let words = if end + 4 <= bytes.len() { end..bytes.len() } else { sections..bytes.len() };
    Victim::new(bytes, fields, words)
}

/// Offset and size of fields that follow each other.
fn layout(at: usize, sizes: &[usize]) -> Vec<(usize, usize)> {
    let offsets = sizes.iter().scan(at, |offset, size| {
        let here = *offset;
        *offset += size;
        Some((here, *size))
    });
    offsets.collect()
}

fn number(bytes: &[u8], offset: usize, len: usize) -> usize {
    bytes[offset..][..len].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
}
