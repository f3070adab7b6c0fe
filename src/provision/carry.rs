//! What of the cache a kernel needs where there is no network: in a machine of ours.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::bootable::Kernel;
use super::cache::Cache;
use super::modules::modules_for;
use super::spec::KernelSpec;
use super::{debian, versions};

/// Without these, nobody knows that a module is built in or missing.
const LISTS: [&str; 2] = ["modules.builtin", "modules.order"];

impl Kernel {
    /// The files that make this kernel known to another cache, with all it takes to boot it with
    /// `modules`: each one's path here, and its name below that cache's root.
    ///
    /// # Errors
    ///
    /// If it is not a kernel known by name, or lacks a module.
    pub(crate) fn cached_files(
        &self,
        cache: &Cache,
        modules: &[&str],
    ) -> Result<Vec<(PathBuf, String)>> {
        let KernelSpec::Known(known) = self.spec else {
            bail!("only kernels known by name can be taken into a machine, `{}` is not", self.spec)
        };
        let folder = self.image.parent().context("a cached image has a folder")?;
        let mut files = vec![
            debian::versions(cache, known).folder().join(versions::POINTER),
            folder.join(debian::RECORD),
            self.boot.path.clone(),
            self.image.clone(),
        ];
        files.extend(self.config.clone());
        files.extend(self.modules.iter().flat_map(|folder| LISTS.map(|list| folder.join(list))));
        files.extend(modules_for(self, modules)?.into_iter().map(|module| module.path));
        let named = |path: PathBuf| {
            let name = path.strip_prefix(cache.root())?.to_str().context("it is no text")?;
            Ok((path.clone(), name.to_owned()))
        };
        files.into_iter().map(named).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::provision::kernel;
    use crate::provision::modules::tests::module;

    const FOLDER: &str = "kernels-1/debian-trixie";

    /// A cache with one kernel, and what a machine has no use for.
    fn fill(root: &Path) -> Result<()> {
        let record = br#"{"facts": {"release": "6.12", "format": "BzImage", "why_not_elf": null},
            "boot_len": 4, "provenance": {"fetched_at": 0, "mirror": "", "packages": []}}"#;
        let drivers = "1/lib/modules/6.12/kernel/drivers";
        for (name, bytes) in [
            ("current", &br#"{"current": "1", "previous": null}"#[..]),
            ("1/kernel.json", record),
            ("1/vmlinux", b"\x7fELF"),
            ("1/vmlinuz", b"large"),
            ("1/config", b"CONFIG_64BIT=y\n"),
            ("1/lib/modules/6.12/modules.builtin", b"kernel/drivers/virtio/virtio.ko\n"),
            ("1/lib/modules/6.12/modules.order", b""),
            (&format!("{drivers}/virtio_pci.ko"), &module("virtio,virtio_pci_dev")),
            (&format!("{drivers}/virtio_pci_dev.ko"), &module("")),
            (&format!("{drivers}/nbd.ko"), &module("")),
        ] {
            let path = root.join(FOLDER).join(name);
            fs::create_dir_all(path.parent().unwrap())?;
            fs::write(path, bytes)?;
        }
        Ok(())
    }

    #[test]
    fn a_carried_kernel_is_the_same_elsewhere() -> Result<()> {
        let [here, there] = [tempfile::tempdir()?, tempfile::tempdir()?];
        fill(here.path())?;
        let cache = Cache::at(here.path());
        let kernel = kernel::resolve_spec(&cache, &KernelSpec::default_kernel())?;
        for (path, name) in kernel.cached_files(&cache, &["virtio_pci"])? {
            let copy = there.path().join(name);
            fs::create_dir_all(copy.parent().unwrap())?;
            fs::copy(path, copy)?;
        }
        let carried = kernel::resolve_spec(&Cache::at(there.path()), &kernel.spec)?;
        assert_eq!((&carried.version, &carried.provenance), (&kernel.version, &kernel.provenance));
        assert_eq!(carried.boot.path, there.path().join(FOLDER).join("1/vmlinux"));
        assert_eq!(carried.has_option("64BIT"), Some(true));
        let modules = modules_for(&carried, &["virtio_pci"])?;
        let names: Vec<_> = modules.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["virtio_pci_dev", "virtio_pci"]);
        assert!(modules_for(&carried, &["nbd"]).is_err());
        assert_eq!(carried.image, there.path().join(FOLDER).join("1/vmlinuz"));
        assert!(carried.image.exists());
        Ok(())
    }

    #[test]
    fn a_kernel_of_the_users_stays_here() -> Result<()> {
        let dir = tempfile::tempdir()?;
        fill(dir.path())?;
        let cache = Cache::at(dir.path());
        let mut kernel = kernel::resolve_spec(&cache, &KernelSpec::default_kernel())?;
        kernel.spec = KernelSpec::Path("/boot/mine".into());
        let error = kernel.cached_files(&cache, &[]).unwrap_err().to_string();
        assert!(error.contains("`/boot/mine` is not"), "{error}");
        Ok(())
    }
}
