//! What of the cache a kernel needs where there is no network: in a machine of ours.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::cache::Cache;
use super::kernel::Kernel;
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

    use super::*;
    use crate::provision::kernel;

    #[test]
    fn a_carried_kernel_is_the_same_elsewhere() -> Result<()> {
        let cache = Cache::from_env()?;
        let here = kernel::resolve_spec(&cache, &KernelSpec::default_kernel())?;
        let dir = tempfile::tempdir()?;
        for (path, name) in here.cached_files(&cache, &["virtio_net"])? {
            let copy = dir.path().join(name);
            fs::create_dir_all(copy.parent().unwrap())?;
            std::os::unix::fs::symlink(path, copy)?;
        }
        let there = kernel::resolve_spec(&Cache::at(dir.path()), &here.spec)?;
        assert_eq!((&there.version, &there.provenance), (&here.version, &here.provenance));
        assert!(there.boot.path.starts_with(dir.path()));
        let names = |kernel| -> Result<Vec<String>> {
            let modules = modules_for(kernel, &["virtio_net", "virtio_pci"])?;
            Ok(modules.into_iter().map(|module| module.name).collect())
        };
        assert_eq!(names(&there)?, names(&here)?);
        assert!(names(&there)?.contains(&"net_failover".to_owned()));
        assert!(modules_for(&there, &["nbd"]).is_err());
        Ok(())
    }

    #[test]
    fn a_kernel_of_the_users_stays_here() -> Result<()> {
        let cache = Cache::from_env()?;
        let mut kernel = kernel::resolve_spec(&cache, &KernelSpec::default_kernel())?;
        kernel.spec = KernelSpec::Path("/boot/mine".into());
        let error = kernel.cached_files(&cache, &[]).unwrap_err().to_string();
        assert!(error.contains("`/boot/mine` is not"), "{error}");
        Ok(())
    }
}
