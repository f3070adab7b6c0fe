//! Removes cgroups and counts those that cannot be removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::files::{exists, is_cgroup, is_hierarchy_root, read};
use super::procs::ProcsUnit;
use super::tasks::{REFUGE, SETTLE_WITHIN};
use super::{CgroupManager, Error, MOUNT, Operation, events};
use crate::linux::sync::lock;

/// With more cgroups than this that could not be removed, no further removal is attempted.
pub(super) const MAX_OUTSTANDING: usize = 10;

/// The magic number of the cgroup v2 file system. That of libc has another integer type with musl.
///
/// Source: Linux 6.12, include/uapi/linux/magic.h.
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

impl CgroupManager {
    /// Returns the cgroups that could not be removed and still exist.
    pub(super) fn outstanding(&self) -> Vec<PathBuf> {
        let mut outstanding = lock(&self.outstanding);
        outstanding.retain(|cgroup| is_cgroup(cgroup).unwrap_or(true));
        outstanding.iter().cloned().collect()
    }

    pub(super) fn remove(&self, cgroup: &Path) -> Result<(), Error> {
        self.writer.check_dir(Operation::Remove, cgroup, cgroup.parent().unwrap_or(cgroup))?;
        // A file of cgroupfs is not a cgroup, and would be counted forever.
        if !is_cgroup(cgroup)? {
            return Ok(());
        }
        let outstanding = self.outstanding();
        // Counted cgroups and their descendants, which may be the reason, are always tried again, or
        // the count could never decrease.
        let counted = outstanding.iter().any(|one| cgroup.starts_with(one));
        if outstanding.len() > MAX_OUTSTANDING && !counted {
            return Err(Error::TooManyOutstanding { path: cgroup.to_owned(), outstanding });
        }
        self.remove_and_count(cgroup)
    }

    fn remove_and_count(&self, cgroup: &Path) -> Result<(), Error> {
        let removed = self.empty_and_remove(cgroup);
        let mut outstanding = lock(&self.outstanding);
        match &removed {
            Ok(()) => outstanding.remove(cgroup),
            Err(_) => outstanding.insert(cgroup.to_owned()),
        };
        removed
    }

    fn empty_and_remove(&self, cgroup: &Path) -> Result<(), Error> {
        match self.empty(cgroup) {
            Ok(()) => {}
            // Another process has removed it meanwhile.
            Err(_) if !is_cgroup(cgroup)? => return Ok(()),
            Err(error) => return Err(error),
        }
        match self.remove_one(cgroup) {
            // A process has entered since it was empty.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                self.empty(cgroup)?;
                self.remove_one(cgroup)
            }
            other => other,
        }
    }

    /// Thaws a cgroup and moves its processes out.
    fn empty(&self, cgroup: &Path) -> Result<(), Error> {
        let children = self.children(cgroup)?;
        if !children.is_empty() {
            let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into());
            let children = children.iter().filter_map(name).collect();
            return Err(Error::HasChildren { path: cgroup.to_owned(), children });
        }
        let freeze = cgroup.join("cgroup.freeze");
        if exists(&freeze)? && read(&freeze)?.trim() == "1" {
            self.write(&freeze, "0")?;
        }
        if exists(&cgroup.join("cgroup.procs"))? {
            self.drain(cgroup, "remove cgroup")?;
        }
        if events::wait_for(cgroup, "populated 0", SETTLE_WITHIN)? {
            return Ok(());
        }
        Err(Error::Populated {
            operation: "remove cgroup",
            path: cgroup.to_owned(),
            pids: self.read_tree(cgroup)?,
            within: SETTLE_WITHIN,
        })
    }

    /// Removes an empty cgroup and its descendants; succeeds if it does not exist.
    pub(crate) fn remove_empty_tree(&self, name: &str) -> Result<(), Error> {
        self.remove_empty(&self.path(name)?)
    }

    fn remove_empty(&self, cgroup: &Path) -> Result<(), Error> {
        if !is_cgroup(cgroup)? {
            return Ok(());
        }
        for child in self.children(cgroup)? {
            self.remove_empty(&child)?;
        }
        self.remove_one(cgroup)
    }

    /// Reverts what `set_up` has done to the parent of a job, unless other cgroups exist in it: disables
    /// the controllers and moves the processes back from the leaf.
    pub(crate) fn move_back(&self) -> Result<(), Error> {
        let refuge = self.parent.join(REFUGE);
        if !refuge.is_dir() || self.children(&self.parent)? != [refuge.clone()] {
            return Ok(());
        }
        self.clear_controllers(&self.parent)?;
        self.drain_to(&refuge, "move processes back from", ProcsUnit::Process, || {
            Ok(self.parent.clone())
        })?;
        self.remove_one(&refuge)
    }

    /// Returns whether there is a leaf to move processes back from.
    pub(crate) fn has_leaf(&self) -> bool {
        self.parent.join(REFUGE).is_dir()
    }

    pub(super) fn clean_up(&self) -> Result<(), Error> {
        if self.is_root()? {
            return Err(Error::Root { path: self.parent.clone() });
        }
        // Every step runs; `cleaned` keeps the first error. The leaf comes last, because removing the
        // others may move processes into it.
        let refuge = self.refuge_leaf();
        let mut cleaned = Ok(());
        for cgroup in self.children_if_any(&self.parent, &mut cleaned) {
            if cgroup != refuge {
                self.clean_up_tree(&cgroup, &mut cleaned);
            }
        }
        self.remove_refuge(&refuge);
        if self.parent != self.walk_root && self.parent.exists() {
            note(&mut cleaned, self.remove_and_count(&self.parent));
            // Emptying the parent may have created it again.
            self.remove_refuge(&refuge);
        }
        cleaned
    }

    /// Returns whether the parent is the root of a hierarchy or of a cgroup namespace, so that it
    /// contains every cgroup of the machine or the container.
    fn is_root(&self) -> Result<bool, Error> {
        if self.parent == Path::new(MOUNT) {
            return Ok(true);
        }
        let is_cgroupfs = rustix::fs::statfs(&self.parent)
            .is_ok_and(|file_system| file_system.f_type == CGROUP2_SUPER_MAGIC);
        Ok(is_cgroupfs && is_hierarchy_root(&self.parent)?)
    }

    /// Removes the leaf unless it contains processes; it is then removed with the delegated cgroup.
    fn remove_refuge(&self, refuge: &Path) {
        if refuge.exists() {
            let _ = self.remove_one(refuge);
        }
    }

    fn clean_up_tree(&self, cgroup: &Path, cleaned: &mut Result<(), Error>) {
        for child in self.children_if_any(cgroup, cleaned) {
            self.clean_up_tree(&child, cleaned);
        }
        note(cleaned, self.remove_and_count(cgroup));
    }

    /// Returns the cgroups in `cgroup`; none if it does not exist or cannot be listed.
    fn children_if_any(&self, cgroup: &Path, cleaned: &mut Result<(), Error>) -> Vec<PathBuf> {
        match self.children(cgroup) {
            Ok(children) => children,
            Err(error) if error.is_missing() => Vec::new(),
            Err(error) => {
                note(cleaned, Err(error));
                Vec::new()
            }
        }
    }

    pub(super) fn children(&self, cgroup: &Path) -> Result<Vec<PathBuf>, Error> {
        self.writer.check_dir(Operation::List, cgroup, cgroup)?;
        let fail = |cause| Error::io(Operation::List, cgroup, None, cause);
        let mut children = Vec::new();
        for entry in fs::read_dir(cgroup).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => children.push(entry.path()),
                // NotFound: removed meanwhile.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
                _ => {}
            }
        }
        children.sort_unstable();
        Ok(children)
    }
}

/// Keeps the first error of a cleanup that continues after it, and logs each.
fn note(cleaned: &mut Result<(), Error>, result: Result<(), Error>) {
    let Err(error) = result else { return };
    tracing::warn!("failed to clean up: {error}");
    if cleaned.is_ok() {
        *cleaned = Err(error);
    }
}
