//! SRAT and SLIT: the node of each CPU and range of memory, and the distances of nodes.
//!
//! Machines with one node have them, too. Without them kernels also put everything into node 0, but
//! on a CPU of AMD's they first look for a northbridge, and use the number of the last-level cache
//! as that of the node (Linux 6.12, arch/x86/kernel/cpu/amd.c, `srat_detect_node`).
//!
//! Source: ACPI 6.5, 5.2.16 ("System Resource Affinity Table"), 5.2.17 ("System Locality
//! Information Table").

use super::table::Table;
use crate::kvm::cpus::Cpus;
use crate::kvm::memory::MemoryNode;

const SRAT_REVISION: u8 = 3;
const SLIT_REVISION: u8 = 1;
const ENABLED: u32 = 1;
/// The distance of a node to itself, which is the unit of the others.
const LOCAL: u8 = 10;
/// The distance of different nodes.
const REMOTE: u8 = 20;

/// Writes the SRAT.
pub(super) fn srat(cpus: &Cpus, memory: &[MemoryNode]) -> Vec<u8> {
    let mut table = Table::new(b"SRAT", SRAT_REVISION);
    table.u32(1).zeros(8);
    for cpu in &cpus.list {
        // Processor Local APIC Affinity (5.2.16.1). The domain is split in two fields.
        let [domain, high @ ..] = cpu.node.to_le_bytes();
        table.u8(0).u8(16).u8(domain).u8(cpu.apic_id as u8).u32(ENABLED).u8(0);
        table.bytes(&high).u32(0);
    }
    for range in memory {
        // Memory Affinity (5.2.16.2).
        table.u8(1).u8(40).u32(range.node).zeros(2).u64(range.base).u64(range.size);
        table.zeros(4).u32(ENABLED).zeros(8);
    }
    table.finish()
}

/// Writes the SLIT.
pub(super) fn slit(nodes: u32) -> Vec<u8> {
    let mut table = Table::new(b"SLIT", SLIT_REVISION);
    table.u64(u64::from(nodes));
    for from in 0..nodes {
        for to in 0..nodes {
            table.u8(if from == to { LOCAL } else { REMOTE });
        }
    }
    table.finish()
}
