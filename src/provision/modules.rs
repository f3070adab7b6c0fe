//! Collects the modules that a guest needs, in the order to load them.
//!
//! Packages are unpacked without depmod, so modules.dep does not exist: dependencies are read from the `.modinfo`
//! section of each module (`depends=`, Linux 6.12, scripts/mod/modpost.c).

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};

use super::bootable::Kernel;
use super::decompress::{Format, read_file};

/// A module, ready for `init_module(2)`.
#[derive(Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// The file from which it was read.
    pub path: PathBuf,
    /// The ELF file, uncompressed.
    pub bytes: Vec<u8>,
}

/// Collects the modules called `names` and their dependencies, without those that are built in.
///
/// # Errors
///
/// If a module is neither built in nor among the kernel's modules.
pub fn modules_for(kernel: &Kernel, names: &[&str]) -> Result<Vec<Module>> {
    let mut finder = Finder {
        kernel,
        built_in: None,
        files: HashMap::new(),
        done: HashSet::new(),
        load: Vec::new(),
    };
    if let Some(dir) = &kernel.modules {
        finder.built_in = built_in(dir)?;
        finder.files = files(dir)?;
    }
    for name in names {
        finder.need(name)?;
    }
    Ok(finder.load)
}

struct Finder<'a> {
    kernel: &'a Kernel,
    /// `None` if the kernel has no list of them.
    built_in: Option<HashSet<String>>,
    files: HashMap<String, PathBuf>,
    done: HashSet<String>,
    load: Vec<Module>,
}

impl Finder<'_> {
    fn need(&mut self, name: &str) -> Result<()> {
        let name = normal(name);
        let is_built_in = self.built_in.as_ref().is_some_and(|list| list.contains(&name));
        if is_built_in || !self.done.insert(name.clone()) {
            return Ok(());
        }
        if let Some(file) = self.files.get(&name).cloned() {
            let bytes = read(&file)?;
            let depends = depends_of(&bytes);
            for dependency in depends.with_context(|| format!("module `{}`", file.display()))? {
                self.need(&dependency).with_context(|| format!("`{name}` depends on it"))?;
            }
            self.load.push(Module { name, path: file, bytes });
            return Ok(());
        }
        let option = option(&name);
        match option.and_then(|option| self.kernel.has_option(option)) {
            Some(true) => {}
            // Without the list and the configuration, only the boot will show it.
            None if self.built_in.is_none() => {}
            _ => bail!(
                "kernel {} ({}) has no `{name}`, neither built in nor as a module{}",
                self.kernel.version,
                self.kernel.spec,
                option.map(|option| format!("; set CONFIG_{option}=y")).unwrap_or_default()
            ),
        }
        Ok(())
    }
}

/// Returns the option of a driver, for kernels without a list of built-in modules.
fn option(name: &str) -> Option<&'static str> {
    Some(match name {
        "virtio" => "VIRTIO",
        "virtio_ring" => "VIRTIO",
        "virtio_pci" => "VIRTIO_PCI",
        "virtio_pci_modern_dev" => "VIRTIO_PCI_LIB",
        "virtio_pci_legacy_dev" => "VIRTIO_PCI_LIB_LEGACY",
        "virtio_mmio" => "VIRTIO_MMIO",
        "virtio_console" => "VIRTIO_CONSOLE",
        "virtio_blk" => "VIRTIO_BLK",
        _ => return None,
    })
}

/// Returns the name of a module with `_` instead of `-`, as the kernel has it.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// Returns the names of modules that are built into the kernel; `None` without a list of them.
fn built_in(dir: &Path) -> Result<Option<HashSet<String>>> {
    let path = dir.join("modules.builtin");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.lines().filter_map(stem).collect())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("failed to read `{}`", path.display())),
    }
}

/// Returns the name of the module in a line or file name such as `kernel/drivers/virtio/virtio-mmio.ko.xz`.
fn stem(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    // In a build tree of 6.4 and later, modules.order lists objects.
    let (name, kind) = file.split_once('.')?;
    matches!(kind, "ko" | "ko.xz" | "ko.zst" | "ko.gz" | "o").then(|| normal(name))
}

/// Finds the module files. A kernel tree is too large to walk, but has a list.
fn files(dir: &Path) -> Result<HashMap<String, PathBuf>> {
    let mut files = HashMap::new();
    if dir.join("kernel").join("drivers").is_dir() {
        walk(&dir.join("kernel"), &mut files)?;
        return Ok(files);
    }
    let order = dir.join("modules.order");
    let text = fs::read_to_string(&order)
        .with_context(|| format!("failed to read `{}`", order.display()))?;
    for line in text.lines() {
        let path = dir.join(line).with_extension("ko");
        if let Some(name) = stem(line).filter(|_| path.is_file()) {
            files.insert(name, path);
        }
    }
    Ok(files)
}

fn walk(dir: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    let context = || format!("failed to list the modules in `{}`", dir.display());
    for entry in dir.read_dir().with_context(context)? {
        let entry = entry.with_context(context)?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), files)?;
        } else if let Some(name) = entry.file_name().to_str().and_then(stem) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let context = || format!("failed to read the module `{}`", file.display());
    let bytes = read_file(file).with_context(context)?;
    match Format::of(&bytes) {
        Some(format) => format.unpack(&bytes).with_context(context),
        None => Ok(bytes),
    }
}

/// Reads the names of the modules that a module depends on.
///
/// # Errors
///
/// If it is not an ELF file with a section `.modinfo`.
#[doc(hidden)]
pub fn depends_of(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module)?;
    let section = file.section_by_name(".modinfo").context("no .modinfo section")?;
    Ok(depends(section.data()?))
}

/// Parses `depends=a,b` in the NUL-separated fields of a `.modinfo` section.
fn depends(modinfo: &[u8]) -> Vec<String> {
    modinfo
        .split(|byte| *byte == 0)
        .filter_map(|field| std::str::from_utf8(field).ok()?.strip_prefix("depends="))
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(normal)
        .collect()
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.name, self.bytes.len())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use ktstr_core::record::ImageId;

    use super::*;
    use crate::provision::{Boot, BootFormat, KernelSpec};

    /// Builds a relocatable ELF file with a `.modinfo` section.
    pub(in crate::provision) fn module(depends: &str) -> Vec<u8> {
        let modinfo = format!("license=GPL\0\0depends={depends}\0name=x\0");
        let names = b"\0.shstrtab\0.modinfo\0";
        let mut file = vec![0; 64];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        let info_at = 64 + names.len();
        let table_at = info_at + modinfo.len();
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(16, &[1, 0, 62, 0, 1]); // ET_REL, EM_X86_64, EV_CURRENT
        put(40, &(table_at as u64).to_le_bytes()); // e_shoff
        put(52, &[64, 0, 0, 0, 0, 0, 64, 0, 3, 0, 1, 0]); // sizes, e_shnum 3, e_shstrndx 1
        file.extend(names);
        file.extend(modinfo.as_bytes());
        file.extend([0; 64]);
        for (name, kind, at, len) in
            [(1u32, 3u32, 64, names.len()), (11, 1, info_at, modinfo.len())]
        {
            let mut section = [0; 64];
            section[..4].copy_from_slice(&name.to_le_bytes());
            section[4..8].copy_from_slice(&kind.to_le_bytes());
            section[24..32].copy_from_slice(&(at as u64).to_le_bytes());
            section[32..40].copy_from_slice(&(len as u64).to_le_bytes());
            file.extend(section);
        }
        file
    }

    fn kernel(modules: Option<&Path>, config: Option<PathBuf>) -> Kernel {
        let path = PathBuf::from("/boot/vmlinuz");
        Kernel {
            id: ImageId::PackageSha256(String::new()),
            spec: KernelSpec::Path(path.clone()),
            version: "6.1.0".to_owned(),
            boot: Boot { path: path.clone(), format: BootFormat::Elf, note: None },
            image: path,
            modules: modules.map(Path::to_owned),
            config,
            provenance: None,
        }
    }

    fn names(set: &[Module]) -> Vec<&str> {
        set.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn modules_for_orders_dependencies_first() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let drivers = dir.path().join("kernel/drivers");
        fs::create_dir_all(&drivers)?;
        for (file, depends) in [
            ("virtio.ko", ""),
            ("virtio_ring.ko", "virtio,built-in"),
            ("virtio-console.ko", "virtio_ring,virtio"),
            ("broken.ko", "virtio,gone"),
        ] {
            fs::write(drivers.join(file), module(depends))?;
        }
        fs::write(dir.path().join("modules.builtin"), "kernel/lib/built-in.ko\n")?;
        let kernel = kernel(Some(dir.path()), None);
        let set = modules_for(&kernel, &["virtio_console", "virtio-ring", "built_in"])?;
        assert_eq!(names(&set), ["virtio", "virtio_ring", "virtio_console"]);
        assert_eq!(set[0].bytes, module(""));
        for (name, want) in [
            ("broken", "has no `gone`"),
            ("virtio_pci", "set CONFIG_VIRTIO_PCI=y"),
            ("virtio_pci", "kernel 6.1.0 (/boot/vmlinuz)"),
        ] {
            let error = format!("{:#}", modules_for(&kernel, &[name]).unwrap_err());
            assert!(error.contains(want), "{want} is not in: {error}");
        }
        Ok(())
    }

    #[test]
    fn modules_for_reads_the_list_of_a_build_tree() -> Result<()> {
        let dir = tempfile::tempdir()?;
        fs::create_dir_all(dir.path().join("drivers/virtio"))?;
        fs::write(dir.path().join("drivers/virtio/virtio_mmio.ko"), module(""))?;
        fs::write(dir.path().join("modules.order"), "drivers/virtio/virtio_mmio.o\nlib/x.o\n")?;
        let set = modules_for(&kernel(Some(dir.path()), None), &["virtio_mmio"])?;
        assert_eq!(names(&set), ["virtio_mmio"]);
        Ok(())
    }

    #[test]
    fn modules_for_reads_the_config_without_modules() -> Result<()> {
        assert_eq!(modules_for(&kernel(None, None), &["virtio_pci"])?, []);
        let dir = tempfile::tempdir()?;
        let config = dir.path().join(".config");
        fs::write(&config, "CONFIG_VIRTIO_PCI=y\n# CONFIG_VIRTIO_MMIO is not set\n")?;
        let kernel = kernel(None, Some(config));
        assert_eq!(modules_for(&kernel, &["virtio_pci"])?, []);
        assert!(modules_for(&kernel, &["virtio_mmio"]).is_err());
        Ok(())
    }

    #[test]
    fn stem_and_depends_parse_names() {
        for (path, want) in [
            ("kernel/drivers/char/virtio-console.ko.xz", Some("virtio_console")),
            ("virtio_pci.ko", Some("virtio_pci")),
            ("drivers/virtio/virtio_mmio.o", Some("virtio_mmio")),
            ("modules.order", None),
            ("", None),
        ] {
            assert_eq!(stem(path).as_deref(), want);
        }
        for (modinfo, want) in [
            (&b"depends=virtio,virtio-ring\0alias=x"[..], &["virtio", "virtio_ring"][..]),
            (b"alias=depends=x\0depends=\0", &[]),
            (b"\xff\xfe", &[]),
        ] {
            assert_eq!(depends(modinfo), want);
        }
        assert!(depends_of(b"no ELF").is_err());
    }
}
