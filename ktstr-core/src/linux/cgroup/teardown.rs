//! Removing groups, and keeping count of those that would not go.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::events;
use super::files::{is_group, is_hierarchy_root, is_there, read};
use super::manager::CgroupManager;
use super::paths::MOUNT;
use super::procs::Unit;
use super::tasks::{REFUGE, SETTLE_WITHIN};
use crate::linux::sync::lock;

/// With more groups than this that could not be removed, something is wrong with all of them.
pub(super) const MOST_OUTSTANDING: usize = 10;

/// The type of a cgroup v2 file system. The one of libc has another type with musl.
///
/// Source: Linux 6.12, include/uapi/linux/magic.h.
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

impl CgroupManager {
    /// The groups that could not be removed, without those that have gone by now.
    pub(super) fn count_outstanding(&self) -> Vec<PathBuf> {
        let mut outstanding = lock(&self.outstanding);
        outstanding.retain(|group| is_group(group).unwrap_or(true));
        outstanding.iter().cloned().collect()
    }

    pub(super) fn remove(&self, group: &Path) -> Result<(), Error> {
        self.check_dir("remove cgroup", group, group.parent().unwrap_or(group))?;
        // A file of cgroupfs is not a cgroup, and could never leave the count.
        if !is_group(group)? {
            return Ok(());
        }
        let outstanding = self.count_outstanding();
        // A group that is counted already may be tried again, and so may those below it, which may
        // be why it is counted; or the count could never fall.
        let counted = outstanding.iter().any(|one| group.starts_with(one));
        if outstanding.len() > MOST_OUTSTANDING && !counted {
            return Err(Error::TooManyOutstanding { path: group.to_owned(), outstanding });
        }
        self.take_down_and_count(group)
    }

    fn take_down_and_count(&self, group: &Path) -> Result<(), Error> {
        let taken = self.take_down(group);
        let mut outstanding = lock(&self.outstanding);
        match &taken {
            Ok(()) => outstanding.remove(group),
            Err(_) => outstanding.insert(group.to_owned()),
        };
        taken
    }

    fn take_down(&self, group: &Path) -> Result<(), Error> {
        match self.empty(group) {
            Ok(()) => {}
            // Somebody else was faster.
            Err(_) if !is_group(group)? => return Ok(()),
            Err(error) => return Err(error),
        }
        match self.remove_group(group) {
            // A process came in after the last look.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                self.empty(group)?;
                self.remove_group(group)
            }
            other => other,
        }
    }

    /// Thaws a group and moves its processes out.
    fn empty(&self, group: &Path) -> Result<(), Error> {
        let below = self.children(group)?;
        if !below.is_empty() {
            let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into());
            let children = below.iter().filter_map(name).collect();
            return Err(Error::HasChildren { path: group.to_owned(), children });
        }
        let freeze = group.join("cgroup.freeze");
        if is_there(&freeze)? && read(&freeze)?.trim() == "1" {
            self.write(&freeze, "0")?;
        }
        if is_there(&group.join("cgroup.procs"))? {
            self.drain(group, "remove cgroup")?;
        }
        if events::wait_for(group, "populated 0", SETTLE_WITHIN)? {
            return Ok(());
        }
        Err(Error::Populated {
            operation: "remove cgroup",
            path: group.to_owned(),
            pids: self.read_tree(group)?,
            within: SETTLE_WITHIN,
        })
    }

    /// Removes a group and all groups below it, which hold no processes; missing ones are fine.
    pub(crate) fn remove_empty_tree(&self, name: &str) -> Result<(), Error> {
        self.remove_empty(&self.path(name)?)
    }

    fn remove_empty(&self, group: &Path) -> Result<(), Error> {
        if !is_group(group)? {
            return Ok(());
        }
        for child in self.children(group)? {
            self.remove_empty(&child)?;
        }
        self.remove_group(group)
    }

    /// Undoes what `set_up` did to a job's parent, unless somebody still has groups there:
    /// disables the controllers and moves the processes back from the leaf.
    pub(crate) fn move_back(&self) -> Result<(), Error> {
        let refuge = self.parent.join(REFUGE);
        if !refuge.is_dir() || self.children(&self.parent)? != [refuge.clone()] {
            return Ok(());
        }
        self.clear_controllers(&self.parent)?;
        self.drain_to(&refuge, "move processes back from", Unit::Process, || {
            Ok(self.parent.clone())
        })?;
        self.remove_group(&refuge)
    }

    /// Whether there is a leaf to move processes back from.
    pub(crate) fn has_leaf(&self) -> bool {
        self.parent.join(REFUGE).is_dir()
    }

    pub(super) fn clean_up(&self) -> Result<(), Error> {
        if self.is_root()? {
            return Err(Error::Root { path: self.parent.clone() });
        }
        let refuge = self.refuge_leaf();
        let mut cleaned = Ok(());
        for group in self.children_if_any(&self.parent, &mut cleaned) {
            if group != refuge {
                self.clean_up_tree(&group, &mut cleaned);
            }
        }
        self.remove_refuge(&refuge);
        if self.parent != self.walk_root && self.parent.exists() {
            note(&mut cleaned, self.take_down_and_count(&self.parent));
            self.remove_refuge(&refuge);
        }
        cleaned
    }

    /// Whether the parent is the root of a hierarchy or of a cgroup namespace, so that every cgroup
    /// of the machine or the container is below it.
    fn is_root(&self) -> Result<bool, Error> {
        if self.parent == Path::new(MOUNT) {
            return Ok(true);
        }
        let is_cgroupfs = rustix::fs::statfs(&self.parent)
            .is_ok_and(|file_system| file_system.f_type == CGROUP2_SUPER_MAGIC);
        Ok(is_cgroupfs && is_hierarchy_root(&self.parent)?)
    }

    /// What was drained may live on in there; then it stays, and goes with the delegated group.
    fn remove_refuge(&self, refuge: &Path) {
        if refuge.exists() {
            let _ = self.remove_group(refuge);
        }
    }

    fn clean_up_tree(&self, group: &Path, cleaned: &mut Result<(), Error>) {
        for child in self.children_if_any(group, cleaned) {
            self.clean_up_tree(&child, cleaned);
        }
        note(cleaned, self.take_down_and_count(group));
    }

    /// Returns the cgroups in `group`; none if it does not exist or cannot be listed.
    fn children_if_any(&self, group: &Path, cleaned: &mut Result<(), Error>) -> Vec<PathBuf> {
        match self.children(group) {
            Ok(children) => children,
            Err(error) if error.is_missing() => Vec::new(),
            Err(error) => {
                note(cleaned, Err(error));
                Vec::new()
            }
        }
    }

    /// The groups directly in `group`.
    pub(super) fn children(&self, group: &Path) -> Result<Vec<PathBuf>, Error> {
        self.check_dir("list cgroup", group, group)?;
        let fail = |cause| Error::io("list cgroup", group, None, cause);
        let mut children = Vec::new();
        for entry in fs::read_dir(group).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => children.push(entry.path()),
                // Removed meanwhile.
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
    tracing::warn!("left behind: {error}");
    if cleaned.is_ok() {
        *cleaned = Err(error);
    }
}
