//! The cache directory: fetched kernels, unpacked images, QEMU, initramfs images.
//!
//! An entry is a file or a directory below the root of the cache, and never changes once it exists: it is built in
//! a private directory under `tmp/` and renamed. A reader therefore needs no lock, and a killed builder leaves only
//! its private directory. Builders of one entry exclude each other by a lock on a file under `locks/`, which the
//! kernel releases when the holder dies.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Access, AtFlags, CWD, StatVfsMountFlags, accessat};

use crate::notice::notice;

/// The cache directory. It is created by the first write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    root: PathBuf,
}

/// The lock on one entry, until dropped.
#[derive(Debug)]
#[must_use]
pub struct Lock {
    _file: File,
}

impl Cache {
    /// Finds the cache directory: `KTSTR_CACHE_DIR`, `$XDG_CACHE_HOME/ktstr` or `~/.cache/ktstr`.
    ///
    /// # Errors
    ///
    /// If none of the three variables names a directory.
    pub fn from_env() -> Result<Self> {
        let root = root_from(|name| env::var_os(name).filter(|value| !value.is_empty()))?;
        Ok(Self { root: std::path::absolute(root)? })
    }

    /// Uses `root` as the cache directory.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Returns the cache directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of the entry `name`, whether it exists or not.
    pub fn entry(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Returns the entry `name`; calls `build` to create it if it does not exist.
    ///
    /// `name` is a relative path of plain characters. `build` receives the path at which to create a file or a
    /// directory. If several processes call this at once, one builds and the others wait. A finished entry needs
    /// one `stat` and no lock, so a read-only cache is sufficient.
    ///
    /// # Errors
    ///
    /// The errors of `build`, after which the entry does not exist, and of the file system.
    pub fn build_once(
        &self,
        name: &str,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let flat = flat(name)?;
        let entry = self.entry(name);
        if exists(&entry) {
            return Ok(entry);
        }
        self.check_writable().with_context(|| format!("`{}` is missing", entry.display()))?;
        let _lock = self.lock(name)?;
        if !exists(&entry) {
            self.build_locked(&flat, &entry, build)
                .with_context(|| format!("failed to build `{}`", entry.display()))?;
        }
        Ok(entry)
    }

    /// Fails if this process cannot add entries: the cache belongs to another user, or its file system is mounted
    /// read-only.
    ///
    /// # Errors
    ///
    /// Names the directory that cannot be written, and what to do.
    pub fn check_writable(&self) -> Result<()> {
        let root = self.root.ancestors().find(|dir| exists(dir)).unwrap_or(&self.root);
        let parts = ["locks", "tmp"].map(|part| self.entry(part));
        let parts = parts.iter().map(PathBuf::as_path).filter(|part| exists(part));
        for dir in std::iter::once(root).chain(parts) {
            // EACCESS: with the rights of the effective user, as a write would be checked.
            let checked = accessat(CWD, dir, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
            checked.map_err(io::Error::from).with_context(|| {
                format!(
                    "cannot add to the cache `{}`: no permission to write to `{}`; let its owner run \
                     the same test once, or set KTSTR_CACHE_DIR to a directory of your own",
                    self.root.display(),
                    dir.display()
                )
            })?;
        }
        Ok(())
    }

    /// Fails if programs of the cache cannot be run: its file system is mounted `noexec`.
    ///
    /// # Errors
    ///
    /// Names the cache and what to do.
    pub fn check_exec(&self) -> Result<()> {
        let dir = self.root.ancestors().find(|dir| exists(dir)).unwrap_or(&self.root);
        let mounted = rustix::fs::statvfs(dir);
        let is_noexec =
            mounted.is_ok_and(|mounted| mounted.f_flag.contains(StatVfsMountFlags::NOEXEC));
        ensure!(
            !is_noexec,
            "cannot execute programs in the cache `{}`: its file system is mounted `noexec`; set \
             KTSTR_CACHE_DIR to a directory on another file system, or install the program",
            self.root.display()
        );
        Ok(())
    }

    /// Takes the lock `name`. Prints a message before waiting for its holder.
    pub fn lock(&self, name: &str) -> Result<Lock> {
        let path = self.entry("locks").join(flat(name)?);
        let mut file = self.open_lock(&path).with_context(|| {
            format!(
                "failed to open the lock `{}`; set KTSTR_CACHE_DIR to use another directory",
                path.display()
            )
        })?;
        let locked = match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                notice(&format!(
                    "waiting for {} to finish `{name}` in {} ...",
                    holder(&mut file),
                    self.root.display()
                ));
                file.lock()
            }
            Err(TryLockError::Error(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        locked.with_context(|| format!("failed to lock `{}`", path.display()))?;
        // The pid is only for the message above; the lock works without it.
        let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
        Ok(Lock { _file: file })
    }

    /// Replaces the small file `name` atomically.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.entry(name);
        let write = || -> io::Result<()> {
            let dir = path.parent().unwrap_or(&self.root);
            fs::create_dir_all(dir)?;
            // As for any new file; tempfile's default is readable for one user only.
            let mode = Permissions::from_mode(0o666);
            let mut file = tempfile::Builder::new().permissions(mode).tempfile_in(dir)?;
            file.write_all(bytes)?;
            file.persist(&path)?;
            Ok(())
        };
        write().with_context(|| format!("failed to write `{}`", path.display()))
    }

    fn build_locked(
        &self,
        flat: &str,
        entry: &Path,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let work = self.entry("tmp").join(flat);
        // Under the lock, anything here was left by a killed builder.
        remove(&work)?;
        fs::create_dir_all(&work)?;
        // A fresh name inside: children of the killed builder may still write to the old one.
        let scratch = tempfile::tempdir_in(&work)?;
        let unfinished = scratch.path().join(entry.file_name().context("an entry has a name")?);
        build(&unfinished)?;
        ensure!(exists(&unfinished), "the build created nothing at `{}`", unfinished.display());
        fs::create_dir_all(entry.parent().unwrap_or(&self.root))?;
        fs::rename(&unfinished, entry)?;
        drop(scratch);
        let _ = fs::remove_dir(&work);
        Ok(())
    }

    fn open_lock(&self, path: &Path) -> io::Result<File> {
        fs::create_dir_all(path.parent().unwrap_or(&self.root))?;
        let all = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        match all {
            // The file of another user: locking needs no write access.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                File::open(path)
            }
            opened => opened,
        }
    }
}

/// Removes a file, or a directory with its content, if it exists.
pub(super) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove `{}`", path.display()))
        }
        _ => Ok(()),
    }
}

fn root_from(var: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    if let Some(root) = var("KTSTR_CACHE_DIR") {
        return Ok(root.into());
    }
    // XDG Base Directory Specification 0.8: a relative path is invalid and to be ignored.
    let xdg = var("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    match xdg.or_else(|| var("HOME").map(|home| Path::new(&home).join(".cache"))) {
        Some(caches) => Ok(caches.join("ktstr")),
        None => bail!("no cache directory: neither KTSTR_CACHE_DIR nor HOME is set"),
    }
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Makes one file name from the name of an entry. Names cannot contain `,`, so the result is unique.
fn flat(name: &str) -> Result<String> {
    let plain = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._+~-".contains(&byte))
    };
    ensure!(name.split('/').all(plain), "`{name}` cannot name a cache entry");
    Ok(name.replace('/', ","))
}

/// Describes the holder of a lock by the pid that it wrote into the file.
fn holder(mut file: impl Read) -> String {
    let mut pid = String::new();
    match file.read_to_string(&mut pid) {
        Ok(1..) if pid == std::process::id().to_string() => {
            "another test of this process".to_owned()
        }
        Ok(1..) => format!("process {pid}"),
        _ => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn cache() -> Result<(tempfile::TempDir, Cache)> {
        let dir = tempfile::tempdir()?;
        let cache = Cache::at(dir.path().join("cache"));
        Ok((dir, cache))
    }

    #[test]
    fn holder_of_a_lock_may_be_this_process() {
        let own = std::process::id().to_string();
        for (content, name) in
            [("1", "process 1"), ("", "another process"), (&*own, "another test of this process")]
        {
            assert_eq!(holder(content.as_bytes()), name);
        }
    }

    #[test]
    fn root_from_follows_the_variables() {
        for (ktstr, xdg, home, want) in [
            (Some("/k"), Some("/x"), Some("/h"), Some("/k")),
            (None, Some("/x"), Some("/h"), Some("/x/ktstr")),
            (None, Some("x"), Some("/h"), Some("/h/.cache/ktstr")),
            (None, None, Some("/h"), Some("/h/.cache/ktstr")),
            (None, Some("x"), None, None),
        ] {
            let var = |name: &str| match name {
                "KTSTR_CACHE_DIR" => ktstr.map(OsString::from),
                "XDG_CACHE_HOME" => xdg.map(OsString::from),
                _ => home.map(OsString::from),
            };
            assert_eq!(root_from(var).ok(), want.map(PathBuf::from), "{ktstr:?} {xdg:?} {home:?}");
        }
        let error = root_from(|_| None).unwrap_err().to_string();
        assert!(error.contains("KTSTR_CACHE_DIR") && error.contains("HOME"), "{error}");
    }

    #[test]
    fn build_once_builds_files_and_directories_once() -> Result<()> {
        let (_dir, cache) = cache()?;
        let file = cache.build_once("a/file", |path| Ok(fs::write(path, "first")?))?;
        cache.build_once("a/file", |_| bail!("built twice"))?;
        assert_eq!(fs::read_to_string(file)?, "first");
        let dir = cache.build_once("dir", |path| Ok(fs::create_dir(path)?))?;
        assert!(dir.is_dir());
        assert_eq!(fs::read_dir(cache.entry("tmp"))?.count(), 0);
        Ok(())
    }

    #[test]
    fn build_once_excludes_other_threads() -> Result<()> {
        let (_dir, cache) = cache()?;
        let builds = AtomicUsize::new(0);
        let build = |path: &Path| {
            builds.fetch_add(1, Ordering::SeqCst);
            fs::create_dir(path)?;
            thread::sleep(Duration::from_millis(50));
            Ok(fs::write(path.join("last"), "done")?)
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let entry = cache.build_once("slow", build).unwrap();
                    assert_eq!(fs::read_to_string(entry.join("last")).unwrap(), "done");
                });
            }
        });
        assert_eq!(builds.into_inner(), 1);
        Ok(())
    }

    #[test]
    fn build_once_leaves_nothing_after_a_failure() -> Result<()> {
        let (_dir, cache) = cache()?;
        let failed = cache.build_once("entry", |path| {
            fs::write(path, "half")?;
            bail!("the disk is full")
        });
        assert!(format!("{:#}", failed.unwrap_err()).ends_with("the disk is full"));
        assert!(cache.build_once("entry", |_| Ok(())).is_err(), "built nothing");
        assert!(!cache.entry("entry").exists());
        cache.build_once("entry", |path| Ok(fs::write(path, "whole")?))?;
        Ok(())
    }

    #[test]
    fn build_once_removes_remains_of_a_killed_builder() -> Result<()> {
        let (_dir, cache) = cache()?;
        let stale = cache.entry("tmp/kernels,one/.tmpAbC/one");
        let other = cache.entry("tmp/kernels,one.two/.tmpAbC/one.two");
        for dir in [&stale, &other] {
            fs::create_dir_all(dir)?;
        }
        let entry = cache.build_once("kernels/one", |path| Ok(fs::create_dir(path)?))?;
        assert!(entry.is_dir() && !stale.exists());
        assert!(other.exists(), "the directory of another builder was removed");
        Ok(())
    }

    #[test]
    fn build_once_refuses_names_outside_of_the_cache() {
        let cache = Cache::at("/nonexistent");
        for name in ["", "/etc", "a/../b", "a//b", "a,b", "a b"] {
            assert!(cache.build_once(name, |_| Ok(())).is_err(), "{name:?}");
        }
    }

    /// In tests/cache.rs, another user reads such files.
    #[test]
    fn write_creates_files_with_the_default_mode() -> Result<()> {
        let (dir, cache) = cache()?;
        let mode =
            |path: &Path| Ok::<_, io::Error>(fs::metadata(path)?.permissions().mode() & 0o777);
        fs::write(dir.path().join("any"), "")?;
        let any = mode(&dir.path().join("any"))?;
        cache.write("a/current", b"one")?;
        cache.build_once("a/file", |path| Ok(fs::write(path, "")?))?;
        for name in ["a/current", "a/file", "locks/a,file"] {
            assert_eq!(mode(&cache.entry(name))?, any, "{name}");
        }
        Ok(())
    }

    #[test]
    fn write_replaces_a_file() -> Result<()> {
        let (_dir, cache) = cache()?;
        cache.write("a/current", b"one")?;
        cache.write("a/current", b"two")?;
        assert_eq!(fs::read(cache.entry("a/current"))?, b"two");
        assert_eq!(fs::read_dir(cache.entry("a"))?.count(), 1);
        Ok(())
    }
}
