//! The compressions kernels and modules come in, with a bound on what they may grow to.

use std::io::{self, Read};

/// More than any kernel unpacks to; an image that wants more is damaged or hostile.
pub(super) const LIMIT: usize = 512 << 20;

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
            Self::Lz4 => read_bounded(lz4_flex::frame::FrameDecoder::new(data)),
            // The dictionary is allocated up front: at most what the output may be.
            Self::Xz => {
                let limit_kb = (LIMIT >> 10) as u32;
                read_bounded(lzma_rust2::XzReader::new_mem_limit(data, false, limit_kb))
            }
            Self::Zstd => read_bounded(
                ruzstd::decoding::StreamingDecoder::new(data).map_err(io::Error::other)?,
            ),
        }
    }
}

fn read_bounded(decoder: impl Read) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    decoder.take(LIMIT as u64 + 1).read_to_end(&mut out)?;
    match out.len() {
        0..=LIMIT => Ok(out),
        _ => Err(io::Error::new(io::ErrorKind::FileTooLarge, "unpacks to more than 512 MiB")),
    }
}
