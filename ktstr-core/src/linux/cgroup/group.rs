//! A guard that removes cgroups.

use std::collections::BTreeSet;

use super::{CgroupOps, Error, names};

/// A list of cgroups. Dropping it removes them in reverse order, also during unwinding.
#[derive(Debug)]
pub struct CgroupGroup<'a> {
    cgroups: &'a dyn CgroupOps,
    names: Vec<String>,
    /// The cgroups to remove: `names` and the ancestors that were created for them.
    created: Vec<String>,
}

impl<'a> CgroupGroup<'a> {
    /// Returns an empty list.
    pub fn new(cgroups: &'a dyn CgroupOps) -> Self {
        Self { cgroups, names: Vec::new(), created: Vec::new() }
    }

    /// Creates a cgroup that runs on `cpus`. It will be removed even if this fails.
    pub fn add_cgroup(&mut self, name: &str, cpus: &BTreeSet<usize>) -> Result<(), Error> {
        self.add_cgroup_no_cpuset(name)?;
        self.cgroups.set_cpuset(name, cpus)
    }

    /// Creates a cgroup that runs on the CPUs of its parent.
    pub fn add_cgroup_no_cpuset(&mut self, name: &str) -> Result<(), Error> {
        names::check(name)?;
        for (end, _) in name.match_indices('/') {
            let ancestor = &name[..end];
            // Only missing ancestors will be removed. One that cannot be read exists.
            if self.cgroups.read_procs(ancestor).is_err_and(|error| error.is_missing()) {
                self.created.push(ancestor.to_owned());
            }
        }
        self.created.push(name.to_owned());
        self.cgroups.create_cgroup(name)?;
        self.names.push(name.to_owned());
        Ok(())
    }

    /// Returns the cgroups of the list, in the order in which they were added.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

impl Drop for CgroupGroup<'_> {
    fn drop(&mut self) {
        for name in self.created.iter().rev() {
            // Not a log message, which is invisible without RUST_LOG: a drop cannot return an error.
            if let Err(error) = self.cgroups.remove_cgroup(name) {
                eprintln!("ktstr: failed to clean up: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::cgroup::{Controller, RecordingCgroups};

    #[test]
    fn drop_removes_cgroups_in_reverse_order_on_panic() {
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
    fn drop_removes_only_cgroups_that_were_created() {
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
