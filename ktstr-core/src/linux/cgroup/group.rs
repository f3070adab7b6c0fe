//! Groups that go when their owner does.

use std::collections::BTreeSet;

use super::error::Error;
use super::names;
use super::ops::CgroupOps;

/// A list of groups. Dropping it removes them in reverse order, also while a panic unwinds.
#[derive(Debug)]
pub struct CgroupGroup<'a> {
    cgroups: &'a dyn CgroupOps,
    names: Vec<String>,
    /// What is to be removed: `names` and the groups above them that were made for them.
    made: Vec<String>,
}

impl<'a> CgroupGroup<'a> {
    /// An empty list.
    pub fn new(cgroups: &'a dyn CgroupOps) -> Self {
        Self { cgroups, names: Vec::new(), made: Vec::new() }
    }

    /// Makes a group that runs on `cpus`. It is in the list, and removed, even if that fails.
    pub fn add_cgroup(&mut self, name: &str, cpus: &BTreeSet<usize>) -> Result<(), Error> {
        self.add_cgroup_no_cpuset(name)?;
        self.cgroups.set_cpuset(name, cpus)
    }

    /// Makes a group that runs where the group above it does.
    pub fn add_cgroup_no_cpuset(&mut self, name: &str) -> Result<(), Error> {
        names::check(name)?;
        for (end, _) in name.match_indices('/') {
            let above = &name[..end];
            // Only what was not there is to be removed; one that cannot be read is.
            if self.cgroups.read_procs(above).is_err_and(|error| error.is_missing()) {
                self.made.push(above.to_owned());
            }
        }
        self.made.push(name.to_owned());
        self.cgroups.create_cgroup(name)?;
        self.names.push(name.to_owned());
        Ok(())
    }

    /// The groups of the list, in the order in which they were added.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

impl Drop for CgroupGroup<'_> {
    fn drop(&mut self) {
        for name in self.made.iter().rev() {
            // Not a log message, which is invisible without RUST_LOG: a drop has no other way to fail.
            if let Err(error) = self.cgroups.remove_cgroup(name) {
                eprintln!("ktstr: cgroup left behind: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::cgroup::{Controller, RecordingCgroups};

    #[test]
    fn what_was_made_is_removed_in_reverse_order_also_on_panic() {
        let cgroups = RecordingCgroups::new();
        cgroups.setup(&[Controller::Cpuset].into()).unwrap();
        cgroups.create_cgroup("there").unwrap();
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut group = CgroupGroup::new(&cgroups);
            group.add_cgroup("a", &BTreeSet::from([0, 1])).unwrap();
            group.add_cgroup_no_cpuset("there/b/c").unwrap();
            assert_eq!(group.names(), ["a", "there/b/c"]);
            panic!("midway");
        }));
        assert!(ran.is_err());
        let removed: Vec<_> = cgroups.calls_of("remove_cgroup");
        assert_eq!(removed, ["there/b/c", "there/b", "a"]);
        assert_eq!(cgroups.groups(), ["there"]);
    }

    #[test]
    fn only_what_was_made_is_removed() {
        let cgroups = RecordingCgroups::new();
        cgroups.create_cgroup("there").unwrap();
        cgroups.fail("read_procs", "there", libc::EOPNOTSUPP);
        let mut group = CgroupGroup::new(&cgroups);
        group.add_cgroup_no_cpuset("there/b").unwrap();
        group.add_cgroup_no_cpuset("there/../b").unwrap_err();
        drop(group);
        assert_eq!(cgroups.calls_of("remove_cgroup"), ["there/b"]);
    }
}
