//! From which NUMA nodes workers get their memory.

use std::collections::BTreeSet;
use std::io;

use crate::linux::sys;

/// The kernel's masks of nodes are taken as one word.
const MAX_NODES: u32 = 64;

/// The memory policy of a worker, as set_mempolicy(2) describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum MemoryPolicy {
    /// The kernel's: the node of the CPU that first writes to a page.
    #[default]
    Default,
    /// From these nodes or not at all.
    Bind(BTreeSet<u32>),
    /// From this node if it has any left.
    Preferred(u32),
    /// From these nodes in turn, page by page.
    Interleave(BTreeSet<u32>),
}

impl MemoryPolicy {
    pub(super) fn check(&self) -> Result<(), String> {
        let nodes = self.nodes();
        match self {
            Self::Default => Ok(()),
            _ if nodes.is_empty() => Err(format!("{self:?} has no memory node")),
            _ if nodes.iter().any(|node| *node >= MAX_NODES) => {
                Err(format!("{self:?}: memory nodes are below {MAX_NODES}"))
            }
            _ => Ok(()),
        }
    }

    /// Sets the policy of this process. Nodes that do not exist are an error.
    pub(super) fn apply(&self) -> io::Result<()> {
        let mode = match self {
            Self::Default => return Ok(()),
            Self::Bind(_) => libc::MPOL_BIND,
            Self::Preferred(_) => libc::MPOL_PREFERRED,
            Self::Interleave(_) => libc::MPOL_INTERLEAVE,
        };
        // Static: moved to a cpuset, the nodes stay these and are not counted anew from its first.
        let mode = mode | libc::MPOL_F_STATIC_NODES;
        sys::set_mempolicy(mode, self.nodes().iter().fold(0, |mask, node| mask | 1 << node))
    }

    fn nodes(&self) -> BTreeSet<u32> {
        match self {
            Self::Default => BTreeSet::new(),
            Self::Bind(nodes) | Self::Interleave(nodes) => nodes.clone(),
            Self::Preferred(node) => BTreeSet::from([*node]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::workload::WorkSpec;
    use crate::guest::workload::testing::Running;

    #[test]
    fn a_worker_has_its_memory_policy() {
        for (policy, name) in [
            (MemoryPolicy::Default, "default"),
            (MemoryPolicy::Bind(BTreeSet::from([0])), "bind=static:0"),
            (MemoryPolicy::Preferred(0), "prefer=static:0"),
            (MemoryPolicy::Interleave(BTreeSet::from([0])), "interleave=static:0"),
        ] {
            let running = Running::start(WorkSpec::default().memory_policy(policy));
            let maps = format!("/proc/{}/numa_maps", running.pid(0));
            let maps = std::fs::read_to_string(maps).unwrap();
            let first = maps.lines().next().unwrap();
            assert_eq!(first.split(' ').nth(1), Some(name), "{first}");
        }
    }

    #[test]
    fn a_node_that_does_not_exist_is_refused() {
        for (policy, why) in [
            (MemoryPolicy::Bind(BTreeSet::new()), "has no memory node"),
            (MemoryPolicy::Preferred(64), "below 64"),
            (MemoryPolicy::Bind(BTreeSet::from([63])), "failed to set the memory policy"),
        ] {
            let error = Running::try_start(WorkSpec::default().memory_policy(policy)).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{error:#}");
        }
    }
}
