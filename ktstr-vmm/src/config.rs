//! The configuration of a virtual machine.

use std::path::PathBuf;

use crate::error::Error;

/// A machine to boot.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// A bzImage, or an uncompressed `vmlinux` with a PVH note.
    pub kernel: PathBuf,
    /// The initramfs, in any format that the kernel unpacks.
    pub initramfs: PathBuf,
    /// The kernel's command line, without the words that the engine itself adds.
    pub cmdline: String,
    /// CPUs, caches and nodes.
    pub topology: Topology,
    /// Memory in MiB over all nodes. Nodes get equal shares, the last one also the remainder.
    pub memory_mib: u32,
    /// The names of the virtio-console ports, in the order in which [`Event::Port`] and
    /// [`Vm::send`] number them.
    ///
    /// [`Event::Port`]: crate::engine::Event::Port
    /// [`Vm::send`]: crate::Vm::send
    pub ports: Vec<String>,
}

/// The maximum number of ports: QEMU's virtio-serial has 31, of which number 0 is for a console.
pub(crate) const MAX_PORTS: usize = 30;

impl VmConfig {
    /// Returns the size of each node in MiB: equal shares, and the remainder for the last.
    pub(crate) fn node_sizes_mib(&self) -> impl Iterator<Item = u64> {
        let nodes = u64::from(self.topology.numa_nodes);
        let total = u64::from(self.memory_mib);
        let share = total / nodes;
        (0..nodes).map(move |node| if node + 1 == nodes { total - share * node } else { share })
    }

    /// Checks that such a machine can exist.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Topology { numa_nodes, ref llc_cores, threads_per_core } = self.topology;
        let llcs = llc_cores.len();
        let is_empty = llcs == 0 || llc_cores.contains(&0);
        let complaint = if is_empty || numa_nodes == 0 || threads_per_core == 0 {
            "every dimension of the topology must be at least 1".to_owned()
        } else if llcs % numa_nodes as usize != 0 {
            format!("{llcs} last-level caches cannot be divided evenly over {numa_nodes} nodes")
        } else if self.memory_mib < numa_nodes {
            format!("{} MiB of memory are not enough for {numa_nodes} nodes", self.memory_mib)
        } else if self.topology.nr_cpus() > u64::from(u32::MAX) {
            "the topology has too many CPUs".to_owned()
        } else if self.ports.len() > MAX_PORTS {
            format!("{} ports (maximum {MAX_PORTS})", self.ports.len())
        } else {
            return Ok(());
        };
        Err(Error::Config(complaint))
    }
}

/// CPUs, caches and memory nodes.
///
/// CPUs are numbered thread first, then core, then LLC, then node. All dimensions are at least 1,
/// and the number of LLCs is a multiple of `numa_nodes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// NUMA nodes. Each has the same number of LLCs; those of a node are adjacent.
    pub numa_nodes: u32,
    /// The number of cores of each last-level cache of the machine.
    pub llc_cores: Vec<u32>,
    /// SMT threads of one core.
    pub threads_per_core: u32,
}

impl Topology {
    /// Returns the number of CPUs.
    pub(crate) fn nr_cpus(&self) -> u64 {
        let cores: u64 = self.llc_cores.iter().map(|cores| u64::from(*cores)).sum();
        cores * u64::from(self.threads_per_core)
    }

    /// Returns the number of last-level caches of each node.
    pub(crate) fn llcs_per_node(&self) -> u32 {
        self.llc_cores.len() as u32 / self.numa_nodes
    }

    /// Returns the number of cores of the largest last-level cache.
    pub(crate) fn max_cores_per_llc(&self) -> u32 {
        self.llc_cores.iter().copied().max().unwrap_or(0)
    }
}

/// From numbers of nodes, last-level caches, cores per cache and threads per core.
#[cfg(test)]
impl From<[u32; 4]> for Topology {
    fn from([numa_nodes, llcs, cores, threads_per_core]: [u32; 4]) -> Self {
        Self { numa_nodes, llc_cores: vec![cores; llcs as usize], threads_per_core }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(topology: Topology, memory_mib: u32) -> VmConfig {
        VmConfig {
            kernel: PathBuf::new(),
            initramfs: PathBuf::new(),
            cmdline: String::new(),
            topology,
            memory_mib,
            ports: Vec::new(),
        }
    }

    #[test]
    fn check_rejects_impossible_machines() {
        for (topology, memory_mib, want) in [
            ([1, 0, 1, 1], 256, "every dimension of the topology must be at least 1"),
            ([2, 3, 1, 1], 256, "3 last-level caches cannot be divided evenly over 2 nodes"),
            ([4, 4, 1, 1], 3, "3 MiB of memory are not enough for 4 nodes"),
            ([1, 1 << 16, 1 << 16, 1], 256, "the topology has too many CPUs"),
        ] {
            let error = config(topology.into(), memory_mib).check().unwrap_err();
            assert_eq!(error.to_string(), format!("cannot build the machine: {want}"));
        }
        config([2, 4, 2, 2].into(), 256).check().unwrap();
    }

    #[test]
    fn check_accepts_uneven_caches_but_no_empty_one() {
        for (numa_nodes, llc_cores, is_machine) in [
            (1, vec![3, 1], true),
            (2, vec![1, 2, 3, 4], true),
            (2, vec![1, 2, 3], false),
            (1, vec![1, 0], false),
            (1, vec![u32::MAX, 1], false),
        ] {
            let topology = Topology { numa_nodes, llc_cores, threads_per_core: 1 };
            let config = config(topology, 256);
            assert_eq!(config.check().is_ok(), is_machine, "{config:?}");
        }
    }

    #[test]
    fn check_limits_the_ports() {
        let ports = vec!["port".to_owned(); MAX_PORTS];
        let mut config = VmConfig {
            ports,
            ..config(Topology { numa_nodes: 1, llc_cores: vec![1], threads_per_core: 1 }, 256)
        };
        config.check().unwrap();
        config.ports.push("one too many".to_owned());
        let error = config.check().unwrap_err();
        assert_eq!(error.to_string(), "cannot build the machine: 31 ports (maximum 30)");
    }
}
