//! A kernel, its initramfs and its command line, laid into guest memory as the 64-bit entry of the
//! x86 boot protocol wants them.
//!
//! Source: Linux 6.12, Documentation/arch/x86/boot.rst ("64-bit Boot Protocol") and zero-page.rst.

mod image;
mod kaslr;
mod params;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::layout::{CMDLINE, CMDLINE_SIZE, PAGE, ZERO_PAGE};
use super::memory::Memory;
use crate::VmConfig;

pub(super) use params::BootParams;

/// Something that has to be in memory before the first instruction cannot be put there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("failed to read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is no kernel that this engine can boot.
    #[error("cannot boot `{}`: {reason}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The field that is wrong, and what would be right.
        reason: String,
    },
    /// Kernel and initramfs do not fit.
    #[error("{memory_mib} MiB of memory are too little for {what} of {need_mib} MiB")]
    NoRoom {
        /// Kernel or initramfs.
        what: &'static str,
        /// What it takes.
        need_mib: u64,
        /// What there is below the hole for devices.
        memory_mib: u64,
    },
    /// The command line is longer than kernels take.
    #[error("the kernel's command line has {len} bytes of at most {}", CMDLINE_SIZE - 1)]
    CmdlineTooLong {
        /// Its length.
        len: usize,
    },
    /// The command line would end in its middle.
    #[error("the kernel's command line holds a NUL byte")]
    CmdlineNul,
}

/// What was loaded, and where the first CPU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Loaded {
    /// The 64-bit entry.
    pub(super) entry: u64,
    /// Where the kernel must not be overwritten before it runs.
    pub(super) end: u64,
}

/// Loads all that `config` names; returns the address of the first instruction.
pub(super) fn load(
    config: &VmConfig,
    cmdline: &str,
    memory: &mut Memory,
    ranges: &[super::memory::MemoryNode],
) -> Result<u64, super::Error> {
    let kernel = open(&config.kernel)?;
    let mut params = BootParams::default();
    let with_kaslr = !cmdline.split(' ').any(|word| word == "nokaslr");
    let loaded = image::load(&config.kernel, &kernel, with_kaslr, memory, &mut params)?;
    let initramfs = load_initramfs(&config.initramfs, loaded.end, memory)?;
    params.set_ramdisk(initramfs.0, initramfs.1);
    write_cmdline(cmdline, memory)?;
    params.set_cmdline(CMDLINE);
    params.set_e820(ranges);
    memory.write(ZERO_PAGE, params.as_bytes())?;
    Ok(loaded.entry)
}

fn open(path: &Path) -> Result<File, Error> {
    let read_error = |source| Error::Read { path: path.to_owned(), source };
    // A pipe would be waited for, and a device has no size.
    if !fs::metadata(path).map_err(read_error)?.is_file() {
        return Err(read_error(io::Error::other("not a regular file")));
    }
    File::open(path).map_err(read_error)
}

/// Puts the initramfs at the top of low memory; returns its address and size.
fn load_initramfs(
    path: &Path,
    kernel_end: u64,
    memory: &mut Memory,
) -> Result<(u64, u64), super::Error> {
    let file = open(path)?;
    let size =
        file.metadata().map_err(|source| Error::Read { path: path.to_owned(), source })?.len();
    let top = memory.low_end();
    let base = top.checked_sub(size).map(|base| base - base % PAGE);
    match base.filter(|base| *base >= kernel_end) {
        Some(base) => {
            memory.load(&file, 0, base, size)?;
            Ok((base, size))
        }
        None => Err(no_room("an initramfs behind the kernel", kernel_end + size, memory).into()),
    }
}

fn no_room(what: &'static str, need: u64, memory: &Memory) -> Error {
    Error::NoRoom { what, need_mib: need.div_ceil(1 << 20), memory_mib: memory.low_end() >> 20 }
}

fn write_cmdline(cmdline: &str, memory: &Memory) -> Result<(), super::Error> {
    if cmdline.len() >= CMDLINE_SIZE {
        return Err(Error::CmdlineTooLong { len: cmdline.len() }.into());
    }
    if cmdline.contains('\0') {
        return Err(Error::CmdlineNul.into());
    }
    memory.write(CMDLINE, cmdline.as_bytes())?;
    memory.write(CMDLINE + cmdline.len() as u64, &[0])
}
