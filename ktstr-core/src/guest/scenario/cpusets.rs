//! The CPUs that cpusets leave to each cgroup.

use std::collections::{BTreeMap, BTreeSet};

use crate::guest::assert::is_in;

/// Tracks the cpusets that operations have set and the CPUs that they have offlined.
#[derive(Debug, Default)]
pub(super) struct CpusetTracker {
    /// By the name of the cgroup; one without an entry has the CPUs of its parent.
    cpusets: BTreeMap<String, Cpuset>,
    offline: BTreeSet<u32>,
}

#[derive(Debug)]
struct Cpuset {
    cpus: BTreeSet<u32>,
    /// All its CPUs have been offline at once since it was set. Its tasks ran elsewhere then, and may
    /// still: only some kernels move them back when a CPU comes online.
    has_fallen_back: bool,
}

impl CpusetTracker {
    /// Records the cpuset of a cgroup, which the kernel has accepted; `None` if it was cleared.
    pub(super) fn set(&mut self, cgroup: &str, cpus: Option<&BTreeSet<usize>>) {
        // The kernel places the tasks of the cgroup and its descendants anew.
        let below = self.cpusets.iter_mut().filter(|(name, _)| is_in(name, cgroup));
        below.for_each(|(_, cpuset)| cpuset.has_fallen_back = false);
        match cpus {
            Some(cpus) => {
                let cpus = cpus.iter().map(|cpu| *cpu as u32).collect();
                self.cpusets.insert(cgroup.to_owned(), Cpuset { cpus, has_fallen_back: false });
            }
            None => self.forget(cgroup),
        }
        self.find_fallen_back();
    }

    pub(super) fn set_online(&mut self, cpu: u32, online: bool) {
        if online {
            self.offline.remove(&cpu);
        } else {
            self.offline.insert(cpu);
        }
        self.find_fallen_back();
    }

    pub(super) fn forget(&mut self, cgroup: &str) {
        self.cpusets.remove(cgroup);
    }

    /// Returns the cpuset that was set for a cgroup itself.
    pub(super) fn own(&self, cgroup: &str) -> Option<BTreeSet<usize>> {
        let cpus = &self.cpusets.get(cgroup)?.cpus;
        Some(cpus.iter().map(|cpu| *cpu as usize).collect())
    }

    /// Returns the CPUs that the cpusets of a cgroup and its ancestors leave it; `None` if none has
    /// one. A cpuset that has no CPU in common with its ancestors' is ignored.
    pub(super) fn asked(&self, cgroup: &str) -> Option<BTreeSet<u32>> {
        // In order of their names, so an ancestor comes before its descendants.
        let cpusets = self.cpusets.iter().filter(|(name, _)| is_in(cgroup, name));
        let cpusets = cpusets.map(|(_, cpuset)| cpuset.cpus.clone());
        cpusets.reduce(|above, own| {
            let common = &above & &own;
            if common.is_empty() { above } else { common }
        })
    }

    /// Returns the CPUs on which the tasks of a cgroup have to be; `None` if it has no cpuset, or if
    /// they may have fallen back to other CPUs.
    pub(super) fn confinement(&self, cgroup: &str) -> Option<BTreeSet<u32>> {
        let may_be_elsewhere =
            self.cpusets.iter().any(|(name, cpuset)| cpuset.has_fallen_back && is_in(cgroup, name));
        self.asked(cgroup).filter(|_| !may_be_elsewhere)
    }

    fn find_fallen_back(&mut self) {
        let is_offline =
            |name: &&String| self.asked(name).is_some_and(|cpus| cpus.is_subset(&self.offline));
        let fallen: Vec<_> = self.cpusets.keys().filter(is_offline).cloned().collect();
        for name in fallen {
            self.cpusets.entry(name).and_modify(|cpuset| cpuset.has_fallen_back = true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracker(cpusets: &[(&str, &[usize])]) -> CpusetTracker {
        let mut tracker = CpusetTracker::default();
        for (cgroup, cpus) in cpusets {
            tracker.set(cgroup, Some(&cpus.iter().copied().collect()));
        }
        tracker
    }

    #[test]
    fn tracker_intersects_cpusets_with_those_of_ancestors() {
        let tracker = tracker(&[("a", &[0, 1, 2]), ("a/b", &[1, 2, 3]), ("a/b/c", &[7])]);
        for (cgroup, cpus) in [
            ("a", Some(&[0, 1, 2][..])),
            ("a/x", Some(&[0, 1, 2])),
            ("a/b", Some(&[1, 2])),
            // Nothing in common with the ancestors.
            ("a/b/c", Some(&[1, 2])),
            // Not a descendant of `a`.
            ("ab", None),
            ("x", None),
        ] {
            let wanted = cpus.map(|cpus| cpus.iter().copied().collect());
            assert_eq!(tracker.asked(cgroup), wanted, "{cgroup}");
            assert_eq!(tracker.confinement(cgroup), wanted, "{cgroup}");
        }
        assert_eq!(tracker.own("a/b/c"), Some([7].into()));
        assert_eq!(tracker.own("a/x"), None);
    }

    #[test]
    fn tracker_has_no_confinement_once_all_cpus_were_offline() {
        let mut tracker = tracker(&[("a", &[0, 1]), ("a/b", &[1]), ("c", &[1, 2])]);
        let confined = |tracker: &CpusetTracker| {
            ["a", "a/b", "a/b/c", "c"].map(|cgroup| tracker.confinement(cgroup).is_some())
        };
        tracker.set_online(1, false);
        assert_eq!(confined(&tracker), [true, false, false, true]);
        assert_eq!(tracker.asked("a/b"), Some([1].into()));
        tracker.set_online(0, false);
        assert_eq!(confined(&tracker), [false, false, false, true]);
        // Online CPUs do not prove that the tasks are back.
        tracker.set_online(0, true);
        tracker.set_online(1, true);
        assert_eq!(confined(&tracker), [false, false, false, true]);
        tracker.set("a", Some(&[0, 1].into()));
        assert_eq!(confined(&tracker), [true; 4]);
    }

    #[test]
    fn tracker_detects_a_cpuset_that_is_offline_when_it_is_set() {
        let mut tracker = CpusetTracker::default();
        tracker.set_online(3, false);
        tracker.set("a", Some(&[3].into()));
        assert_eq!(tracker.confinement("a"), None);
        tracker.set("a", None);
        assert_eq!((tracker.asked("a"), tracker.own("a")), (None, None));
        tracker.set("a", Some(&[3, 4].into()));
        assert_eq!(tracker.confinement("a"), Some([3, 4].into()));
        tracker.forget("a");
        assert_eq!(tracker.confinement("a"), None);
    }
}
