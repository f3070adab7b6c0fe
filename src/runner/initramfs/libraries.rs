//! Finds the shared libraries that a program's loader would load, without executing anything of the program.
//!
//! `ldd` runs the loader that the program names (PT_INTERP), which may be any file. Here the dynamic sections are
//! read instead, and the names in them are searched by the rules of the loaders of glibc and musl. The variants of
//! libraries for newer CPUs (`glibc-hwcaps`) are left out: the CPU of a guest is another one.
//!
//! Source: ld.so(8); glibc 2.41, elf/dl-load.c (`_dl_map_object`) and sysdeps/generic/dl-cache.h; musl 1.2.5,
//! ldso/dynlink.c (`load_library`).

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::env;
use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{LittleEndian, ReadCache};

use crate::this_program::{self, LoadedFile, THIS_PROGRAM};

type Header = FileHeader64<LittleEndian>;
const ENDIAN: LittleEndian = LittleEndian;

/// A program that needs more libraries than this is damaged or hostile.
const MAX_LIBRARIES: usize = 1024;

/// The longest name of a library and the longest list of directories in bytes; those of Nix have some thousands.
const LONGEST_STRING: usize = 64 << 10;

/// The longest path of a loader in bytes, with its NUL. The kernel refuses a longer one.
///
/// Source: Linux 6.12, fs/binfmt_elf.c, `load_elf_binary` (PATH_MAX).
const LONGEST_INTERPRETER: u64 = 4096;

/// The most files that are looked for. A large program has a few hundred libraries, and some dozens of directories.
const MAX_LOOKUPS: usize = 100_000;

/// The directories in which distributions put the loader and libraries of glibc for x86-64.
const GLIBC_DIRECTORIES: [&str; 6] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];

/// The shared objects of a program.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Libraries {
    /// The dynamic loader: its path in the program, and the file on this host.
    pub(super) interpreter: Option<(String, PathBuf)>,
    /// Every library that is needed directly or indirectly: its name, and the file on this host. A name with a
    /// slash is the path at which the loader opens it.
    pub(super) needed: Vec<(String, PathBuf)>,
}

/// Finds the libraries that the loader of the program would load on this host. A static program needs none.
pub(super) fn libraries(program: &Path) -> Result<Libraries> {
    let (object, loaded) = if program == Path::new(THIS_PROGRAM) {
        // The file of this program, in the directory that it was started from: `$ORIGIN` is not in /proc.
        let name = this_program::own_name().context("failed to read the path of this program")?;
        (Object::read(program, &name.path)?, Some(this_program::loaded_files()?))
    } else {
        let path = fs::canonicalize(program)
            .with_context(|| format!("cannot find {}", program.display()))?;
        (Object::read(&path, &path)?, None)
    };
    let object = object
        .with_context(|| format!("{} is not an ELF program for x86-64 Linux", program.display()))?;
    let Some(interpreter) = object.interpreter.clone() else { return Ok(Libraries::default()) };
    let search = Search::on_host(Path::new(&interpreter))
        .with_context(|| format!("failed to find the libraries of {}", program.display()))?;
    let needed = search.closure(object)?;
    for (_, file) in &needed {
        let is_replaced = |loaded: &LoadedFile| loaded.is_gone && loaded.path == *file;
        ensure!(
            !loaded.iter().flatten().any(is_replaced),
            "{} was replaced after this program had loaded it; run the tests again",
            file.display()
        );
    }
    let file = PathBuf::from(&interpreter);
    Ok(Libraries { interpreter: Some((interpreter, file)), needed })
}

/// Finds the libraries of a program of packages that are unpacked in `root`, with their loader and their directory
/// of libraries, both relative to `root`. No file outside of `root` is used.
pub(super) fn libraries_in(
    root: &Path,
    loader: &str,
    directory: &str,
    program: &Path,
) -> Result<Vec<(String, PathBuf)>> {
    let find = |path: &Path| {
        fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()))
    };
    let (root, program) = (find(root)?, find(program)?);
    let object = Object::read(&program, &program)?
        .with_context(|| format!("{} is not an ELF program for x86-64 Linux", program.display()))?;
    let search = Search {
        loader: Loader::of(&root.join(loader))?,
        first: vec![root.join(directory)],
        cache: HashMap::new(),
        last: Vec::new(),
        root: Some(root),
        lookups: Cell::new(0),
    };
    search.closure(object)
}

/// A loader, as far as its rules depend on it.
#[derive(Debug)]
struct Loader {
    is_musl: bool,
    /// The names by which programs need the loader itself, which is loaded already.
    names: Vec<String>,
}

/// Where a loader searches for libraries.
#[derive(Debug)]
struct Search {
    loader: Loader,
    /// `LD_LIBRARY_PATH`.
    first: Vec<PathBuf>,
    /// The content of `ld.so.cache`: the path of each name.
    cache: HashMap<String, PathBuf>,
    /// The default directories.
    last: Vec<PathBuf>,
    /// All files are below this directory, and the absolute paths in objects are relative to it.
    root: Option<PathBuf>,
    /// How many files were looked for.
    lookups: Cell<usize>,
}

/// What the loader reads of a program or library.
#[derive(Debug, Default)]
struct Object {
    path: PathBuf,
    /// The directory for which `$ORIGIN` stands.
    origin: PathBuf,
    interpreter: Option<String>,
    /// Its own name.
    soname: Option<String>,
    needed: Vec<String>,
    rpath: Option<Vec<u8>>,
    runpath: Option<Vec<u8>>,
    /// DF_1_NODEFLIB: its libraries are not in the default directories.
    avoids_defaults: bool,
    /// The index of the object that needs it, among those that are loaded.
    loaded_by: Option<usize>,
}

impl Loader {
    fn of(file: &Path) -> Result<Self> {
        let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let object = Object::read(file, file)
            .with_context(|| format!("failed to read the loader {}", file.display()))?;
        let soname = object.and_then(|object| object.soname);
        let is_musl = name.starts_with("ld-musl");
        Ok(Self { is_musl, names: [name.to_owned()].into_iter().chain(soname).collect() })
    }

    /// Returns whether `name` is the loader itself, which is in memory already.
    fn is_itself(&self, name: &str) -> bool {
        // The loader of musl is its libc, and also stands for the libraries that other systems have.
        const PARTS: [&str; 7] = ["c.", "pthread.", "rt.", "m.", "dl.", "util.", "xnet."];
        let part = name.strip_prefix("lib").filter(|_| self.is_musl);
        part.is_some_and(|name| PARTS.iter().any(|part| name.starts_with(part)))
            || self.names.iter().any(|own| own == name)
    }
}

impl Search {
    /// Returns where a loader of this host searches.
    fn on_host(loader: &Path) -> Result<Self> {
        let file = fs::canonicalize(loader)
            .with_context(|| format!("cannot find the loader {}", loader.display()))?;
        let variable = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let mut search = Self {
            // The name that the program uses: that of musl is a link to `libc.so` in some distributions.
            loader: Loader::of(loader)?,
            first: split(variable.as_bytes(), b":;").map(path).collect(),
            cache: HashMap::new(),
            last: Vec::new(),
            root: None,
            lookups: Cell::new(0),
        };
        if search.loader.is_musl {
            search.first = split(variable.as_bytes(), b":").map(path).collect();
            // `PREFIX/lib/ld-musl-x86_64.so.1`
            let prefix = loader.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
            let configured = fs::read(prefix.join("etc/ld-musl-x86_64.path")).ok();
            let list = configured.unwrap_or_else(|| b"/lib:/usr/local/lib:/usr/lib".to_vec());
            search.last = split(&list, b":\n").map(path).collect();
            return Ok(search);
        }
        let directory = file.parent().unwrap_or(Path::new("/"));
        let is_standard = GLIBC_DIRECTORIES
            .iter()
            .any(|dir| fs::canonicalize(dir).is_ok_and(|dir| dir == directory));
        if is_standard {
            let cache = fs::read("/etc/ld.so.cache").ok();
            search.cache = cache.and_then(|cache| parse_cache(&cache)).unwrap_or_default();
            search.last = GLIBC_DIRECTORIES.map(PathBuf::from).into();
        } else {
            // A glibc of its own, with which the libraries of the system need not work.
            search.last = vec![directory.to_owned()];
        }
        Ok(search)
    }

    /// Returns the libraries that an object needs directly or indirectly, in the order of their loading.
    fn closure(&self, object: Object) -> Result<Vec<(String, PathBuf)>> {
        let mut known: HashSet<String> = HashSet::new();
        let mut needed = Vec::new();
        let mut objects = vec![object];
        let mut next = 0;
        while next < objects.len() {
            for name in objects[next].needed.clone() {
                if self.loader.is_itself(&name) || known.contains(&name) {
                    continue;
                }
                let found = self.find(&name, &objects, next)?;
                ensure!(
                    needed.len() < MAX_LIBRARIES,
                    "{} needs more than {MAX_LIBRARIES} libraries",
                    objects[0].path.display()
                );
                needed.push((name.clone(), found.path.clone()));
                known.extend(found.soname.clone());
                known.insert(name);
                objects.push(Object { loaded_by: Some(next), ..found });
            }
            next += 1;
        }
        Ok(needed)
    }

    /// Finds the library `name` that the object at `index` needs.
    fn find(&self, name: &str, objects: &[Object], index: usize) -> Result<Object> {
        let object = &objects[index];
        if name.contains('/') {
            let path = Path::new(name);
            ensure!(
                path.is_absolute(),
                "{} needs `{name}`, relative to the working directory: a guest has another one",
                object.path.display()
            );
            let found = self.open(&self.rooted(path))?;
            return found.with_context(|| self.missing(name, object));
        }
        let chain =
            || std::iter::successors(Some(object), |object| Some(&objects[object.loaded_by?]));
        let paths = |list: &Option<Vec<u8>>, object: &Object| {
            list.iter().flat_map(|list| self.directories(list, object)).collect::<Vec<_>>()
        };
        let mut directories = Vec::new();
        if self.loader.is_musl {
            directories.extend(self.first.iter().cloned());
            for object in chain() {
                let list = if object.runpath.is_some() { &object.runpath } else { &object.rpath };
                directories.extend(paths(list, object));
            }
        } else {
            if object.runpath.is_none() {
                for object in chain().filter(|object| object.runpath.is_none()) {
                    directories.extend(paths(&object.rpath, object));
                }
            }
            directories.extend(self.first.iter().cloned());
            directories.extend(paths(&object.runpath, object));
        }
        let mut files: Vec<_> = directories.iter().map(|directory| directory.join(name)).collect();
        if !object.avoids_defaults || self.loader.is_musl {
            files.extend(self.cache.get(name).cloned());
            files.extend(self.last.iter().map(|directory| directory.join(name)));
        }
        self.lookups.set(self.lookups.get() + files.len());
        ensure!(
            self.lookups.get() <= MAX_LOOKUPS,
            "{} and its libraries name too many directories: more than {MAX_LOOKUPS} files to look for",
            objects[0].path.display()
        );
        for file in files {
            if let Some(found) = self.open(&file)? {
                return Ok(found);
            }
        }
        bail!(self.missing(name, object))
    }

    /// Reads a library; returns `None` if `path` has none for this machine, so that the search continues.
    fn open(&self, path: &Path) -> Result<Option<Object>> {
        let Ok(file) = fs::canonicalize(path) else { return Ok(None) };
        // A link in a package may lead to a file of the host.
        if self.root.as_ref().is_some_and(|root| !file.starts_with(root)) {
            return Ok(None);
        }
        Object::read(&file, path)
    }

    /// Returns the directories in an RPATH or RUNPATH. Relative ones, which depend on the working directory, are
    /// left out.
    fn directories(&self, list: &[u8], object: &Object) -> Vec<PathBuf> {
        let mut directories = Vec::new();
        for entry in split(list, b":") {
            // On 64-bit systems with and without multiarch, `$LIB` has different values.
            let libs: &[&str] = match replace(entry, "LIB", b"") == entry {
                true => &[""],
                false => &["lib/x86_64-linux-gnu", "lib64"],
            };
            for lib in libs {
                let entry = replace(entry, "LIB", lib.as_bytes());
                let entry = replace(&entry, "PLATFORM", b"x86_64");
                let expanded =
                    path(&replace(&entry, "ORIGIN", object.origin.as_os_str().as_bytes()));
                let is_below_origin = entry.starts_with(b"$");
                if expanded.is_absolute() {
                    let dir = if is_below_origin { expanded } else { self.rooted(&expanded) };
                    directories.push(dir);
                }
            }
        }
        directories
    }

    fn rooted(&self, path: &Path) -> PathBuf {
        let relative = path.strip_prefix("/").unwrap_or(path);
        self.root.as_ref().map_or_else(|| path.to_owned(), |root| root.join(relative))
    }

    fn missing(&self, name: &str, object: &Object) -> String {
        let object = object.path.display();
        match &self.root {
            None => format!(
                "{object} needs {name}, which this host lacks; install the package that contains it"
            ),
            Some(root) => format!(
                "{object} needs {name}, which its packages do not contain in {}",
                self.first.first().unwrap_or(root).display()
            ),
        }
    }
}

/// Reads the dynamic section of a file. Returns whether it is a program or library for x86-64.
///
/// # Errors
///
/// If it is damaged, or not a regular file.
pub fn read_elf(file: &Path) -> Result<bool> {
    Ok(Object::read(file, file)?.is_some())
}

impl Object {
    /// Reads the file at `file`, which the loader opens at `path`. Returns `None` if it is not an ELF file for
    /// x86-64, which a loader passes over.
    fn read(file: &Path, path: &Path) -> Result<Option<Self>> {
        // Opening a pipe would block, and a device may be endless.
        let meta = fs::metadata(file).with_context(|| format!("cannot find {}", file.display()))?;
        ensure!(meta.is_file(), "{} is not a regular file", file.display());
        let opened = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
        let data = ReadCache::new(opened);
        let Ok(header) = Header::parse(&data) else { return Ok(None) };
        if !header.is_little_endian() || header.e_machine(ENDIAN) != elf::EM_X86_64 {
            return Ok(None);
        }
        let mut object = Self {
            path: path.to_owned(),
            origin: path.parent().unwrap_or(Path::new("/")).to_owned(),
            ..Self::default()
        };
        object
            .read_segments(header, &data)
            .with_context(|| format!("damaged: {}", file.display()))?;
        Ok(Some(object))
    }

    fn read_segments(&mut self, header: &Header, data: &ReadCache<File>) -> Result<()> {
        // One of each: a file of a few MiB may have 65,535 segments, each of which is all of it.
        let segments = header.program_headers(ENDIAN, data)?;
        let first = |kind| segments.iter().find(|segment| segment.p_type(ENDIAN) == kind);
        if let Some(segment) = first(elf::PT_INTERP) {
            let size = segment.p_filesz(ENDIAN);
            ensure!(
                size <= LONGEST_INTERPRETER,
                "the path of its loader has {size} bytes (limit {LONGEST_INTERPRETER})"
            );
            self.interpreter = segment.interpreter(ENDIAN, data)?.map(utf8).transpose()?;
        }
        let entries = first(elf::PT_DYNAMIC).map(|segment| segment.dynamic(ENDIAN, data));
        let entries = entries.transpose()?.flatten();
        let end = |entry: &elf::Dyn64<LittleEndian>| entry.d_tag(ENDIAN) == elf::DT_NULL;
        let entries: Vec<_> =
            entries.into_iter().flatten().take_while(|entry| !end(entry)).collect();
        let value = |tag| {
            entries.iter().find(|entry| entry.d_tag(ENDIAN) == tag).map(|entry| entry.d_val(ENDIAN))
        };
        let Some(strings) = value(elf::DT_STRTAB) else { return Ok(()) };
        let size = value(elf::DT_STRSZ).context("DT_STRSZ is missing")?;
        let loaded = segments.iter().filter(|segment| segment.p_type(ENDIAN) == elf::PT_LOAD);
        let mut strings =
            loaded.filter_map(|segment| segment.data_range(ENDIAN, data, strings, size).ok()?);
        let strings = strings.next().context("the strings are not in the file")?;
        let string = |at: u64| {
            // Entries may share a string of many MiB, and each of them copies it.
            let text = usize::try_from(at).ok().and_then(|at| strings.get(at..));
            let text = text.map(|text| &text[..text.len().min(LONGEST_STRING)]);
            let text = text.and_then(|text| CStr::from_bytes_until_nul(text).ok());
            text.map(CStr::to_bytes).with_context(|| {
                format!(
                    "a string is not in the string table, or longer than {LONGEST_STRING} bytes"
                )
            })
        };
        for entry in entries.iter().filter(|entry| entry.d_tag(ENDIAN) == elf::DT_NEEDED) {
            ensure!(
                self.needed.len() < MAX_LIBRARIES,
                "it needs more than {MAX_LIBRARIES} libraries"
            );
            self.needed.push(utf8(string(entry.d_val(ENDIAN))?)?);
        }
        // Of the others, the loaders use the last one.
        let last = |tag| {
            let mut entries = entries.iter().rev();
            let entry = entries.find(|entry| entry.d_tag(ENDIAN) == tag);
            entry.map(|entry| entry.d_val(ENDIAN))
        };
        self.soname = last(elf::DT_SONAME).map(|at| utf8(string(at)?)).transpose()?;
        self.rpath = last(elf::DT_RPATH).map(string).transpose()?.map(<[u8]>::to_vec);
        self.runpath = last(elf::DT_RUNPATH).map(string).transpose()?.map(<[u8]>::to_vec);
        self.avoids_defaults = last(elf::DT_FLAGS_1).is_some_and(|flags| flags & NODEFLIB != 0);
        Ok(())
    }
}

/// `DF_1_NODEFLIB` of elf.h.
const NODEFLIB: u64 = 0x800;

/// Parses `/etc/ld.so.cache`: the path of the first library of each name that works on every x86-64 CPU. Returns
/// `None` if it is not in the format of glibc 2.2 or later.
///
/// The header has the number of entries at 20, and 48 bytes; an entry has flags, the offsets of name and path, the
/// version of the kernel, and the required CPU as 64 bits. An older table may precede the header.
fn parse_cache(file: &[u8]) -> Option<HashMap<String, PathBuf>> {
    const OLD: &[u8] = b"ld.so-1.7.0\0";
    const NEW: &[u8] = b"glibc-ld.so.cache1.1";
    // FLAG_ELF_LIBC6 | FLAG_X8664_LIB64
    const FLAGS: usize = 0x303;
    let word = |bytes: &[u8], at: usize| {
        bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word) as usize)
    };
    let mut table = file;
    if file.starts_with(OLD) {
        table = file.get((16 + 12 * word(file, 12)?).next_multiple_of(8)..)?;
    }
    table.starts_with(NEW).then_some(())?;
    let string = |at: usize| CStr::from_bytes_until_nul(table.get(at..)?).ok();
    let mut libraries = HashMap::new();
    for index in 0..word(table, 20)? {
        let entry = table.get(48 + 24 * index..)?.first_chunk::<24>()?;
        let (flags, cpu) = (word(entry, 0)?, &entry[16..]);
        if flags == FLAGS && cpu == [0; 8] {
            let name = string(word(entry, 4)?)?.to_str().ok()?.to_owned();
            let file = path(string(word(entry, 8)?)?.to_bytes());
            libraries.entry(name).or_insert(file);
        }
    }
    Some(libraries)
}

/// Splits a list of directories, without those that are empty and stand for the working directory.
fn split<'a>(list: &'a [u8], separators: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    list.split(|byte| separators.contains(byte)).filter(|entry| !entry.is_empty())
}

/// Replaces `$NAME` and `${NAME}`.
fn replace(text: &[u8], name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        let braced = after
            .strip_prefix(b"{")
            .and_then(|after| after.strip_prefix(name.as_bytes())?.strip_prefix(b"}"));
        let is_end = |after: &&[u8]| {
            !after.first().is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        };
        let token = braced.or_else(|| after.strip_prefix(name.as_bytes()).filter(is_end));
        if let Some(after) = token.filter(|_| *byte == b'$') {
            out.extend_from_slice(value);
            rest = after;
        } else {
            out.push(*byte);
            rest = after;
        }
    }
    out
}

fn path(bytes: &[u8]) -> PathBuf {
    OsStr::from_bytes(bytes).into()
}

fn utf8(bytes: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(bytes);
    text.map(str::to_owned).with_context(|| format!("{:?} is not UTF-8", path(bytes)))
}

#[cfg(test)]
mod tests;
