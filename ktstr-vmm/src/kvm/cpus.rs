//! The CPUs of a machine and their APIC IDs.
//!
//! An APIC ID contains the position of its CPU: from the highest bit down the node (which is the
//! package), the last-level cache in the node, the core, and the thread. Each field has as many
//! bits as its largest value needs. So IDs have gaps where a dimension is not a power of two, and
//! where a cache has fewer cores than the largest one. Hardware does the same, also for cores that
//! were disabled in the factory, and kernels derive from it which CPUs share what.
//!
//! Source: Intel SDM vol. 3A, 10.9.3 ("Hierarchical ID of Logical Processors").

use ktstr_core::machine::Topology;

use crate::error::Error;

/// The highest APIC ID: 255 addresses all CPUs, and larger IDs need interrupt remapping.
const MAX_APIC_ID: u32 = 254;

/// A CPU. Its index is its number in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cpu {
    pub(super) apic_id: u32,
    pub(super) node: u32,
}

/// All CPUs, and the fields of their APIC IDs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cpus {
    /// In the order of their numbers.
    pub(super) list: Vec<Cpu>,
    pub(super) threads_per_core: u32,
    /// The number of cores of the largest last-level cache.
    pub(super) max_cores_per_llc: u32,
    pub(super) llcs_per_node: u32,
    pub(super) nodes: u32,
}

impl Cpus {
    /// Numbers the CPUs of `topology`: thread first, then core, then cache, then node.
    pub(super) fn new(topology: &Topology) -> Result<Self, Error> {
        let Topology { numa_nodes, llcs, threads_per_core } = *topology;
        let llcs_per_node = topology.llcs_per_node();
        let mut cpus = Self {
            list: Vec::new(),
            threads_per_core,
            max_cores_per_llc: llcs.max_cores(),
            llcs_per_node,
            nodes: numa_nodes,
        };
        // APIC IDs ascend in CPU order, so the last one is the highest. It is checked before the list
        // is allocated, which can be huge.
        let last_core = llcs.cores().last().map_or(0, |cores| cores - 1);
        let highest =
            cpus.apic_id(numa_nodes - 1, llcs_per_node - 1, last_core, threads_per_core - 1);
        if highest > u64::from(MAX_APIC_ID) {
            return Err(Error::Config(format!(
                "{} CPUs need APIC IDs up to {highest} (maximum {MAX_APIC_ID}): each dimension \
                 counts as the next power of two, and each last-level cache as the largest",
                topology.nr_cpus(),
            )));
        }
        for (index, cores) in (0..).zip(llcs.cores()) {
            let (node, llc) = (index / llcs_per_node, index % llcs_per_node);
            for core in 0..cores {
                for thread in 0..threads_per_core {
                    let apic_id = cpus.apic_id(node, llc, core, thread) as u32;
                    cpus.list.push(Cpu { apic_id, node });
                }
            }
        }
        Ok(cpus)
    }

    fn apic_id(&self, node: u32, llc: u32, core: u32, thread: u32) -> u64 {
        u64::from(node) << self.node_shift()
            | u64::from(llc) << self.llc_shift()
            | u64::from(core) << self.core_shift()
            | u64::from(thread)
    }

    /// Returns the number of bits below the number of the core: those of the thread.
    pub(super) fn core_shift(&self) -> u32 {
        bits(self.threads_per_core)
    }

    /// Returns the number of bits below the number of the last-level cache: thread and core.
    pub(super) fn llc_shift(&self) -> u32 {
        self.core_shift() + bits(self.max_cores_per_llc)
    }

    /// Returns the number of bits below the number of the node: thread, core and last-level cache.
    pub(super) fn node_shift(&self) -> u32 {
        self.llc_shift() + bits(self.llcs_per_node)
    }
}

/// Returns the number of bits that represent `count` values.
fn bits(count: u32) -> u32 {
    // Not `next_power_of_two`, which overflows for the largest counts.
    u32::BITS - (count - 1).leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{even, uneven};

    fn apic_ids(topology: Topology) -> Result<Vec<u32>, Error> {
        Ok(Cpus::new(&topology)?.list.iter().map(|cpu| cpu.apic_id).collect())
    }

    #[test]
    fn new_leaves_gaps_for_dimensions_not_a_power_of_two() {
        for (topology, want) in [
            ([1, 1, 1, 1], vec![0]),
            ([1, 1, 2, 2], vec![0, 1, 2, 3]),
            ([1, 3, 3, 1], vec![0, 1, 2, 4, 5, 6, 8, 9, 10]),
            ([2, 2, 1, 1], vec![0, 1]),
            ([3, 6, 1, 2], vec![0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
            ([2, 6, 1, 1], vec![0, 1, 2, 4, 5, 6]),
        ] {
            assert_eq!(apic_ids(even(topology)).unwrap(), want, "{topology:?}");
        }
    }

    #[test]
    fn new_leaves_gaps_for_smaller_caches() {
        for (topology, ids, nodes) in [
            (uneven(1, &[3, 1], 2), vec![0, 1, 2, 3, 4, 5, 8, 9], vec![0; 8]),
            (uneven(1, &[1, 3], 1), vec![0, 4, 5, 6], vec![0; 4]),
            (uneven(2, &[1, 2, 2, 1], 1), vec![0, 2, 3, 4, 5, 6], vec![0, 0, 0, 1, 1, 1]),
            (uneven(2, &[4, 1], 1), vec![0, 1, 2, 3, 4], vec![0, 0, 0, 0, 1]),
        ] {
            let list = Cpus::new(&topology).unwrap().list;
            assert!(list.iter().map(|cpu| cpu.apic_id).eq(ids), "{topology:?}: {list:?}");
            assert!(list.iter().map(|cpu| cpu.node).eq(nodes), "{topology:?}: {list:?}");
        }
    }

    #[test]
    fn new_accepts_at_most_255_cpus() {
        assert_eq!(apic_ids(even([1, 1, 255, 1])).unwrap().len(), 255);
        assert_eq!(apic_ids(uneven(1, &[128, 127], 1)).unwrap().len(), 255);
        // The third cache would begin at 256.
        apic_ids(uneven(1, &[100, 1, 1], 1)).unwrap_err();
        for topology in [[1, 1, 128, 2], [1, 17, 9, 1], [9, 9, 9, 3], [1, 1, 255, 8]] {
            assert!(matches!(apic_ids(even(topology)), Err(Error::Config(_))), "{topology:?}");
        }
    }
}
