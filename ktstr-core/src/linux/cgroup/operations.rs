//! [`CgroupOps`] on cgroupfs.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::ops::Deref;
use std::path::Path;

use super::procs::read_procs;
use super::{CgroupManager, CgroupOps, CgroupStats, Controller, Error, Knob};
use crate::linux::sync::lock;

/// Makes the methods of [`CgroupOps`] callable without importing the trait.
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
        self.outstanding().len()
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
        let cgroup = self.path(name)?;
        let path = cgroup.join(knob.file());
        let written = match self.write(&path, knob.value()) {
            // Linux 6.12 and earlier refuse to empty the cpuset of a cgroup that contains processes.
            Err(error) if knob.empties_cpuset() && error.raw_os_error() == Some(libc::ENOSPC) => {
                self.effective_of_parent(&cgroup, knob).and_then(|value| self.write(&path, &value))
            }
            written => written,
        };
        written.map_err(|error| match knob.file() {
            "cpuset.cpus" => error.with_snapshot(&snapshot(&cgroup)),
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
        let cgroup = self.path(name)?;
        self.writer.check_read(&cgroup.join("cgroup.procs"))?;
        read_procs(&cgroup)
    }

    fn stats(&self, name: &str) -> Result<CgroupStats, Error> {
        let cgroup = self.path(name)?;
        // The counters depend on these files.
        for file in ["cgroup.freeze", "cgroup.kill", "cgroup.procs"] {
            self.writer.check_read(&cgroup.join(file))?;
        }
        CgroupStats::read(&cgroup)
    }

    fn cleanup_all(&self) -> Result<(), Error> {
        self.clean_up()
    }
}

/// Describes the state that decides whether a cpuset is accepted, of a cgroup and its parent.
fn snapshot(cgroup: &Path) -> String {
    let mut text = String::new();
    for level in [Some(cgroup), cgroup.parent()].into_iter().flatten() {
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
        let _ = writeln!(text, "  entries: {}", names.join(" "));
    }
    text.truncate(text.trim_end().len());
    text
}
