//! Guest memory in files, which this process can read while QEMU runs the guest.
//!
//! The memory of a machine that boots is in memfds, which QEMU shares. That of a restored machine is
//! in the files of the saved one, which QEMU maps privately.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{Errno, pread};

use super::mappings::ProcessMemory;
use crate::config::VmConfig;
use crate::error::Error;

const MIB: u64 = 1 << 20;
/// The address of the memory that does not fit below the devices.
const HIGH_BASE: u64 = 4 << 30;

/// The memory of a machine, one file per node.
#[derive(Debug)]
pub(super) struct GuestMemory {
    nodes: Vec<NodeMemory>,
    /// Bytes of memory below the hole for devices, which ends at 4 GiB.
    low: u64,
    contents: Contents,
}

#[derive(Debug)]
struct NodeMemory {
    file: OwnedFd,
    size: u64,
}

/// Where the contents of memory are.
#[derive(Debug)]
enum Contents {
    /// In the files.
    Shared,
    /// In QEMU's private mappings of the files, once it has them.
    Private(Option<ProcessMemory>),
}

impl GuestMemory {
    /// Creates zeroed memory; pages are allocated when they are first written.
    pub(super) fn new(config: &VmConfig) -> Result<Self, Error> {
        let nodes = config
            .node_sizes_mib()
            .map(|mib| {
                let memfd = memfd_create("guest-memory", MemfdFlags::CLOEXEC)?;
                ftruncate(&memfd, mib * MIB)?;
                Ok(NodeMemory { file: memfd, size: mib * MIB })
            })
            .collect::<Result<_, Errno>>()
            .map_err(Error::io("create guest memory"))?;
        Ok(Self::with(config, nodes, Contents::Shared))
    }

    /// Takes the memory of a saved machine, one file of the node's size for each node.
    pub(super) fn saved(config: &VmConfig, files: Vec<File>) -> Self {
        let nodes = config.node_sizes_mib().zip(files);
        let nodes = nodes.map(|(mib, file)| NodeMemory { file: file.into(), size: mib * MIB });
        Self::with(config, nodes.collect(), Contents::Private(None))
    }

    fn with(config: &VmConfig, nodes: Vec<NodeMemory>, contents: Contents) -> Self {
        let low = low_memory(u64::from(config.memory_mib) * MIB);
        Self { nodes, low, contents }
    }

    /// Returns whether the machine was restored: its memory ends with QEMU.
    pub(super) fn is_private(&self) -> bool {
        matches!(self.contents, Contents::Private(_))
    }

    /// Finds the memory of a restored machine in QEMU's process, of which `tid` is a thread.
    pub(super) fn attach(&mut self, tid: i32) -> Result<(), Error> {
        let memory = ProcessMemory::open(tid, self.files())?;
        self.contents = Contents::Private(Some(memory));
        Ok(())
    }

    pub(super) fn low(&self) -> u64 {
        self.low
    }

    /// Returns the files with their sizes, in node order.
    pub(super) fn files(&self) -> impl Iterator<Item = (BorrowedFd<'_>, u64)> {
        self.nodes.iter().map(|node| (node.file.as_fd(), node.size))
    }

    /// Fills `buf` from guest-physical address `gpa`, all of it or nothing.
    pub(super) fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), Error> {
        let mut offset = self.offset(gpa, buf.len())?;
        let mut rest = buf;
        for (index, node) in self.nodes.iter().enumerate() {
            if offset >= node.size {
                offset -= node.size;
                continue;
            }
            let here = rest.len().min(usize::try_from(node.size - offset).unwrap_or(usize::MAX));
            let (now, later) = rest.split_at_mut(here);
            match &self.contents {
                Contents::Shared => {
                    read_exact_at(&node.file, now, offset)
                        .map_err(Error::io("read guest memory"))?;
                }
                Contents::Private(memory) => {
                    let operation = "read its memory";
                    memory.as_ref().ok_or(Error::Gone { operation })?.read(index, now, offset)?;
                }
            }
            (offset, rest) = (0, later);
        }
        Ok(())
    }

    /// Converts an address range into an offset into the concatenated nodes.
    fn offset(&self, gpa: u64, len: usize) -> Result<u64, Error> {
        let total: u64 = self.nodes.iter().map(|node| node.size).sum();
        let (base, first, last) =
            if gpa < HIGH_BASE { (0, 0, self.low) } else { (HIGH_BASE, self.low, total) };
        let offset = first + (gpa - base);
        match offset.checked_add(len as u64) {
            Some(end) if end <= last => Ok(offset),
            _ => Err(Error::OutsideMemory { gpa, len }),
        }
    }
}

/// Returns how much of `total` bytes lies below 4 GiB on QEMU's `pc`.
///
/// Source: QEMU 10.0, hw/i386/pc_piix.c (`pc_init1`): 3.5 GiB if that holds all, else 3 GiB.
fn low_memory(total: u64) -> u64 {
    const ALL_LOW: u64 = 0xe000_0000;
    const SPLIT_LOW: u64 = 0xc000_0000;
    if total < ALL_LOW { total } else { SPLIT_LOW }
}

fn read_exact_at(fd: &OwnedFd, mut buf: &mut [u8], mut offset: u64) -> rustix::io::Result<()> {
    while !buf.is_empty() {
        match pread(fd, &mut *buf, offset) {
            // Only a truncated file ends early, and this one is never truncated.
            Ok(0) => return Err(Errno::IO),
            Ok(n) => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rustix::io::pwrite;

    use super::*;

    fn memory(numa_nodes: u32, memory_mib: u32) -> GuestMemory {
        GuestMemory::new(&VmConfig {
            kernel: "".into(),
            initramfs: "".into(),
            cmdline: String::new(),
            kaslr: true,
            topology: crate::config::even([numa_nodes, numa_nodes, 1, 1]),
            memory_mib,
            ports: Vec::new(),
        })
        .unwrap()
    }

    #[test]
    fn read_crosses_nodes() {
        let memory = memory(2, 5);
        pwrite(&memory.nodes[0].file, b"abc", 2 * MIB - 3).unwrap();
        pwrite(&memory.nodes[1].file, b"def", 0).unwrap();
        let mut buf = [0; 6];
        memory.read(2 * MIB - 3, &mut buf).unwrap();
        assert_eq!(&buf, b"abcdef");
    }

    #[test]
    fn read_finds_memory_above_the_hole() {
        let memory = memory(1, 4096);
        pwrite(&memory.nodes[0].file, b"low!high", 3072 * MIB - 4).unwrap();
        let mut buf = [0; 4];
        memory.read(0xc000_0000 - 4, &mut buf).unwrap();
        assert_eq!(&buf, b"low!");
        memory.read(HIGH_BASE, &mut buf).unwrap();
        assert_eq!(&buf, b"high");
    }

    #[test]
    fn read_rejects_ranges_outside_of_memory() {
        for (mib, gpa, len) in [
            (16, 16 * MIB, 1),
            (16, 16 * MIB - 1, 2),
            (16, HIGH_BASE, 1),
            (16, u64::MAX, 8),
            (4096, 0xc000_0000 - 1, 2),
            (4096, 0xe000_0000, 1),
            (4096, HIGH_BASE + 1024 * MIB, 1),
        ] {
            let error = memory(1, mib).read(gpa, &mut vec![0; len]).unwrap_err();
            assert!(matches!(error, Error::OutsideMemory { .. }), "{mib} MiB, {gpa:#x}: {error}");
        }
        memory(1, 3583).read(3583 * MIB - 8, &mut [0; 8]).unwrap();
    }
}
