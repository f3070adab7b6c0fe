//! Lists the cache files of a kernel, for machines without a network.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::bootable::Kernel;
use super::cache::Cache;
use super::modules::modules_for;
use super::spec::KernelSpec;
use super::{debian, versions};

/// These lists distinguish built-in modules from missing ones.
const LISTS: [&str; 2] = ["modules.builtin", "modules.order"];

impl Kernel {
    /// Returns the files that another cache needs to boot this kernel with `modules`: path on this host, and name
    /// below the root of that cache.
    ///
    /// # Errors
    ///
    /// If the kernel is not known by name, or lacks a module.
    pub(crate) fn cached_files(
        &self,
        cache: &Cache,
        modules: &[&str],
    ) -> Result<Vec<(PathBuf, String)>> {
        let KernelSpec::Known(known) = self.spec else {
            bail!("only kernels known by name can be copied into a machine: `{}` is not", self.spec)
        };
        let dir = self.image.parent().context("a cached image has a parent directory")?;
        let mut files = vec![
            debian::versions(cache, known).dir().join(versions::POINTER),
            dir.join(debian::RECORD),
            self.boot.path.clone(),
            self.image.clone(),
        ];
        files.extend(self.config.clone());
        files.extend(self.modules.iter().flat_map(|dir| LISTS.map(|list| dir.join(list))));
        files.extend(modules_for(self, modules)?.into_iter().map(|module| module.path));
        let named = |path: PathBuf| {
            let name =
                path.strip_prefix(cache.root())?.to_str().context("the path is not UTF-8")?;
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

    const DIRECTORY: &str = "kernels-1/debian-trixie";

    /// Creates a cache with one kernel, and files that a machine does not need.
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
            let path = root.join(DIRECTORY).join(name);
            fs::create_dir_all(path.parent().unwrap())?;
            fs::write(path, bytes)?;
        }
        Ok(())
    }

    #[test]
    fn cached_files_are_a_complete_kernel() -> Result<()> {
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
        assert_eq!(carried.boot.path, there.path().join(DIRECTORY).join("1/vmlinux"));
        assert_eq!(carried.has_option("64BIT"), Some(true));
        let modules = modules_for(&carried, &["virtio_pci"])?;
        let names: Vec<_> = modules.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["virtio_pci_dev", "virtio_pci"]);
        assert!(modules_for(&carried, &["nbd"]).is_err());
        assert_eq!(carried.image, there.path().join(DIRECTORY).join("1/vmlinuz"));
        assert!(carried.image.exists());
        Ok(())
    }

    #[test]
    fn cached_files_refuses_kernels_of_the_user() -> Result<()> {
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
