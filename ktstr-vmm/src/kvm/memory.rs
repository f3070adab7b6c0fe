//! Guest memory.

use std::ffi::c_void;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use vm_memory::{
    Address, ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use super::layout::{HOLE, HOLE_END, LARGE_PAGE};
use crate::kvm_error::Error;

/// A range of memory of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryNode {
    pub(super) base: u64,
    pub(super) size: u64,
    pub(super) node: u32,
}

/// Returns the ranges of adjacent nodes of `sizes` bytes, which leave out the hole for devices.
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

/// The memory of one machine. Its content outlives the guest and is freed when this is dropped.
#[derive(Debug)]
pub(super) struct Memory {
    // Dropped first: it points into the reservations.
    mmap: GuestMemoryMmap,
    _reservations: Vec<Reservation>,
}

/// Anonymous memory that begins at the boundary of a large page, as its guest-physical addresses
/// do. KVM can map it by large pages only if both are aligned: a guest that boots touches some
/// hundred large pages, or 20,000 small ones, each of which costs an exit.
#[derive(Debug)]
struct Reservation {
    mapping: *mut c_void,
    len: usize,
}

// SAFETY: it is a range of addresses, which is the same for all threads, and `drop` is its only
// method that changes it.
unsafe impl Send for Reservation {}
// SAFETY: see above.
unsafe impl Sync for Reservation {}

impl Reservation {
    fn new(size: usize) -> rustix::io::Result<Self> {
        let len = size.checked_add(LARGE_PAGE as usize).ok_or(Errno::NOMEM)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping, at an address that the kernel chooses, overlaps no other memory.
        let mapping = unsafe { mmap_anonymous(ptr::null_mut(), len, prot, flags) }?;
        let this = Self { mapping, len };
        // SAFETY: the range lies within the mapping, and the advice does not change its content.
        // The error is ignored: a kernel without large pages is only slower.
        let _ = unsafe { madvise(this.start().cast(), size, Advice::LinuxHugepage) };
        // Children that are forked meanwhile do not need it, and would cause a copy of every page
        // that the guest writes next.
        // SAFETY: as above; no child touches the range.
        unsafe { madvise(this.start().cast(), size, Advice::LinuxDontFork) }?;
        Ok(this)
    }

    /// Returns the first boundary of a large page.
    fn start(&self) -> *mut u8 {
        let offset = self.mapping.align_offset(LARGE_PAGE as usize);
        self.mapping.cast::<u8>().wrapping_add(offset)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the mapping belongs to this value, and its owner drops everything that points
        // into it first. `munmap` fails only for a range that is not mapped.
        let _ = unsafe { munmap(self.mapping, self.len) };
    }
}

impl Memory {
    /// Reserves zeroed memory for `ranges`; pages are allocated when they are first touched.
    pub(super) fn new(ranges: &[MemoryNode]) -> Result<Self, Error> {
        let end = |of: &dyn Fn(&&MemoryNode) -> bool| {
            ranges.iter().filter(of).map(|range| range.base + range.size).max()
        };
        // At most two regions: memory below the hole and above it. Nodes are adjacent in each.
        let mut regions = Vec::new();
        if let Some(low) = end(&|range| range.base < HOLE) {
            regions.push((GuestAddress(0), low as usize));
        }
        if let Some(high) = end(&|range| range.base >= HOLE_END) {
            regions.push((GuestAddress(HOLE_END), (high - HOLE_END) as usize));
        }
        let failed = |reason: String| Error::Memory { operation: "reserve", reason };
        let reservations = regions
            .iter()
            .map(|(_, size)| Reservation::new(*size))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|errno| failed(errno.to_string()))?;
        let regions = regions.iter().zip(&reservations).map(|((base, size), reservation)| {
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
            // SAFETY: the range is mapped like this for as long as `Memory` lives, because `Memory`
            // owns both the region and the reservation, and returns only references.
            let region = unsafe { MmapRegion::build_raw(reservation.start(), *size, prot, flags) };
            let region = region.map_err(|error| failed(error.to_string()))?;
            GuestRegionMmap::new(region, *base).ok_or_else(|| failed("it wraps around".to_owned()))
        });
        let mmap = GuestMemoryMmap::from_regions(regions.collect::<Result<_, _>>()?)
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { mmap, _reservations: reservations })
    }

    /// Returns the memory as devices access it.
    pub(super) fn mmap(&self) -> &GuestMemoryMmap {
        &self.mmap
    }

    /// Returns for each region its guest-physical address, its address in this process, and its
    /// size.
    pub(super) fn regions(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        self.mmap.iter().map(|region| {
            let (gpa, size) = (region.start_addr(), region.len());
            let hva = self.mmap.get_host_address(gpa).expect("a region has its first address");
            (gpa.raw_value(), hva as u64, size)
        })
    }

    /// Returns the end of the memory below the hole.
    pub(super) fn low_end(&self) -> u64 {
        self.mmap.iter().next().map_or(0, |region| region.start_addr().raw_value() + region.len())
    }

    /// Returns whether all of a range is memory below the hole.
    pub(super) fn is_low(&self, gpa: u64, len: u64) -> bool {
        gpa.checked_add(len).is_some_and(|end| end <= self.low_end())
    }

    /// Fills `buf` from `gpa`, all of it or nothing.
    pub(super) fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), crate::error::Error> {
        let len = buf.len();
        let outside = || crate::error::Error::OutsideMemory { gpa, len };
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

    /// Returns the bytes of a range of low memory. The exclusive reference guarantees that no
    /// machine has this memory yet.
    pub(super) fn bytes_mut(&mut self, gpa: u64, len: u64) -> Result<&mut [u8], Error> {
        if len == 0 {
            return Ok(&mut []);
        }
        let failed = |reason: String| Error::Memory { operation: "reach", reason };
        let slice = self
            .mmap
            .get_slice(GuestAddress(gpa), len as usize)
            .map_err(|error| failed(format!("{len:#x} bytes at {gpa:#x}: {error}")))?;
        // SAFETY: `slice` guarantees that the range lies within one live mapping that `self.mmap`
        // owns. Devices and VMs reach it only through a shared reference to `self`, which cannot
        // exist while the result borrows `self` mutably.
        Ok(unsafe { std::slice::from_raw_parts_mut(slice.ptr_guard_mut().as_ptr(), len as usize) })
    }

    /// Reads the value at `gpa`.
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

    /// Copies `len` bytes of `file` from `offset` on to `gpa`.
    ///
    /// Mapping the file instead would share the host's page cache, but by small pages, which cost
    /// more when the guest touches them than the copy does.
    pub(super) fn load(
        &mut self,
        file: &File,
        offset: u64,
        gpa: u64,
        len: u64,
    ) -> Result<(), Error> {
        let bytes = self.bytes_mut(gpa, len)?;
        file.read_exact_at(bytes, offset).map_err(|error| Error::Memory {
            operation: "fill",
            reason: format!("{len:#x} bytes from offset {offset:#x} of a file: {error}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn place_leaves_out_the_hole() {
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
    fn load_copies_a_file_to_any_address() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..3 * 4096 + 7).map(|i| i as u8).collect();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        let mut memory = Memory::new(&place([MIB].into_iter())).unwrap();
        for (offset, gpa) in [(0, 0x4000), (4096, 0x1_0000), (5, 0x2_0000), (0, 0x3_0001)] {
            let len = bytes.len() as u64 - offset;
            memory.load(&file, offset, gpa, len).unwrap();
            let mut read = vec![0; len as usize];
            memory.read(gpa, &mut read).unwrap();
            assert!(read == bytes[offset as usize..], "offset {offset} at {gpa:#x}");
        }
        memory.load(&file, 8, 0, bytes.len() as u64).unwrap_err();
        memory.load(&file, 0, MIB - 8, 9).unwrap_err();
    }

    #[test]
    fn regions_begin_at_a_large_page() {
        for sizes in [vec![MIB], vec![257 * MIB], vec![3072 * MIB, 5 * MIB]] {
            let memory = Memory::new(&place(sizes.into_iter())).unwrap();
            for (gpa, hva, _) in memory.regions() {
                assert_eq!((gpa % LARGE_PAGE, hva % LARGE_PAGE), (0, 0));
            }
        }
    }

    #[test]
    fn read_fills_the_buffer_or_fails() {
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
            assert!(
                matches!(error, crate::error::Error::OutsideMemory { .. }),
                "{gpa:#x}: {error}"
            );
        }
    }
}
