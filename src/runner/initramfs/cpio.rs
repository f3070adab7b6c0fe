//! Writes a cpio archive in the "newc" form that the kernel unpacks.
//!
//! The same input gives the same bytes: no times, no owners, inode numbers in order.
//!
//! Source: Linux 6.12, driver-api/early-userspace/buffer-format.rst.

use std::collections::BTreeSet;
use std::io::Write;

use anyhow::{Context, Result, ensure};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_000;

pub(super) struct Archive<W> {
    writer: W,
    inode: u32,
    names: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(writer: W) -> Self {
        Self { writer, inode: 0, names: BTreeSet::new() }
    }

    /// Adds a file and its directories. An existing name keeps its first content.
    pub(super) fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entry(name, FILE | mode, (0, 0), content)
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, name: &str, target: &str) -> Result<()> {
        self.entry(name, LINK, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    pub(super) fn device(&mut self, name: &str, mode: u32, major: u32, minor: u32) -> Result<()> {
        self.entry(name, CHARACTER_DEVICE | mode, (major, minor), b"")
    }

    /// Writes the end of the archive.
    pub(super) fn finish(mut self) -> Result<()> {
        self.record("TRAILER!!!", 0, (0, 0), b"")
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        let name = name.trim_start_matches('/');
        ensure!(!name.is_empty(), "a file of the initramfs has an empty name");
        for (end, _) in name.match_indices('/') {
            let directory = &name[..end];
            if self.names.insert(directory.to_owned()) {
                self.record(directory, DIRECTORY, (0, 0), b"")?;
            }
        }
        if self.names.insert(name.to_owned()) {
            self.record(name, mode, device, content)?;
        }
        Ok(())
    }

    /// Writes a header of 13 hexadecimal fields, the name with its NUL, and the content. Name and content are
    /// padded to a multiple of four bytes.
    fn record(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len())
            .with_context(|| format!("{name} is too large for an initramfs (limit 4 GiB)"))?;
        self.inode += 1;
        let links = 1 + u32::from(mode == DIRECTORY);
        let name_size = name.len() as u32 + 1;
        let fields =
            [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        let mut head = b"070701".to_vec();
        for field in fields {
            head.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        head.extend_from_slice(name.as_bytes());
        head.push(0);
        head.resize(head.len().next_multiple_of(4), 0);
        let padding = content.len().next_multiple_of(4) - content.len();
        self.writer
            .write_all(&head)
            .and_then(|()| self.writer.write_all(content))
            .and_then(|()| self.writer.write_all(&[0; 3][..padding]))
            .context("failed to write the initramfs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_has_the_documented_format() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.file("/a/b", 0o755, b"hello").unwrap();
        archive.file("a/b", 0o644, b"not this one").unwrap();
        archive.device("/null", 0o666, 1, 3).unwrap();
        archive.finish().unwrap();
        let zeros = "00000000";
        let record = |inode,
                      mode,
                      links,
                      size,
                      device: &str,
                      name_size,
                      name: &str,
                      content: &str| {
            format!(
                "070701{inode:08X}{mode:08X}{zeros}{zeros}{links:08X}{zeros}{size:08X}{zeros}{zeros}{device}{name_size:08X}{zeros}{name}{content}"
            )
        };
        let expected = [
            record(1, 0o40755, 2, 0, &zeros.repeat(2), 2, "a\0", ""),
            record(2, 0o100755, 1, 5, &zeros.repeat(2), 4, "a/b\0\0\0", "hello\0\0\0"),
            record(3, 0o20666, 1, 0, "0000000100000003", 5, "null\0\0", ""),
            record(4, 0, 1, 0, &zeros.repeat(2), 11, "TRAILER!!!\0\0\0\0", ""),
        ];
        // Header and name together are padded: 110 + 2 fills four, 110 + 5 lacks one, and so on.
        let expected: String = expected.concat();
        assert_eq!(
            String::from_utf8(bytes).unwrap().replace('\0', "."),
            expected.replace('\0', ".")
        );
    }
}
