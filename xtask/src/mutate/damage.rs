//! A file that can be damaged and restored at little cost, because kernels are large.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// A sequence of numbers that its seed determines: xorshift64*.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        ((self.next() >> 16) % end as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// A file without a name, its content, and the offsets where damage matters most.
#[derive(Debug)]
pub(super) struct Victim {
    file: File,
    whole: Vec<u8>,
    /// Offset and size of each field of its headers.
    fields: Vec<(usize, usize)>,
    /// Words that are read one by one.
    words: Range<usize>,
}

/// The changes to a file.
#[derive(Debug, Default)]
pub(super) struct Undo {
    places: Vec<Range<usize>>,
    len: Option<u64>,
}

impl Victim {
    pub(super) fn new(
        whole: Vec<u8>,
        fields: Vec<(usize, usize)>,
        words: Range<usize>,
    ) -> Result<Self> {
        let file = tempfile::tempfile().context("cannot create a file")?;
        file.write_all_at(&whole, 0).context("cannot write a file")?;
        Ok(Self { file, whole, fields, words })
    }

    /// Returns the path of the file, which is valid in child processes, too: one of them computes a hash.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Damages the file in one or two ways.
    pub(super) fn damage(&mut self, random: &mut Random) -> Result<Undo> {
        let mut undo = Undo::default();
        match random.below(8) {
            0..3 => self.damage_fields(random, &mut undo)?,
            3 => self.damage_words(random, &mut undo)?,
            4 => self.damage_bytes(random, &mut undo)?,
            5 => self.resize(self.shorter(random), &mut undo)?,
            6 => self.resize(self.longer(random), &mut undo)?,
            _ => {
                self.damage_fields(random, &mut undo)?;
                self.resize(self.shorter(random), &mut undo)?;
            }
        }
        Ok(undo)
    }

    /// Restores the file.
    pub(super) fn restore(&mut self, undo: Undo) -> Result<()> {
        if let Some(len) = undo.len {
            self.file.set_len(self.whole.len() as u64).context("cannot resize a file")?;
            let from = self.whole.len().min(len as usize);
            self.write(from, &self.whole[from..])?;
        }
        for place in undo.places {
            self.write(place.start, &self.whole[place.clone()])?;
        }
        Ok(())
    }

    fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset as u64).context("cannot write a file")
    }

    fn damage_fields(&self, random: &mut Random, undo: &mut Undo) -> Result<()> {
        for _ in 0..=random.below(3) {
            let (offset, size) = random.one_of(&self.fields);
            let mut bytes = [0; 8];
            bytes[..size].copy_from_slice(&self.whole[offset..offset + size]);
            let value = other(u64::from_le_bytes(bytes), random);
            self.write(offset, &value.to_le_bytes()[..size])?;
            undo.places.push(offset..offset + size);
        }
        Ok(())
    }

    fn damage_words(&self, random: &mut Random, undo: &mut Undo) -> Result<()> {
        for _ in 0..=random.below(3) {
            let Range { start, end } = self.words;
            let offset = start + random.below((end - start) / 4) * 4;
            let word = random.one_of(&[0, 1, u32::MAX, 0x8000_0000, 0x7fff_ffff]);
            let word = if random.below(2) == 0 { word } else { random.next() as u32 };
            self.write(offset, &word.to_le_bytes())?;
            undo.places.push(offset..offset + 4);
        }
        Ok(())
    }

    fn damage_bytes(&self, random: &mut Random, undo: &mut Undo) -> Result<()> {
        for _ in 0..=random.below(8) {
            let within = random.one_of(&[self.whole.len(), self.whole.len().min(4096)]);
            let offset = random.below(within);
            self.write(offset, &[random.next() as u8])?;
            undo.places.push(offset..offset + 1);
        }
        Ok(())
    }

    fn resize(&self, len: u64, undo: &mut Undo) -> Result<()> {
        self.file.set_len(len).with_context(|| format!("cannot make a file of {len} bytes"))?;
        undo.len = Some(len);
        Ok(())
    }

    fn shorter(&self, random: &mut Random) -> u64 {
        let len = self.whole.len();
        let short = match random.below(4) {
            0 => random.below(1024),
            1 => len - 1 - random.below(8),
            2 => self.words.start + random.below(self.words.len()),
            _ => random.below(len),
        };
        short as u64
    }

    /// Larger, with a hole: by a little, or around a border.
    fn longer(&self, random: &mut Random) -> u64 {
        let border = random.one_of(&[1_u64 << 26, 1 << 30, 3 << 30, 1 << 32, 1 << 33, 1 << 42]);
        match random.below(3) {
            0 => self.whole.len() as u64 + 1 + random.next() % 9000,
            1 => border,
            _ => border - 5000 + random.next() % 10_000,
        }
    }
}

/// Another value: a border of some width, or one that is near.
fn other(value: u64, random: &mut Random) -> u64 {
    let border =
        random.one_of(&[0, 1 << 8, 1 << 16, 1 << 20, 1 << 24, 1 << 31, 1 << 32, 1 << 63_u64]);
    match random.below(6) {
        0 => border,
        1 => border.wrapping_sub(1 + random.next() % 2 * 4095),
        2 => border.wrapping_add(random.next() % 8192),
        3 => value.wrapping_add(random.one_of(&[1, 4096, 1_u64.wrapping_neg(), border])),
        4 => value ^ 1 << random.below(64),
        _ => random.next(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn damage_is_undone_and_can_be_had_again() {
        let whole: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
        let mut victim = Victim::new(whole.clone(), vec![(16, 8), (24, 2)], 9000..9400).unwrap();
        let mut damaged = 0;
        for seed in 0..200 {
            let undo = victim.damage(&mut Random::new(seed)).unwrap();
            let len = fs::metadata(victim.path()).unwrap().len();
            damaged += u32::from(len > 1 << 20 || fs::read(victim.path()).unwrap() != whole);
            victim.restore(undo).unwrap();
            assert!(fs::read(victim.path()).unwrap() == whole, "seed {seed}");
        }
        assert!(damaged > 190, "{damaged}");
    }
}
