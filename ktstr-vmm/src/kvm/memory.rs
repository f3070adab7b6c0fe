//! Guest memory: anonymous pages, and pages of files mapped over them, copied when first written.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::mm::{MapFlags, ProtFlags, mmap};
use vm_memory::{
    Address, ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion,
};

use super::error::Error;
use super::layout::{HOLE, HOLE_END, PAGE};

/// A range of memory that belongs to one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryNode {
    pub(super) base: u64,
    pub(super) size: u64,
    pub(super) node: u32,
}

/// The ranges of nodes of `sizes` bytes laid end to end, with the hole for devices left out.
pub(super) fn place(sizes: impl Iterator<Item = u64>) -> Vec<MemoryNode> {
    let mut ranges = Vec::new();
    let mut base = 0;
    for (node, size) in (0..).zip(sizes) {
        let mut rest = size;
        if base < HOLE {
            let here = rest.min(HOLE - base);
            ranges.push(MemoryNode { base, size: here, node });
            (base, rest) = (base + here, rest - here);
        }
        if base == HOLE {
            base = HOLE_END;
        }
        if rest > 0 {
            ranges.push(MemoryNode { base, size: rest, node });
            base += rest;
        }
    }
    ranges
}

/// The memory of one machine. It stays as the guest left it until this is dropped.
#[derive(Debug)]
pub(super) struct Memory {
    mmap: GuestMemoryMmap,
}

impl Memory {
    /// Reserves zeroed memory for `ranges`; pages come into being when they are first touched.
    pub(super) fn new(ranges: &[MemoryNode]) -> Result<Self, Error> {
        let end = |of: &dyn Fn(&&MemoryNode) -> bool| {
            ranges.iter().filter(of).map(|range| range.base + range.size).max()
        };
        let mut regions = Vec::new();
        if let Some(low) = end(&|range| range.base < HOLE) {
            regions.push((GuestAddress(0), low as usize));
        }
        if let Some(high) = end(&|range| range.base >= HOLE_END) {
            regions.push((GuestAddress(HOLE_END), (high - HOLE_END) as usize));
        }
        let mmap = GuestMemoryMmap::from_ranges(&regions)
            .map_err(|error| Error::Memory { operation: "reserve", reason: error.to_string() })?;
        Ok(Self { mmap })
    }

    /// The memory as devices see it.
    pub(super) fn mmap(&self) -> &GuestMemoryMmap {
        &self.mmap
    }

    /// Where each region lies in the guest, in this process, and its size.
    pub(super) fn regions(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        self.mmap.iter().map(|region| {
            let (gpa, size) = (region.start_addr(), region.len());
            let hva = self.mmap.get_host_address(gpa).expect("a region has its first address");
            (gpa.raw_value(), hva as u64, size)
        })
    }

    /// The end of the memory below the hole.
    pub(super) fn low_end(&self) -> u64 {
        self.mmap.iter().next().map_or(0, |region| region.start_addr().raw_value() + region.len())
    }

    /// Whether all of a range is memory below the hole.
    pub(super) fn is_low(&self, gpa: u64, len: u64) -> bool {
        gpa.checked_add(len).is_some_and(|end| end <= self.low_end())
    }

    /// Fills `buf` from `gpa`, all of it or nothing.
    pub(super) fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), crate::Error> {
        let len = buf.len();
        let outside = || crate::Error::OutsideMemory { gpa, len };
        if !self.mmap.check_range(GuestAddress(gpa), len) {
            return Err(outside());
        }
        self.mmap.read_slice(buf, GuestAddress(gpa)).map_err(|_| outside())
    }

    /// Writes `bytes` at `gpa`.
    pub(super) fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), Error> {
        self.mmap.write_slice(bytes, GuestAddress(gpa)).map_err(|error| Error::Memory {
            operation: "write",
            reason: format!("{:#x} bytes at {gpa:#x}: {error}", bytes.len()),
        })
    }

    /// The bytes of a range of low memory, before anything else can reach them: the exclusive
    /// reference says that no machine has this memory yet.
    pub(super) fn bytes_mut(&mut self, gpa: u64, len: u64) -> Result<&mut [u8], Error> {
        let failed = |reason: String| Error::Memory { operation: "reach", reason };
        let slice = self
            .mmap
            .get_slice(GuestAddress(gpa), len as usize)
            .map_err(|error| failed(format!("{len:#x} bytes at {gpa:#x}: {error}")))?;
        // SAFETY: `slice` vouches that the range lies within one live mapping that `self.mmap`
        // owns. Whoever else could reach it, a device or a VM, does it through a shared reference
        // to `self`, and there is none while the result borrows `self` mutably.
        Ok(unsafe { std::slice::from_raw_parts_mut(slice.ptr_guard_mut().as_ptr(), len as usize) })
    }

    /// The value at `gpa`.
    #[cfg(test)]
    pub(super) fn get<T: ByteValued>(&self, gpa: u64) -> Result<T, Error> {
        let mut bytes = vec![0; size_of::<T>()];
        self.read(gpa, &mut bytes)
            .map_err(|error| Error::Memory { operation: "read", reason: error.to_string() })?;
        Ok(*T::from_slice(&bytes).expect("the slice has its size"))
    }

    /// Writes a value at `gpa`.
    pub(super) fn set<T: ByteValued>(&self, gpa: u64, value: T) -> Result<(), Error> {
        self.write(gpa, value.as_slice())
    }

    /// Puts `len` bytes of `file` from `offset` on at `gpa`.
    ///
    /// Whole pages are mapped where the file's layout permits: the file must not change while the
    /// machine lives. The caller has checked that the range is low memory, and within the file.
    pub(super) fn load(&self, file: &File, offset: u64, gpa: u64, len: u64) -> Result<(), Error> {
        let is_aligned = offset.is_multiple_of(PAGE) && gpa.is_multiple_of(PAGE);
        let mapped = if is_aligned { len - len % PAGE } else { 0 };
        if mapped > 0 {
            self.map(file, offset, gpa, mapped)?;
        }
        let mut rest = vec![0; (len - mapped) as usize];
        file.read_exact_at(&mut rest, offset + mapped).map_err(|error| Error::Memory {
            operation: "fill",
            reason: format!("{:#x} bytes at offset {:#x}: {error}", rest.len(), offset + mapped),
        })?;
        self.write(gpa + mapped, &rest)
    }

    fn map(&self, file: &File, offset: u64, gpa: u64, len: u64) -> Result<(), Error> {
        let failed = |reason: String| Error::Memory { operation: "map a file into", reason };
        let range = || format!("{len:#x} bytes at {gpa:#x}");
        let slice = self
            .mmap
            .get_slice(GuestAddress(gpa), len as usize)
            .map_err(|error| failed(format!("{}: {error}", range())))?;
        let hva = slice.ptr_guard_mut().as_ptr().cast();
        // SAFETY: `slice` vouches that the range lies within one mapping that `self.mmap` owns, and
        // both ends are page boundaries. Nobody has a reference into guest memory: all access is
        // by volatile copies. The owner's munmap covers what is mapped here.
        let result = unsafe {
            mmap(
                hva,
                len as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
                file,
                offset,
            )
        };
        result.map(drop).map_err(|errno| failed(format!("{}: {errno}", range())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn nodes_are_laid_end_to_end_around_the_hole() {
        for (sizes, want) in [
            (vec![256], vec![(0, 256, 0)]),
            (vec![3072], vec![(0, 3072, 0)]),
            (vec![3072, 1], vec![(0, 3072, 0), (4096, 1, 1)]),
            (vec![4096], vec![(0, 3072, 0), (4096, 1024, 0)]),
            (vec![2048, 2048], vec![(0, 2048, 0), (2048, 1024, 1), (4096, 1024, 1)]),
            (vec![85, 85, 86], vec![(0, 85, 0), (85, 85, 1), (170, 86, 2)]),
        ] {
            let placed = place(sizes.iter().map(|mib| mib * MIB));
            let placed: Vec<_> = placed
                .iter()
                .map(|range| (range.base / MIB, range.size / MIB, range.node))
                .collect();
            assert_eq!(placed, want, "{sizes:?}");
        }
    }

    #[test]
    fn a_file_is_mapped_and_never_written() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..3 * PAGE + 7).map(|i| i as u8).collect();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        let memory = Memory::new(&place([MIB].into_iter())).unwrap();
        for (offset, gpa) in [(0, 0x4000), (PAGE, 0x1_0000), (5, 0x2_0000), (0, 0x3_0001)] {
            let len = bytes.len() as u64 - offset;
            memory.load(&file, offset, gpa, len).unwrap();
            let mut read = vec![0; len as usize];
            memory.read(gpa, &mut read).unwrap();
            assert!(read == bytes[offset as usize..], "offset {offset} at {gpa:#x}");
            memory.write(gpa, &[0xff; 64]).unwrap();
        }
        let mut now = vec![0; bytes.len()];
        file.read_exact_at(&mut now, 0).unwrap();
        assert!(now == bytes);
    }

    #[test]
    fn a_read_is_whole_or_refused() {
        let memory = Memory::new(&place([3072 * MIB + MIB].into_iter())).unwrap();
        memory.write(HOLE - 4, b"low!").unwrap();
        memory.write(HOLE_END, b"high").unwrap();
        let mut buf = [0; 4];
        memory.read(HOLE - 4, &mut buf).unwrap();
        assert_eq!(&buf, b"low!");
        memory.read(HOLE_END, &mut buf).unwrap();
        assert_eq!(&buf, b"high");
        for (gpa, len) in [(HOLE - 3, 4), (HOLE, 1), (HOLE_END + MIB - 1, 2), (u64::MAX, 8)] {
            let error = memory.read(gpa, &mut vec![0; len]).unwrap_err();
            assert!(matches!(error, crate::Error::OutsideMemory { .. }), "{gpa:#x}: {error}");
        }
    }
}
