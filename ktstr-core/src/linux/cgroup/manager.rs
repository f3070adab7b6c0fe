//! The manager of cgroups on cgroupfs: its paths, and the operations on single cgroups.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::files::read;
use super::writer::{Change, Writer};
use super::{Controller, Error, Knob, MOUNT, WALK_ROOT_VARIABLE, names};

/// Manages the cgroups below one parent cgroup.
#[derive(Debug)]
pub struct CgroupManager {
    pub(super) parent: PathBuf,
    pub(super) walk_root: PathBuf,
    /// The processes in this cgroup may be moved to its leaf: a walk root named by the caller, or
    /// the parent of a job.
    pub(super) ours: Option<PathBuf>,
    /// The controllers that `setup` has enabled for the children of the parent.
    pub(super) enabled: Mutex<BTreeSet<Controller>>,
    pub(super) outstanding: Mutex<BTreeSet<PathBuf>>,
    pub(super) writer: Writer,
}

impl CgroupManager {
    /// Returns a manager for the cgroups below `parent`, a directory of cgroupfs. Writes nothing.
    pub fn new(parent: impl Into<PathBuf>) -> Self {
        Self {
            parent: parent.into(),
            walk_root: PathBuf::from(MOUNT),
            ours: None,
            enabled: Mutex::default(),
            outstanding: Mutex::default(),
            writer: Writer::default(),
        }
    }

    /// Enables controllers from `walk_root` on instead of the root of the hierarchy. That cgroup is
    /// delegated to the caller: its processes may be moved to a leaf of it. Writes nothing.
    ///
    /// # Errors
    ///
    /// If a path contains `..`, `walk_root` is relative, or the parent is not at or below it.
    pub fn with_walk_root(mut self, walk_root: impl Into<PathBuf>) -> Result<Self, Error> {
        self.walk_root = walk_root.into();
        check_walk_root(&self.walk_root, &self.parent)?;
        self.ours = Some(self.walk_root.clone());
        Ok(self)
    }

    /// Returns the manager of a job's cgroup in `parent`, with controllers enabled from `walk_root` on.
    /// If `ours`, the processes in the parent may be moved to a leaf of it.
    pub(crate) fn for_job(parent: &Path, walk_root: &Path, ours: bool) -> Self {
        let ours = ours.then(|| parent.to_owned());
        Self { walk_root: walk_root.to_owned(), ours, ..Self::new(parent) }
    }

    /// Writes with the highest real-time priority, regardless of the load in the cgroups.
    pub(crate) fn running_first(mut self) -> Self {
        self.writer.runs_first = true;
        self
    }

    /// Runs every operation on the calling thread, without a timeout.
    pub(crate) fn unbounded(mut self) -> Self {
        self.writer = Writer::unbounded();
        self
    }

    /// Returns the manager of a test with the workload root `workload_root`: in the delegated cgroup
    /// that `KTSTR_CGROUP_WALK_ROOT` names, else in the root of the hierarchy
    /// (`/sys/fs/cgroup/ktstr`).
    ///
    /// # Errors
    ///
    /// If the variable contains `..`.
    pub fn for_test(workload_root: &str) -> Result<Self, Error> {
        Self::below(std::env::var_os(WALK_ROOT_VARIABLE), workload_root)
    }

    pub(super) fn below(named: Option<OsString>, workload_root: &str) -> Result<Self, Error> {
        let below = workload_root.trim_start_matches('/');
        match named.filter(|root| !root.is_empty()) {
            Some(root) => Self::new(Path::new(&root).join(below)).with_walk_root(root),
            None => Ok(Self::new(Path::new(MOUNT).join(below))),
        }
    }

    pub(super) fn path(&self, name: &str) -> Result<PathBuf, Error> {
        names::check(name)?;
        Ok(self.parent.join(name))
    }

    /// Reads the value that a cgroup with an empty cpuset would inherit.
    pub(super) fn effective_of_parent(&self, cgroup: &Path, knob: &Knob) -> Result<String, Error> {
        let parent = cgroup.parent().expect("names are relative to the parent");
        Ok(read(&parent.join(format!("{}.effective", knob.file())))?.trim().to_owned())
    }

    pub(super) fn write(&self, path: &Path, value: &str) -> Result<(), Error> {
        self.writer.run(path, Change::Write(value.to_owned()))
    }

    /// Creates one cgroup; succeeds if it exists.
    pub(super) fn create_one(&self, path: &Path) -> Result<(), Error> {
        match self.writer.run(path, Change::Create) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) && path.is_dir() => Ok(()),
            other => other,
        }
    }

    /// Removes one cgroup; succeeds if it does not exist.
    pub(super) fn remove_one(&self, path: &Path) -> Result<(), Error> {
        match self.writer.run(path, Change::Remove) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }
}

/// Fails if a walk root and a parent do not fit each other.
pub(super) fn check_walk_root(walk_root: &Path, parent: &Path) -> Result<(), Error> {
    let climbs = |path: &Path| path.components().any(|part| part.as_os_str() == "..");
    let reason = if climbs(walk_root) || climbs(parent) {
        "a path contains `..`; give both without it"
    } else if !walk_root.is_absolute() {
        "the walk root is not absolute"
    } else if !parent.starts_with(walk_root) {
        "the parent is not at or below the walk root"
    } else {
        return Ok(());
    };
    Err(Error::WalkRoot { parent: parent.to_owned(), walk_root: walk_root.to_owned(), reason })
}
