//! Decompresses kernels and modules, with a limit on the unpacked size.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// More than the unpacked size of any kernel; a larger image is damaged or hostile.
///
/// Smaller for a fuzzer, which tries many images.
pub(super) const LIMIT: usize = if cfg!(fuzzing) { 1 << 20 } else { 512 << 20 };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Gzip,
    Lz4,
    Xz,
    Zstd,
}

impl Format {
    /// Detects the format by the first bytes of the data.
    pub(super) fn of(data: &[u8]) -> Option<Self> {
        let magics: [(&[u8], Self); 4] = [
            (&[0x1f, 0x8b], Self::Gzip),
            // The legacy frame of `lz4 -l`, which the kernel build uses.
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

    /// Unpacks `data`. Bytes after its end are ignored, except for LZ4: its frame has no end mark.
    ///
    /// # Errors
    ///
    /// `FileTooLarge` if the result is larger than [`LIMIT`], or the error of the decoder.
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

/// Unpacks a legacy frame: a magic number, then blocks of at most 8 MiB, each after its packed length.
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

/// Unpacks by the program `xz`: a library would be a sixth of the build time of a user's tests, and only the modules
/// of some distributions have this format.
fn unpack_xz(data: &[u8]) -> io::Result<Vec<u8>> {
    let mut child = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("failed to run `xz` (package xz-utils): {error}"))
        })?;
    let (mut stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let out = std::thread::scope(|scope| {
        // A write error means that xz exited early; its status decides whether that is an error.
        scope.spawn(move || stdin.take().map(|mut stdin| stdin.write_all(data)));
        stdout.map_or_else(|| Ok(Vec::new()), read_bounded)
    });
    let end = child.wait_with_output()?;
    if end.status.success() {
        return out;
    }
    let stderr = || io::Error::other(String::from_utf8_lossy(&end.stderr).trim().to_owned());
    Err(out.err().unwrap_or_else(stderr))
}

/// Reads a kernel or module file.
///
/// # Errors
///
/// `FileTooLarge` if its length is over [`LIMIT`], even for a sparse file.
pub(super) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if file.metadata()?.len() > LIMIT as u64 {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 512 MiB"));
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
    io::Error::new(io::ErrorKind::FileTooLarge, "unpacked size over 512 MiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpack_reads_all_blocks_of_lz4() {
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
    fn read_file_refuses_large_files() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(LIMIT as u64 + 1).unwrap();
        assert_eq!(read_file(file.path()).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        file.as_file().set_len(10).unwrap();
        assert_eq!(read_file(file.path()).unwrap(), [0; 10]);
    }
}
