//! A model of a cgroup v2 hierarchy: which operations the kernel rejects, and with which errno.
//!
//! Names are those of a manager: `a/b` below its parent, which is `""` and a child of the root of the
//! hierarchy, `/`. `tests/cgroup/rules.rs` runs the same operations on this and on the kernel.
//!
//! Source: Linux 6.12, admin-guide/cgroup-v2.rst; kernel/cgroup/cgroup.c (the functions named
//! below), kernel/cgroup/cpuset.c.

use std::collections::{BTreeMap, BTreeSet};

use super::{Controller, Knob, list};

/// The root of the hierarchy, in which the parent of the manager is.
pub(super) const ROOT: &str = "/";

/// The parent of the manager.
pub(super) const PARENT: &str = "";

/// Controllers that work on threads; the others are domain controllers.
const THREADED: [Controller; 3] = [Controller::Cpuset, Controller::Cpu, Controller::Pids];

/// Memory nodes below this are checked against the machine; others are malformed.
///
/// Source: `MAX_NUMNODES` of distribution kernels.
const MAX_NODES: usize = 1 << 10;

/// Interface files that every cgroup has.
const CORE_FILES: [&str; 14] = [
    "cgroup.controllers",
    "cgroup.events",
    "cgroup.freeze",
    "cgroup.kill",
    "cgroup.max.depth",
    "cgroup.max.descendants",
    "cgroup.procs",
    "cgroup.stat",
    "cgroup.subtree_control",
    "cgroup.threads",
    "cgroup.type",
    "cpu.stat",
    "cpu.pressure",
    "memory.pressure",
];

/// The error of the kernel, and the rule behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: i32,
    pub(super) rule: &'static str,
}

const fn refuse<T>(errno: i32, rule: &'static str) -> Result<T, Refusal> {
    Err(Refusal { errno, rule })
}

const NO_CGROUP: Refusal = Refusal { errno: libc::ENOENT, rule: "there is no such cgroup" };

#[derive(Debug, Clone, Default)]
struct ModelCgroup {
    /// `cgroup.subtree_control`.
    enabled: BTreeSet<Controller>,
    pids: Vec<i32>,
    freezes: bool,
    cpus: BTreeSet<usize>,
    mems: BTreeSet<usize>,
}

/// All cgroups of a machine.
#[derive(Debug)]
pub(super) struct Hierarchy {
    nodes: BTreeMap<String, ModelCgroup>,
    ended: BTreeSet<i32>,
    nr_cpus: usize,
    nr_nodes: usize,
}

impl Hierarchy {
    /// Returns a hierarchy that consists of a root, on a machine of this size.
    pub(super) fn new(nr_cpus: usize, nr_nodes: usize) -> Self {
        let nodes = BTreeMap::from([(ROOT.to_owned(), ModelCgroup::default())]);
        Self { nodes, ended: BTreeSet::new(), nr_cpus, nr_nodes }
    }

    fn node(&self, name: &str) -> Result<&ModelCgroup, Refusal> {
        self.nodes.get(name).ok_or(NO_CGROUP)
    }

    fn node_mut(&mut self, name: &str) -> Result<&mut ModelCgroup, Refusal> {
        self.nodes.get_mut(name).ok_or(NO_CGROUP)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.nodes.contains_key(name)
    }

    /// Returns the names of all cgroups below the parent.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.nodes.keys().filter(|name| ![ROOT, PARENT].contains(&name.as_str()))
    }

    pub(super) fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a String> {
        self.nodes.keys().filter(move |child| parent_of(child) == Some(name))
    }

    /// Returns the names of a cgroup and its descendants.
    fn tree<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a String> {
        self.nodes.keys().filter(move |one| levels(one).any(|level| level == name))
    }

    /// Returns the processes in a cgroup, in the order in which they entered.
    pub(super) fn pids(&self, name: &str) -> Result<&[i32], Refusal> {
        Ok(&self.node(name)?.pids)
    }

    pub(super) fn pids_of_tree(&self, name: &str) -> Vec<i32> {
        self.tree(name).flat_map(|one| self.nodes[one].pids.clone()).collect()
    }

    pub(super) fn is_populated(&self, name: &str) -> bool {
        self.tree(name).any(|one| !self.nodes[one].pids.is_empty())
    }

    /// Returns `cgroup.controllers`.
    fn available(&self, name: &str) -> BTreeSet<Controller> {
        match parent_of(name) {
            Some(parent) => self.nodes.get(parent).map(|node| node.enabled.clone()),
            None => Some(Controller::ALL.into()),
        }
        .unwrap_or_default()
    }

    /// Source: `cgroup_is_thread_root`. (No cgroup here is made threaded by `cgroup.type`.)
    fn is_thread_root(&self, name: &str) -> bool {
        let Some(node) = self.nodes.get(name).filter(|_| name != ROOT) else { return false };
        !node.pids.is_empty() && THREADED.iter().any(|threaded| node.enabled.contains(threaded))
    }

    /// Source: `cgroup_can_be_thread_root`.
    fn can_be_thread_root(&self, name: &str) -> bool {
        let is_threaded = |controller: &Controller| THREADED.contains(controller);
        let enabled = self.nodes.get(name).map(|node| &node.enabled);
        name == ROOT
            || !self.children(name).any(|child| self.is_populated(child))
                && enabled.is_none_or(|enabled| enabled.iter().all(is_threaded))
    }

    /// Source: `cgroup_is_valid_domain`.
    fn check_domain(&self, name: &str) -> Result<(), Refusal> {
        if levels(name).skip(1).any(|level| self.is_thread_root(level)) {
            return refuse(
                libc::EOPNOTSUPP,
                "an ancestor contains processes and has cpu, cpuset or pids enabled for its \
                 children, which makes it a threaded domain",
            );
        }
        Ok(())
    }

    pub(super) fn create(&mut self, name: &str) -> Result<(), Refusal> {
        let parent = parent_of(name).filter(|parent| self.has(parent)).ok_or(NO_CGROUP)?;
        let own = name.rsplit('/').next().unwrap_or_default();
        let has_knob = self.available(parent).iter().any(|controller| {
            let knob = own.strip_prefix(controller.name()).and_then(|own| own.strip_prefix('.'));
            knob.is_some_and(|knob| ["max", "weight", "cpus", "mems"].contains(&knob))
        });
        if self.has(name) || CORE_FILES.contains(&own) || has_knob {
            return refuse(libc::EEXIST, "the name is that of a cgroup or of an interface file");
        }
        self.nodes.insert(name.to_owned(), ModelCgroup::default());
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str) -> Result<(), Refusal> {
        if self.children(name).next().is_some() || self.is_populated(name) {
            return refuse(libc::EBUSY, "it contains processes or has children");
        }
        self.nodes.remove(name).map(drop).ok_or(NO_CGROUP)
    }

    /// Removes a cgroup and its descendants, including their processes.
    pub(super) fn remove_tree(&mut self, name: &str) {
        let names: Vec<_> = self.tree(name).cloned().collect();
        names.iter().for_each(|name| drop(self.nodes.remove(name)));
    }

    /// Enables controllers for the children of a cgroup: all of them or none.
    ///
    /// Source: `cgroup_subtree_control_write`, `cgroup_vet_subtree_control_enable`.
    pub(super) fn enable(
        &mut self,
        name: &str,
        controllers: &BTreeSet<Controller>,
    ) -> Result<(), Refusal> {
        let new: BTreeSet<_> = controllers.difference(&self.node(name)?.enabled).copied().collect();
        if !new.is_subset(&self.available(name)) {
            return refuse(libc::ENOENT, "the controller is not enabled in its parent");
        }
        if !new.is_empty() && name != ROOT {
            self.check_domain(name)?;
            let is_threaded = new.iter().all(|controller| THREADED.contains(controller));
            if !is_threaded && self.is_thread_root(name) {
                return refuse(
                    libc::EOPNOTSUPP,
                    "a threaded domain has no domain controllers for its children",
                );
            }
            let may_hold_processes = is_threaded && self.can_be_thread_root(name);
            if !may_hold_processes && !self.node(name)?.pids.is_empty() {
                return refuse(libc::EBUSY, "a cgroup with processes has no domain controllers");
            }
        }
        self.node_mut(name)?.enabled.extend(new);
        Ok(())
    }

    /// Disables all controllers for the children of a cgroup.
    pub(super) fn disable_all(&mut self, name: &str) -> Result<(), Refusal> {
        let enabled = std::mem::take(&mut self.node_mut(name)?.enabled);
        let children: Vec<_> = self.children(name).cloned().collect();
        if children.iter().any(|child| !self.nodes[child].enabled.is_disjoint(&enabled)) {
            self.node_mut(name)?.enabled = enabled;
            return refuse(libc::EBUSY, "a child still has the controller enabled");
        }
        if enabled.contains(&Controller::Cpuset) {
            for child in children {
                let node = self.node_mut(&child)?;
                (node.cpus, node.mems) = Default::default();
            }
        }
        Ok(())
    }

    /// Moves a process into a cgroup. Every positive pid is a process until [`end`](Self::end).
    ///
    /// Source: `cgroup_migrate_vet_dst`.
    pub(super) fn attach(&mut self, name: &str, pid: i32) -> Result<(), Refusal> {
        let enabled = &self.node(name)?.enabled;
        if self.ended.contains(&pid) {
            return refuse(libc::ESRCH, "the process has ended");
        }
        self.check_domain(name)?;
        if !enabled.is_empty() && !self.can_be_thread_root(name) {
            return refuse(
                libc::EBUSY,
                "a cgroup with controllers enabled for its children cannot contain processes",
            );
        }
        if !self.node(name)?.pids.contains(&pid) {
            self.detach(pid);
            self.node_mut(name)?.pids.push(pid);
        }
        Ok(())
    }

    fn detach(&mut self, pid: i32) {
        self.nodes.values_mut().for_each(|node| node.pids.retain(|one| *one != pid));
    }

    pub(super) fn end(&mut self, pid: i32) {
        self.detach(pid);
        self.ended.insert(pid);
    }

    /// Moves the processes of a cgroup to the root of the hierarchy.
    pub(super) fn drain(&mut self, name: &str) -> Result<(), Refusal> {
        let pids = std::mem::take(&mut self.node_mut(name)?.pids);
        self.node_mut(ROOT)?.pids.extend(pids);
        Ok(())
    }

    pub(super) fn set_frozen(&mut self, name: &str, freezes: bool) -> Result<(), Refusal> {
        self.node_mut(name)?.freezes = freezes;
        Ok(())
    }

    /// Returns whether a cgroup or an ancestor is frozen.
    pub(super) fn is_frozen(&self, name: &str) -> bool {
        levels(name).any(|level| self.nodes.get(level).is_some_and(|node| node.freezes))
    }

    /// Writes a knob. Its value is in range.
    pub(super) fn write(&mut self, name: &str, knob: &Knob) -> Result<(), Refusal> {
        self.node(name)?;
        let controller = knob.file().split('.').next().unwrap_or_default();
        if !self.available(name).iter().any(|one| one.name() == controller) {
            return refuse(libc::ENOENT, "the controller is not enabled in its parent");
        }
        match knob.file() {
            "cpuset.cpus" => self.write_cpuset(name, knob, CpusetList::Cpus),
            "cpuset.mems" => self.write_cpuset(name, knob, CpusetList::Mems),
            _ => Ok(()),
        }
    }

    /// Writes a cpuset as the manager does on Linux 6.12 and earlier: emptying that of a cgroup with
    /// processes sets it to a copy of the inherited value.
    fn write_cpuset(&mut self, name: &str, knob: &Knob, what: CpusetList) -> Result<(), Refusal> {
        let mut list = list::parse(knob.value()).unwrap_or_default();
        let (most, nr) = match what {
            CpusetList::Cpus => (self.nr_cpus, self.nr_cpus),
            CpusetList::Mems => (MAX_NODES, self.nr_nodes),
        };
        if list.iter().any(|number| *number >= most) {
            return refuse(libc::ERANGE, "the CPU or node is out of range");
        }
        if list.iter().any(|number| *number >= nr) {
            return refuse(libc::EINVAL, "the machine has no such node");
        }
        if list.is_empty() && !what.of(self.node(name)?).is_empty() && self.is_populated(name) {
            list = self.effective(parent_of(name).unwrap_or(ROOT), what);
        }
        *what.of_mut(self.node_mut(name)?) = list;
        Ok(())
    }

    /// Returns `cpuset.cpus.effective` or `cpuset.mems.effective`.
    fn effective(&self, name: &str, what: CpusetList) -> BTreeSet<usize> {
        let Some(parent) = parent_of(name) else {
            return match what {
                CpusetList::Cpus => (0..self.nr_cpus).collect(),
                CpusetList::Mems => (0..self.nr_nodes).collect(),
            };
        };
        let parent = self.effective(parent, what);
        let own = self.nodes.get(name).map(|node| what.of(node) & &parent).unwrap_or_default();
        if own.is_empty() { parent } else { own }
    }

    /// Returns the CPUs that processes of a cgroup may run on.
    pub(super) fn effective_cpus(&self, name: &str) -> Result<BTreeSet<usize>, Refusal> {
        self.node(name).map(|_| self.effective(name, CpusetList::Cpus))
    }
}

/// One of the two lists of a cpuset.
#[derive(Debug, Clone, Copy)]
enum CpusetList {
    Cpus,
    Mems,
}

impl CpusetList {
    fn of(self, node: &ModelCgroup) -> &BTreeSet<usize> {
        match self {
            Self::Cpus => &node.cpus,
            Self::Mems => &node.mems,
        }
    }

    fn of_mut(self, node: &mut ModelCgroup) -> &mut BTreeSet<usize> {
        match self {
            Self::Cpus => &mut node.cpus,
            Self::Mems => &mut node.mems,
        }
    }
}

/// Returns the parent of a cgroup; `None` for the root.
pub(super) fn parent_of(name: &str) -> Option<&str> {
    match name {
        ROOT => None,
        PARENT => Some(ROOT),
        _ => Some(name.rsplit_once('/').map_or(PARENT, |(parent, _)| parent)),
    }
}

/// Returns a cgroup and its ancestors, up to the root.
fn levels(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(name), |level| parent_of(level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_end_with_the_root() {
        assert_eq!(levels("a/b").collect::<Vec<_>>(), ["a/b", "a", "", "/"]);
        assert_eq!(levels(ROOT).collect::<Vec<_>>(), ["/"]);
    }

    #[test]
    fn effective_cpus_narrow_and_fall_back() {
        let mut cgroups = Hierarchy::new(4, 1);
        let cpus = |list: &[usize]| Knob::list("cpuset.cpus", &list.iter().copied().collect());
        for name in ["", "a", "a/b"] {
            let parent = parent_of(name).unwrap();
            cgroups.enable(parent, &[Controller::Cpuset].into()).unwrap();
            cgroups.create(name).unwrap();
        }
        let effective = |cgroups: &Hierarchy| -> Vec<usize> {
            cgroups.effective_cpus("a/b").unwrap().into_iter().collect()
        };
        assert_eq!(effective(&cgroups), [0, 1, 2, 3]);
        cgroups.write("a", &cpus(&[1, 2])).unwrap();
        cgroups.write("a/b", &cpus(&[2, 3])).unwrap();
        assert_eq!(effective(&cgroups), [2]);
        cgroups.write("a", &cpus(&[0, 1])).unwrap();
        assert_eq!(effective(&cgroups), [0, 1], "none is left, so those of the parent are used");
        // With a process, it is a copy that does not grow with the parent.
        cgroups.attach("a/b", 7).unwrap();
        cgroups.write("a/b", &cpus(&[])).unwrap();
        cgroups.write("a", &cpus(&[])).unwrap();
        assert_eq!(effective(&cgroups), [0, 1]);
        cgroups.end(7);
        cgroups.write("a/b", &cpus(&[])).unwrap();
        assert_eq!(effective(&cgroups), [0, 1, 2, 3]);
    }
}
