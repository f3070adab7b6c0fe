//! Loads a kernel image: an uncompressed vmlinux or a bzImage.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use object::Endianness;
use object::elf::{
    ELFCLASS64, ELFDATA2LSB, EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, PT_LOAD, ProgramHeader64,
};
use object::pod;

use super::super::layout::{HIGH_MEMORY, KERNEL};
use super::super::memory::Memory;
use super::kaslr::{self, Relocations};
use super::params::{BootParams, SETUP_HEADER};
use crate::kvm_error::{BootError, Error};

/// The maximum number of program headers; kernels have fewer.
const MAX_SEGMENTS: u16 = 64;
/// Bytes of relocations at most: eight times those of Debian's kernels.
const MAX_RELOCATIONS: u64 = 8 << 20;

/// Offsets in a bzImage, which are the same in `boot_params`.
const SETUP_SECTS: usize = 0x1f1;
const JUMP_TARGET: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const XLOADFLAGS: usize = 0x236;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// `xloadflags`: there is a 64-bit entry, [`ENTRY_64`] bytes after the protected-mode code's start.
const XLF_KERNEL_64: u16 = 1 << 0;
const ENTRY_64: u64 = 0x200;

/// The kernel in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LoadedKernel {
    /// The 64-bit entry.
    pub(super) entry: u64,
    /// The end of the memory that must not be overwritten before the kernel runs.
    pub(super) end: u64,
}

/// A kernel file being loaded.
struct Image<'a> {
    path: &'a Path,
    file: &'a File,
    len: u64,
    memory: &'a mut Memory,
}

/// Loads the kernel in `file`. With `kaslr`, it gets a random virtual address.
pub(super) fn load(
    path: &Path,
    file: &File,
    kaslr: bool,
    memory: &mut Memory,
    params: &mut BootParams,
) -> Result<LoadedKernel, Error> {
    let len = file.metadata().map_err(BootError::read(path))?.len();
    let mut image = Image { path, file, len, memory };
    let mut head = vec![0; len.min(4096) as usize];
    image.read(0, &mut head)?;
    if head.starts_with(b"\x7fELF") {
        image.load_elf(&head, kaslr, params)
    } else if head.get(MAGIC..MAGIC + 4) == Some(b"HdrS") {
        image.load_bz_image(&head, params)
    } else {
        Err(image.error("neither an ELF file nor a bzImage (no `HdrS` at 0x202)").into())
    }
}

impl Image<'_> {
    fn error(&self, reason: impl Into<String>) -> BootError {
        BootError::Image { path: self.path.to_owned(), reason: reason.into() }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), BootError> {
        self.file.read_exact_at(buf, offset).map_err(BootError::read(self.path))
    }

    /// Loads a vmlinux at the address that it is linked for. Its ELF entry is the 64-bit entry.
    fn load_elf(
        &mut self,
        head: &[u8],
        kaslr: bool,
        params: &mut BootParams,
    ) -> Result<LoadedKernel, Error> {
        let e = Endianness::Little;
        // 1. The header: an executable for x86-64.
        let (header, _) = pod::from_bytes::<FileHeader64<Endianness>>(head)
            .map_err(|()| self.error("the ELF header is truncated"))?;
        let ident = header.e_ident;
        if (ident.class, ident.data) != (ELFCLASS64, ELFDATA2LSB)
            || header.e_machine.get(e) != EM_X86_64
        {
            return Err(self.error("an ELF file, but not for x86-64").into());
        }
        if ![ET_EXEC, ET_DYN].contains(&header.e_type.get(e)) {
            return Err(self
                .error("an ELF file, but not an executable: pass the `vmlinux` itself")
                .into());
        }
        // 2. The segments. Each value comes from the file, so each is checked before it is used: the
        // bytes must be in the file, and the range in low memory above 1 MiB.
        let segments = self.segments(header)?;
        let (mut start, mut end) = (u64::MAX, 0);
        for segment in &segments {
            let (gpa, size) = (segment.p_paddr.get(e), segment.p_memsz.get(e));
            let (offset, filled) = (segment.p_offset.get(e), segment.p_filesz.get(e));
            if filled > size || offset.checked_add(filled).is_none_or(|end| end > self.len) {
                return Err(self
                    .error(format!("a segment of {filled:#x} bytes at {offset:#x} is truncated"))
                    .into());
            }
            if gpa < HIGH_MEMORY {
                return Err(self.error(format!("a segment at {gpa:#x}, below 1 MiB")).into());
            }
            if !self.memory.is_low(gpa, size) {
                return Err(BootError::no_room(
                    "a kernel",
                    gpa.saturating_add(size),
                    self.memory.low_end(),
                )
                .into());
            }
            self.memory.load(self.file, offset, gpa, filled)?;
            (start, end) = (start.min(gpa), end.max(gpa + size));
        }
        // 3. The entry must be in a segment.
        let entry = header.e_entry.get(e);
        if !(start..end).contains(&entry) {
            return Err(self.error(format!("its entry {entry:#x} is not in a segment")).into());
        }
        // 4. KASLR, unless the kernel is linked for an unusual address.
        if kaslr && start == KERNEL {
            self.randomise(header, start, end, params)?;
        }
        Ok(LoadedKernel { entry, end })
    }

    fn segments(
        &self,
        header: &FileHeader64<Endianness>,
    ) -> Result<Vec<ProgramHeader64<Endianness>>, BootError> {
        let e = Endianness::Little;
        let count = header.e_phnum.get(e);
        let size = size_of::<ProgramHeader64<Endianness>>();
        if usize::from(header.e_phentsize.get(e)) != size || !(1..=MAX_SEGMENTS).contains(&count) {
            return Err(self
                .error(format!("{count} program headers of {} bytes", header.e_phentsize.get(e))));
        }
        let mut bytes = vec![0; usize::from(count) * size];
        self.read(header.e_phoff.get(e), &mut bytes)?;
        let (all, _) = pod::slice_from_bytes::<ProgramHeader64<Endianness>>(&bytes, count.into())
            .map_err(|()| self.error("the program headers are truncated"))?;
        let segments: Vec<_> = all
            .iter()
            .filter(|segment| segment.p_type.get(e) == PT_LOAD && segment.p_memsz.get(e) > 0)
            .copied()
            .collect();
        if segments.is_empty() {
            return Err(self.error("no segment to load"));
        }
        Ok(segments)
    }

    /// Moves the kernel to a random virtual address, if the file has relocations. A `vmlinux` of a
    /// build tree has none.
    fn randomise(
        &mut self,
        header: &FileHeader64<Endianness>,
        start: u64,
        end: u64,
        params: &mut BootParams,
    ) -> Result<(), Error> {
        let e = Endianness::Little;
        // The relocations follow the section headers, which are the last part of an ELF file.
        let sections = u64::from(header.e_shnum.get(e)) * u64::from(header.e_shentsize.get(e));
        let elf_end = header.e_shoff.get(e).saturating_add(sections);
        let trailer_len = self.len.saturating_sub(elf_end);
        if header.e_shoff.get(e) == 0 || trailer_len == 0 {
            return Ok(());
        }
        if trailer_len > MAX_RELOCATIONS {
            let reason = format!("{trailer_len} bytes of relocations behind the ELF file");
            return Err(self.error(reason).into());
        }
        let mut trailer = vec![0; trailer_len as usize];
        self.read(elf_end, &mut trailer)?;
        let Some(relocations) =
            Relocations::parse(&trailer).map_err(|reason| self.error(reason))?
        else {
            return Ok(());
        };
        let mut random = [0; 8];
        getrandom(&mut random).map_err(BootError::read(Path::new("/dev/urandom")))?;
        let delta = kaslr::random_delta(end - start, u64::from_ne_bytes(random));
        let kernel = self.memory.bytes_mut(start, end - start)?;
        relocations.apply(kernel, start, delta).map_err(|reason| self.error(reason))?;
        params.set_kaslr();
        Ok(())
    }

    /// Loads a bzImage at its preferred address. It decompresses and randomises itself.
    fn load_bz_image(
        &mut self,
        head: &[u8],
        params: &mut BootParams,
    ) -> Result<LoadedKernel, Error> {
        let field = |offset: usize, len: usize| {
            let mut bytes = [0; 8];
            let field = head
                .get(offset..offset + len)
                .ok_or_else(|| self.error("the setup header is truncated"))?;
            bytes[..len].copy_from_slice(field);
            Ok::<_, BootError>(u64::from_le_bytes(bytes))
        };
        // 1. The kernel must have a 64-bit entry.
        let version = field(VERSION, 2)?;
        if version < 0x020c || field(XLOADFLAGS, 2)? as u16 & XLF_KERNEL_64 == 0 {
            return Err(self
                .error(format!(
                    "no 64-bit entry (boot protocol {version:#x}): a kernel for x86-64 has one"
                ))
                .into());
        }
        // 2. The protected-mode code follows the boot sector and the setup sectors, which are 4 if the
        // field is 0.
        let sectors = match field(SETUP_SECTS, 1)? {
            0 => 4,
            sectors => sectors,
        };
        let offset = (sectors + 1) * 512;
        let (base, init_size) = (field(PREF_ADDRESS, 8)?, field(INIT_SIZE, 4)?);
        let code = self.len.checked_sub(offset).filter(|code| *code > ENTRY_64);
        let code =
            code.ok_or_else(|| self.error(format!("it ends before its code at {offset:#x}")))?;
        // 3. The kernel decompresses in place and needs `init_size` bytes for that.
        let size = code.max(init_size);
        if base < HIGH_MEMORY {
            return Err(self.error(format!("it prefers {base:#x}, below 1 MiB")).into());
        }
        if !self.memory.is_low(base, size) {
            return Err(BootError::no_room(
                "a kernel",
                base.saturating_add(size),
                self.memory.low_end(),
            )
            .into());
        }
        // 4. The setup header ends where the jump over it leads to.
        let header_end = JUMP_TARGET + 1 + field(JUMP_TARGET, 1)? as usize;
        let header = head
            .get(SETUP_HEADER..header_end)
            .ok_or_else(|| self.error("the setup header is truncated"))?;
        params.set_header(header);
        self.memory.load(self.file, offset, base, code)?;
        Ok(LoadedKernel { entry: base + ENTRY_64, end: base + size })
    }
}

fn getrandom(buf: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < buf.len() {
        match rustix::rand::getrandom(&mut buf[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
