//! The compressions kernels and modules come in, with a bound on what they may grow to.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// More than any kernel unpacks to; an image that wants more is damaged or hostile.
///
/// A fuzzer is to try many images, not to fill memory with one.
pub(super) const LIMIT: usize = if cfg!(fuzzing) { 1 << 20 } else { 512 << 20 };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Gzip,
    Lz4,
    Xz,
    Zstd,
}

impl Format {
    /// Recognises a format by the first bytes of the data.
    pub(super) fn of(data: &[u8]) -> Option<Self> {
        let magics: [(&[u8], Self); 4] = [
            (&[0x1f, 0x8b], Self::Gzip),
            // The legacy frame, which `lz4 -l` writes and the kernel's build uses.
            (&[0x02, 0x21, 0x4c, 0x18], Self::Lz4),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Self::Xz),
            (&[0x28, 0xb5, 0x2f, 0xfd], Self::Zstd),
        ];
        magics.into_iter().find(|(magic, _)| data.starts_with(magic)).map(|(_, format)| format)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }

    /// Unpacks `data`; what follows its end is ignored, except for LZ4, whose frame has no end.
    ///
    /// # Errors
    ///
    /// `FileTooLarge` if it unpacks to more than [`LIMIT`], else what the decoder says.
    pub(super) fn unpack(self, data: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip => read_bounded(flate2::read::GzDecoder::new(data)),
            Self::Lz4 => unpack_lz4(data),
            Self::Xz => unpack_xz(data),
            Self::Zstd => read_bounded(
                ruzstd::decoding::StreamingDecoder::new(data).map_err(io::Error::other)?,
            ),
        }
    }
}

/// The legacy frame: a magic number, then blocks of at most 8 MiB, each behind its packed length.
///
/// Source: lz4_Frame_format.md 1.6.4 ("Legacy frame").
fn unpack_lz4(data: &[u8]) -> io::Result<Vec<u8>> {
    const MAGIC: usize = 4;
    const BLOCK: usize = 8 << 20;
    let mut out = Vec::new();
    let mut rest = data.get(MAGIC..).unwrap_or_default();
    while !rest.is_empty() {
        let (len, blocks) = rest.split_first_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
        let len = u32::from_le_bytes(*len) as usize;
        let (block, blocks) = blocks.split_at_checked(len).ok_or(io::ErrorKind::UnexpectedEof)?;
        let begin = out.len();
        out.resize(begin + BLOCK, 0);
        let unpacked = lz4_flex::block::decompress_into(block, &mut out[begin..]);
        out.truncate(begin + unpacked.map_err(io::Error::other)?);
        if out.len() > LIMIT {
            return Err(too_large());
        }
        rest = blocks;
    }
    Ok(out)
}

/// By the program: a library for it would be a sixth of what a user's tests have to build, and only
/// the modules of some distributions come in this form.
fn unpack_xz(data: &[u8]) -> io::Result<Vec<u8>> {
    let mut child = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("cannot run `xz`, of package xz-utils: {error}"))
        })?;
    let (mut stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let out = std::thread::scope(|scope| {
        // An xz that has seen enough closes its end; its status tells whether that was right.
        scope.spawn(move || stdin.take().map(|mut stdin| stdin.write_all(data)));
        stdout.map_or_else(|| Ok(Vec::new()), read_bounded)
    });
    let end = child.wait_with_output()?;
    match end.status.success() {
        true => out,
        false => Err(out.err().unwrap_or_else(|| {
            io::Error::other(String::from_utf8_lossy(&end.stderr).trim().to_owned())
        })),
    }
}

/// Reads a file that is no larger than any kernel or module.
///
/// # Errors
///
/// `FileTooLarge` if it has more than [`LIMIT`] bytes, whatever of them are on disk.
pub(super) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if file.metadata()?.len() > LIMIT as u64 {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 512 MiB"));
    }
    read_bounded(file)
}

fn read_bounded(decoder: impl Read) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    decoder.take(LIMIT as u64 + 1).read_to_end(&mut out)?;
    match out.len() {
        0..=LIMIT => Ok(out),
        _ => Err(too_large()),
    }
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, "unpacks to more than 512 MiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_lz4_follow_each_other() {
        let mut packed = vec![0x02, 0x21, 0x4c, 0x18];
        for text in ["one ", "two"] {
            let block = lz4_flex::block::compress(text.as_bytes());
            packed.extend((block.len() as u32).to_le_bytes());
            packed.extend(block);
        }
        assert_eq!(Format::Lz4.unpack(&packed).unwrap(), b"one two");
        assert_eq!(Format::Lz4.unpack(&packed[..4]).unwrap(), b"");
        for cut in [5, 9, packed.len() - 1] {
            Format::Lz4.unpack(&packed[..cut]).unwrap_err();
        }
        for len in [0, u32::MAX] {
            packed[4..8].copy_from_slice(&len.to_le_bytes());
            Format::Lz4.unpack(&packed).unwrap_err();
        }
    }

    #[test]
    fn files_larger_than_any_kernel_are_not_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(LIMIT as u64 + 1).unwrap();
        assert_eq!(read_file(file.path()).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        file.as_file().set_len(10).unwrap();
        assert_eq!(read_file(file.path()).unwrap(), [0; 10]);
    }
}
