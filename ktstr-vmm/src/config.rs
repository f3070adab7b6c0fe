//! The configuration of a virtual machine.

use std::path::PathBuf;

#[cfg(test)]
use ktstr_core::machine::Llcs;
use ktstr_core::machine::Topology;

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
    /// Whether an engine that loads a `vmlinux` itself gives it a random virtual address. The kernel
    /// reads `nokaslr` from `cmdline`: without KASLR, that needs the word too.
    pub kaslr: bool,
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
        self.topology.check().map_err(|error| Error::Config(error.to_string()))?;
        let nodes = self.topology.numa_nodes;
        let complaint = if self.memory_mib < nodes {
            format!("{} MiB of memory are not enough for {nodes} nodes", self.memory_mib)
        } else if self.ports.len() > MAX_PORTS {
            format!("{} ports (maximum {MAX_PORTS})", self.ports.len())
        } else {
            return Ok(());
        };
        Err(Error::Config(complaint))
    }
}

/// Returns the topology with these numbers of nodes, last-level caches, cores per cache and threads
/// per core.
#[cfg(test)]
pub(crate) fn even([numa_nodes, llcs, cores, threads_per_core]: [u32; 4]) -> Topology {
    Topology { numa_nodes, llcs: Llcs::even(llcs, cores), threads_per_core }
}

/// Returns the topology with this number of cores for each last-level cache.
#[cfg(test)]
pub(crate) fn uneven(numa_nodes: u32, cores: &[u32], threads_per_core: u32) -> Topology {
    Topology { numa_nodes, llcs: Llcs::of(cores), threads_per_core }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(topology: Topology, memory_mib: u32) -> VmConfig {
        VmConfig {
            kernel: PathBuf::new(),
            initramfs: PathBuf::new(),
            cmdline: String::new(),
            kaslr: true,
            topology,
            memory_mib,
            ports: Vec::new(),
        }
    }

    #[test]
    fn check_rejects_impossible_machines() {
        for (topology, memory_mib, want) in [
            (even([0, 1, 1, 1]), 256, "every dimension of the topology must be at least 1"),
            (even([2, 3, 1, 1]), 256, "3 last-level caches cannot be divided evenly over 2 nodes"),
            (even([4, 4, 1, 1]), 3, "3 MiB of memory are not enough for 4 nodes"),
            (
                even([1, 1, 255, u32::MAX]),
                256,
                "the topology has too many CPUs: 1095216660225 (limit 255)",
            ),
        ] {
            let error = config(topology, memory_mib).check().unwrap_err();
            assert_eq!(error.to_string(), format!("cannot build the machine: {want}"));
        }
        config(even([2, 4, 2, 2]), 256).check().unwrap();
        config(uneven(2, &[1, 2, 3, 4], 1), 256).check().unwrap();
    }

    #[test]
    fn check_limits_the_ports() {
        let ports = vec!["port".to_owned(); MAX_PORTS];
        let mut config = VmConfig { ports, ..config(even([1, 1, 1, 1]), 256) };
        config.check().unwrap();
        config.ports.push("one too many".to_owned());
        let error = config.check().unwrap_err();
        assert_eq!(error.to_string(), "cannot build the machine: 31 ports (maximum 30)");
    }
}
