use std::collections::BTreeSet;

use kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

use super::caches::{L1D, L1I, L2, L3};
use super::leaves::CpuidRegisters;
use super::signature::{self, AUTHENTIC_AMD, HYGON_GENUINE};
use super::*;
use crate::config::{even, uneven};

const INTEL: [u32; 3] = signature::words(b"GenuineIntel");
/// Signatures of a Sapphire Rapids, of QEMU's `-cpu max`, and of the first Zen 1, 2 and 3.
const SAPPHIRE_RAPIDS: u32 = 0x000c_06f2;
const QEMU_MAX: u32 = 0x0000_0f61;
const NAPLES: u32 = 0x0080_0f12;
const ROME: u32 = 0x0083_0f10;
const MILAN: u32 = 0x00a0_0f11;

/// Returns all features and more leaves than any KVM has, with values that must not be passed on.
fn supported(vendor: [u32; 3], signature: u32) -> Vec<kvm_cpuid_entry2> {
    let leaf = |function, index| kvm_cpuid_entry2 {
        function,
        index,
        flags: if has_subleaves(function) { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: !0,
        ebx: !0,
        ecx: !0,
        edx: !0,
        ..Default::default()
    };
    let [ebx, edx, ecx] = vendor;
    let mut leaves = vec![
        kvm_cpuid_entry2 { eax: 0xd, ebx, ecx, edx, ..leaf(0, 0) },
        kvm_cpuid_entry2 { eax: signature, ebx: 0x0002_0800, ..leaf(1, 0) },
    ];
    leaves.extend((2..0x24).map(|function| leaf(function, 0)));
    leaves.extend((1..8).map(|index| leaf(4, index)));
    leaves.extend([leaf(7, 1), leaf(0xb, 1), leaf(0xd, 1)]);
    leaves.push(leaf(0x4000_0000, 0));
    leaves.push(kvm_cpuid_entry2 {
        eax: 0x0100_7efb,
        ebx: 0,
        ecx: 0,
        edx: 0,
        ..leaf(0x4000_0001, 0)
    });
    leaves.push(kvm_cpuid_entry2 { eax: 0x8000_0008, ebx, ecx, edx, ..leaf(0x8000_0000, 0) });
    leaves.push(kvm_cpuid_entry2 { eax: signature, ..leaf(0x8000_0001, 0) });
    leaves.extend((0x8000_0002..0x8000_0027).map(|function| leaf(function, 0)));
    leaves
}

/// Returns whether a leaf has subleaves.
///
/// Source: Linux 6.12, arch/x86/kvm/cpuid.c (`cpuid_function_is_indexed`).
fn has_subleaves(function: u32) -> bool {
    [4, 7, 0xb, 0xd, 0xf, 0x10, 0x12, 0x14, 0x17, 0x18, 0x1d, 0x1e, 0x1f, 0x24].contains(&function)
        || [0x8000_001d, 0x8000_001e, 0x8000_0026].contains(&function)
}

fn cpus(topology: [u32; 4]) -> Cpus {
    Cpus::new(&even(topology)).unwrap()
}

/// The CPUID of a CPU, read as a guest's kernel does.
struct Cpu(Vec<kvm_cpuid_entry2>);

impl Cpu {
    /// Returns what KVM answers, with zeros for missing entries.
    fn leaf(&self, function: u32, index: u32) -> CpuidRegisters {
        let index = if has_subleaves(function) { index } else { 0 };
        let found = self.0.iter().find(|leaf| (leaf.function, leaf.index) == (function, index));
        found.map_or([0; 4], |leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
    }

    /// Returns the shifts by type of domain, and the APIC ID; `None` without a first subleaf.
    ///
    /// Source: Linux 6.12, arch/x86/kernel/cpu/topology_ext.c (`parse_topology_leaf`).
    fn domains(&self, function: u32) -> Option<(Vec<(u32, u32)>, u32)> {
        let mut domains = Vec::new();
        loop {
            let index = domains.len() as u32;
            let [shift, count, level, apic_id] = self.leaf(function, index);
            assert_eq!(level & 0xff, index, "leaf {function:#x}");
            if count == 0 || level >> 8 == 0 {
                return (!domains.is_empty()).then_some((domains, apic_id));
            }
            domains.push((level >> 8, shift));
        }
    }

    /// Returns the bits of an APIC ID below core and package, and the APIC ID.
    ///
    /// Source: Linux 6.12, topology_ext.c (`cpu_parse_topology_ext`): 1Fh before Bh.
    fn shifts(&self, leaves: &[u32]) -> (u32, u32, u32) {
        let [last_basic, ..] = self.leaf(0, 0);
        let leaf = leaves.iter().filter(|leaf| **leaf <= last_basic);
        let (domains, apic_id) = leaf.filter_map(|leaf| self.domains(*leaf)).next().unwrap();
        assert_eq!(domains[0].0, 1, "threads come first");
        (domains[0].1, domains.last().unwrap().1, apic_id)
    }

    /// Returns the bits of an APIC ID below the cache of subleaf `index`, by the number of IDs that
    /// share it.
    ///
    /// Source: Linux 6.12, cacheinfo.c (`get_cache_id`).
    fn cache_shift(&self, function: u32, index: u32) -> u32 {
        let sharing = (self.leaf(function, index)[0] >> 14 & 0xfff) + 1;
        assert!(sharing.is_power_of_two());
        sharing.trailing_zeros()
    }

    /// Returns unique IDs of package, last-level cache, core and thread.
    fn place(&self) -> [u32; 4] {
        let [signature, ids, _, features] = self.leaf(1, 0);
        let [_, ebx, ecx, edx] = self.leaf(0, 0);
        let is_amd = [ebx, edx, ecx] == AUTHENTIC_AMD;
        let caches = if is_amd { 0x8000_001d } else { 4 };
        let (core, package, apic_id) = self.shifts(&[0x1f, 0xb]);
        assert_eq!(self.shifts(&[0xb]), (core, package, apic_id), "an older kernel agrees");
        assert_eq!(apic_id, ids >> 24, "leaf 1 agrees");
        assert_eq!((ids >> 16 & 0xff).next_power_of_two(), 1 << package);
        assert_eq!(features >> 28 & 1 == 0, package == 0);
        if is_amd {
            self.check_amd(signature, core, package);
        } else {
            let cores = (self.leaf(4, 0)[0] >> 26) + 1;
            assert_eq!(cores, 1 << (package - core).min(6));
        }
        assert_eq!([0, 1, 2].map(|index| self.cache_shift(caches, index)), [core; 3]);
        assert_eq!(self.leaf(caches, 4), [0; 4]);
        let llc = self.cache_shift(caches, 3);
        [apic_id >> package, apic_id >> llc, apic_id >> core, apic_id]
    }

    /// Checks what kernels read on AMD CPUs.
    ///
    /// Source: Linux 6.1, amd.c (`early_init_amd_mc`, `amd_get_topology`), cacheinfo.c
    /// (`cacheinfo_amd_init_llc_id`); Linux 6.12, topology_amd.c (`parse_8000_001e`).
    fn check_amd(&self, signature: u32, core: u32, package: u32) {
        let (family, model) = signature::family_and_model(signature);
        assert!(family > 0x17 || family == 0x17 && model > 0x1f, "the kernel reads 8000_001Dh");
        let [last_extended, vendor @ ..] = self.leaf(0x8000_0000, 0);
        assert!(last_extended >= 0x8000_001e);
        assert_eq!(vendor, self.leaf(0, 0)[1..]);
        assert_eq!(self.leaf(0x8000_0001, 0)[0], signature);
        assert_ne!(self.leaf(0x8000_0001, 0)[2] & 1 << 22, 0, "TOPOEXT");
        assert_ne!(self.leaf(0x8000_0006, 0)[3], 0, "there is an L3");
        let [.., counts, _] = self.leaf(0x8000_0008, 0);
        assert_eq!(counts >> 12 & 0xf, package);
        let [ext_apic_id, unit, node, _] = self.leaf(0x8000_001e, 0);
        assert_eq!((unit >> 8 & 0xff) + 1, self.leaf(0xb, 0)[1], "threads");
        assert_eq!(unit & 0xff, (ext_apic_id & ((1 << package) - 1)) >> core);
        assert_eq!(node, ext_apic_id >> package, "one node per package");
    }
}

#[test]
fn cpuid_describes_the_topology() {
    for (vendor, signature) in [
        (INTEL, SAPPHIRE_RAPIDS),
        (AUTHENTIC_AMD, QEMU_MAX),
        (AUTHENTIC_AMD, MILAN),
        (HYGON_GENUINE, NAPLES),
        (signature::words(b"  Shanghai  "), SAPPHIRE_RAPIDS),
    ] {
        let evens = [
            [1, 1, 1, 1],
            [1, 1, 1, 2],
            [1, 2, 4, 2],
            [2, 4, 4, 2],
            [1, 3, 3, 1],
            [4, 8, 2, 1],
            [3, 6, 3, 2],
            [2, 4, 3, 3],
            [8, 8, 1, 1],
            [1, 1, 255, 1],
            [127, 127, 1, 2],
        ]
        .map(even);
        let unevens = [
            (1, vec![3, 1], 2),
            (1, vec![1, 3], 1),
            (1, vec![4, 2, 1, 3], 1),
            (2, vec![1, 2, 5, 1], 2),
            (2, vec![6, 1], 1),
            (4, vec![1, 1, 1, 2], 8),
        ]
        .map(|(numa_nodes, cores, threads_per_core)| uneven(numa_nodes, &cores, threads_per_core));
        for topology in evens.into_iter().chain(unevens) {
            let cpus = Cpus::new(&topology).unwrap();
            let supported = supported(vendor, signature);
            let places: Vec<_> = (0..cpus.list.len())
                .map(|cpu| Cpu(cpuid(&supported, &cpus, cpu)).place())
                .collect();
            let mut cpu = 0;
            let mut seen: [BTreeSet<u32>; 3] = Default::default();
            for (llc, cores) in (0..).zip(topology.llcs.cores()) {
                for core in 0..cores {
                    let first = places[cpu];
                    assert!(seen[2].insert(first[2]), "core {core} of {llc}, {topology:?}");
                    assert_eq!(seen[1].insert(first[1]), core == 0, "LLC {llc}, {topology:?}");
                    let is_new = core == 0 && llc % topology.llcs_per_node() == 0;
                    assert_eq!(seen[0].insert(first[0]), is_new, "LLC {llc}, {topology:?}");
                    for _ in 0..topology.threads_per_core {
                        assert_eq!(places[cpu][..3], first[..3], "CPU {cpu}, {topology:?}");
                        assert_eq!(places[cpu][3], cpus.list[cpu].apic_id);
                        assert_eq!(places[cpu][0], cpus.list[cpu].node, "a package is a node");
                        cpu += 1;
                    }
                }
            }
            assert_eq!(cpu, places.len());
        }
    }
}

#[test]
fn cpuid_entries_are_consistent() {
    for (vendor, signature) in [(INTEL, SAPPHIRE_RAPIDS), (AUTHENTIC_AMD, QEMU_MAX)] {
        let mut supported = supported(vendor, signature);
        supported.extend(supported.clone());
        let leaves = cpuid(&supported, &cpus([2, 4, 4, 2]), 9);
        assert!(leaves.len() <= kvm_bindings::KVM_MAX_CPUID_ENTRIES);
        let keys: BTreeSet<_> = leaves.iter().map(|leaf| (leaf.function, leaf.index)).collect();
        assert_eq!(keys.len(), leaves.len(), "no entry twice");
        for leaf in &leaves {
            let is_indexed = leaf.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
            assert_eq!(is_indexed, has_subleaves(leaf.function), "{:#x}", leaf.function);
            let first = leaf.function & 0xf000_0000;
            let last = leaves.iter().find(|other| other.function == first).unwrap().eax;
            assert!(leaf.function <= last, "{:#x} of {last:#x}", leaf.function);
        }
    }
}

#[test]
fn cpuid_hides_unsupported_features() {
    for (vendor, signature) in [(INTEL, SAPPHIRE_RAPIDS), (AUTHENTIC_AMD, QEMU_MAX)] {
        let cpu = Cpu(cpuid(&supported(vendor, signature), &cpus([1, 1, 2, 1]), 1));
        // Architectural bits, by leaf, subleaf and register: those that are off and those that are
        // on.
        for (function, index, register, off, on) in [
            // MONITOR, VMX, SMX, PDCM, OSXSAVE; SSE3, x2APIC, TSC deadline, hypervisor.
            (1, 0, 2, &[3, 5, 6, 15, 27][..], &[0, 21, 24, 31][..]),
            // Thermal control and its interrupt; FPU, APIC, HTT.
            (1, 0, 3, &[22, 29], &[0, 9, 28]),
            // ARAT.
            (6, 0, 0, &[0, 1, 4], &[2]),
            // SGX, Processor Trace; FSGSBASE.
            (7, 0, 1, &[2, 25], &[0]),
            // OSPKE; PKU.
            (7, 0, 2, &[4], &[3]),
            // AMX-TILE; fast short REP MOV.
            (7, 0, 3, &[24], &[4]),
            // AMX-FP16; AVX-VNNI.
            (7, 1, 0, &[21], &[4]),
            // SVM, IBS, PERFCTR_CORE; LAHF.
            (0x8000_0001, 0, 2, &[2, 10, 23], &[0]),
            // The invariant TSC.
            (0x8000_0007, 0, 3, &[8], &[]),
        ] {
            let value = cpu.leaf(function, index)[register];
            for bit in off {
                assert_eq!(value >> bit & 1, 0, "{function:#x} {register} bit {bit}");
            }
            for bit in on {
                assert_eq!(value >> bit & 1, 1, "{function:#x} {register} bit {bit}");
            }
        }
        for function in [5, 0xa, 0x12, 0x8000_000a, 0x8000_001f, 0x8000_0022, 0x8000_0026] {
            assert_eq!(cpu.leaf(function, 0), [0; 4], "{function:#x}");
        }
        assert_eq!(cpu.leaf(0x4000_0001, 0), [0x0100_7ebb, 0, 0, 0], "all but PV EOI");
        assert_eq!(cpu.leaf(1, 0)[1] & 0xffff, 0x0800, "the line size of CLFLUSH stays");
        assert_eq!(cpu.leaf(0xd, 1), [!0; 4]);
    }
}

#[test]
fn cpuid_has_no_htt_for_one_cpu_per_package() {
    let cpu = Cpu(cpuid(&supported(INTEL, SAPPHIRE_RAPIDS), &cpus([2, 2, 1, 1]), 1));
    assert_eq!(cpu.leaf(1, 0)[3] >> 28 & 1, 0);
    assert_eq!(cpu.leaf(0xb, 0), [0, 1, 0x100, 1]);
}

#[test]
fn cpuid_replaces_old_amd_signatures() {
    for (vendor, signature, want) in [
        (AUTHENTIC_AMD, QEMU_MAX, ROME),
        (AUTHENTIC_AMD, NAPLES, ROME),
        (HYGON_GENUINE, 0x0090_0f02, ROME),
        (AUTHENTIC_AMD, ROME, ROME),
        (AUTHENTIC_AMD, MILAN, MILAN),
        (INTEL, SAPPHIRE_RAPIDS, SAPPHIRE_RAPIDS),
    ] {
        let cpu = Cpu(cpuid(&supported(vendor, signature), &cpus([1, 1, 1, 1]), 0));
        let [_, ebx, ecx, edx] = cpu.leaf(0, 0);
        assert_eq!(cpu.leaf(1, 0)[0], want, "{signature:#x}");
        let is_intel = vendor == INTEL;
        assert_eq!([ebx, edx, ecx], if is_intel { INTEL } else { AUTHENTIC_AMD });
    }
    assert_eq!(signature::family_and_model(ROME), (0x17, 0x31));
    assert_eq!(signature::family_and_model(QEMU_MAX), (0xf, 6));
}

#[test]
fn cpuid_has_the_same_cache_sizes_in_all_leaves() {
    let intel = Cpu(cpuid(&supported(INTEL, SAPPHIRE_RAPIDS), &cpus([1, 2, 2, 2]), 0));
    let amd = Cpu(cpuid(&supported(AUTHENTIC_AMD, MILAN), &cpus([1, 2, 2, 2]), 0));
    for (cpu, function) in [(&intel, 4), (&amd, 0x8000_001d)] {
        for (index, cache) in (0..).zip([L1D, L1I, L2, L3]) {
            let [eax, ebx, ecx, _] = cpu.leaf(function, index);
            assert_eq!((eax & 0x1f, eax >> 5 & 7), (cache.kind, cache.level));
            let (line, ways) = ((ebx & 0xfff) + 1, (ebx >> 22) + 1);
            assert_eq!(line * ways * (ecx + 1), cache.kib << 10, "L{}", cache.level);
        }
    }
    // The values of a Zen 2 (AMD PPR for family 17h model 31h, 2.1.14.1).
    assert_eq!(amd.leaf(0x8000_0005, 0)[2..], [0x2008_0140, 0x2008_0140]);
    assert_eq!(amd.leaf(0x8000_0006, 0)[2], 0x0200_6140);
    assert_eq!(amd.leaf(0x8000_0006, 0)[3], 0x0080_8140);
}

#[test]
fn kvm_accepts_the_cpuid() -> Result<(), kvm_ioctls::Error> {
    let Ok(kvm) = kvm_ioctls::Kvm::new() else {
        eprintln!("skipped: /dev/kvm cannot be opened");
        return Ok(());
    };
    let supported = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?;
    let vm = kvm.create_vm()?;
    vm.create_irq_chip()?;
    let cpus = cpus([2, 4, 2, 2]);
    for cpu_idx in [0, 15] {
        let entries = cpuid(supported.as_slice(), &cpus, cpu_idx);
        Cpu(entries.clone()).place();
        let vcpu = vm.create_vcpu(cpus.list[cpu_idx].apic_id.into())?;
        vcpu.set_cpuid2(&kvm_bindings::CpuId::from_entries(&entries).unwrap())?;
    }
    Ok(())
}
