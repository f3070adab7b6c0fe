//! Creates cgroups and enables controllers level by level.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::controller::{Controller, subtree_control};
use super::files::{is_hierarchy_root, read};
use super::manager::{CgroupManager, check_walk_root};
use super::procs::read_procs;
use super::tasks::until_settled;
use super::{Error, MOUNT};
use crate::linux::sync::lock;

impl CgroupManager {
    pub(super) fn set_up(&self, controllers: &BTreeSet<Controller>) -> Result<(), Error> {
        if controllers.is_empty() {
            return Ok(());
        }
        // Everything that can be refused without a write comes first.
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
        self.create_all(&self.parent)?;
        for level in self.levels(&self.parent) {
            self.enable(&level, controllers)?;
        }
        lock(&self.enabled).extend(controllers);
        Ok(())
    }

    fn check_available(&self, controllers: &BTreeSet<Controller>) -> Result<(), Error> {
        let path = self.walk_root.join("cgroup.controllers");
        let text = read(&path)?;
        let available: Vec<_> = text.split_whitespace().collect();
        let missing = controllers.iter().filter(|wanted| !available.contains(&wanted.name()));
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

    /// Returns the cgroups from the walk root to `cgroup`, both included.
    fn levels(&self, cgroup: &Path) -> Vec<PathBuf> {
        let levels = cgroup.ancestors().take_while(|level| level.starts_with(&self.walk_root));
        let mut levels: Vec<_> = levels.map(Path::to_owned).collect();
        levels.reverse();
        levels
    }

    /// Creates a cgroup below the parent, with every controller that `set_up` has enabled.
    pub(super) fn create(&self, cgroup: &Path) -> Result<(), Error> {
        let enabled = lock(&self.enabled).clone();
        if !self.parent.is_dir() {
            // `cleanup_all` has removed it since `set_up`.
            self.set_up(&enabled)?;
            self.create_all(&self.parent)?;
        }
        let mut level = self.parent.clone();
        let below = cgroup.strip_prefix(&self.parent).expect("names are relative to the parent");
        for component in below {
            // `set_up` has enabled them in the parent itself.
            if level != self.parent && !enabled.is_empty() {
                self.enable(&level, &enabled)?;
            }
            level.push(component);
            self.create_all(&level)?;
        }
        Ok(())
    }

    /// Creates a cgroup and its missing ancestors.
    fn create_all(&self, cgroup: &Path) -> Result<(), Error> {
        match (self.create_one(cgroup), cgroup.parent()) {
            (Err(error), Some(parent)) if error.raw_os_error() == Some(libc::ENOENT) => {
                self.create_all(parent)?;
                self.create_one(cgroup)
            }
            (created, _) => created,
        }
    }

    /// Enables controllers for the children of a cgroup.
    pub(super) fn enable(
        &self,
        cgroup: &Path,
        controllers: &BTreeSet<Controller>,
    ) -> Result<(), Error> {
        let value = subtree_control("+", controllers);
        let file = cgroup.join("cgroup.subtree_control");
        if is_hierarchy_root(cgroup)? {
            return self.write(&file, &value);
        }
        until_settled(|| {
            self.check_unoccupied(cgroup, &value)?;
            self.write(&file, &value)
        })?;
        // Again: the kernel enables threaded controllers in a cgroup that contains processes, and a
        // process that entered between check and write makes it a threaded domain until it leaves.
        self.check_unoccupied(cgroup, &value)
    }

    /// Fails if a process is in a cgroup before controllers are enabled for its children, or moves it
    /// out.
    ///
    /// Processes are only moved out of a cgroup that the caller has named or delegated: no other may
    /// be rearranged.
    fn check_unoccupied(&self, cgroup: &Path, value: &str) -> Result<(), Error> {
        let pids = match read_procs(cgroup) {
            Ok(pids) => pids,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Vec::new(),
            Err(error) => return Err(error),
        };
        if pids.is_empty() {
            return Ok(());
        }
        if self.ours.as_deref() == Some(cgroup) {
            return self.drain(cgroup, "enable controllers in");
        }
        Err(Error::Occupied { path: cgroup.to_owned(), value: value.to_owned(), pids })
    }

    pub(super) fn clear_controllers(&self, cgroup: &Path) -> Result<(), Error> {
        let path = cgroup.join("cgroup.subtree_control");
        self.writer.check_read(&path)?;
        let text = read(&path)?;
        let words: Vec<_> = text.split_whitespace().map(|name| format!("-{name}")).collect();
        if words.is_empty() { Ok(()) } else { self.write(&path, &words.join(" ")) }
    }
}
