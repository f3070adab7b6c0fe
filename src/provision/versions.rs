//! Cache entries that come in versions, one of which is current.
//!
//! `<name>/<version>` is a cache entry, and `<name>/current` names the version to use. The previous version stays
//! because running tests may use it; older ones are removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::cache::{self, Cache};

/// The file that names the current version.
pub(super) const POINTER: &str = "current";

/// A version without a pointer is kept this long: another process may have just built it and not yet made it
/// current.
const GRACE: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug)]
pub(super) struct Versions<'a> {
    cache: &'a Cache,
    name: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Pointer {
    current: String,
    previous: Option<String>,
}

impl<'a> Versions<'a> {
    pub(super) fn new(cache: &'a Cache, name: impl Into<String>) -> Self {
        Self { cache, name: name.into() }
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.cache.entry(&self.name)
    }

    /// Returns the entry of `version`, if it was built.
    ///
    /// # Errors
    ///
    /// If another user could change it.
    pub(super) fn find(&self, version: &str) -> Result<Option<PathBuf>> {
        self.cache.check(&self.entry(version))?;
        let entry = self.cache.entry(&self.entry(version));
        Ok(entry.exists().then_some(entry))
    }

    pub(super) fn build(
        &self,
        version: &str,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        self.cache.build_once(&self.entry(version), build)
    }

    pub(super) fn current(&self) -> Result<Option<PathBuf>> {
        match self.pointer()? {
            Some(pointer) => self.find(&pointer.current),
            None => Ok(None),
        }
    }

    /// Makes `version` the current one, and removes versions before the previous one.
    pub(super) fn set_current(&self, version: &str) -> Result<()> {
        let _lock = self.cache.lock(&self.entry(POINTER))?;
        let old = self.pointer()?.unwrap_or_default();
        let previous = if old.current == version {
            old.previous
        } else {
            Some(old.current).filter(|old| !old.is_empty())
        };
        let pointer = Pointer { current: version.to_owned(), previous };
        self.cache.write(&self.entry(POINTER), &serde_json::to_vec(&pointer)?)?;
        self.prune(&pointer);
        Ok(())
    }

    fn pointer(&self) -> Result<Option<Pointer>> {
        let path = self.cache.entry(&self.entry(POINTER));
        self.cache.check(&self.entry(POINTER))?;
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(|| format!("`{}` is damaged; remove it", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| {
                format!(
                    "failed to read `{}`; let its owner make the cache readable (`chmod -R go+rX`), or \
                     set KTSTR_CACHE_DIR to a directory of your own",
                    path.display()
                )
            }),
        }
    }

    /// Removes unused versions. Errors are ignored: the next call tries again.
    fn prune(&self, pointer: &Pointer) {
        for entry in self.dir().read_dir().into_iter().flatten().flatten() {
            let name = entry.file_name();
            let in_use = name == POINTER
                || name == pointer.current.as_str()
                || pointer.previous.as_deref().is_some_and(|previous| name == previous);
            let built = entry.metadata().and_then(|meta| meta.modified());
            let is_old = built.is_ok_and(|built| {
                SystemTime::now().duration_since(built).is_ok_and(|age| age > GRACE)
            });
            if !in_use && is_old {
                let _ = cache::remove(&entry.path());
            }
        }
    }

    fn entry(&self, version: &str) -> String {
        format!("{}/{version}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn set_current_keeps_current_and_previous() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let cache = Cache::at(dir.path());
        let versions = Versions::new(&cache, "kernels/one");
        assert_eq!(versions.current()?, None);
        for version in ["1", "2", "2", "3"] {
            let dir = versions.build(version, |path| Ok(fs::create_dir(path)?))?;
            File::open(&dir)?.set_modified(SystemTime::now() - 2 * GRACE)?;
            versions.set_current(version)?;
            assert_eq!(versions.current()?, Some(dir));
        }
        assert_eq!(versions.find("1")?, None);
        assert!(versions.find("2")?.is_some() && versions.find("3")?.is_some());
        Ok(())
    }

    /// Only root can give files away.
    #[test]
    fn current_refuses_a_version_of_another_user() -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: not root");
            return Ok(());
        }
        let dir = tempfile::tempdir()?;
        let cache = Cache::at(dir.path().join("cache"));
        let versions = Versions::new(&cache, "qemu");
        let entry = versions.build("1", |path| Ok(fs::create_dir(path)?))?;
        versions.set_current("1")?;
        for path in [entry, versions.dir().join(POINTER), versions.dir(), cache.root().to_owned()] {
            std::os::unix::fs::chown(&path, Some(65534), None)?;
            let error = format!("{:#}", versions.current().unwrap_err());
            assert!(error.contains("belongs to user 65534"), "{error}");
            std::os::unix::fs::chown(&path, Some(0), None)?;
        }
        assert!(versions.current()?.is_some());
        Ok(())
    }

    #[test]
    fn set_current_keeps_new_versions() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let cache = Cache::at(dir.path());
        let versions = Versions::new(&cache, "kernels/one");
        for version in ["1", "2", "3", "4"] {
            versions.build(version, |path| Ok(fs::create_dir(path)?))?;
        }
        versions.set_current("4")?;
        assert!(versions.find("1")?.is_some());
        Ok(())
    }
}
