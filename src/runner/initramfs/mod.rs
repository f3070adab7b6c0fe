//! Builds the initramfs: the guest's program, its libraries, and the modules that its kernel lacks.
//!
//! An archive is built once per content, kept in the cache, and shared by every test of the binary. It is not
//! compressed: `docs/decisions/0003-initramfs.md` has the costs and savings.

mod cpio;
mod elf;
mod launcher;
mod libraries;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufWriter, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use ktstr_core::linux::sync::lock;
use ktstr_core::model::pid1;

use crate::provision::{self, Cache, Kernel, tool};
use crate::this_program;
pub(crate) use elf::is_elf;
pub use libraries::read_elf;

/// The content of an initramfs.
#[derive(Debug)]
pub(crate) struct Initramfs<'a> {
    /// The program that becomes PID 1; its debug information is left out.
    pub(crate) init: &'a Path,
    /// The arguments that `/init` passes to it.
    pub(crate) arguments: &'a [String],
    /// The kernel of the guest, which may need modules.
    pub(crate) kernel: &'a Kernel,
    /// Everything else.
    pub(crate) contents: &'a GuestFiles,
}

/// The files of a guest besides its program.
#[derive(Debug, Default)]
pub(crate) struct GuestFiles {
    /// Programs: path on the host, path in the guest. Their libraries are added.
    pub(crate) programs: Vec<(PathBuf, String)>,
    /// Programs of fetched packages, with the loader and the libraries of those packages.
    pub(crate) foreign: Vec<Foreign>,
    /// Other files: path on the host, path in the guest.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// Symbolic links: name in the guest, target.
    pub(crate) links: Vec<(String, String)>,
    /// Modules to load in addition to those of the transport.
    pub(crate) modules: Vec<&'static str>,
}

/// A program of a system that is unpacked in a directory.
#[derive(Debug)]
pub(crate) struct Foreign {
    /// That directory.
    pub(crate) root: PathBuf,
    /// The program's file in it.
    pub(crate) program: PathBuf,
    /// Its path in the guest.
    pub(crate) name: String,
    /// The directory of its libraries in the guest.
    pub(crate) libraries: String,
}

/// The directory of the loaders of foreign programs. The path is short because it replaces the path of the
/// loader inside the program.
const LOADERS: &str = "/ktstr/ld";

/// The modules that the transport needs, unless they are built into the kernel.
pub(crate) const MODULES: [&str; 2] = ["virtio_pci", "virtio_console"];

/// An archive that no test has used for this long is removed.
const MAX_UNUSED: Duration = Duration::from_secs(3 * 24 * 3600);

/// Of more archives than this, the oldest are removed: each build of a test binary has its own.
const MAX_ARCHIVES: usize = 48;

/// The directory of finished archives in the cache.
const DIRECTORY: &str = "initramfs";

/// Changed whenever the same input gives a different archive.
const FORMAT: u32 = 3;

/// The directory of all shared libraries; `LD_LIBRARY_PATH` names it for the loader.
pub(crate) const LIBRARIES: &str = "/lib";

impl Initramfs<'_> {
    /// Returns the path of the finished archive in the cache. Builds the archive if it does not exist.
    pub(crate) fn ensure(&self, cache: &Cache) -> Result<PathBuf> {
        let key = self.key()?;
        let name = format!("{DIRECTORY}/{key:016x}.cpio");
        if !cache.entry(&name).exists() && cache.check_writable().is_err() {
            return self.in_this_process(key);
        }
        loop {
            let path = cache.build_once(&name, |path| {
                remove_unused(&cache.root().join(DIRECTORY));
                self.build(path)
            })?;
            // The modification time marks the archive as used.
            match File::open(&path).and_then(|file| file.set_modified(SystemTime::now())) {
                // Another process has just removed it as unused: build it again.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                _ => return Ok(path),
            }
        }
    }

    /// Returns the path of an archive without a name that this process keeps until its end. It lets tests run
    /// with the read-only cache of another user.
    fn in_this_process(&self, key: u64) -> Result<PathBuf> {
        static KEPT: Mutex<BTreeMap<u64, File>> = Mutex::new(BTreeMap::new());
        let mut kept = lock(&KEPT);
        let file = match kept.entry(key) {
            Entry::Occupied(kept) => kept.into_mut(),
            Entry::Vacant(vacant) => vacant.insert(self.unnamed(&std::env::temp_dir())?),
        };
        Ok(path_of(file))
    }

    /// Builds an archive without a name in `dir`. The kernel frees it with its last descriptor, so a large archive
    /// for one run does not stay on disk.
    pub(crate) fn unnamed(&self, dir: &Path) -> Result<File> {
        let file = tempfile::tempfile_in(dir)
            .with_context(|| format!("cannot create a file in {}", dir.display()))?;
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        self.write(&mut writer)?;
        writer.into_inner().context("cannot write an initramfs")
    }

    fn build(&self, path: &Path) -> Result<()> {
        let file =
            File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        self.write(&mut writer)?;
        // Without it, an archive that a power failure emptied would count as finished forever.
        writer
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all())
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Returns a hash of the content, without reading the files: a changed or replaced file has another inode or
    /// change time.
    ///
    /// The libraries are covered in three ways: those that this process has loaded, because it is the program;
    /// the cache of the loader, which every upgrade of a library renews; and those of the other programs.
    fn key(&self) -> Result<u64> {
        let mut hasher = DefaultHasher::new();
        FORMAT.hash(&mut hasher);
        (identity(self.init)?, self.arguments).hash(&mut hasher);
        self.kernel.version.hash(&mut hasher);
        self.kernel.modules.as_deref().map(identity).transpose()?.hash(&mut hasher);
        let GuestFiles { programs, foreign, files, links, modules } = self.contents;
        for (file, name) in programs.iter().chain(files) {
            (identity(file)?, name).hash(&mut hasher);
        }
        for (program, _) in programs {
            for (name, file) in libraries::libraries(program)?.needed {
                (name, identity(&file)?).hash(&mut hasher);
            }
        }
        for Foreign { root, program, name, libraries } in foreign {
            (identity(root)?, identity(program)?, name, libraries).hash(&mut hasher);
        }
        (programs.len(), links, modules).hash(&mut hasher);
        identity(Path::new("/etc/ld.so.cache")).ok().hash(&mut hasher);
        std::env::var_os("LD_LIBRARY_PATH").hash(&mut hasher);
        for library in this_program::loaded_files()? {
            identity(&library.path).ok().hash(&mut hasher);
        }
        Ok(hasher.finish())
    }

    /// Writes the archive. Of two files with one name, the first counts.
    fn write(&self, writer: &mut impl Write) -> Result<()> {
        let mut archive = cpio::Archive::new(writer);
        archive.device("/dev/console", 0o600, 5, 1)?;
        archive.device("/dev/null", 0o666, 1, 3)?;
        archive.file("/init", 0o755, &launcher::build(pid1::PROGRAM, self.arguments)?)?;
        let init = read(self.init)?;
        archive.file(
            pid1::PROGRAM,
            0o755,
            &elf::strip_debug(&init)
                .with_context(|| format!("cannot strip {}", self.init.display()))?,
        )?;
        let mut programs = vec![self.init];
        let mut added: HashMap<String, PathBuf> = HashMap::new();
        for (program, name) in &self.contents.programs {
            archive.file(name, 0o755, &read(program)?)?;
            programs.push(program);
        }
        for program in programs {
            let libraries = libraries::libraries(program)?;
            if let Some((interpreter, file)) = &libraries.interpreter {
                archive.file(interpreter, 0o755, &read(file)?)?;
            }
            for (name, file) in libraries.needed {
                let content = read(&file)?;
                let first = added.entry(name.clone()).or_insert_with(|| file.clone());
                ensure!(
                    *first == file || read(first)? == content,
                    "{} needs {}, and another program needs {}: a guest can have only one {name}",
                    program.display(),
                    file.display(),
                    first.display()
                );
                archive.file(&place(LIBRARIES, &name), 0o755, &content)?;
            }
        }
        for (index, foreign) in self.contents.foreign.iter().enumerate() {
            write_foreign(&mut archive, index, foreign)?;
        }
        for (file, name) in &self.contents.files {
            archive.file(name, mode(file)?, &read(file)?)?;
        }
        for (name, target) in &self.contents.links {
            archive.link(name, target)?;
        }
        let modules = [&MODULES, &*self.contents.modules].concat();
        let modules = provision::modules_for(self.kernel, &modules)?;
        for (index, module) in modules.iter().enumerate() {
            let name = format!("{}/{index:03}-{}.ko", pid1::MODULES, module.name);
            archive.file(&name, 0o644, &module.bytes)?;
        }
        archive.file(pid1::END_MARK, 0o644, b"")?;
        archive.finish()
    }
}

/// Adds a program with the loader and the libraries of its packages instead of the host's.
///
/// The path of the loader is changed inside the program. Running `LOADER PROGRAM` instead would change the name
/// of the process, and the program could not execute itself again.
fn write_foreign(
    archive: &mut cpio::Archive<impl Write>,
    index: usize,
    foreign: &Foreign,
) -> Result<()> {
    let Foreign { root, program, name, libraries } = foreign;
    let name_of_loader = format!("{LOADERS}/{index}");
    let mut bytes = read(program)?;
    let is_dynamic = elf::set_interpreter(&mut bytes, &name_of_loader)
        .with_context(|| format!("cannot prepare {}", program.display()))?;
    archive.file(name, 0o755, &bytes)?;
    if !is_dynamic {
        return Ok(());
    }
    archive.file(&name_of_loader, 0o755, &read(&root.join(tool::LOADER))?)?;
    for (library, file) in libraries::libraries_in(root, tool::LOADER, tool::LIBRARIES, program)? {
        archive.file(&place(libraries, &library), 0o755, &read(&file)?)?;
    }
    Ok(())
}

/// Returns the path in the guest of a library, which has a name or an absolute path.
fn place(directory: &str, library: &str) -> String {
    if library.starts_with('/') { library.to_owned() } else { format!("{directory}/{library}") }
}

/// Builds an archive of `init` alone, a static program, for measurements with as little guest as possible.
///
/// # Errors
///
/// If the program cannot be read.
pub fn bare(init: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut archive = cpio::Archive::new(&mut bytes);
    archive.device("/dev/console", 0o600, 5, 1)?;
    archive.file("/init", 0o755, &elf::strip_debug(&read(init)?)?)?;
    archive.finish()?;
    Ok(bytes)
}

/// Returns a path by which child processes can open an unnamed file of this process.
pub(crate) fn path_of(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

fn remove_unused(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let age = |entry: &fs::DirEntry| entry.metadata().ok()?.modified().ok()?.elapsed().ok();
    let mut archives: Vec<_> =
        entries.flatten().filter_map(|entry| Some((age(&entry)?, entry.path()))).collect();
    archives.sort();
    for (index, (unused, path)) in archives.iter().enumerate() {
        if *unused > MAX_UNUSED || index >= MAX_ARCHIVES {
            // Another process may have removed it already.
            let _ = fs::remove_file(path);
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    // The loader that a program names may be a device, which is endless, or a pipe.
    let is_file = fs::metadata(path).map(|meta| meta.is_file());
    let content = match is_file {
        Ok(false) => Err(std::io::Error::other("not a regular file")),
        _ => fs::read(path),
    };
    content.with_context(|| format!("cannot read {}", path.display()))
}

fn mode(path: &Path) -> Result<u32> {
    let meta = fs::metadata(path).with_context(|| format!("cannot find {}", path.display()))?;
    Ok(meta.permissions().mode() & 0o777)
}

fn identity(path: &Path) -> Result<String> {
    let meta = fs::metadata(path).with_context(|| format!("cannot find {}", path.display()))?;
    Ok(provision::identity(&meta))
}
