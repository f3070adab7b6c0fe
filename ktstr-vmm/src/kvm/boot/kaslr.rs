//! Moves a loaded vmlinux to a random virtual address, as the unpacker of a bzImage would.
//!
//! Stock kernels are linked for one address and carry, behind their ELF file, the list of places
//! that hold addresses: `vmlinux.relocs`. Its 32-bit words are, from the end of the file backwards,
//! places of 32-bit addresses, of 32-bit addresses relative to the per-CPU area (kernels before
//! 6.15 only), and of 64-bit addresses, each group ended by a zero.
//!
//! Sources: Linux 6.12, arch/x86/boot/compressed/misc.c (`handle_relocations`) and kaslr.c
//! (`find_random_virt_addr`), arch/x86/tools/relocs.c (`emit_relocs`).

use super::super::layout::{KERNEL, LARGE_PAGE};

/// Where the kernel's image begins in its virtual memory: `__START_KERNEL_map`.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// The image's part of it with KASLR: `KERNEL_IMAGE_SIZE`.
const KERNEL_IMAGE_SIZE: u64 = 1 << 30;

/// The places of a kernel that hold addresses; as in the file, the low halves of their addresses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Relocations {
    absolute_64: Vec<u32>,
    inverse_32: Vec<u32>,
    absolute_32: Vec<u32>,
}

impl Relocations {
    /// Reads what follows the ELF file; nothing if the kernel was built without relocations.
    pub(super) fn parse(trailer: &[u8]) -> Result<Option<Self>, String> {
        if !trailer.len().is_multiple_of(4) {
            return Err(format!("{} bytes of relocations are no whole words", trailer.len()));
        }
        let words: Vec<u32> = trailer
            .chunks_exact(4)
            .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
            .collect();
        let Some((0, words)) = words.split_first() else {
            return if words.is_empty() {
                Ok(None)
            } else {
                Err("relocations begin without a zero".to_owned())
            };
        };
        let groups: Vec<&[u32]> = words.split(|word| *word == 0).collect();
        let (absolute_64, inverse_32, absolute_32) = match groups[..] {
            [absolute_64, absolute_32] => (absolute_64, &[][..], absolute_32),
            [absolute_64, inverse_32, absolute_32] => (absolute_64, inverse_32, absolute_32),
            _ => return Err(format!("{} groups of relocations, not 2 or 3", groups.len())),
        };
        let [absolute_64, inverse_32, absolute_32] =
            [absolute_64, inverse_32, absolute_32].map(<[u32]>::to_vec);
        Ok(Some(Self { absolute_64, inverse_32, absolute_32 }))
    }

    /// Adds `delta` to every address in `kernel`, the bytes of the kernel that lie at `start`.
    pub(super) fn apply(&self, kernel: &mut [u8], start: u64, delta: u64) -> Result<(), String> {
        for word in &self.absolute_64 {
            add(place(kernel, start, *word)?, delta);
        }
        for word in &self.inverse_32 {
            add_32(place(kernel, start, *word)?, (delta as u32).wrapping_neg());
        }
        for word in &self.absolute_32 {
            add_32(place(kernel, start, *word)?, delta as u32);
        }
        Ok(())
    }
}

/// The `N` bytes that a relocation names: the low half of their address in the kernel's map.
fn place<const N: usize>(kernel: &mut [u8], start: u64, word: u32) -> Result<&mut [u8; N], String> {
    let address = 0xffff_ffff_0000_0000 | u64::from(word);
    let offset = address.wrapping_sub(KERNEL_MAP).wrapping_sub(start);
    let bytes =
        usize::try_from(offset).ok().and_then(|offset| kernel.get_mut(offset..)?.first_chunk_mut());
    bytes.ok_or_else(|| format!("relocation of {word:#x} lies outside of the kernel"))
}

fn add(bytes: &mut [u8; 8], delta: u64) {
    *bytes = u64::from_le_bytes(*bytes).wrapping_add(delta).to_le_bytes();
}

fn add_32(bytes: &mut [u8; 4], delta: u32) {
    *bytes = u32::from_le_bytes(*bytes).wrapping_add(delta).to_le_bytes();
}

/// A random distance for a kernel of `size` bytes from the address it was linked for.
pub(super) fn random_delta(size: u64, random: u64) -> u64 {
    let slots = KERNEL_IMAGE_SIZE.saturating_sub(KERNEL).saturating_sub(size) / LARGE_PAGE;
    random % (slots + 1) * LARGE_PAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn groups_are_told_by_their_zeros() {
        let old = Relocations::parse(&bytes(&[0, 1, 2, 0, 3, 0, 4])).unwrap().unwrap();
        assert_eq!(
            (old.absolute_64, old.inverse_32, old.absolute_32),
            (vec![1, 2], vec![3], vec![4])
        );
        let new = Relocations::parse(&bytes(&[0, 1, 2, 0, 4])).unwrap().unwrap();
        assert_eq!(
            (new.absolute_64, new.inverse_32, new.absolute_32),
            (vec![1, 2], vec![], vec![4])
        );
        assert_eq!(Relocations::parse(&[]).unwrap(), None);
        for bad in [bytes(&[1, 2]), bytes(&[0, 1]), bytes(&[0, 1, 0, 1, 0, 1, 0, 1]), vec![0; 5]] {
            Relocations::parse(&bad).unwrap_err();
        }
    }

    #[test]
    fn addresses_move_and_nothing_else_does() {
        let mut kernel = vec![0; 0x1000];
        let relocations = Relocations {
            absolute_64: vec![0x8100_0010],
            inverse_32: vec![0x8100_0020],
            absolute_32: vec![0x8100_0030],
        };
        kernel[0x10..0x18].copy_from_slice(&0xffff_ffff_8123_4567_u64.to_le_bytes());
        kernel[0x20..0x24].copy_from_slice(&0x1000_u32.to_le_bytes());
        kernel[0x30..0x34].copy_from_slice(&0x8123_4567_u32.to_le_bytes());
        let mut want = kernel.clone();
        want[0x10..0x18].copy_from_slice(&0xffff_ffff_8143_4567_u64.to_le_bytes());
        want[0x20..0x24].copy_from_slice(&0xffe0_1000_u32.to_le_bytes());
        want[0x30..0x34].copy_from_slice(&0x8143_4567_u32.to_le_bytes());
        relocations.apply(&mut kernel, KERNEL, 0x20_0000).unwrap();
        assert!(kernel == want);
        for word in [0x8100_0ffd, 0x80ff_ffff, 0x1000, 0] {
            let relocations = Relocations { absolute_32: vec![word], ..Relocations::default() };
            relocations.apply(&mut kernel, KERNEL, 0).unwrap_err();
        }
    }

    #[test]
    fn a_moved_kernel_stays_within_its_part_of_the_address_space() {
        for random in [0, 1, 77, u64::MAX] {
            for size in [0, 60 << 20, 1 << 30, u64::MAX] {
                let delta = random_delta(size, random);
                assert_eq!(delta % LARGE_PAGE, 0);
                assert!(delta == 0 || KERNEL + delta + size <= KERNEL_IMAGE_SIZE);
            }
        }
        assert_ne!(random_delta(60 << 20, 5), 0);
    }
}
