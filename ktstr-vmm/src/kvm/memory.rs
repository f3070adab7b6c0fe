//! Guest memory.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use vm_memory::{
    Address, ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use super::layout::{HOLE, HOLE_END, LARGE_PAGE, PAGE};
use crate::kvm_error::Error;

/// Bytes that are copied out of guest memory at once to save it.
const SAVE_CHUNK: usize = 256 << 10;

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

    /// Creates memory with the content of a file that [`Memory::save`] has written. It belongs to this
    /// machine only: what a guest writes does not change the file.
    ///
    /// The file must not be truncated while the memory exists: an access to a page that the file no
    /// longer has ends this process with SIGBUS. Its length must be [`Memory::file_len`].
    pub(super) fn map(ranges: &[MemoryNode], file: &File) -> Result<Self, Error> {
        let this = Self::new(ranges)?;
        let failed = |errno: Errno| Error::Memory { operation: "map", reason: errno.to_string() };
        let mut offset = 0;
        for (_, hva, size) in this.regions() {
            let (start, len) = (hva as *mut c_void, size as usize);
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
            // SAFETY: it replaces a part of a reservation of `this`, into which no pointers exist yet,
            // by another private mapping of the same range.
            unsafe { mmap(start, len, prot, flags, file, offset) }.map_err(failed)?;
            // As for a reservation.
            // SAFETY: the range is the mapping of the call above; no child touches it.
            unsafe { madvise(start, len, Advice::LinuxDontFork) }.map_err(failed)?;
            offset += size;
        }
        Ok(this)
    }

    /// Returns the length of a file with the content of `ranges`.
    pub(super) fn file_len(ranges: &[MemoryNode]) -> u64 {
        ranges.iter().map(|range| range.size).sum()
    }

    /// Writes the content to an empty file, one region after the other. Pages of zeros become holes.
    /// Returns the number of bytes that are not in holes.
    ///
    /// No vCPU may run meanwhile.
    pub(super) fn save(&self, file: &File) -> io::Result<u64> {
        static ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
        file.set_len(self.regions().map(|(_, _, size)| size).sum())?;
        let mut chunk = vec![0; SAVE_CHUNK];
        let (mut offset, mut written) = (0, 0);
        for (base, _, size) in self.regions() {
            for at in (0..size).step_by(SAVE_CHUNK) {
                let len = SAVE_CHUNK.min((size - at) as usize);
                let bytes = &mut chunk[..len];
                self.mmap
                    .read_slice(bytes, GuestAddress(base + at))
                    .map_err(|error| io::Error::other(error.to_string()))?;
                // Runs of pages with content, each of which is one write.
                let mut start = 0;
                let is_zero = |page: &[u8]| page == &ZEROS[..page.len()];
                let pages = bytes.chunks(PAGE as usize);
                for run in pages.collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
                    let len: usize = run.iter().map(|page| page.len()).sum();
                    if !is_zero(run[0]) {
                        file.write_all_at(&bytes[start..start + len], offset + at + start as u64)?;
                        written += len as u64;
                    }
                    start += len;
                }
            }
            offset += size;
        }
        Ok(written)
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
    fn map_restores_what_save_wrote_and_keeps_the_file() {
        use std::os::unix::fs::MetadataExt;
        // A region below the hole and one above it.
        let ranges = place([3072 * MIB, 3 * MIB].into_iter());
        let memory = Memory::new(&ranges).unwrap();
        let contents = [
            (0, b"first".as_slice()),
            (5 * PAGE - 2, b"over a page boundary"),
            (SAVE_CHUNK as u64 - 1, b"over a chunk boundary"),
            (HOLE - 4, b"last"),
            (HOLE_END, b"high"),
            (HOLE_END + 3 * MIB - 3, b"end"),
        ];
        contents.iter().for_each(|(gpa, bytes)| memory.write(*gpa, bytes).unwrap());
        let file = tempfile::tempfile().unwrap();
        let written = memory.save(&file).unwrap();
        assert_eq!(written, 8 * PAGE, "pages of zeros are not written");
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), Memory::file_len(&ranges));
        assert!(metadata.blocks() * 512 < MIB, "{} blocks", metadata.blocks());
        drop(memory);

        let check = |memory: &Memory| {
            for (gpa, want) in contents {
                let mut bytes = vec![0; want.len()];
                memory.read(gpa, &mut bytes).unwrap();
                assert_eq!(bytes, want, "{gpa:#x}");
            }
            assert_eq!(memory.get::<u64>(MIB).unwrap(), 0);
        };
        let (one, other) = (Memory::map(&ranges, &file), Memory::map(&ranges, &file));
        let (one, other) = (one.unwrap(), other.unwrap());
        check(&one);
        one.write(0, b"FIRST").unwrap();
        one.write(MIB, &[1; 8]).unwrap();
        assert_eq!(one.get::<u64>(MIB).unwrap(), 0x0101_0101_0101_0101);
        check(&other);
        drop((one, other));
        check(&Memory::map(&ranges, &file).unwrap());
        for (gpa, hva, _) in Memory::map(&ranges, &file).unwrap().regions() {
            assert_eq!((gpa % LARGE_PAGE, hva % LARGE_PAGE), (0, 0));
        }
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
