//! Loads a kernel, its initramfs and its command line into guest memory as the 64-bit entry of the
//! x86 boot protocol requires.
//!
//! Source: Linux 6.12, Documentation/arch/x86/boot.rst ("64-bit Boot Protocol") and zero-page.rst.

mod image;
mod kaslr;
mod params;

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::layout::{CMDLINE, CMDLINE_SIZE, PAGE, ZERO_PAGE};
use super::memory::{Memory, MemoryNode};
use crate::config::VmConfig;
use crate::kvm_error::{BootError, Error};
use params::BootParams;

/// Loads the files of `config` and returns the address of the first instruction.
pub(super) fn load(
    config: &VmConfig,
    cmdline: &str,
    memory: &mut Memory,
    ranges: &[MemoryNode],
) -> Result<u64, Error> {
    let kernel = open(&config.kernel)?;
    let mut params = BootParams::default();
    let loaded = image::load(&config.kernel, &kernel, config.kaslr, memory, &mut params)?;
    let initramfs = load_initramfs(&config.initramfs, loaded.end, memory)?;
    params.set_ramdisk(initramfs.0, initramfs.1);
    write_cmdline(cmdline, memory)?;
    params.set_cmdline(CMDLINE);
    params.set_e820(ranges);
    memory.write(ZERO_PAGE, params.as_bytes())?;
    Ok(loaded.entry)
}

fn open(path: &Path) -> Result<File, BootError> {
    // Opening a pipe would wait for a writer, and a device does not have a size.
    if !fs::metadata(path).map_err(BootError::read(path))?.is_file() {
        return Err(BootError::read(path)(io::Error::other("not a regular file")));
    }
    File::open(path).map_err(BootError::read(path))
}

/// Loads the initramfs at the top of low memory. Returns its address and size.
fn load_initramfs(path: &Path, kernel_end: u64, memory: &mut Memory) -> Result<(u64, u64), Error> {
    let file = open(path)?;
    let size = file.metadata().map_err(BootError::read(path))?.len();
    let top = memory.low_end();
    let base = top.checked_sub(size).map(|base| base - base % PAGE);
    match base.filter(|base| *base >= kernel_end) {
        Some(base) => {
            memory.load(&file, 0, base, size)?;
            Ok((base, size))
        }
        None => {
            let end = kernel_end + size;
            Err(BootError::no_room("an initramfs after the kernel", end, top).into())
        }
    }
}

fn write_cmdline(cmdline: &str, memory: &Memory) -> Result<(), Error> {
    if cmdline.len() >= CMDLINE_SIZE {
        return Err(BootError::CmdlineTooLong { len: cmdline.len(), max: CMDLINE_SIZE - 1 }.into());
    }
    if cmdline.contains('\0') {
        return Err(BootError::CmdlineNul.into());
    }
    memory.write(CMDLINE, cmdline.as_bytes())?;
    memory.write(CMDLINE + cmdline.len() as u64, &[0])
}
