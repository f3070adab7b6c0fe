//! Reads the ring buffer of a guest.

use std::time::Duration;

use super::layout::{IMAGE, PrintkLayout, PrintkOffsets, long};
use crate::error::Error;

/// Reads guest memory: fills the buffer from a guest-physical address, or fails.
type Read<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> Result<(), Error>;

/// The number of messages that are read, the newest ones. A stock kernel has room for 4,096, or a few times
/// as many on a machine with many CPUs.
const MAX_MESSAGES: u64 = 1 << 16;

/// The size of the largest ring that is read, as powers of two: descriptors, and bytes of text.
const MAX_COUNT_BITS: u64 = 24;
const MAX_SIZE_BITS: u64 = 24;

/// KASLR moves an image by multiples of 2 MiB, less than 1 GiB.
const SLIDE_STEP: u64 = 2 << 20;
const MAX_SLIDE: u64 = 1 << 30;

/// The kernel's map of all memory begins at a multiple of 1 GiB.
///
/// Source: Linux 6.12, arch/x86/mm/kaslr.c (`kernel_randomize_memory`).
const DIRECT_MAP_STEP: u64 = 1 << 30;
/// Guest-physical addresses below this are tried for a ring in that map.
const MAX_MEMORY: u64 = 1 << 40;

/// A descriptor's state is in the two highest bits of its ID.
const ID: u64 = u64::MAX >> 2;
const COMMITTED: u64 = 1;
const FINALIZED: u64 = 2;

/// The bytes of a data block before its text: the ID of its descriptor.
const BLOCK_HEADER: u64 = 8;
/// A position with this bit does not refer to a block.
const DATALESS: u64 = 1;
/// Begin and end of a record without text. Another record without a block has lost its text.
const EMPTY_LINE: u64 = 3;

/// A message of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// When it was written, by the kernel's clock: about the time since its start.
    pub time: Duration,
    /// Its text. It may have several lines, and does not end in a line feed.
    pub text: String,
}

/// The position at which the kernel writes its next message. Each message changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    ring: u64,
    head_id: u64,
}

/// Why no messages can be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Memory cannot be read, or a pointer of the guest leads out of it.
    #[error(transparent)]
    Memory(#[from] Error),
    /// The ring in the guest's memory is not valid.
    #[error("the ring of the kernel's messages is damaged: {0}")]
    Damaged(String),
}

impl PrintkLayout {
    /// Reads all messages of the kernel that its ring still has, the oldest first. `read` fills a buffer
    /// from a guest-physical address.
    ///
    /// If the guest runs meanwhile, messages that it overwrites are left out.
    ///
    /// # Errors
    ///
    /// If `read` fails, or the ring is damaged. Damaged records are left out.
    pub fn read_messages(&self, read: Read<'_>) -> Result<Vec<Message>, ReadError> {
        let ring = Ring::open(self, read)?;
        ring.messages(read)
    }

    /// Reads where the kernel writes its next message.
    ///
    /// # Errors
    ///
    /// If `read` fails.
    pub fn position(&self, read: Read<'_>) -> Result<Position, ReadError> {
        let (ring, _) = self.ring_in_use(read)?;
        let mut head = [0; 8];
        read(ring.wrapping_add(self.offsets.head_id), &mut head)?;
        Ok(Position { ring, head_id: u64::from_le_bytes(head) })
    }

    /// Returns the position of a kernel that has not written any message.
    pub fn initial_position(&self) -> Position {
        Position { ring: self.ring.wrapping_sub(self.image_base), head_id: self.initial_id }
    }

    /// Returns the guest-physical address of the ring in use, and by how much KASLR has moved the image.
    fn ring_in_use(&self, read: Read<'_>) -> Result<(u64, u64), ReadError> {
        let mut word = [0; 8];
        // The pointer to the first ring's descriptors never changes, except by KASLR.
        let at = self.ring.wrapping_sub(self.image_base).wrapping_add(self.offsets.descs);
        read(at, &mut word)?;
        let slide = u64::from_le_bytes(word).wrapping_sub(self.descs);
        if slide % SLIDE_STEP != 0 || slide >= MAX_SLIDE {
            return Err(ReadError::Damaged(format!("the kernel's image moved by {slide:#x}")));
        }
        read(self.pointer.wrapping_sub(self.image_base), &mut word)?;
        let ring = u64::from_le_bytes(word).wrapping_sub(slide).wrapping_sub(self.image_base);
        Ok((ring, slide))
    }
}

/// The ring in use.
#[derive(Debug)]
struct Ring {
    offsets: PrintkOffsets,
    /// The number of descriptors.
    count: u64,
    /// Bytes of text.
    size: u64,
    /// Guest-physical addresses.
    descs: u64,
    infos: u64,
    data: u64,
    /// The first and the number of the IDs to read.
    first: u64,
    used: u64,
}

impl Ring {
    fn open(layout: &PrintkLayout, read: Read<'_>) -> Result<Self, ReadError> {
        let offsets = layout.offsets;
        let (at, slide) = layout.ring_in_use(read)?;
        let mut bytes = vec![0; offsets.ring_len as usize];
        read(at, &mut bytes)?;
        let member = |at| long(&bytes, at).ok_or_else(|| damaged("its form is not valid"));
        let [count_bits, size_bits] =
            [member(offsets.count_bits)? & 0xffff_ffff, member(offsets.size_bits)? & 0xffff_ffff];
        if count_bits > MAX_COUNT_BITS || size_bits > MAX_SIZE_BITS {
            let reason =
                format!("2^{count_bits} descriptors and 2^{size_bits} bytes of text (limit 2^24)");
            return Err(ReadError::Damaged(reason));
        }
        let (count, size) = (1 << count_bits, 1 << size_bits);
        let [head, tail] = [member(offsets.head_id)? & ID, member(offsets.tail_id)? & ID];
        let used = (head.wrapping_sub(tail) & ID) + 1;
        if used > count {
            return Err(damaged(format!("{used} of its {count} descriptors are in use")));
        }
        let used = used.min(MAX_MESSAGES);
        let first = head.wrapping_sub(used - 1) & ID;
        let [descs, infos, data] =
            [member(offsets.descs)?, member(offsets.infos)?, member(offsets.data)?];
        let base = if descs >= IMAGE {
            slide.wrapping_add(layout.image_base)
        } else {
            direct_map(&offsets, descs, tail, count, read)?
        };
        let [descs, infos, data] = [descs, infos, data].map(|address| address.wrapping_sub(base));
        Ok(Self { offsets, count, size, descs, infos, data, first, used })
    }

    fn messages(&self, read: Read<'_>) -> Result<Vec<Message>, ReadError> {
        let offsets = &self.offsets;
        let descs = self.array(self.descs, offsets.desc_len, read)?;
        let infos = self.array(self.infos, offsets.info_len, read)?;
        let mut text = vec![0; self.size as usize];
        read(self.data, &mut text)?;
        // The text of a descriptor that has not changed since was not overwritten.
        let later = self.array(self.descs, offsets.desc_len, read)?;
        let [descs, later] =
            [&descs, &later].map(|array| array.chunks_exact(offsets.desc_len as usize));
        let infos = infos.chunks_exact(offsets.info_len as usize);
        let ids = (0..self.used as usize).map(|number| self.first.wrapping_add(number as u64) & ID);
        let mut messages = Vec::new();
        // Valid blocks do not overlap, so all texts together are not longer than the ring.
        let mut left = text.len();
        // The newest first: if blocks of a damaged ring overlap, the oldest messages are left out.
        for (((id, desc), later), info) in ids.zip(descs).zip(later).zip(infos).rev() {
            let Some((begin, next)) = committed(offsets, desc, id).filter(|_| desc == later) else {
                continue;
            };
            let Some(message) = message(offsets, info, block(&text, id, begin, next)) else {
                continue;
            };
            let Some(rest) = left.checked_sub(message.text.len()) else { break };
            left = rest;
            messages.push(message);
        }
        messages.reverse();
        Ok(messages)
    }

    /// Reads the elements of the used IDs, in the order of the IDs.
    fn array(&self, base: u64, len: u64, read: Read<'_>) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; (self.used * len) as usize];
        let start = self.first % self.count;
        let until_end = self.used.min(self.count - start);
        let (before, after) = bytes.split_at_mut((until_end * len) as usize);
        read(base.wrapping_add(start * len), before)?;
        if !after.is_empty() {
            read(base, after)?;
        }
        Ok(bytes)
    }
}

/// Returns the address of the kernel's map of all memory, given that of the descriptors in it.
///
/// Their guest-physical address is known up to a multiple of 1 GiB. It is the first candidate at which
/// the descriptor with the oldest ID is found; that descriptor always exists.
fn direct_map(
    offsets: &PrintkOffsets,
    descs: u64,
    tail: u64,
    count: u64,
    read: Read<'_>,
) -> Result<u64, ReadError> {
    let oldest = (tail % count * offsets.desc_len).wrapping_add(offsets.state_var);
    let candidates = (descs % DIRECT_MAP_STEP..MAX_MEMORY).step_by(DIRECT_MAP_STEP as usize);
    for candidate in candidates {
        let mut state = [0; 8];
        // An address that cannot be read is outside of the memory.
        if read(candidate.wrapping_add(oldest), &mut state).is_ok()
            && u64::from_le_bytes(state) & ID == tail
        {
            return Ok(descs.wrapping_sub(candidate));
        }
    }
    Err(damaged(format!("its descriptors at {descs:#x} are not in memory")))
}

/// Returns begin and end of the text of a complete record, as positions.
fn committed(offsets: &PrintkOffsets, desc: &[u8], id: u64) -> Option<(u64, u64)> {
    let state = long(desc, offsets.state_var)?;
    let is_complete = [COMMITTED, FINALIZED].contains(&(state >> 62)) && state & ID == id;
    is_complete.then_some((long(desc, offsets.begin)?, long(desc, offsets.next)?))
}

/// Returns the text of a record in the ring's `data`.
///
/// Positions increase without wrapping at the end of the ring. A block that would cross that end is stored at the
/// beginning.
fn block(data: &[u8], id: u64, begin: u64, next: u64) -> Option<&[u8]> {
    if begin & DATALESS != 0 || next & DATALESS != 0 {
        return (begin == EMPTY_LINE && next == EMPTY_LINE).then_some(&[]);
    }
    let size = data.len() as u64;
    let last = next.wrapping_sub(1);
    let start = if begin / size == last / size { begin % size } else { 0 };
    let block = data.get(start as usize..(last % size + 1) as usize)?;
    let (header, text) = block.split_at_checked(BLOCK_HEADER as usize)?;
    (header == id.to_le_bytes()).then_some(text)
}

fn message(offsets: &PrintkOffsets, info: &[u8], block: Option<&[u8]>) -> Option<Message> {
    let time = Duration::from_nanos(long(info, offsets.ts_nsec)?);
    let at = offsets.text_len as usize;
    let len = u16::from_le_bytes(info.get(at..at.checked_add(2)?)?.try_into().ok()?);
    let block = block?;
    let text = &block[..block.len().min(len.into())];
    Some(Message { time, text: String::from_utf8_lossy(text).into_owned() })
}

fn damaged(reason: impl Into<String>) -> ReadError {
    ReadError::Damaged(reason.into())
}
