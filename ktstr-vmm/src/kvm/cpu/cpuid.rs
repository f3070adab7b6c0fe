//! CPUID: what a guest's CPU says of itself.
//!
//! It is what KVM supports on this host, less what makes no sense in a machine that is booted for
//! a test ([`hidden`]), with the place of the CPU among the others ([`topology`]) and caches that
//! are the same on all hosts ([`caches`]). Guests of a CPU that AMD or Hygon made see the leaves of
//! AMD, all others those of Intel.
//!
//! Source: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; Linux 6.12, virt/kvm/api.rst and
//! virt/kvm/x86/cpuid.rst.

mod caches;
mod hidden;
mod signature;
#[cfg(test)]
mod tests;
mod topology;

use std::collections::BTreeMap;

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::kvm::cpus::Cpus;
use topology::Place;

/// The first leaf, and the one that begins with the number of the last extended one.
const BASIC: u32 = 0;
const EXTENDED: u32 = 0x8000_0000;

/// Makes the CPUID of the vCPU that is CPU `cpu_idx` of `cpus`, out of what
/// `KVM_GET_SUPPORTED_CPUID` gave.
///
/// KVM's APICs are taken to be in the kernel.
///
/// # Panics
///
/// If there is no CPU `cpu_idx`.
pub(in crate::kvm) fn cpuid(
    supported: &[kvm_cpuid_entry2],
    cpus: &Cpus,
    cpu_idx: usize,
) -> Vec<kvm_cpuid_entry2> {
    let mut leaves = Leaves::new(supported);
    let place = Place { cpus, apic_id: cpus.list[cpu_idx].apic_id, node: cpus.list[cpu_idx].node };
    let is_amd = signature::is_amd(&leaves);
    hidden::hide(&mut leaves);
    if is_amd {
        signature::modernize(&mut leaves);
        topology::describe_amd(&mut leaves, &place);
        caches::describe_amd(&mut leaves, cpus);
    } else {
        topology::describe_intel(&mut leaves, &place);
        caches::describe_intel(&mut leaves, cpus);
    }
    leaves.into_entries()
}

/// What CPUID answers in EAX, EBX, ECX and EDX.
type Registers = [u32; 4];

/// Leaves and subleaves, each there once.
#[derive(Debug)]
struct Leaves {
    entries: BTreeMap<(u32, u32), kvm_cpuid_entry2>,
}

impl Leaves {
    /// Sorts `entries`; of those for one subleaf KVM would take the first.
    fn new(entries: &[kvm_cpuid_entry2]) -> Self {
        let mut leaves = Self { entries: BTreeMap::new() };
        for entry in entries {
            leaves.entries.entry((entry.function, entry.index)).or_insert(*entry);
        }
        leaves
    }

    /// The registers of a leaf that has no subleaves: zeros, as on a CPU, if it is not there.
    fn get(&self, function: u32) -> Registers {
        let entry = self.entries.get(&(function, 0));
        entry.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
    }

    /// Changes the leaf `function`, which has no subleaves; all zeros if it was not there.
    fn change(&mut self, function: u32, change: impl FnOnce(&mut kvm_cpuid_entry2)) {
        let new = kvm_cpuid_entry2 { function, ..Default::default() };
        change(self.entries.entry((function, 0)).or_insert(new));
    }

    /// Replaces the leaf `function` by one with subleaves.
    fn set_subleaves(&mut self, function: u32, subleaves: &[Registers]) {
        self.remove(function);
        for (index, [eax, ebx, ecx, edx]) in (0..).zip(subleaves.iter().copied()) {
            let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
            let entry =
                kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, padding: [0; 3] };
            self.entries.insert((function, index), entry);
        }
    }

    /// Removes a leaf with all its subleaves.
    fn remove(&mut self, function: u32) {
        self.entries.retain(|(other, _), _| *other != function);
    }

    /// Ends the work: leaf 0 and its like tell the number of the last leaf, and what holds only
    /// zeros goes, since KVM answers zeros for what it does not find, and takes 256 entries at most.
    fn into_entries(mut self) -> Vec<kvm_cpuid_entry2> {
        self.entries.retain(|_, entry| entry.eax | entry.ebx | entry.ecx | entry.edx != 0);
        for (first, end) in [(BASIC, 0x4000_0000), (EXTENDED, 0xc000_0000)] {
            let last = self.entries.range((first, 0)..(end, 0)).next_back();
            if let Some((&(last, _), _)) = last {
                self.change(first, |entry| entry.eax = entry.eax.max(last));
            }
        }
        self.entries.into_values().collect()
    }
}
