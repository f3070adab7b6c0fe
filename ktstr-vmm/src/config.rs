//! What a virtual machine is made of.

use std::path::PathBuf;

use crate::Error;

/// A machine to boot.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// A bzImage, or an uncompressed `vmlinux` with a PVH note. Like the initramfs it may be mapped
    /// into the guest, so neither file may change while the machine lives.
    pub kernel: PathBuf,
    /// The initramfs, in any form the kernel unpacks.
    pub initramfs: PathBuf,
    /// The kernel's command line, complete but for what the engine itself needs.
    pub cmdline: String,
    /// CPUs, caches and nodes.
    pub topology: Topology,
    /// Memory in MiB, over all nodes; nodes get equal shares, the last one the remainder.
    pub memory_mib: u32,
    /// The names of the virtio-console ports, in the order in which [`Event::Port`] and
    /// [`Vm::send`] number them.
    ///
    /// [`Event::Port`]: crate::Event::Port
    /// [`Vm::send`]: crate::Vm::send
    pub ports: Vec<String>,
}

impl VmConfig {
    /// The size of each node in MiB: equal shares, and the remainder for the last.
    pub(crate) fn node_sizes_mib(&self) -> impl Iterator<Item = u64> {
        let nodes = u64::from(self.topology.numa_nodes);
        let total = u64::from(self.memory_mib);
        let share = total / nodes;
        (0..nodes).map(move |node| if node + 1 == nodes { total - share * node } else { share })
    }

    /// Checks that this describes a machine at all.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Topology { numa_nodes, llcs, cores_per_llc, threads_per_core } = self.topology;
        let all = [numa_nodes, llcs, cores_per_llc, threads_per_core];
        let complaint = if all.contains(&0) {
            "every dimension of the topology must be at least 1".to_owned()
        } else if llcs % numa_nodes != 0 {
            format!("{llcs} last-level caches cannot be spread evenly over {numa_nodes} nodes")
        } else if self.memory_mib < numa_nodes {
            format!("{} MiB of memory are too little for {numa_nodes} nodes", self.memory_mib)
        } else if [llcs, cores_per_llc, threads_per_core]
            .iter()
            .try_fold(1_u32, |cpus, &n| cpus.checked_mul(n))
            .is_none()
        {
            "the topology has too many CPUs".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::Config(complaint))
    }
}

/// CPUs, caches and memory nodes.
///
/// CPUs are numbered thread first, then core, then LLC, then node. All dimensions are at least 1
/// and `llcs` is a multiple of `numa_nodes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// NUMA nodes.
    pub numa_nodes: u32,
    /// Last-level caches, in total.
    pub llcs: u32,
    /// Cores that share one last-level cache.
    pub cores_per_llc: u32,
    /// SMT threads of one core.
    pub threads_per_core: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(topology: [u32; 4], memory_mib: u32) -> VmConfig {
        let [numa_nodes, llcs, cores_per_llc, threads_per_core] = topology;
        VmConfig {
            kernel: PathBuf::new(),
            initramfs: PathBuf::new(),
            cmdline: String::new(),
            topology: Topology { numa_nodes, llcs, cores_per_llc, threads_per_core },
            memory_mib,
            ports: Vec::new(),
        }
    }

    #[test]
    fn impossible_machines_are_refused_in_our_words() {
        for (topology, memory_mib, want) in [
            ([1, 0, 1, 1], 256, "every dimension of the topology must be at least 1"),
            ([2, 3, 1, 1], 256, "3 last-level caches cannot be spread evenly over 2 nodes"),
            ([4, 4, 1, 1], 3, "3 MiB of memory are too little for 4 nodes"),
            ([1, 1 << 16, 1 << 16, 1], 256, "the topology has too many CPUs"),
        ] {
            let error = config(topology, memory_mib).check().unwrap_err();
            assert_eq!(error.to_string(), format!("cannot build the machine: {want}"));
        }
        config([2, 4, 2, 2], 256).check().unwrap();
    }
}
