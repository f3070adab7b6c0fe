//! What a program needs to run elsewhere: its loader, its libraries, less of itself.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::{LittleEndian, U16, U32, U64};

use crate::this_program::{self, LoadedFile, THIS_PROGRAM};

type Header = FileHeader64<LittleEndian>;
const ENDIAN: LittleEndian = LittleEndian;

/// The program's loadable part and its symbol table, without anything else.
///
/// Debug information is most of a test binary and no use in the guest; the symbols keep
/// backtraces readable there.
pub(super) fn strip_debug(data: &[u8]) -> Result<Vec<u8>> {
    let header = Header::parse(data).context("not an ELF program for this machine")?;
    let loaded = header
        .program_headers(ENDIAN, data)
        .context("malformed program headers")?
        .iter()
        .map(|segment| segment.p_offset(ENDIAN).saturating_add(segment.p_filesz(ENDIAN)))
        .max()
        .context("it has no program headers")?;
    let mut out = data.get(..loaded as usize).context("it is cut short")?.to_vec();
    let sections = header.sections(ENDIAN, data).context("malformed section headers")?;
    let symbols = sections.iter().find(|section| section.sh_type(ENDIAN) == elf::SHT_SYMTAB);
    let mut kept = Vec::new();
    if let Some(symbols) = symbols {
        let strings = sections
            .section(object::SectionIndex(symbols.sh_link(ENDIAN) as usize))
            .context("its symbols have no names")?;
        kept = vec![*symbols, *strings];
    }
    let mut table = vec![section_header(0, elf::SHT_NULL, 0, 0)];
    for (section, name) in kept.iter_mut().zip([1_u32, 9]) {
        let content = section.data(ENDIAN, data).context("a section is cut short")?;
        out.resize(out.len().next_multiple_of(8), 0);
        section.sh_name = U32::new(ENDIAN, name);
        section.sh_offset = U64::new(ENDIAN, out.len() as u64);
        // The strings follow the symbols in the new table.
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

/// The shared objects of a program.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Libraries {
    /// The dynamic loader: the path the program asks for, and the file on this host.
    pub(super) interpreter: Option<(String, PathBuf)>,
    /// Every library, directly or indirectly needed: its name, and the file on this host.
    pub(super) needed: Vec<(String, PathBuf)>,
}

/// Finds what the program's own loader would load for it here. A static program needs nothing.
pub(super) fn libraries(program: &Path) -> Result<Libraries> {
    let data =
        std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let header = Header::parse(&*data)
        .with_context(|| format!("{} is no ELF program", program.display()))?;
    let mut interpreter = None;
    for segment in header.program_headers(ENDIAN, &*data)? {
        interpreter = interpreter.or(segment.interpreter(ENDIAN, &*data)?);
    }
    let Some(interpreter) = interpreter else { return Ok(Libraries::default()) };
    let interpreter = std::str::from_utf8(interpreter).context("the loader's path is no text")?;
    let needed = match program == Path::new(THIS_PROGRAM) {
        true => own_libraries(Path::new(interpreter))?,
        false => libraries_by(Path::new(interpreter), None, program)?,
    };
    Ok(Libraries {
        interpreter: Some((interpreter.to_owned(), PathBuf::from(interpreter))),
        needed,
    })
}

/// Finds the libraries of this program, whose name may lead to another program by now.
fn own_libraries(loader: &Path) -> Result<Vec<(String, PathBuf)>> {
    let name = this_program::own_name().context("failed to find this program's own name")?;
    let loaded = this_program::loaded_files()?;
    let needed = if name.is_current {
        libraries_by(loader, None, &name.path)?
    } else {
        // By that path, `$ORIGIN` is not where it was: the loader searches where it found them.
        let mut folders =
            std::env::split_paths(&std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default())
                .chain(loaded.iter().filter_map(|file| Some(file.path.parent()?.to_owned())))
                .collect::<Vec<_>>();
        folders.dedup();
        let folders = std::env::join_paths(folders).context("a directory's name has a colon")?;
        let own = format!("/proc/{}/exe", std::process::id());
        libraries_by(loader, Some(Path::new(&folders)), Path::new(&own))?
    };
    for (_, file) in &needed {
        let is_replaced = |loaded: &LoadedFile| loaded.is_gone && loaded.path == *file;
        ensure!(
            !loaded.iter().any(is_replaced),
            "{} was replaced after this program had loaded it; run the tests again",
            file.display()
        );
    }
    Ok(needed)
}

/// Finds the libraries that `loader` would load for the program, in `folder` before all others.
pub(super) fn libraries_by(
    loader: &Path,
    folder: Option<&Path>,
    program: &Path,
) -> Result<Vec<(String, PathBuf)>> {
    let mut command = Command::new(loader);
    if let Some(folder) = folder {
        command.arg("--library-path").arg(folder);
    }
    let output = command.arg("--list").arg(program).output().with_context(|| {
        format!("cannot run {}, the loader of {}", loader.display(), program.display())
    })?;
    ensure!(
        output.status.success(),
        "{} --list {} failed: {}",
        loader.display(),
        program.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    parse_list(&output.stdout).with_context(|| format!("the libraries of {}", program.display()))
}

/// Has the program ask for another loader, whose path must not be longer than that of its own. False
/// if it is static and asks for none.
///
/// Source: elf(5), PT_INTERP: a path that ends with a NUL, at the place the segment says.
pub(super) fn set_interpreter(program: &mut [u8], loader: &str) -> Result<bool> {
    let header = Header::parse(&*program).context("not an ELF program for this machine")?;
    let segments =
        header.program_headers(ENDIAN, &*program).context("malformed program headers")?;
    let interpreter = segments.iter().find(|segment| segment.p_type(ENDIAN) == elf::PT_INTERP);
    let Some(interpreter) = interpreter else { return Ok(false) };
    let (offset, len) = (interpreter.p_offset(ENDIAN), interpreter.p_filesz(ENDIAN));
    let end = offset.checked_add(len).context("malformed program headers")?;
    let place = program.get_mut(offset as usize..end as usize).context("it is cut short")?;
    ensure!(loader.len() < place.len(), "no room for {loader} as the path of its loader");
    place.fill(0);
    place[..loader.len()].copy_from_slice(loader.as_bytes());
    Ok(true)
}

/// Reads lines like `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f…)`.
///
/// Lines without an arrow are the loader itself and the kernel's own object.
fn parse_list(text: &[u8]) -> Result<Vec<(String, PathBuf)>> {
    let mut needed = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        let arrow = line.windows(4).position(|window| window == b" => ");
        let Some((name, target)) = arrow.map(|at| (&line[..at], &line[at + 4..])) else { continue };
        // The loader itself may be listed by name when a library needs it.
        let name = name.rsplit(|byte| *byte == b'/').next().unwrap_or(name);
        let name = std::str::from_utf8(name).context("a library's name is not UTF-8")?.to_owned();
        if target.starts_with(b"not found") {
            bail!("this host lacks {name}; install the package that has it");
        }
        let address = target.windows(2).rposition(|window| window == b" (");
        let path = OsStr::from_bytes(&target[..address.unwrap_or(target.len())]);
        needed.push((name, PathBuf::from(path)));
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_loaders_list_is_read() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let needed = vec![(
            "libgcc_s.so.1".to_owned(),
            PathBuf::from("/lib/x86_64-linux-gnu/libgcc_s.so.1"),
        )];
        assert_eq!(parse_list(text.as_bytes()).unwrap(), needed);
        let error = parse_list(b"\tlibfoo.so.1 => not found\n").unwrap_err().to_string();
        assert!(error.contains("lacks libfoo.so.1"), "{error}");
    }

    #[test]
    fn a_stripped_program_is_smaller_and_runs() {
        let this = std::env::current_exe().unwrap();
        let whole = std::fs::read(&this).unwrap();
        let stripped = strip_debug(&whole).unwrap();
        assert!(stripped.len() < whole.len());
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        std::fs::write(&program, &stripped).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let output = Command::new(&program).arg("--list").output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("a_stripped_program_is_smaller"));
        let header = Header::parse(&*stripped).unwrap();
        let sections = header.sections(ENDIAN, &*stripped).unwrap();
        let symbols = sections.symbols(ENDIAN, &*stripped, elf::SHT_SYMTAB).unwrap();
        assert!(symbols.iter().count() > 100);
        assert!(libraries(&program).unwrap().needed.iter().any(|(name, _)| name == "libc.so.6"));
    }

    #[test]
    fn a_program_can_ask_for_another_loader() {
        let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let mut changed = this.clone();
        assert!(set_interpreter(&mut changed, "/ktstr/ld/0").unwrap());
        assert_eq!(changed.len(), this.len());
        let header = Header::parse(&*changed).unwrap();
        let segments = header.program_headers(ENDIAN, &*changed).unwrap();
        let asked = segments.iter().find_map(|one| one.interpreter(ENDIAN, &*changed).unwrap());
        // The kernel wants the NUL at the end, and reads to the first one.
        assert_eq!(
            asked.map(|path| path.split(|byte| *byte == 0).next()),
            Some(Some(&b"/ktstr/ld/0"[..]))
        );
        let error = set_interpreter(&mut changed, &"/long".repeat(20)).unwrap_err().to_string();
        assert!(error.contains("no room for /long"), "{error}");
    }

    #[test]
    fn garbage_is_refused() {
        for data in [&b""[..], b"#!/bin/sh\n", &[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]] {
            assert!(strip_debug(data).is_err());
            assert!(set_interpreter(&mut data.to_vec(), "/a").is_err());
        }
    }
}
