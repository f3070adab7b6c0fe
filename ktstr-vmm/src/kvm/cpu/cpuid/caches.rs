//! The caches of a guest's CPU: those of a Zen 2 on every host.
//!
//! A kernel only displays the sizes of caches; for scheduling it uses which CPUs share one. So the
//! host's caches do not matter, and with the same caches in all guests a test sees the same files
//! in sysfs on every host.
//!
//! Sharing is a number of APIC IDs. Kernels round it up to a power of two, or with the first two
//! levels of AMD, divide by it (Linux 6.12, arch/x86/kernel/cpu/cacheinfo.c, `get_cache_id`,
//! `__cache_amd_cpumap_setup`), so it is a power of two here.

use super::leaves::{CpuidRegisters, Leaves};
use crate::kvm::cpus::Cpus;

/// Bytes of a cache line.
const LINE: u32 = 64;
const KIB: u32 = 1 << 10;

/// One cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct CpuCache {
    pub(super) kind: u32,
    pub(super) level: u32,
    pub(super) kib: u32,
    pub(super) ways: u32,
}

const DATA: u32 = 1;
const INSTRUCTION: u32 = 2;
const UNIFIED: u32 = 3;

pub(super) const L1D: CpuCache = CpuCache { kind: DATA, level: 1, kib: 32, ways: 8 };
pub(super) const L1I: CpuCache = CpuCache { kind: INSTRUCTION, level: 1, kib: 32, ways: 8 };
pub(super) const L2: CpuCache = CpuCache { kind: UNIFIED, level: 2, kib: 512, ways: 8 };
pub(super) const L3: CpuCache = CpuCache { kind: UNIFIED, level: 3, kib: 16 * KIB, ways: 16 };

/// Writes leaf 4, "Deterministic Cache Parameters", and L2 also where AMD has it.
pub(super) fn describe_intel(leaves: &mut Leaves, cpus: &Cpus) {
    // The number of core IDs in a package minus one, in six bits: more than 64 are only in leaf
    // 1Fh.
    let cores = (1u32 << (cpus.node_shift() - cpus.core_shift())) - 1;
    leaves.set_subleaves(0x4, &parameters(cpus, cores.min(0x3f)));
    leaves.change(0x8000_0006, |leaf| [leaf.ecx, leaf.edx] = [l2(), 0]);
}

/// Writes leaf 8000_001Dh, "Cache Topology Information", and the older leaves of caches.
pub(super) fn describe_amd(leaves: &mut Leaves, cpus: &Cpus) {
    leaves.set_subleaves(0x8000_001d, &parameters(cpus, 0));
    leaves.change(0x8000_0005, |leaf| [leaf.ecx, leaf.edx] = [L1D, L1I].map(l1));
    // Kernels look here first for an L3 (Linux, `cpuid_amd_hygon_has_l3_cache`).
    leaves.change(0x8000_0006, |leaf| [leaf.ecx, leaf.edx] = [l2(), l3()]);
}

/// Returns the subleaves of leaf 4 and leaf 8000_001Dh, which differ only in the count of cores.
fn parameters(cpus: &Cpus, cores: u32) -> [CpuidRegisters; 4] {
    [L1D, L1I, L2, L3].map(|cache| {
        let shift = if cache.level < 3 { cpus.core_shift() } else { cpus.llc_shift() };
        let sharing = (1 << shift) - 1;
        let self_initializing = 1 << 8;
        let eax = cores << 26 | sharing << 14 | self_initializing | cache.level << 5 | cache.kind;
        let sets = cache.kib * KIB / LINE / cache.ways;
        [eax, (cache.ways - 1) << 22 | (LINE - 1), sets - 1, 0]
    })
}

/// Encodes a cache for leaf 8000_0005h: KiB, ways, lines per tag, bytes per line.
fn l1(cache: CpuCache) -> u32 {
    cache.kib << 24 | cache.ways << 16 | 1 << 8 | LINE
}

/// Encodes L2 for leaf 8000_0006h, ECX: as before, but eight ways are code 6.
fn l2() -> u32 {
    L2.kib << 16 | 6 << 12 | 1 << 8 | LINE
}

/// Encodes L3 for leaf 8000_0006h, EDX: units of 512 KiB, and 16 ways are code 8.
fn l3() -> u32 {
    (L3.kib / 512) << 18 | 8 << 12 | 1 << 8 | LINE
}
