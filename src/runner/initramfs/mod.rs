//! The initramfs: the guest's program, its libraries, the modules its kernel lacks.
//!
//! Built once per content, kept in the cache, shared by every test of the binary. It is not
//! compressed: see `docs/decisions/0003-initramfs.md` for what that costs and saves.

mod cpio;
mod elf;
mod launcher;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufWriter, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use ktstr_core::guest::agent;

use crate::provision::{self, Cache, Kernel, tool};
use crate::this_program;

/// What goes into the initramfs.
#[derive(Debug)]
pub(crate) struct Initramfs<'a> {
    /// The program that becomes PID 1; its debug information stays behind.
    pub(crate) init: &'a Path,
    /// What `/init` gives it as arguments.
    pub(crate) arguments: &'a [String],
    /// The kernel it is for, which may need modules.
    pub(crate) kernel: &'a Kernel,
    /// What there is beside it.
    pub(crate) contents: &'a GuestFiles,
}

/// What a guest has beside its program.
#[derive(Debug, Default)]
pub(crate) struct GuestFiles {
    /// Programs, with the libraries they need: where on the host, where in the guest.
    pub(crate) programs: Vec<(PathBuf, String)>,
    /// Programs of packages that were fetched, which bring their own loader and libraries.
    pub(crate) foreign: Vec<Foreign>,
    /// Other files, alike.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// Symbolic links: name in the guest, target.
    pub(crate) links: Vec<(String, String)>,
    /// Modules to load beside those of the transport.
    pub(crate) modules: Vec<&'static str>,
}

/// A program of a system that is unpacked in a folder.
#[derive(Debug)]
pub(crate) struct Foreign {
    /// That folder.
    pub(crate) root: PathBuf,
    /// The program's file in it.
    pub(crate) program: PathBuf,
    /// Where it is to be in the guest.
    pub(crate) name: String,
    /// The folder of its libraries there.
    pub(crate) libraries: String,
}

/// The folder of the loaders of foreign programs. The name is short: it has to fit where a program
/// names the loader it wants.
const LOADERS: &str = "/ktstr/ld";

/// What the transport needs, as modules where the kernel does not have it built in.
pub(crate) const MODULES: [&str; 2] = ["virtio_pci", "virtio_console"];

/// An initramfs that no test has used for so long is removed, and of younger ones all but so many:
/// each new build of a test binary has its own.
const KEEP: (Duration, usize) = (Duration::from_secs(3 * 24 * 3600), 48);

/// The cache's folder of finished archives.
const FOLDER: &str = "initramfs";

/// Changes whenever the same input gives a different archive.
const FORMAT: u32 = 2;

/// The folder of all shared libraries, named to the loader by `LD_LIBRARY_PATH`.
pub(crate) const LIBRARIES: &str = "/lib";

impl Initramfs<'_> {
    /// The path of the finished archive in the cache; builds it if it is not there yet.
    pub(crate) fn ensure(&self, cache: &Cache) -> Result<PathBuf> {
        let key = self.key()?;
        let name = format!("{FOLDER}/{key:016x}.cpio");
        if !cache.entry(&name).exists() && cache.check_writable().is_err() {
            return self.in_this_process(key);
        }
        loop {
            let path = cache.build_once(&name, |path| {
                remove_unused(&cache.root().join(FOLDER));
                self.build(path)
            })?;
            // The time tells that it is in use.
            match File::open(&path).and_then(|file| file.set_modified(SystemTime::now())) {
                // Another process found it unused for too long, a moment ago: once more.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                _ => return Ok(path),
            }
        }
    }

    /// Returns the path of an archive that this process keeps until its end, without a name: what it
    /// takes to run tests with a cache of another user's, which can only be read.
    fn in_this_process(&self, key: u64) -> Result<PathBuf> {
        static KEPT: Mutex<BTreeMap<u64, File>> = Mutex::new(BTreeMap::new());
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match kept.entry(key) {
            Entry::Occupied(kept) => kept.into_mut(),
            Entry::Vacant(vacant) => vacant.insert(self.unnamed(&std::env::temp_dir())?),
        };
        Ok(path_of(file))
    }

    /// Builds an archive without a name in `folder`, which is gone with its last descriptor; for what
    /// is large and of no use to anybody else.
    pub(crate) fn unnamed(&self, folder: &Path) -> Result<File> {
        let file = tempfile::tempfile_in(folder)
            .with_context(|| format!("cannot create a file in {}", folder.display()))?;
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        self.write(&mut writer)?;
        writer.into_inner().context("cannot write an initramfs")
    }

    fn build(&self, path: &Path) -> Result<()> {
        let file =
            File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        self.write(&mut writer)?;
        // An archive that a power failure emptied would be taken for finished ever after.
        writer
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all())
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Tells contents apart without reading them: a file that was changed or replaced has another
    /// inode or change time. The libraries are those that this process has loaded, for it is the
    /// program, those of the loader's cache, which their upgrade renews, and those of other programs.
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
            for (name, file) in elf::libraries(program)?.needed {
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

    fn write(&self, writer: &mut impl Write) -> Result<()> {
        let mut archive = cpio::Archive::new(writer);
        archive.device("/dev/console", 0o600, 5, 1)?;
        archive.device("/dev/null", 0o666, 1, 3)?;
        archive.file("/init", 0o755, &launcher::build(agent::PROGRAM, self.arguments)?)?;
        let init = read(self.init)?;
        archive.file(
            agent::PROGRAM,
            0o755,
            &elf::strip_debug(&init)
                .with_context(|| format!("cannot strip {}", self.init.display()))?,
        )?;
        let mut programs = vec![self.init];
        let mut there: HashMap<String, PathBuf> = HashMap::new();
        for (program, name) in &self.contents.programs {
            archive.file(name, 0o755, &read(program)?)?;
            programs.push(program);
        }
        for program in programs {
            let libraries = elf::libraries(program)?;
            if let Some((interpreter, file)) = &libraries.interpreter {
                archive.file(interpreter, 0o755, &read(file)?)?;
            }
            for (name, file) in libraries.needed {
                let content = read(&file)?;
                let first = there.entry(name.clone()).or_insert_with(|| file.clone());
                ensure!(
                    *first == file || read(first)? == content,
                    "{} needs {}, and what is there already needs {}: a guest has one {name}",
                    program.display(),
                    file.display(),
                    first.display()
                );
                archive.file(&format!("{LIBRARIES}/{name}"), 0o755, &content)?;
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
            let name = format!("{}/{index:03}-{}.ko", agent::MODULES, module.name);
            archive.file(&name, 0o644, &module.bytes)?;
        }
        archive.file(agent::END_MARK, 0o644, b"")?;
        archive.finish()
    }
}

/// Adds a program that asks for the loader it came with, so that no library of the host's can get in,
/// and that still is the program the kernel runs: it keeps its name, and may run itself again.
fn write_foreign(
    archive: &mut cpio::Archive<impl Write>,
    index: usize,
    foreign: &Foreign,
) -> Result<()> {
    let Foreign { root, program, name, libraries } = foreign;
    let in_root = |path: &str| root.join(path);
    let (loader, folder) = (in_root(tool::LOADER), in_root(tool::LIBRARIES));
    let name_of_loader = format!("{LOADERS}/{index}");
    let mut bytes = read(program)?;
    let is_dynamic = elf::set_interpreter(&mut bytes, &name_of_loader)
        .with_context(|| format!("cannot prepare {}", program.display()))?;
    archive.file(name, 0o755, &bytes)?;
    if !is_dynamic {
        return Ok(());
    }
    archive.file(&name_of_loader, 0o755, &read(&loader)?)?;
    for (library, file) in elf::libraries_by(&loader, Some(&folder), program)? {
        ensure!(
            file.starts_with(root),
            "{} needs {library}, which its packages do not have in {}",
            program.display(),
            tool::LIBRARIES
        );
        archive.file(&format!("{libraries}/{library}"), 0o755, &read(&file)?)?;
    }
    Ok(())
}

/// An archive with nothing in it but `init`, a program that needs no library: for measurements in
/// which the guest is to take as little part as it can.
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

/// Returns a path by which child processes can open a file of this process that has no name.
pub(crate) fn path_of(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

fn remove_unused(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let age = |entry: &fs::DirEntry| entry.metadata().ok()?.modified().ok()?.elapsed().ok();
    let mut archives: Vec<_> =
        entries.flatten().filter_map(|entry| Some((age(&entry)?, entry.path()))).collect();
    archives.sort();
    for (index, (unused, path)) in archives.iter().enumerate() {
        if *unused > KEEP.0 || index >= KEEP.1 {
            // Whoever builds at the same time may have removed it already.
            let _ = fs::remove_file(path);
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn mode(path: &Path) -> Result<u32> {
    let meta = fs::metadata(path).with_context(|| format!("cannot find {}", path.display()))?;
    Ok(meta.permissions().mode() & 0o777)
}

fn identity(path: &Path) -> Result<String> {
    let meta = fs::metadata(path).with_context(|| format!("cannot find {}", path.display()))?;
    Ok(provision::identity(&meta))
}
