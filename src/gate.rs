//! Checks that no other user of the machine can change a directory.
//!
//! The programs and kernels of the cache are executed, locks and artifacts are written. If another user could
//! replace one of these directories or a file in them, this process would execute files of the other user, or write
//! through a link into a file that the other user has chosen. So every directory on the path is checked. If all of
//! them pass, only trusted users can change what the path leads to, and it can be used by name.
//!
//! Trusted are the user of this process, root, and below the home directory its owner. Where `HOME` belongs to
//! another user, as in containers of CI systems and under `sudo -E`, that user's files are executed anyway: Cargo
//! reads `~/.cargo/config.toml`, which names compilers and runners. But it must be a home directory: in a directory of
//! all users such as `/tmp`, anyone could have created it.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, mkdirat, openat, readlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;

/// The number of symbolic links that the kernel follows in one path.
const MAX_LINKS: usize = 40;

/// Why a path is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("`{}` belongs to user {uid}, so its content is not trusted", path.display())]
    Owner { path: PathBuf, uid: u32 },
    #[error(
        "`{}` can be changed by other users (mode {mode:o}); run `chmod go-w`, after a look at its content",
        path.display()
    )]
    Writable { path: PathBuf, mode: u32 },
    #[error(
        "`{}` has mode {mode:o}: in a directory of all users, it must be a private directory (700)",
        path.display()
    )]
    NotPrivate { path: PathBuf, mode: u32 },
    #[error("`{}` is a symbolic link, which is not followed here", path.display())]
    Link { path: PathBuf },
    #[error("failed to open `{}`", path.display())]
    Open { path: PathBuf, source: io::Error },
}

/// The users that are trusted with a path.
#[derive(Debug, Clone)]
pub(crate) struct Trusted {
    users: Vec<u32>,
    /// The uid that files of all unknown users have, in a user namespace. The machine's root is one of them, so
    /// such a user is trusted with the parent directories of a path, but not with what it leads to.
    overflow: Option<u32>,
}

impl Trusted {
    /// Returns the user of this process, and root.
    pub(crate) fn own() -> Self {
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let is_initial = map.split_whitespace().eq(["0", "0", "4294967295"]);
        let overflow = || fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
        let overflow = (!is_initial && !map.is_empty()).then(overflow).flatten();
        let overflow = overflow.and_then(|uid| uid.trim().parse().ok());
        Self { users: vec![geteuid().as_raw(), 0], overflow }
    }

    /// Adds the owner of a directory.
    pub(crate) fn and_owner_of(mut self, directory: &Path) -> Self {
        self.users.extend(fs::metadata(directory).map(|meta| meta.uid()));
        self
    }

    fn includes(&self, uid: u32) -> bool {
        self.users.contains(&uid) || self.is_unknown(uid)
    }

    fn is_unknown(&self, uid: u32) -> bool {
        self.overflow == Some(uid)
    }
}

/// Device and inode of a directory.
type DirectoryId = (u64, u64);

/// Returns the home directory of this process, if there is one.
fn home() -> Option<DirectoryId> {
    let home = std::env::var_os("HOME").filter(|home| Path::new(home).is_absolute())?;
    fs::metadata(home).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// What to do with a directory that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IfMissing {
    /// Stop there, without an error: nothing exists that another user could have created.
    Stop,
    /// Create it.
    Create,
}

/// Checks every component of an absolute path, and follows only links that a trusted user has made. Returns the
/// users that can change what it leads to.
///
/// # Errors
///
/// If another user can change any of it.
pub(crate) fn check(path: &Path, if_missing: IfMissing) -> Result<Trusted, Error> {
    check_as(Trusted::own(), home(), path, if_missing)
}

fn check_as(
    trusted: Trusted,
    home: Option<DirectoryId>,
    path: &Path,
    if_missing: IfMissing,
) -> Result<Trusted, Error> {
    let (fd, root) = (open_root()?, PathBuf::from("/"));
    let mut walk = Walk { fd, path: root, trusted, home, follows: true, is_shared: false };
    walk.is_shared = walk.examine_root()?;
    walk.run(path, if_missing)
}

/// Checks every component of `path`, which is relative to the directory `base`, and follows no link. The content
/// of `base` is the caller's choice: only what is below it is checked.
///
/// # Errors
///
/// As for [`check`].
pub(crate) fn check_below(
    base: &Path,
    path: &Path,
    trusted: Trusted,
    if_missing: IfMissing,
) -> Result<(), Error> {
    let root = match openat(CWD, base, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) if if_missing == IfMissing::Stop => return Ok(()),
        root => root.map_err(|source| open_error(base, source))?,
    };
    let (path_of_base, home) = (base.to_owned(), None);
    let walk =
        Walk { fd: root, path: path_of_base, trusted, home, follows: false, is_shared: false };
    walk.run(path, if_missing).map(drop)
}

fn open_root() -> Result<OwnedFd, Error> {
    openat(CWD, "/", DIRECTORY, Mode::empty()).map_err(|source| open_error(Path::new("/"), source))
}

/// For descriptors that only name a file, so that no permission to read it is needed.
const NAME: OFlags = OFlags::PATH.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::CLOEXEC).union(OFlags::DIRECTORY);

/// The directory at which a walk along a path has arrived.
struct Walk {
    fd: OwnedFd,
    path: PathBuf,
    trusted: Trusted,
    /// The directory whose owner is trusted with what is below it.
    home: Option<DirectoryId>,
    follows: bool,
    /// Whether all users can create files here, which only their owners can replace (sticky bit).
    is_shared: bool,
}

impl Walk {
    fn examine_root(&self) -> Result<bool, Error> {
        let stat = fstat(&self.fd).map_err(|source| open_error(&self.path, source))?;
        examine(&self.path, &stat, &self.trusted, false)
    }

    fn run(mut self, path: &Path, if_missing: IfMissing) -> Result<Trusted, Error> {
        let mut todo: VecDeque<OsString> = names(path).collect();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            let path = self.path.join(&name);
            let mut opened = openat(&self.fd, &name, NAME, Mode::empty());
            if opened.as_ref().is_err_and(|error| *error == Errno::NOENT) {
                if if_missing == IfMissing::Stop {
                    return Ok(self.trusted);
                }
                self.create(&name).map_err(|source| open_error(&path, source))?;
                opened = openat(&self.fd, &name, NAME, Mode::empty());
            }
            let fd = opened.map_err(|source| open_error(&path, source))?;
            let stat = fstat(&fd).map_err(|source| open_error(&path, source))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => {
                    self.may_follow(&path, &stat)?;
                    links += 1;
                    let target =
                        readlinkat(&fd, "", Vec::new()).map_err(|source| open_error(&path, source));
                    let target = PathBuf::from(OsStr::from_bytes(target?.to_bytes()));
                    if links > MAX_LINKS {
                        return Err(open_error(&path, Errno::LOOP));
                    }
                    if target.is_absolute() {
                        (self.fd, self.path) = (open_root()?, PathBuf::from("/"));
                        self.is_shared = self.examine_root()?;
                    }
                    names(&target).rev().for_each(|name| todo.push_front(name));
                }
                FileType::Directory => {
                    let is_parent = name == "..";
                    self.trust_owner_of_home(&stat);
                    let is_shared =
                        examine(&path, &stat, &self.trusted, self.is_shared && !is_parent)?;
                    if todo.is_empty() {
                        self.examine_last(&path, &stat)?;
                        if is_shared {
                            return Err(Error::Writable { path, mode: stat.st_mode & 0o7777 });
                        }
                    }
                    (self.fd, self.path, self.is_shared) = (fd, path, is_shared);
                }
                _ if todo.is_empty() && if_missing == IfMissing::Stop => {
                    examine(&path, &stat, &self.trusted, false)?;
                    self.examine_last(&path, &stat)?;
                }
                _ => return Err(open_error(&path, Errno::NOTDIR)),
            }
        }
        Ok(self.trusted)
    }

    /// Trusts the owner of the home directory from here on, if only trusted users could have created it.
    fn trust_owner_of_home(&mut self, stat: &Stat) {
        let is_home = self.home == Some((stat.st_dev, stat.st_ino));
        if is_home && !self.is_shared && !self.trusted.is_unknown(stat.st_uid) {
            self.trusted.users.push(stat.st_uid);
        }
    }

    fn examine_last(&self, path: &Path, stat: &Stat) -> Result<(), Error> {
        match self.trusted.is_unknown(stat.st_uid) {
            false => Ok(()),
            true => Err(Error::Owner { path: path.to_owned(), uid: stat.st_uid }),
        }
    }

    fn create(&self, name: &OsStr) -> Result<(), Errno> {
        let is_private = self.is_shared && !geteuid().is_root();
        let mode = if is_private { Mode::RWXU } else { Mode::from_raw_mode(0o755) };
        match mkdirat(&self.fd, name, mode) {
            // Another process has created it in the meantime.
            Err(Errno::EXIST) => Ok(()),
            created => created,
        }
    }

    fn may_follow(&self, path: &Path, stat: &Stat) -> Result<(), Error> {
        let path = path.to_owned();
        if !self.follows {
            return Err(Error::Link { path });
        }
        match self.trusted.includes(stat.st_uid) {
            true => Ok(()),
            false => Err(Error::Owner { path, uid: stat.st_uid }),
        }
    }
}

/// Examines a directory or file. Returns whether it is a directory in which all users can create files, such as
/// `/tmp`, where they cannot replace those of others.
fn examine(path: &Path, stat: &Stat, trusted: &Trusted, is_in_shared: bool) -> Result<bool, Error> {
    let (uid, gid, mode) = (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777);
    let path = || path.to_owned();
    if !trusted.includes(uid) {
        return Err(Error::Owner { path: path(), uid });
    }
    // In a shared directory, those of root may be used by all users, those of others must be private: after a
    // cleanup of `/tmp`, another user could create one of the same name.
    if is_in_shared && uid != 0 && mode & 0o077 != 0 {
        return Err(Error::NotPrivate { path: path(), mode });
    }
    // The group of root, or the private group of a user, which has the same number as the user.
    let is_private_group = gid == 0 || (gid == uid && !trusted.is_unknown(uid));
    let is_writable = mode & 0o002 != 0 || (mode & 0o020 != 0 && !is_private_group);
    let is_sticky = mode & 0o1000 != 0 && FileType::from_raw_mode(stat.st_mode).is_dir();
    match (is_writable, is_sticky) {
        (true, false) => Err(Error::Writable { path: path(), mode }),
        (is_shared, _) => Ok(is_shared),
    }
}

fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    let components = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    components.collect::<Vec<_>>().into_iter()
}

fn open_error(path: &Path, source: Errno) -> Error {
    Error::Open { path: path.to_owned(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn with_mode(path: PathBuf, mode: u32) -> PathBuf {
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn error(path: &Path) -> String {
        check(path, IfMissing::Create).unwrap_err().to_string()
    }

    #[test]
    fn examine_trusts_owners_and_modes() {
        let trusted = Trusted { users: vec![1000, 0], overflow: Some(65534) };
        let directory = |uid, gid, mode: u32| {
            let mut stat = fstat(fs::File::open("/").unwrap()).unwrap();
            (stat.st_uid, stat.st_gid, stat.st_mode) = (uid, gid, 0o040_000 | mode);
            stat
        };
        for (uid, gid, mode, is_in_shared, want) in [
            (0, 0, 0o755, false, "private"),
            (1000, 1000, 0o775, false, "private"),
            (0, 0, 0o1777, false, "shared"),
            (0, 0, 0o755, true, "private"),
            (1000, 100, 0o700, true, "private"),
            (1000, 100, 0o755, true, "must be a private directory"),
            (1000, 100, 0o775, false, "can be changed by other users (mode 775)"),
            (1000, 1000, 0o777, false, "can be changed by other users (mode 777)"),
            (65534, 65534, 0o755, false, "private"),
            (65534, 65534, 0o775, false, "can be changed by other users (mode 775)"),
            (1001, 1001, 0o700, false, "belongs to user 1001"),
            (1001, 1001, 0o700, true, "belongs to user 1001"),
        ] {
            let examined =
                examine(Path::new("/d"), &directory(uid, gid, mode), &trusted, is_in_shared);
            let examined = match examined {
                Ok(is_shared) => if is_shared { "shared" } else { "private" }.to_owned(),
                Err(error) => error.to_string(),
            };
            assert!(examined.contains(want), "{uid} {mode:o} {is_in_shared}: {examined}");
        }
    }

    #[test]
    fn check_refuses_paths_that_others_can_change() {
        let root = tempfile::tempdir().unwrap();
        let open = with_mode(root.path().join("open"), 0o777);
        let sticky = with_mode(root.path().join("sticky"), 0o1777);
        assert!(error(&open).contains("mode 777"), "{}", error(&open));
        assert!(error(&open.join("below/it")).contains("mode 777"));
        assert!(error(&sticky).contains("mode 1777"));
        check(&sticky.join("below/it"), IfMissing::Create).unwrap();
        assert!(sticky.join("below/it").is_dir());
        // A file of others is as bad as a directory.
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        check(&file, IfMissing::Stop).unwrap();
        assert!(error(&file).contains("failed to open"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(check(&file, IfMissing::Stop).unwrap_err().to_string().contains("mode 666"));
        check(&root.path().join("nothing/here"), IfMissing::Stop).unwrap();
        assert!(!root.path().join("nothing").exists());
    }

    #[test]
    fn check_follows_links_of_trusted_users_and_check_below_none() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("real")).unwrap();
        symlink("real/../real", root.path().join("link")).unwrap();
        symlink(root.path().join("link"), root.path().join("absolute")).unwrap();
        symlink("circle", root.path().join("circle")).unwrap();
        check(&root.path().join("absolute/new"), IfMissing::Create).unwrap();
        assert!(root.path().join("real/new").is_dir());
        assert!(error(&root.path().join("circle/new")).contains("failed to open"));
        let below =
            |path| check_below(root.path(), Path::new(path), Trusted::own(), IfMissing::Create);
        below("real/other").unwrap();
        let error = below("link/other").unwrap_err().to_string();
        assert!(error.ends_with("link` is a symbolic link, which is not followed here"), "{error}");
        let open = with_mode(root.path().join("open"), 0o777);
        symlink("../real", open.join("link")).unwrap();
        assert!(super::check(&open.join("link"), IfMissing::Stop).is_err());
    }

    /// Only root can give files away.
    #[test]
    fn check_refuses_files_of_other_users() {
        if !geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let foreign = with_mode(root.path().join("foreign"), 0o700);
        symlink("foreign", root.path().join("link")).unwrap();
        std::os::unix::fs::chown(&foreign, Some(65534), None).unwrap();
        std::os::unix::fs::lchown(root.path().join("link"), Some(65534), None).unwrap();
        for path in [&foreign, &root.path().join("link"), &foreign.join("below")] {
            assert!(error(path).contains("belongs to user 65534"), "{}", error(path));
        }
        let trusted = Trusted::own().and_owner_of(&foreign);
        check_below(root.path(), Path::new("foreign/below"), trusted, IfMissing::Create).unwrap();
    }

    /// Home directories as CI systems and `sudo` have them. Only root can create these.
    #[test]
    fn check_trusts_the_owner_of_the_home_directory_below_it() {
        if !geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        const RUNNER: u32 = 1001;
        const OTHER: u32 = 1002;
        const UNKNOWN: u32 = 65534;
        // Own uid, directories with owner and mode, home directory, and the error; the cache is `home/.cache/ktstr`.
        type Case<'a> = (&'a str, u32, &'a [(&'a str, u32, u32)], Option<&'a str>, &'a str);
        let runner_home = [("home", RUNNER, 0o755)];
        let used_home = [
            ("home", RUNNER, 0o755),
            ("home/.cache", RUNNER, 0o755),
            ("home/.cache/ktstr", RUNNER, 0o755),
        ];
        let mixed_home = [("home", RUNNER, 0o755), ("home/.cache", OTHER, 0o755)];
        let cases: [Case<'_>; 11] = [
            ("a user at home", RUNNER, &[("home", RUNNER, 0o700)], Some("home"), ""),
            ("root of a container in the home of the runner", 0, &runner_home, Some("home"), ""),
            ("the same, with files that the runner has restored", 0, &used_home, Some("home"), ""),
            (
                "any uid with the group of root",
                100_066,
                &[("home", RUNNER, 0o775)],
                Some("home"),
                "",
            ),
            ("a cache in the home of another user", 0, &runner_home, None, "to user 1001"),
            ("a home that is elsewhere", 0, &used_home, Some("."), "to user 1001"),
            ("a third user at home", 0, &mixed_home, Some("home"), "to user 1002"),
            ("a home for all", 0, &[("home", RUNNER, 0o777)], Some("home"), "mode 777"),
            (
                "a home that anyone may have created",
                0,
                &[(".", 0, 0o1777), ("home", RUNNER, 0o755)],
                Some("home"),
                "to user 1001",
            ),
            (
                "a home that another user can replace",
                0,
                &[(".", OTHER, 0o755), ("home", RUNNER, 0o755)],
                Some("home"),
                "to user 1002",
            ),
            ("a home of unknown users", 0, &[("home", UNKNOWN, 0o755)], Some("home"), ""),
        ];
        for (what, own, directories, home, want) in cases {
            let root = tempfile::tempdir().unwrap();
            let top = root.path().join("top");
            fs::create_dir(&top).unwrap();
            for (name, uid, mode) in directories {
                let path = top.join(name);
                fs::create_dir_all(&path).unwrap();
                std::os::unix::fs::chown(&path, Some(*uid), Some(0)).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
            }
            let home = home.map(|home| fs::metadata(top.join(home)).unwrap());
            let home = home.map(|meta| (meta.dev(), meta.ino()));
            let trusted = Trusted { users: vec![own, 0], overflow: Some(UNKNOWN) };
            let cache = top.join("home/.cache/ktstr");
            let checked = check_as(trusted, home, &cache, IfMissing::Create);
            let error = checked.as_ref().err().map(Error::to_string).unwrap_or_default();
            assert!(error.contains(want) && error.is_empty() == want.is_empty(), "{what}: {error}");
            // What was created is of trusted users, and so is what they add.
            if let Ok(trusted) = checked {
                check_below(&cache, Path::new("new"), trusted, IfMissing::Create).unwrap();
            }
        }
    }

    #[test]
    fn check_trusts_unknown_users_with_parent_directories_only() {
        if !geteuid().is_root() {
            eprintln!("skipped: not root");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let of_unknown = with_mode(root.path().join("unknown"), 0o755);
        fs::create_dir(of_unknown.join("own")).unwrap();
        std::os::unix::fs::chown(&of_unknown, Some(65534), None).unwrap();
        let trusted = Trusted { users: vec![0], overflow: Some(65534) };
        let check = |path: &Path| check_as(trusted.clone(), None, path, IfMissing::Stop);
        check(&of_unknown.join("own")).unwrap();
        let error = check(&of_unknown).unwrap_err().to_string();
        assert!(error.contains("belongs to user 65534"), "{error}");
    }
}
