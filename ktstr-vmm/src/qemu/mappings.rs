//! The memory of a process, at the places where it has mapped files privately.
//!
//! A restored machine's memory differs from the files that it came from by the pages that the guest
//! has written since, and only QEMU's own address space has those.
//!
//! Source: Linux 6.12, filesystems/proc.rst (`maps`, `mem`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;

use rustix::fs::fstat;

use crate::error::Error;

/// Private mappings of files in another process.
#[derive(Debug)]
pub(super) struct ProcessMemory {
    /// Stays at the same address space when the process ends or its pid is used again.
    mem: File,
    /// The mappings of each file, ordered by offset.
    files: Vec<Vec<Mapping>>,
}

/// A range of a file in an address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mapping {
    offset: u64,
    len: u64,
    address: u64,
}

/// A file as `maps` names it.
#[derive(Debug)]
struct MappedFile {
    inode: u64,
    path: String,
}

impl ProcessMemory {
    /// Finds the mappings of files in the process of thread `tid`.
    pub(super) fn open<F: AsFd>(
        tid: i32,
        files: impl Iterator<Item = (F, u64)>,
    ) -> Result<Self, Error> {
        let path = format!("/proc/{tid}/maps");
        let maps = std::fs::read(&path).map_err(Error::file("read", path))?;
        let maps = String::from_utf8_lossy(&maps);
        let path = format!("/proc/{tid}/mem");
        let mem = File::open(&path).map_err(Error::file("open", path))?;
        let files = files.map(|(file, size)| {
            let file = MappedFile::of(file.as_fd()).map_err(Error::io("identify guest memory"))?;
            let mappings = find(&maps, &file, size);
            mappings.ok_or_else(|| Error::Protocol(format!("it has not mapped `{}`", file.path)))
        });
        Ok(Self { files: files.collect::<Result<_, _>>()?, mem })
    }

    /// Fills `buf` with the process's version of a file from `offset` on.
    pub(super) fn read(&self, file: usize, buf: &mut [u8], offset: u64) -> Result<(), Error> {
        let (mut rest, mut offset) = (buf, offset);
        while !rest.is_empty() {
            let mapping = self.files[file].iter().find(|mapping| mapping.holds(offset));
            let mapping = mapping.ok_or(Error::OutsideMemory { gpa: offset, len: rest.len() })?;
            let inside = offset - mapping.offset;
            let left = usize::try_from(mapping.len - inside).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut(left.min(rest.len()));
            self.mem.read_exact_at(now, mapping.address + inside).map_err(|error| {
                match error.kind() {
                    // The address space is gone.
                    io::ErrorKind::UnexpectedEof => Error::Gone { operation: "read its memory" },
                    _ => Error::io("read guest memory")(error),
                }
            })?;
            offset += now.len() as u64;
            rest = later;
        }
        Ok(())
    }
}

impl Mapping {
    fn holds(&self, offset: u64) -> bool {
        (self.offset..self.offset + self.len).contains(&offset)
    }
}

impl MappedFile {
    fn of(file: impl AsFd) -> io::Result<Self> {
        let link = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        let path = std::fs::read_link(link)?.to_string_lossy().into_owned();
        Ok(Self { inode: fstat(file)?.st_ino, path })
    }
}

/// Returns the private mappings of the first `size` bytes of a file, ordered by offset; `None` if they
/// are not complete.
fn find(maps: &str, file: &MappedFile, size: u64) -> Option<Vec<Mapping>> {
    let complete = |is_same: &dyn Fn(&MapsLine<'_>) -> bool| {
        let lines = maps.lines().filter_map(MapsLine::parse);
        let lines = lines.filter(|line| line.is_private && is_same(line));
        let mut mappings: Vec<Mapping> = lines.map(|line| line.mapping).collect();
        mappings.sort_unstable_by_key(|mapping| mapping.offset);
        let mut end = 0;
        for mapping in &mappings {
            if mapping.offset != end {
                return None;
            }
            end += mapping.len;
        }
        (end >= size).then_some(mappings)
    };
    // The path changes if the file is deleted meanwhile. The inode can differ from that of `fstat` on
    // overlayfs, and the device on btrfs: without it, a library on another file system can have the
    // same inode.
    complete(&|line| line.path == file.path).or_else(|| complete(&|line| line.inode == file.inode))
}

/// A line of `maps`: `7f00-7f10 rw-p 00000000 fe:01 42    /path`.
#[derive(Debug)]
struct MapsLine<'a> {
    mapping: Mapping,
    is_private: bool,
    inode: u64,
    path: &'a str,
}

impl<'a> MapsLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (range, rest) = line.split_once(' ')?;
        let (permissions, rest) = rest.split_once(' ')?;
        let (offset, rest) = rest.split_once(' ')?;
        let (_device, rest) = rest.split_once(' ')?;
        let (inode, path) = rest.split_once(' ').unwrap_or((rest, ""));
        let (start, end) = range.split_once('-')?;
        let (address, end) = (hex(start)?, hex(end)?);
        let mapping = Mapping { offset: hex(offset)?, len: end.checked_sub(address)?, address };
        let is_private = permissions.ends_with('p');
        Some(Self { mapping, is_private, inode: inode.parse().ok()?, path: path.trim_start() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_joins_the_parts_of_a_private_mapping() {
        let maps = "\
            55d0-55d1 r--p 00000000 fe:01 42                         /bin/program\n\
            7f10-7f30 rw-p 00000010 00:1f 7                          /tmp/save/memory0\n\
            7f00-7f10 rw-p 00000000 00:1f 8                          /tmp/save/memory0\n\
            7f40-7f60 rw-s 00000000 00:1f 7                          /tmp/save/memory0\n\
            7f70-7f80 rw-p 00000000 00:00 0 \n\
            7ffe-7fff rw-p 00000000 00:00 0                          [stack]\n";
        let file = MappedFile { inode: 7, path: "/tmp/save/memory0".to_owned() };
        let wanted = [
            Mapping { offset: 0, len: 0x10, address: 0x7f00 },
            Mapping { offset: 0x10, len: 0x20, address: 0x7f10 },
        ];
        assert_eq!(find(maps, &file, 0x30).as_deref(), Some(&wanted[..]));
        assert_eq!(find(maps, &file, 0x31), None, "its end is not mapped");
        let deleted = MappedFile { inode: 7, path: "/tmp/save/memory0 (deleted)".to_owned() };
        assert_eq!(find(maps, &deleted, 0x20), None, "its begin is not mapped");
        assert_eq!(find("junk\n\n7f00 rw-p\n", &file, 1), None);
    }

    #[test]
    fn find_ignores_another_file_with_the_same_inode() {
        // As on another file system.
        let maps = "\
            7f00-7f10 rw-p 00000000 00:1f 7                          /tmp/save/memory0\n\
            7f20-7f30 r--p 00000000 fe:01 7                          /lib/libc.so.6\n\
            7f30-7f40 r-xp 00000010 fe:01 7                          /lib/libc.so.6\n";
        let file = MappedFile { inode: 7, path: "/tmp/save/memory0".to_owned() };
        let wanted = [Mapping { offset: 0, len: 0x10, address: 0x7f00 }];
        assert_eq!(find(maps, &file, 0x10).as_deref(), Some(&wanted[..]));
    }

    #[test]
    fn find_identifies_a_deleted_file_by_its_inode() {
        let maps = "7f00-7f10 rw-p 00000000 00:1f 7    /tmp/save/memory0 (deleted)\n";
        let file = MappedFile { inode: 7, path: "/tmp/save/memory0".to_owned() };
        let wanted = [Mapping { offset: 0, len: 0x10, address: 0x7f00 }];
        assert_eq!(find(maps, &file, 0x10).as_deref(), Some(&wanted[..]));
    }
}
