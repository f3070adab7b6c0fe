//! Moves a loaded vmlinux to a random virtual address, as the decompressor of a bzImage would.
//!
//! Stock kernels are linked for one address. Their ELF file is followed by a list of the positions
//! of addresses: `vmlinux.relocs`. It consists of 32-bit words: from the end of the file backwards,
//! positions of 32-bit addresses, of 32-bit addresses relative to the per-CPU area (only in kernels
//! before 6.15), and of 64-bit addresses. A zero ends each group.
//!
//! Sources: Linux 6.12, arch/x86/boot/compressed/misc.c (`handle_relocations`) and kaslr.c
//! (`find_random_virt_addr`), arch/x86/tools/relocs.c (`emit_relocs`).

use object::endian::{LittleEndian, U32};
use object::pod;

use super::super::layout::{KERNEL, LARGE_PAGE};

/// The start of the kernel's image in its virtual memory: `__START_KERNEL_map`.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// Bytes of virtual memory for the image with KASLR: `KERNEL_IMAGE_SIZE`.
const KERNEL_IMAGE_SIZE: u64 = 1 << 30;

/// The positions of addresses in a kernel: the low halves of their virtual addresses.
///
/// There are 250,000 of them, so they are not copied out of the file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Relocations<'a> {
    absolute_64: &'a [U32<LittleEndian>],
    inverse_32: &'a [U32<LittleEndian>],
    absolute_32: &'a [U32<LittleEndian>],
}

impl<'a> Relocations<'a> {
    /// Parses the bytes after the ELF file. `None` if the kernel was built without relocations.
    pub(super) fn parse(trailer: &'a [u8]) -> Result<Option<Self>, String> {
        let count = trailer.len() / 4;
        let words = match pod::slice_from_bytes::<U32<LittleEndian>>(trailer, count) {
            Ok((words, [])) => words,
            _ => {
                return Err(format!(
                    "{} bytes of relocations are not a multiple of 4",
                    trailer.len()
                ));
            }
        };
        let Some((first, words)) = words.split_first() else { return Ok(None) };
        if is_zero(first) {
            let groups: Vec<_> = words.split(is_zero).collect();
            return match groups[..] {
                [absolute_64, absolute_32] => {
                    Ok(Some(Self { absolute_64, inverse_32: &[], absolute_32 }))
                }
                [absolute_64, inverse_32, absolute_32] => {
                    Ok(Some(Self { absolute_64, inverse_32, absolute_32 }))
                }
                _ => Err(format!("{} groups of relocations (expected 2 or 3)", groups.len())),
            };
        }
        Err("relocations do not begin with a zero".to_owned())
    }

    /// Adds `delta` to every address in `kernel`, the bytes of the kernel that is loaded at
    /// `start`.
    pub(super) fn apply(&self, kernel: &mut [u8], start: u64, delta: u64) -> Result<(), String> {
        for word in self.absolute_64 {
            let bytes = place(kernel, start, word)?;
            *bytes = u64::from_le_bytes(*bytes).wrapping_add(delta).to_le_bytes();
        }
        for (words, delta) in
            [(self.inverse_32, (delta as u32).wrapping_neg()), (self.absolute_32, delta as u32)]
        {
            for word in words {
                let bytes = place(kernel, start, word)?;
                *bytes = u32::from_le_bytes(*bytes).wrapping_add(delta).to_le_bytes();
            }
        }
        Ok(())
    }
}

fn is_zero(word: &U32<LittleEndian>) -> bool {
    word.get(LittleEndian) == 0
}

/// Returns the `N` bytes at the position in a relocation.
fn place<'a, const N: usize>(
    kernel: &'a mut [u8],
    start: u64,
    word: &U32<LittleEndian>,
) -> Result<&'a mut [u8; N], String> {
    let word = word.get(LittleEndian);
    let address = 0xffff_ffff_0000_0000 | u64::from(word);
    let offset = address.wrapping_sub(KERNEL_MAP).wrapping_sub(start) as usize;
    match kernel.get_mut(offset..).and_then(<[u8]>::first_chunk_mut) {
        Some(bytes) => Ok(bytes),
        None => Err(format!("relocation {word:#x} is outside of the kernel")),
    }
}

/// Returns a random distance of a kernel of `size` bytes from the address that it is linked for.
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
    fn parse_splits_groups_at_zeros() {
        let numbers = |words: &[U32<LittleEndian>]| -> Vec<u32> {
            words.iter().map(|word| word.get(LittleEndian)).collect()
        };
        for (words, want) in [
            (&[0, 1, 2, 0, 3, 0, 4][..], [vec![1, 2], vec![3], vec![4]]),
            (&[0, 1, 2, 0, 4], [vec![1, 2], vec![], vec![4]]),
        ] {
            let trailer = bytes(words);
            let read = Relocations::parse(&trailer).unwrap().unwrap();
            let groups = [read.absolute_64, read.inverse_32, read.absolute_32].map(numbers);
            assert_eq!(groups, want);
        }
        assert_eq!(Relocations::parse(&[]).unwrap(), None);
        for bad in [bytes(&[1, 2]), bytes(&[0, 1]), bytes(&[0, 1, 0, 1, 0, 1, 0, 1]), vec![0; 5]] {
            Relocations::parse(&bad).unwrap_err();
        }
    }

    #[test]
    fn apply_changes_only_addresses() {
        let mut kernel = vec![0; 0x1000];
        kernel[0x10..0x18].copy_from_slice(&0xffff_ffff_8123_4567_u64.to_le_bytes());
        kernel[0x20..0x24].copy_from_slice(&0x1000_u32.to_le_bytes());
        kernel[0x30..0x34].copy_from_slice(&0x8123_4567_u32.to_le_bytes());
        let mut want = kernel.clone();
        want[0x10..0x18].copy_from_slice(&0xffff_ffff_8143_4567_u64.to_le_bytes());
        want[0x20..0x24].copy_from_slice(&0xffe0_1000_u32.to_le_bytes());
        want[0x30..0x34].copy_from_slice(&0x8143_4567_u32.to_le_bytes());
        let trailer = bytes(&[0, 0x8100_0010, 0, 0x8100_0020, 0, 0x8100_0030]);
        let relocations = Relocations::parse(&trailer).unwrap().unwrap();
        relocations.apply(&mut kernel, KERNEL, 0x20_0000).unwrap();
        assert!(kernel == want);
        for word in [0x8100_0ffd, 0x80ff_ffff, 0x1000] {
            let trailer = bytes(&[0, 0, word]);
            let relocations = Relocations::parse(&trailer).unwrap().unwrap();
            relocations.apply(&mut kernel, KERNEL, 0).unwrap_err();
        }
    }

    #[test]
    fn random_delta_keeps_the_kernel_in_its_range() {
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
