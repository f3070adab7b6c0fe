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
    // One for all blocks: to clear 8 MiB for each would cost a million times its packed length.
    let mut unpacked = vec![0; BLOCK];
    let mut rest = data.get(MAGIC..).unwrap_or_default();
    while !rest.is_empty() {
        let (len, blocks) = rest.split_first_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
        let len = u32::from_le_bytes(*len) as usize;
        let (block, blocks) = blocks.split_at_checked(len).ok_or(io::ErrorKind::UnexpectedEof)?;
        let len =
            lz4_flex::block::decompress_into(block, &mut unpacked).map_err(io::Error::other)?;
        if len > LIMIT - out.len() {
            return Err(too_large());
        }
        out.extend_from_slice(&unpacked[..len]);
        rest = blocks;
    }
    Ok(out)
}

/// The memory that `xz` may use. The kernel build packs with a dictionary of 128 MiB at most, and the format has
/// them up to 4 GiB.
///
/// Source: Linux 6.12, scripts/xz_wrap.sh.
const XZ_MEMORY_LIMIT: &str = "--memlimit-decompress=192MiB";

/// Unpacks by the program `xz`: a library would be a sixth of the build time of a user's tests, and only the modules
/// of some distributions have this format.
fn unpack_xz(data: &[u8]) -> io::Result<Vec<u8>> {
    let mut child = Command::new("xz")
        .args(["--decompress", "--stdout", "--threads=1", XZ_MEMORY_LIMIT])
        // Default options of the user, which may have other limits.
        .env_remove("XZ_DEFAULTS")
        .env_remove("XZ_OPT")
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
pub(super) mod tests {
    use std::time::Duration;

    use rustix::time::{ClockId, clock_gettime};

    use super::*;

    /// `lzma.compress(b"\x7fELF" + b"\0" * 60, check=lzma.CHECK_CRC32, preset=0)` of Python.
    pub(in crate::provision) const XZ: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21,
        0x01, 0x0c, 0x00, 0x00, 0x00, 0x8f, 0x98, 0x41, 0x9c, 0xe0, 0x00, 0x3f, 0x00, 0x0b, 0x5d,
        0x00, 0x3f, 0x91, 0x45, 0x84, 0x68, 0x33, 0x4c, 0x5a, 0x5b, 0x00, 0x00, 0x00, 0x00, 0x3a,
        0xaa, 0x62, 0xba, 0x00, 0x01, 0x23, 0x40, 0xda, 0x83, 0xf3, 0xe8, 0x90, 0x42, 0x99, 0x0d,
        0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
    ];

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

    /// Returns the CPU time of this thread that a call takes.
    fn cpu_time<T>(call: impl FnOnce() -> T) -> (T, Duration) {
        let now = || {
            let now = clock_gettime(ClockId::ThreadCPUTime);
            Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
        };
        let begin = now();
        (call(), now() - begin)
    }

    #[test]
    fn unpack_spends_no_time_on_empty_blocks_of_lz4() {
        let legacy = |block: &[u8], count: usize| {
            let block = [&(block.len() as u32).to_le_bytes(), block].concat();
            [&[0x02, 0x21, 0x4c, 0x18], block.repeat(count).as_slice()].concat()
        };
        let (full, empty) =
            (legacy(&lz4_flex::block::compress(&[0; 8 << 20]), 1), legacy(&[0], 4000));
        let (unpacked, full) = cpu_time(|| Format::Lz4.unpack(&full).unwrap());
        assert_eq!(unpacked.len(), 8 << 20);
        let (unpacked, empty) = cpu_time(|| Format::Lz4.unpack(&empty).unwrap());
        assert_eq!(unpacked, b"");
        // Both clear one buffer of 8 MiB. If each block did, the second would take 4000 times as long.
        assert!(empty < 20 * full, "{empty:?} for 4000 empty blocks, {full:?} for a full one");
    }

    #[test]
    fn unpack_limits_the_dictionary_of_xz() {
        // The size is in the properties of the filter, which a checksum follows.
        let with_dictionary = |size: u8, checksum: [u8; 4]| {
            let mut packed = XZ.to_vec();
            packed[16] = size;
            packed[20..24].copy_from_slice(&checksum);
            Format::Xz.unpack(&packed)
        };
        let small = with_dictionary(0x0c, [0x8f, 0x98, 0x41, 0x9c]).unwrap();
        // 128 MiB, 3 GiB.
        assert_eq!(with_dictionary(0x1e, [0x9b, 0x07, 0x51, 0x66]).unwrap(), small);
        let error = with_dictionary(0x27, [0xb0, 0xb0, 0x72, 0xeb]).unwrap_err().to_string();
        assert!(error.contains("Memory usage limit"), "{error}");
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
