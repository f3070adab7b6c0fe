//! The initramfs: the guest's program, its libraries, the modules its kernel lacks.
//!
//! Built once per content, kept in the cache, shared by every test of the binary. It is not
//! compressed: see `docs/decisions/0003-initramfs.md` for what that costs and saves.

mod cpio;
mod elf;

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ktstr_core::guest;

use crate::provision::cache::Cache;
use crate::provision::modules::Module;

/// What goes into the initramfs.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// The program that becomes `/init`; its debug information stays behind.
    pub(crate) init: PathBuf,
    /// Kernel modules in the order in which they are loaded.
    pub(crate) modules: Vec<Module>,
    /// More programs: where on the host, where in the guest.
    pub(crate) programs: Vec<(PathBuf, String)>,
    /// Symbolic links: name in the guest, target.
    pub(crate) links: Vec<(String, String)>,
}

/// Changes whenever the same input gives a different archive.
const FORMAT: u32 = 1;

/// The folder of all shared libraries, named to the loader by `LD_LIBRARY_PATH`.
pub(crate) const LIBRARIES: &str = "/lib";

impl Image {
    /// The path of the finished archive in the cache; builds it if it is not there yet.
    pub(crate) fn ensure(&self, cache: &Cache) -> Result<PathBuf> {
        let name = format!("initramfs/{:016x}.cpio", self.key()?);
        cache.build_once(&name, |path| {
            let file =
                File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
            let mut writer = BufWriter::with_capacity(1 << 20, file);
            self.write(&mut writer)?;
            writer.flush().context("cannot write the initramfs")
        })
    }

    /// Tells contents apart without reading them: a file that was changed or replaced has another
    /// inode or change time. The loader's cache stands for the libraries, whose upgrade renews it.
    fn key(&self) -> Result<u64> {
        let mut hasher = DefaultHasher::new();
        FORMAT.hash(&mut hasher);
        identity(&self.init)?.hash(&mut hasher);
        for (program, name) in &self.programs {
            (identity(program)?, name).hash(&mut hasher);
        }
        self.links.hash(&mut hasher);
        identity(Path::new("/etc/ld.so.cache")).ok().hash(&mut hasher);
        std::env::var_os("LD_LIBRARY_PATH").hash(&mut hasher);
        for module in &self.modules {
            (&module.name, &module.bytes).hash(&mut hasher);
        }
        Ok(hasher.finish())
    }

    fn write(&self, writer: &mut impl Write) -> Result<()> {
        let mut archive = cpio::Archive::new(writer);
        archive.device("/dev/console", 0o600, 5, 1)?;
        archive.device("/dev/null", 0o666, 1, 3)?;
        let init = read(&self.init)?;
        archive.file(
            "/init",
            0o755,
            &elf::strip_debug(&init)
                .with_context(|| format!("cannot strip {}", self.init.display()))?,
        )?;
        let mut programs = vec![&self.init];
        for (program, name) in &self.programs {
            archive.file(name, 0o755, &read(program)?)?;
            programs.push(program);
        }
        for program in programs {
            let libraries = elf::libraries(program)?;
            if let Some((interpreter, file)) = &libraries.interpreter {
                archive.file(interpreter, 0o755, &read(file)?)?;
            }
            for (name, file) in libraries.needed {
                archive.file(&format!("{LIBRARIES}/{name}"), 0o755, &read(&file)?)?;
            }
        }
        for (name, target) in &self.links {
            archive.link(name, target)?;
        }
        for (index, module) in self.modules.iter().enumerate() {
            let name = format!("{}/{index:03}-{}.ko", guest::MODULES, module.name);
            archive.file(&name, 0o644, &module.bytes)?;
        }
        archive.file(guest::END_MARK, 0o644, b"")?;
        archive.finish()
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn identity(path: &Path) -> Result<impl Hash + use<>> {
    let meta = fs::metadata(path).with_context(|| format!("cannot find {}", path.display()))?;
    Ok((
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    ))
}
