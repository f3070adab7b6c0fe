//! ELF programs for the guest: without debug information, with another loader.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::{LittleEndian, U16, U32, U64};

type Header = FileHeader64<LittleEndian>;
const ENDIAN: LittleEndian = LittleEndian;

/// Returns the loadable part of a program and its symbol table.
///
/// Debug information is most of a test binary, and the guest does not use it; the symbols keep backtraces
/// readable.
pub(super) fn strip_debug(data: &[u8]) -> Result<Vec<u8>> {
    let header = Header::parse(data).context("not an ELF program for this machine")?;
    let loaded = header
        .program_headers(ENDIAN, data)
        .context("malformed program headers")?
        .iter()
        .map(|segment| segment.p_offset(ENDIAN).saturating_add(segment.p_filesz(ENDIAN)))
        .max()
        .context("no program headers")?;
    // The loadable part is everything up to the end of the last segment.
    let mut out = data.get(..loaded as usize).context("the file is truncated")?.to_vec();
    // Of the sections, keep the symbols and their names, if there are any.
    let sections = header.sections(ENDIAN, data).context("malformed section headers")?;
    let symbols = sections.iter().find(|section| section.sh_type(ENDIAN) == elf::SHT_SYMTAB);
    let mut kept = Vec::new();
    if let Some(symbols) = symbols {
        let strings = sections
            .section(object::SectionIndex(symbols.sh_link(ENDIAN) as usize))
            .context("the symbol table has no string table")?;
        kept = vec![*symbols, *strings];
    }
    // The new section table: null, symbols, names of symbols, names of sections.
    let mut table = vec![section_header(0, elf::SHT_NULL, 0, 0)];
    for (section, name) in kept.iter_mut().zip([1_u32, 9]) {
        let content = section.data(ENDIAN, data).context("a section is truncated")?;
        out.resize(out.len().next_multiple_of(8), 0);
        section.sh_name = U32::new(ENDIAN, name);
        section.sh_offset = U64::new(ENDIAN, out.len() as u64);
        // Of the symbols (name 1), the link is the index of their names.
        section.sh_link = U32::new(ENDIAN, if name == 1 { 2 } else { 0 });
        out.extend_from_slice(content);
        table.push(*section);
    }
    let names = b"\0.symtab\0.strtab\0.shstrtab\0";
    table.push(section_header(17, elf::SHT_STRTAB, out.len(), names.len()));
    out.extend_from_slice(names);
    out.resize(out.len().next_multiple_of(8), 0);
    let mut header = *header;
    header.e_shoff = U64::new(ENDIAN, out.len() as u64);
    header.e_shnum = U16::new(ENDIAN, table.len() as u16);
    header.e_shstrndx = U16::new(ENDIAN, elf::SymbolSection(table.len() as u16 - 1));
    out.extend_from_slice(object::bytes_of_slice(&table));
    out[..size_of::<Header>()].copy_from_slice(object::bytes_of(&header));
    Ok(out)
}

/// Returns whether a file begins like an ELF program; false if it cannot be read.
pub(crate) fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == elf::ELFMAG
}

fn section_header(
    name: u32,
    kind: elf::SectionType,
    offset: usize,
    size: usize,
) -> elf::SectionHeader64<LittleEndian> {
    elf::SectionHeader64 {
        sh_name: U32::new(ENDIAN, name),
        sh_type: U32::new(ENDIAN, kind),
        sh_flags: U64::new(ENDIAN, elf::SectionFlags(0)),
        sh_addr: U64::new(ENDIAN, 0),
        sh_offset: U64::new(ENDIAN, offset as u64),
        sh_size: U64::new(ENDIAN, size as u64),
        sh_link: U32::new(ENDIAN, 0),
        sh_info: U32::new(ENDIAN, 0),
        sh_addralign: U64::new(ENDIAN, u64::from(kind != elf::SHT_NULL)),
        sh_entsize: U64::new(ENDIAN, 0),
    }
}

/// Replaces the path of the loader in a program. The new path must not be longer than the old one. Returns
/// false for a static program, which has no loader.
///
/// Source: elf(5), PT_INTERP: a path that ends with a NUL; the segment has its offset.
pub(super) fn set_interpreter(program: &mut [u8], loader: &str) -> Result<bool> {
    let header = Header::parse(&*program).context("not an ELF program for this machine")?;
    let segments =
        header.program_headers(ENDIAN, &*program).context("malformed program headers")?;
    let interpreter = segments.iter().find(|segment| segment.p_type(ENDIAN) == elf::PT_INTERP);
    let Some(interpreter) = interpreter else { return Ok(false) };
    let (offset, len) = (interpreter.p_offset(ENDIAN), interpreter.p_filesz(ENDIAN));
    let end = offset.checked_add(len).context("malformed program headers")?;
    let place = program.get_mut(offset as usize..end as usize).context("the file is truncated")?;
    ensure!(loader.len() < place.len(), "no room for {loader} as the path of the loader");
    place.fill(0);
    place[..loader.len()].copy_from_slice(loader.as_bytes());
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::super::libraries::libraries;
    use super::*;

    #[test]
    fn strip_debug_returns_a_smaller_program_that_runs() {
        let this = std::env::current_exe().unwrap();
        let whole = std::fs::read(&this).unwrap();
        let stripped = strip_debug(&whole).unwrap();
        assert!(stripped.len() < whole.len());
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::write(&program, &stripped).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let output = Command::new(&program).arg("--list").output().unwrap();
        assert!(output.status.success());
        assert!(
            String::from_utf8_lossy(&output.stdout)
                .contains("strip_debug_returns_a_smaller_program")
        );
        let header = Header::parse(&*stripped).unwrap();
        let sections = header.sections(ENDIAN, &*stripped).unwrap();
        let symbols = sections.symbols(ENDIAN, &*stripped, elf::SHT_SYMTAB).unwrap();
        assert!(symbols.iter().count() > 100);
        assert!(libraries(&program).unwrap().needed.iter().any(|(name, _)| name == "libc.so.6"));
    }

    #[test]
    fn set_interpreter_replaces_the_path_of_the_loader() {
        let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let mut changed = this.clone();
        assert!(set_interpreter(&mut changed, "/ktstr/ld/0").unwrap());
        assert_eq!(changed.len(), this.len());
        let header = Header::parse(&*changed).unwrap();
        let segments = header.program_headers(ENDIAN, &*changed).unwrap();
        let interpreter =
            segments.iter().find_map(|one| one.interpreter(ENDIAN, &*changed).unwrap());
        // The kernel requires a NUL at the end, and reads up to the first one.
        assert_eq!(
            interpreter.map(|path| path.split(|byte| *byte == 0).next()),
            Some(Some(&b"/ktstr/ld/0"[..]))
        );
        let error = set_interpreter(&mut changed, &"/long".repeat(20)).unwrap_err().to_string();
        assert!(error.contains("no room for /long"), "{error}");
    }

    #[test]
    fn strip_debug_and_set_interpreter_refuse_garbage() {
        for data in [&b""[..], b"#!/bin/sh\n", &[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]] {
            assert!(strip_debug(data).is_err());
            assert!(set_interpreter(&mut data.to_vec(), "/a").is_err());
        }
    }
}
