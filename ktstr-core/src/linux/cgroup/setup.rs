//! Enables controllers level by level.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::controller::{Controller, subtree_control};
use super::error::Error;
use super::files::{is_hierarchy_root, read};
use super::manager::{CgroupManager, check_walk_root};
use super::paths::MOUNT;
use super::procs::read_procs;
use crate::linux::sync::lock;

impl CgroupManager {
    pub(super) fn set_up(&self, controllers: &BTreeSet<Controller>) -> Result<(), Error> {
        if controllers.is_empty() {
            return Ok(());
        }
        check_walk_root(&self.walk_root, &self.parent)?;
        let uid = rustix::process::geteuid();
        if self.walk_root == Path::new(MOUNT) && self.ours.is_none() && !uid.is_root() {
            return Err(Error::NotPrivileged {
                walk_root: self.walk_root.clone(),
                controllers: subtree_control("", controllers),
                uid: uid.as_raw(),
            });
        }
        self.check_available(controllers)?;
        self.make(&self.parent)?;
        for level in self.levels(&self.parent) {
            self.enable(&level, controllers)?;
        }
        lock(&self.enabled).extend(controllers);
        Ok(())
    }

    fn check_available(&self, controllers: &BTreeSet<Controller>) -> Result<(), Error> {
        let path = self.walk_root.join("cgroup.controllers");
        let text = read(&path)?;
        let there: Vec<_> = text.split_whitespace().collect();
        let missing = controllers.iter().filter(|wanted| !there.contains(&wanted.name()));
        let missing: BTreeSet<_> = missing.copied().collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::Unavailable {
            path,
            missing: subtree_control("", &missing),
            available: text.trim().to_owned(),
        })
    }

    /// The groups from the walk root to `group`, both included.
    fn levels(&self, group: &Path) -> Vec<PathBuf> {
        let below = group.ancestors().take_while(|level| level.starts_with(&self.walk_root));
        let mut levels: Vec<_> = below.map(Path::to_owned).collect();
        levels.reverse();
        levels
    }

    /// Makes a group below the parent, and gives it every controller that `set_up` has enabled.
    pub(super) fn create(&self, group: &Path) -> Result<(), Error> {
        let enabled = lock(&self.enabled).clone();
        if !self.parent.is_dir() {
            // `cleanup_all` has removed it since `set_up`.
            self.set_up(&enabled)?;
            self.make(&self.parent)?;
        }
        let mut level = self.parent.clone();
        let below = group.strip_prefix(&self.parent).expect("names are relative to the parent");
        for component in below {
            // The parent has them since `set_up`.
            if level != self.parent && !enabled.is_empty() {
                self.enable(&level, &enabled)?;
            }
            level.push(component);
            self.make(&level)?;
        }
        Ok(())
    }

    /// Makes a group and those above it as needed.
    pub(super) fn make(&self, group: &Path) -> Result<(), Error> {
        match (self.make_group(group), group.parent()) {
            (Err(error), Some(above)) if error.raw_os_error() == Some(libc::ENOENT) => {
                self.make(above)?;
                self.make_group(group)
            }
            (made, _) => made,
        }
    }

    /// Enables controllers for the children of `group`.
    pub(super) fn enable(
        &self,
        group: &Path,
        controllers: &BTreeSet<Controller>,
    ) -> Result<(), Error> {
        let value = subtree_control("+", controllers);
        let file = group.join("cgroup.subtree_control");
        if is_hierarchy_root(group)? {
            return self.write(&file, &value);
        }
        self.make_room(group, &value)?;
        self.write(&file, &value)?;
        // Who came in before the write makes this a threaded domain until it leaves again: the
        // kernel takes threaded controllers from an occupied group.
        self.make_room(group, &value)
    }

    /// Sees to it that no process is in a group whose children are to get controllers.
    ///
    /// Only a group that was named by the caller is known to be the caller's to rearrange, as whoever
    /// is delegated a group finds itself in it.
    fn make_room(&self, group: &Path, value: &str) -> Result<(), Error> {
        let pids = match read_procs(group) {
            Ok(pids) => pids,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Vec::new(),
            Err(error) => return Err(error),
        };
        if pids.is_empty() {
            return Ok(());
        }
        if self.ours.as_deref() == Some(group) {
            return self.drain(group, "enable controllers in");
        }
        Err(Error::Occupied { path: group.to_owned(), value: value.to_owned(), pids })
    }

    pub(super) fn clear_controllers(&self, group: &Path) -> Result<(), Error> {
        let path = group.join("cgroup.subtree_control");
        self.check_read(&path)?;
        let text = read(&path)?;
        let words: Vec<_> = text.split_whitespace().map(|name| format!("-{name}")).collect();
        if words.is_empty() { Ok(()) } else { self.write(&path, &words.join(" ")) }
    }
}
