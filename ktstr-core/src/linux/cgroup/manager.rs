//! The manager on cgroupfs.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use super::writer::{Operation, Writer};
use super::{CgroupOps, CgroupStats, Controller, Error, Knob, MOUNT, controllers, names};

/// Names the group that was delegated to this process, for tests that run on the host.
pub const WALK_ROOT_VARIABLE: &str = "KTSTR_CGROUP_WALK_ROOT";

/// Manages the groups below one parent group.
#[derive(Debug)]
pub struct CgroupManager {
    pub(super) parent: PathBuf,
    pub(super) walk_root: PathBuf,
    /// The group whose processes are the caller's to move to a leaf of it: the walk root that was
    /// named, or a job's parent.
    pub(super) ours: Option<PathBuf>,
    /// What `setup` has enabled below the parent.
    pub(super) enabled: Mutex<BTreeSet<Controller>>,
    /// Groups that could not be removed.
    pub(super) outstanding: Mutex<BTreeSet<PathBuf>>,
    writer: Writer,
}

impl CgroupManager {
    /// A manager for the groups below `parent`, a folder of cgroupfs. Touches nothing yet.
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

    /// Has controllers enabled from `walk_root` on instead of the root of the hierarchy, and says
    /// that this group was delegated: its processes may be moved to a leaf of it. Touches nothing.
    ///
    /// # Errors
    ///
    /// If a path holds `..`, `walk_root` is relative, or the parent is not at or below it.
    pub fn with_walk_root(mut self, walk_root: impl Into<PathBuf>) -> Result<Self, Error> {
        self.walk_root = walk_root.into();
        controllers::check_walk_root(&self.walk_root, &self.parent)?;
        self.ours = Some(self.walk_root.clone());
        Ok(self)
    }

    /// The manager of a job's group in `parent`, with controllers enabled from `walk_root` on. `ours`
    /// says that the processes in the parent may move to a leaf of it.
    pub(crate) fn for_job(parent: &Path, walk_root: &Path, ours: bool) -> Self {
        let ours = ours.then(|| parent.to_owned());
        Self { walk_root: walk_root.to_owned(), ours, ..Self::new(parent) }
    }

    /// Has a CPU at once for what it writes, whatever load the groups carry.
    pub(crate) fn running_first(mut self) -> Self {
        self.writer.runs_first = true;
        self
    }

    /// Carries everything out in the calling thread, however long that takes.
    pub(crate) fn unbounded(mut self) -> Self {
        self.writer = Writer::unbounded();
        self
    }

    /// The manager of a test whose groups are below `workload_root`: in the delegated group that
    /// `KTSTR_CGROUP_WALK_ROOT` names, else in the root of the hierarchy (`/sys/fs/cgroup/ktstr`).
    ///
    /// # Errors
    ///
    /// If the variable holds `..`.
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

    /// Reads what a cgroup with an empty cpuset would inherit.
    fn effective_of_parent(&self, group: &Path, knob: &Knob) -> Result<String, Error> {
        let parent = group.parent().expect("names are relative to the parent");
        Ok(read(&parent.join(format!("{}.effective", knob.file())))?.trim().to_owned())
    }

    pub(super) fn write(&self, path: &Path, value: &str) -> Result<(), Error> {
        self.writer.run(path, Operation::Write(value.to_owned()))
    }

    /// Makes one group; one that is there is fine.
    pub(super) fn make_group(&self, path: &Path) -> Result<(), Error> {
        match self.writer.run(path, Operation::Create) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) && path.is_dir() => Ok(()),
            other => other,
        }
    }

    /// Removes one group; one that is gone is fine.
    pub(super) fn remove_group(&self, path: &Path) -> Result<(), Error> {
        match self.writer.run(path, Operation::Remove) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    pub(super) fn check_read(&self, path: &Path) -> Result<(), Error> {
        self.writer.check_read(path)
    }

    pub(super) fn check_folder(
        &self,
        operation: &'static str,
        path: &Path,
        folder: &Path,
    ) -> Result<(), Error> {
        self.writer.check_folder(operation, path, folder)
    }
}

/// Methods of a trait object need no import of the trait: `use ktstr::cgroup::CgroupManager` is enough to
/// call those of [`CgroupOps`].
impl Deref for CgroupManager {
    type Target = dyn CgroupOps;

    fn deref(&self) -> &Self::Target {
        self
    }
}

impl CgroupOps for CgroupManager {
    fn parent_path(&self) -> &Path {
        &self.parent
    }

    fn walk_root(&self) -> &Path {
        &self.walk_root
    }

    fn outstanding_removes(&self) -> usize {
        self.count_outstanding().len()
    }

    fn setup(&self, controllers: &BTreeSet<Controller>) -> Result<(), Error> {
        self.set_up(controllers)
    }

    fn create_cgroup(&self, name: &str) -> Result<(), Error> {
        self.create(&self.path(name)?)
    }

    fn remove_cgroup(&self, name: &str) -> Result<(), Error> {
        self.remove(&self.path(name)?)
    }

    fn set_knob(&self, name: &str, knob: &Knob) -> Result<(), Error> {
        let group = self.path(name)?;
        let path = group.join(knob.file());
        let written = match self.write(&path, knob.value()) {
            // Linux 6.12 and earlier empty no cpuset of a cgroup with processes.
            Err(error) if knob.empties_cpuset() && error.raw_os_error() == Some(libc::ENOSPC) => {
                self.effective_of_parent(&group, knob).and_then(|value| self.write(&path, &value))
            }
            written => written,
        };
        written.map_err(|error| match knob.file() {
            "cpuset.cpus" => error.with_snapshot(&snapshot(&group)),
            _ => error,
        })
    }

    fn set_freeze(&self, name: &str, frozen: bool) -> Result<(), Error> {
        self.freeze(&self.path(name)?, frozen)
    }

    fn kill_cgroup(&self, name: &str) -> Result<(), Error> {
        self.kill(&self.path(name)?)
    }

    fn move_tasks(&self, name: &str, pids: &[i32]) -> Result<(), Error> {
        self.move_all(&self.path(name)?, pids)
    }

    fn place_task_during_handshake(&self, name: &str, pid: i32) -> Result<(), Error> {
        self.move_one(&self.path(name)?, pid)
    }

    fn clear_subtree_control(&self, name: &str) -> Result<(), Error> {
        self.clear_controllers(&self.path(name)?)
    }

    fn add_parent_subtree_controller(&self, controller: Controller) -> Result<(), Error> {
        self.enable(&self.parent, &BTreeSet::from([controller]))?;
        lock(&self.enabled).insert(controller);
        Ok(())
    }

    fn drain_tasks(&self, name: &str) -> Result<(), Error> {
        self.drain(&self.path(name)?, "drain")
    }

    fn read_procs(&self, name: &str) -> Result<Vec<i32>, Error> {
        let group = self.path(name)?;
        self.check_read(&group.join("cgroup.procs"))?;
        super::tasks::read_procs(&group)
    }

    fn stats(&self, name: &str) -> Result<CgroupStats, Error> {
        let group = self.path(name)?;
        // What it says of processes depends on these.
        for file in ["cgroup.freeze", "cgroup.kill", "cgroup.procs"] {
            self.check_read(&group.join(file))?;
        }
        CgroupStats::read(&group)
    }

    fn cleanup_all(&self) -> Result<(), Error> {
        self.clean_up()
    }
}

/// What decides whether a cpuset is taken, of the group and of the one above it.
fn snapshot(group: &Path) -> String {
    let mut text = String::new();
    for level in [Some(group), group.parent()].into_iter().flatten() {
        let _ = writeln!(text, "{}:", level.display());
        for file in [
            "cgroup.controllers",
            "cgroup.subtree_control",
            "cpuset.cpus",
            "cpuset.cpus.effective",
            "cpuset.mems.effective",
        ] {
            let content = fs::read_to_string(level.join(file));
            let content = content.unwrap_or_else(|error| super::errno::describe(&error));
            let _ = writeln!(text, "  {file}: {}", content.trim());
        }
        let entries = fs::read_dir(level).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        let _ = writeln!(text, "  holds: {}", names.join(" "));
    }
    text.truncate(text.trim_end().len());
    text
}

/// Whether there is such a file or directory. An error that leaves it open is returned.
pub(super) fn is_there(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(|cause| Error::io("look for", path, None, cause))
}

/// Whether there is such a cgroup; a file is none.
pub(super) fn is_group(path: &Path) -> Result<bool, Error> {
    match fs::metadata(path) {
        Ok(found) => Ok(found.is_dir()),
        // ENOTDIR: below a file.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            Ok(false)
        }
        Err(cause) => Err(Error::io("look for", path, None, cause)),
    }
}

pub(super) fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|cause: io::Error| Error::io("read", path, None, cause))
}

/// A panic while the lock was held leaves nothing half done here.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}
