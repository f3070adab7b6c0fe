//! The cache directory: fetched kernels, unpacked images, QEMU, initramfs images.
//!
//! An entry is a file or a directory below the root of the cache, and never changes once it exists: it is built in
//! a private directory under `tmp/` and renamed. A reader therefore needs no lock, and a killed builder leaves only
//! its private directory. Builders of one entry exclude each other by a lock on a file under `locks/`, which the
//! kernel releases when the holder dies.
//!
//! Programs of the cache are executed, so another user must not be able to change it (module `gate`). A cache that
//! several users share belongs to root; the others only read it, and need no lock.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Access, AtFlags, CWD, OFlags, StatVfsMountFlags, accessat};

use crate::gate::{self, IfMissing};
use crate::notice::notice;

/// How long to wait for the holder of a lock. Fetching a kernel by a slow network takes some minutes.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// The cache directory. It is created by the first write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    root: PathBuf,
}

/// The lock on one entry, until dropped.
#[derive(Debug)]
#[must_use]
pub struct Lock {
    /// `None` in a cache that this process cannot change.
    _file: Option<File>,
}

type LockFile = fn(&File) -> io::Result<()>;

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
        let entry = self.entry(name);
        flat(name)?;
        self.check(name)?;
        if exists(&entry) {
            return Ok(entry);
        }
        self.check_writable().with_context(|| format!("`{}` is missing", entry.display()))?;
        let lock = self.lock(name)?;
        if !exists(&entry) {
            self.build_under(&lock, name, build)?;
        }
        Ok(entry)
    }

    /// Builds the entry `name`, which does not exist, under its lock.
    ///
    /// # Errors
    ///
    /// As for [`Cache::build_once`].
    pub(crate) fn build_under(
        &self,
        _lock: &Lock,
        name: &str,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let entry = self.entry(name);
        self.build_locked(&flat(name)?, &entry, build)
            .with_context(|| format!("failed to build `{}`", entry.display()))
    }

    /// Fails if another user of the machine could change the entry `name`, or create it.
    ///
    /// # Errors
    ///
    /// Names the file or directory, and what to do.
    pub(crate) fn check(&self, name: &str) -> Result<()> {
        self.pass_gate(Path::new(name), IfMissing::Stop)
    }

    /// Creates the directory `name` and its parents, which only this user can change.
    pub(super) fn create_dir(&self, name: &Path) -> Result<PathBuf> {
        self.pass_gate(name, IfMissing::Create)?;
        Ok(self.root.join(name))
    }

    fn pass_gate(&self, name: &Path, if_missing: IfMissing) -> Result<()> {
        let root = std::path::absolute(&self.root)?;
        gate::check(&root, if_missing)
            .and_then(|trusted| gate::check_below(&root, name, trusted, if_missing))
            .with_context(|| {
                format!(
                    "cannot use the cache `{}`: set KTSTR_CACHE_DIR to a directory that only you can change",
                    self.root.display()
                )
            })
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
    ///
    /// In a cache that this process cannot change, there is nothing to lock.
    ///
    /// # Errors
    ///
    /// If the lock cannot be opened, or the holder keeps it for half an hour.
    pub fn lock(&self, name: &str) -> Result<Lock> {
        self.lock_within(name, LOCK_TIMEOUT)
    }

    /// Takes the lock `name` without a message, shared with others that take it so, and returns whether it had to
    /// wait for one that does not share it.
    ///
    /// # Errors
    ///
    /// As for [`Cache::lock`].
    pub(crate) fn lock_shared(&self, name: &str) -> Result<(Lock, bool)> {
        let Some((path, file)) = self.open_lock(name)? else {
            return Ok((Lock { _file: None }, false));
        };
        let locked = file.try_lock_shared();
        let waits = matches!(locked, Err(TryLockError::WouldBlock));
        let locked = match locked {
            Err(TryLockError::WouldBlock) => {
                tracing::debug!("wait for the lock `{name}`");
                wait_for_lock(&file, File::lock_shared, LOCK_TIMEOUT)
            }
            locked => locked.map_err(io::Error::from),
        };
        locked.with_context(|| format!("failed to lock `{}`", path.display()))?;
        Ok((Lock { _file: Some(file) }, waits))
    }

    /// Takes the lock `name` if nothing holds it.
    ///
    /// # Errors
    ///
    /// If the lock cannot be opened.
    pub(crate) fn try_lock(&self, name: &str) -> Result<Option<Lock>> {
        let Some((path, file)) = self.open_lock(name)? else {
            return Ok(None);
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: Some(file) })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("failed to lock `{}`", path.display()))
            }
        }
    }

    /// Opens the file of a lock; `None` in a cache that this process cannot change.
    fn open_lock(&self, name: &str) -> Result<Option<(PathBuf, File)>> {
        let flat = flat(name)?;
        self.check("locks")?;
        if self.check_writable().is_err() {
            return Ok(None);
        }
        let path = self.create_dir(Path::new("locks"))?.join(flat);
        let file = open_lock(&path).with_context(|| {
            format!(
                "failed to open the lock `{}`; remove it, or set KTSTR_CACHE_DIR to use another directory",
                path.display()
            )
        })?;
        Ok(Some((path, file)))
    }

    fn lock_within(&self, name: &str, timeout: Duration) -> Result<Lock> {
        let Some((path, file)) = self.open_lock(name)? else {
            return Ok(Lock { _file: None });
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let holder = holder(&file);
                let root = self.root.display();
                notice(&format!("waiting for {holder} to finish `{name}` in {root} ..."));
                wait_for_lock(&file, File::lock, timeout).with_context(|| {
                    format!(
                        "failed to lock `{}`, held by {holder}; end that process, or set KTSTR_CACHE_DIR to \
                         use another directory",
                        path.display()
                    )
                })?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("failed to lock `{}`", path.display()));
            }
            Ok(()) => {}
        }
        // The pid is only for the messages above; the lock works without it.
        let pid = std::process::id().to_string();
        let _ = file.write_all_at(pid.as_bytes(), 0).and_then(|()| file.set_len(pid.len() as u64));
        Ok(Lock { _file: Some(file) })
    }

    /// Replaces the small file `name` atomically.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.entry(name);
        let dir = self.create_dir(Path::new(name).parent().unwrap_or(Path::new("")))?;
        let write = || -> io::Result<()> {
            // Readable for all; tempfile's default is readable for one user only.
            let mode = Permissions::from_mode(0o644);
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
        let work = self.create_dir(Path::new("tmp"))?.join(flat);
        // Under the lock, anything here was left by a killed builder.
        remove(&work)?;
        fs::create_dir(&work)?;
        // A fresh name inside: children of the killed builder may still write to the old one.
        let scratch = tempfile::tempdir_in(&work)?;
        let built = self.build_in(scratch.path(), entry, build);
        drop(scratch);
        let _ = fs::remove_dir(&work);
        built
    }

    /// Builds an entry in the directory `scratch`, and renames it.
    fn build_in(
        &self,
        scratch: &Path,
        entry: &Path,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let unfinished = scratch.join(entry.file_name().context("an entry has a name")?);
        build(&unfinished)?;
        ensure!(exists(&unfinished), "the build created nothing at `{}`", unfinished.display());
        restrict(&unfinished)?;
        let parent = entry.strip_prefix(&self.root)?.parent().unwrap_or(Path::new(""));
        self.create_dir(parent)?;
        fs::rename(&unfinished, entry)?;
        Ok(())
    }
}

/// Opens the file of a lock, which only its owner can open: a user with a descriptor could hold the lock forever.
fn open_lock(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // No link is followed, and a pipe does not block.
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.nlink() != 1 {
        return Err(io::Error::other("not a regular file with one name"));
    }
    if meta.mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// Waits until the holder releases the lock, and takes it.
fn wait_for_lock(file: &File, lock: LockFile, timeout: Duration) -> io::Result<()> {
    let (done, locked) = mpsc::channel();
    let waiting = file.try_clone()?;
    // The kernel has no `flock` with a timeout. After a timeout the thread stays, and takes a lock that its
    // descriptor releases at once.
    std::thread::spawn(move || {
        let taken = lock(&waiting);
        // Before the result is sent, because the lock is held until all descriptors are closed.
        drop(waiting);
        drop(done.send(taken));
    });
    locked.recv_timeout(timeout).unwrap_or_else(|_| {
        let why = format!("it was not released for {} seconds", timeout.as_secs());
        Err(io::Error::new(ErrorKind::TimedOut, why))
    })
}

/// Withdraws the permission to write from all users but the owner, and setuid and setgid bits, because nothing of the
/// cache is meant to run as another user. Links are not followed.
pub(super) fn restrict(path: &Path) -> Result<()> {
    let context = || format!("failed to restrict `{}`", path.display());
    let meta = fs::symlink_metadata(path).with_context(context)?;
    if meta.is_symlink() {
        return Ok(());
    }
    if meta.mode() & 0o7022 != 0 {
        let mode = Permissions::from_mode(meta.mode() & 0o755);
        fs::set_permissions(path, mode).with_context(context)?;
    }
    if meta.is_dir() {
        for entry in fs::read_dir(path).with_context(context)? {
            restrict(&entry.with_context(context)?.path())?;
        }
    }
    Ok(())
}

/// Removes a file, or a directory with its content, if it exists.
pub(crate) fn remove(path: &Path) -> Result<()> {
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
    fn files_are_readable_for_all_and_locks_for_the_owner() -> Result<()> {
        let (dir, cache) = cache()?;
        let mode =
            |path: &Path| Ok::<_, io::Error>(fs::metadata(path)?.permissions().mode() & 0o777);
        fs::write(dir.path().join("any"), "")?;
        let any = mode(&dir.path().join("any"))?;
        cache.write("a/current", b"one")?;
        cache.build_once("a/file", |path| Ok(fs::write(path, "")?))?;
        assert_eq!(any & !0o022, 0o644, "the umask of the test");
        for (name, want) in
            [("a/current", 0o644), ("a/file", 0o644), ("locks/a,file", 0o600), ("a", 0o755)]
        {
            assert_eq!(mode(&cache.entry(name))?, want, "{name}");
        }
        Ok(())
    }

    #[test]
    fn lock_does_not_follow_links() -> Result<()> {
        let (dir, cache) = cache()?;
        drop(cache.lock("other")?);
        let precious = dir.path().join("authorized_keys");
        fs::write(&precious, "ssh-ed25519")?;
        std::os::unix::fs::symlink(&precious, cache.entry("locks/symbolic"))?;
        fs::hard_link(&precious, cache.entry("locks/hard"))?;
        rustix::fs::mkfifoat(CWD, cache.entry("locks/pipe"), rustix::fs::Mode::RWXU)?;
        for name in ["symbolic", "hard", "pipe"] {
            let error = format!("{:#}", cache.lock(name).unwrap_err());
            assert!(error.contains(&format!("locks/{name}`; remove it")), "{error}");
        }
        assert_eq!(fs::read_to_string(&precious)?, "ssh-ed25519");
        Ok(())
    }

    #[test]
    fn lock_names_a_holder_that_keeps_it() -> Result<()> {
        let (_dir, cache) = cache()?;
        let held = cache.lock("one/two")?;
        let error = cache.lock_within("one/two", Duration::from_millis(10)).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains("held by another test of this process; end that"), "{error}");
        assert!(error.contains("not released"), "{error}");
        drop(held);
        drop(cache.lock_within("one/two", Duration::from_secs(60))?);
        Ok(())
    }

    #[test]
    fn cache_that_others_can_change_is_not_used() -> Result<()> {
        let (_dir, cache) = cache()?;
        let entry = cache.build_once("kind/entry", |path| Ok(fs::create_dir(path)?))?;
        let refused = |what: &str, result: Result<()>| {
            let error = format!("{:#}", result.err().unwrap_or_else(|| panic!("{what}")));
            assert!(error.contains("set KTSTR_CACHE_DIR to a directory that only you"), "{error}");
        };
        let use_all = |what: &str| {
            refused(what, cache.build_once("kind/entry", |_| bail!("built")).map(drop));
            refused(what, cache.build_once("kind/new", |path| Ok(fs::write(path, "")?)).map(drop));
            refused(what, cache.check("kind/entry"));
        };
        for path in [cache.root().to_owned(), cache.entry("kind")] {
            fs::set_permissions(&path, Permissions::from_mode(0o777))?;
            use_all("a directory of all users was used");
            refused("a file was written", cache.write("kind/file", b""));
            fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        }
        // A link in the place of an entry or of a directory of entries.
        fs::rename(&entry, cache.entry("moved"))?;
        std::os::unix::fs::symlink(cache.entry("moved"), &entry)?;
        refused("a link was used", cache.check("kind/entry"));
        refused("a link was used", cache.build_once("kind/entry", |_| bail!("built")).map(drop));
        Ok(())
    }

    #[test]
    fn build_once_withdraws_the_permissions_of_others() -> Result<()> {
        let (_dir, cache) = cache()?;
        let entry = cache.build_once("entry", |path| {
            fs::create_dir(path)?;
            fs::write(path.join("file"), "")?;
            std::os::unix::fs::symlink("/", path.join("link"))?;
            // As programs of packages have them.
            fs::set_permissions(path.join("file"), Permissions::from_mode(0o6777))?;
            Ok(fs::set_permissions(path, Permissions::from_mode(0o775))?)
        })?;
        for path in [entry.join("file"), entry] {
            assert_eq!(fs::metadata(&path)?.mode() & 0o7777, 0o755, "{}", path.display());
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
