//! Finds the ring buffer in a vmlinux that has no symbols.

use object::elf::{FileHeader64, PF_W, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, ReadRef};
use serde::{Deserialize, Serialize};

use crate::btf::{self, Btf};

/// The lowest address of the kernel's image. It is mapped there at a constant distance from its
/// physical address.
///
/// Source: Linux 6.12, Documentation/arch/x86/x86_64/mm.rst.
pub(super) const IMAGE: u64 = 0xffff_ffff_8000_0000;

/// The greatest length of a structure that is accepted. The longest known one has 112 bytes.
const MAX_LEN: u64 = 512;

/// The link addresses of a kernel's ring of messages, and the layout of its structures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrintkLayout {
    /// The address of the first ring that the kernel uses.
    pub ring: u64,
    /// The address of that ring's descriptors.
    pub descs: u64,
    /// The initial ID of that ring.
    pub initial_id: u64,
    /// The address of the pointer to the ring in use: a kernel with many CPUs allocates another one.
    pub pointer: u64,
    /// The difference between an address of the image and its guest-physical address.
    pub image_base: u64,
    /// The layout of the structures.
    pub offsets: PrintkOffsets,
}

/// Offsets of members, and lengths of structures, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are those of the kernel")]
pub struct PrintkOffsets {
    // Of struct printk_ringbuffer, with the structures inside it.
    pub ring_len: u64,
    pub count_bits: u64,
    pub descs: u64,
    pub infos: u64,
    pub head_id: u64,
    pub tail_id: u64,
    pub size_bits: u64,
    pub data: u64,
    pub head_lpos: u64,
    pub tail_lpos: u64,
    // Of struct prb_desc.
    pub desc_len: u64,
    pub state_var: u64,
    pub begin: u64,
    pub next: u64,
    // Of struct printk_info.
    pub info_len: u64,
    pub ts_nsec: u64,
    pub text_len: u64,
}

/// Why the messages of a kernel cannot be read from its memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The file is not an ELF file, or it is damaged.
    #[error("the vmlinux is damaged: {0}")]
    Elf(#[from] object::read::Error),
    /// It does not have BTF.
    #[error("the vmlinux has no BTF (CONFIG_DEBUG_INFO_BTF)")]
    NoBtf,
    /// Its BTF is damaged, or does not have a structure of the ring.
    #[error(transparent)]
    Btf(#[from] btf::Error),
    /// Its BTF describes a ring that this version does not know.
    #[error("unknown form of `struct {0}`")]
    UnknownForm(&'static str),
    /// Its data has none or several such objects.
    #[error("found {count} candidates for {what} in the vmlinux (expected 1)")]
    NotFound {
        /// The object.
        what: &'static str,
        /// How many were found.
        count: usize,
    },
}

/// Initialized data of the image.
#[derive(Debug)]
struct Segment<'a> {
    address: u64,
    image_base: u64,
    data: &'a [u8],
}

impl PrintkLayout {
    /// Finds the ring in a vmlinux, which may be stripped.
    ///
    /// Its structures are in the BTF. The ring itself is recognized by its initial state, which the
    /// kernel's own algorithm requires, and the pointer to the ring in use by its initial value.
    ///
    /// # Errors
    ///
    /// If the kernel has no BTF, or a ring of unknown layout.
    pub fn find<'a, R: ReadRef<'a>>(vmlinux: R) -> Result<Self, LayoutError> {
        let header = FileHeader64::<Endianness>::parse(vmlinux)?;
        let endian = header.endian()?;
        let sections = header.sections(endian, vmlinux)?;
        let (_, section) = sections.section_by_name(endian, b".BTF").ok_or(LayoutError::NoBtf)?;
        let btf = object::read::elf::SectionHeader::data(section, endian, vmlinux)?;
        let offsets = PrintkOffsets::from_btf(&Btf::parse(btf)?)?;
        let mut segments = Vec::new();
        for segment in header.program_headers(endian, vmlinux)? {
            let (address, at) = (segment.p_vaddr(endian), segment.p_paddr(endian));
            let is_data =
                segment.p_type(endian) == PT_LOAD && segment.p_flags(endian).0 & PF_W.0 != 0;
            if is_data && address >= IMAGE {
                let data = segment.data(endian, vmlinux);
                let data = data.map_err(|()| LayoutError::NotFound { what: "data", count: 0 })?;
                segments.push(Segment { address, image_base: address.wrapping_sub(at), data });
            }
        }
        Self::find_in(&segments, offsets)
    }

    fn find_in(segments: &[Segment<'_>], offsets: PrintkOffsets) -> Result<Self, LayoutError> {
        let rings = find_words(segments, |segment, at| {
            let ring = segment.data.get(at..at.checked_add(offsets.ring_len as usize)?)?;
            offsets.is_initial(ring)?.then(|| {
                let [descs, initial_id] =
                    [offsets.descs, offsets.head_id].map(|at| long(ring, at).unwrap_or_default());
                (segment.address + at as u64, descs, initial_id, segment.image_base)
            })
        });
        let [(ring, descs, initial_id, image_base)] = rings[..] else {
            return Err(LayoutError::NotFound { what: "the ring", count: rings.len() });
        };
        let pointers = find_words(segments, |segment, at| {
            let word = long(segment.data, at as u64)?;
            (word == ring && segment.image_base == image_base)
                .then_some(segment.address + at as u64)
        });
        let [pointer] = pointers[..] else {
            let count = pointers.len();
            return Err(LayoutError::NotFound { what: "the pointer to the ring", count });
        };
        Ok(Self { ring, descs, initial_id, pointer, image_base, offsets })
    }
}

/// Calls `find` with the offset of each word, and returns what it finds.
fn find_words<T>(
    segments: &[Segment<'_>],
    mut find: impl FnMut(&Segment<'_>, usize) -> Option<T>,
) -> Vec<T> {
    let mut found = Vec::new();
    for segment in segments {
        found.extend((0..segment.data.len()).step_by(8).filter_map(|at| find(segment, at)));
    }
    found
}

impl PrintkOffsets {
    fn from_btf(btf: &Btf<'_>) -> Result<Self, LayoutError> {
        const RING: &str = "printk_ringbuffer";
        let inner = |part: &str, structure: &str, member: &str| {
            Ok::<_, btf::Error>(
                btf.member_offset(RING, part)? + btf.member_offset(structure, member)?,
            )
        };
        let desc_ring = |member| inner("desc_ring", "prb_desc_ring", member);
        let data_ring = |member| inner("text_data_ring", "prb_data_ring", member);
        let block = btf.member_offset("prb_desc", "text_blk_lpos")?;
        let offsets = Self {
            ring_len: btf.structure_len(RING)?,
            count_bits: desc_ring("count_bits")?,
            descs: desc_ring("descs")?,
            infos: desc_ring("infos")?,
            head_id: desc_ring("head_id")?,
            tail_id: desc_ring("tail_id")?,
            size_bits: data_ring("size_bits")?,
            data: data_ring("data")?,
            head_lpos: data_ring("head_lpos")?,
            tail_lpos: data_ring("tail_lpos")?,
            desc_len: btf.structure_len("prb_desc")?,
            state_var: btf.member_offset("prb_desc", "state_var")?,
            begin: block + btf.member_offset("prb_data_blk_lpos", "begin")?,
            next: block + btf.member_offset("prb_data_blk_lpos", "next")?,
            info_len: btf.structure_len("printk_info")?,
            ts_nsec: btf.member_offset("printk_info", "ts_nsec")?,
            text_len: btf.member_offset("printk_info", "text_len")?,
        };
        let Self { ring_len, desc_len, info_len, .. } = offsets;
        for (name, len) in [(RING, ring_len), ("prb_desc", desc_len), ("printk_info", info_len)] {
            // `is_initial` and the reader need a whole number of words.
            if len == 0 || len > MAX_LEN || len % 8 != 0 {
                return Err(LayoutError::UnknownForm(name));
            }
        }
        Ok(offsets)
    }

    /// Returns whether a ring has the state in which it is linked: no records, and a first ID and position that
    /// overflow soon.
    fn is_initial(&self, ring: &[u8]) -> Option<bool> {
        // This is called for each word of the data, so the first test is cheap and rarely succeeds.
        let begin = long(ring, self.head_lpos)?;
        if begin != long(ring, self.tail_lpos)? || begin >> 63 == 0 {
            return Some(false);
        }
        let [count_bits, size_bits] = [self.count_bits, self.size_bits].map(|at| long(ring, at));
        let [count_bits, size_bits] = [count_bits? as u32, size_bits? as u32];
        if !(1..=30).contains(&count_bits) || !(1..=40).contains(&size_bits) {
            return Some(false);
        }
        let [head, tail] = [long(ring, self.head_id)?, long(ring, self.tail_id)?];
        let pointers = [long(ring, self.descs)?, long(ring, self.infos)?, long(ring, self.data)?];
        Some(
            begin == (1_u64 << size_bits).wrapping_neg()
                && head == tail
                // Linux 6.1 and 6.12 compute it with 32 bits, 7.2 with 62.
                && head as u32 == ((1_u32 << count_bits) + 1).wrapping_neg()
                && pointers.iter().all(|pointer| *pointer >= IMAGE),
        )
    }
}

/// Returns the word at an offset.
pub(super) fn long(bytes: &[u8], at: u64) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
