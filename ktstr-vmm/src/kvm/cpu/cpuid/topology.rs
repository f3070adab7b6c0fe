//! The position of a CPU: its thread, core, last-level cache and node.
//!
//! A package is a node. In it, Intel CPUs have a die per last-level cache: die is the level between
//! core and package that leaf 1Fh defines.
//!
//! How kernels read it: Linux 6.1, arch/x86/kernel/cpu/topology.c (`detect_extended_topology`) and
//! amd.c (`amd_get_topology`); Linux 6.12, topology_ext.c and topology_amd.c there.

use super::leaves::{CpuidRegisters, Leaves};
use crate::kvm::cpus::Cpus;

/// Domain types of leaves Bh and 1Fh.
const SMT: u32 = 1;
const CORE: u32 = 2;
const DIE: u32 = 5;

/// A CPU and all others.
#[derive(Debug, Clone, Copy)]
pub(super) struct CpuPlace<'a> {
    pub(super) cpus: &'a Cpus,
    pub(super) apic_id: u32,
    pub(super) node: u32,
}

/// Counts are those of a machine in which all last-level caches are as large as the largest, as on
/// CPUs with cores that were disabled in the factory. Linux 6.1 uses the counts of the first CPU to
/// decide whether any CPUs share anything (arch/x86/kernel/smpboot.c, `set_cpu_sibling_map`).
impl CpuPlace<'_> {
    /// Returns the number of CPUs of one last-level cache.
    fn llc_cpus(&self) -> u32 {
        self.cpus.threads_per_core * self.cpus.max_cores_per_llc
    }

    /// Returns the number of CPUs of one node.
    fn node_cpus(&self) -> u32 {
        self.llc_cpus() * self.cpus.llcs_per_node
    }
}

/// Writes the leaves that describe the position of an Intel CPU.
pub(super) fn describe_intel(leaves: &mut Leaves, place: &CpuPlace<'_>) {
    describe_common(leaves, place);
    let cpus = place.cpus;
    leaves.set_subleaves(
        0x1f,
        &levels(
            place,
            &[
                (SMT, cpus.core_shift(), cpus.threads_per_core),
                (CORE, cpus.llc_shift(), place.llc_cpus()),
                (DIE, cpus.node_shift(), place.node_cpus()),
            ],
        ),
    );
}

/// Writes the leaves that describe the position of an AMD CPU.
pub(super) fn describe_amd(leaves: &mut Leaves, place: &CpuPlace<'_>) {
    describe_common(leaves, place);
    let cpus = place.cpus;
    leaves.change(0x8000_0001, |leaf| {
        // TopologyExtensions: leaves 8000_001Dh and 8000_001Eh exist.
        leaf.ecx |= 1 << 22;
        // CmpLegacy: a package contains not only threads.
        set_bit(&mut leaf.ecx, 1, place.node_cpus() > 1);
    });
    // The number of CPUs of a package minus one, and the bits of an APIC ID below the package.
    leaves.change(0x8000_0008, |leaf| {
        leaf.ecx = cpus.node_shift() << 12 | (place.node_cpus() - 1);
    });
    let core = (place.apic_id & ((1 << cpus.node_shift()) - 1)) >> cpus.core_shift();
    leaves.set_subleaves(
        0x8000_001e,
        &[[place.apic_id, (cpus.threads_per_core - 1) << 8 | core, place.node, 0]],
    );
}

/// Writes the leaves of both vendors: leaf 1 and the extended topology without caches.
fn describe_common(leaves: &mut Leaves, place: &CpuPlace<'_>) {
    let cpus = place.cpus;
    leaves.change(0x1, |leaf| {
        // Brand index and line size of CLFLUSH stay. The count is that of the APIC IDs of a
        // package.
        let ids = (1u32 << cpus.node_shift()).min(0xff);
        leaf.ebx = leaf.ebx & 0xffff | ids << 16 | place.apic_id << 24;
        // x2APIC, hypervisor, and the TSC-deadline mode of the APIC's timer: every KVM with an
        // in-kernel APIC has it (KVM_CAP_TSC_DEADLINE_TIMER), but reports it here only since 6.14.
        leaf.ecx |= 1 << 31 | 1 << 24 | 1 << 21;
        // HTT: there is more than one CPU in the package.
        set_bit(&mut leaf.edx, 28, place.node_cpus() > 1);
    });
    leaves.set_subleaves(
        0xb,
        &levels(
            place,
            &[
                (SMT, cpus.core_shift(), cpus.threads_per_core),
                (CORE, cpus.node_shift(), place.node_cpus()),
            ],
        ),
    );
}

/// Returns the subleaves of leaf Bh or 1Fh: one for each domain (type, bits below the next domain,
/// number of CPUs), and a last one of zeros.
fn levels(place: &CpuPlace<'_>, domains: &[(u32, u32, u32)]) -> Vec<CpuidRegisters> {
    (0..)
        .zip(domains.iter().chain(&[(0, 0, 0)]))
        .map(|(index, (kind, shift, count))| [*shift, *count, kind << 8 | index, place.apic_id])
        .collect()
}

fn set_bit(register: &mut u32, bit: u32, is_set: bool) {
    *register = *register & !(1 << bit) | u32::from(is_set) << bit;
}
