//! A set of CPUID leaves, changed one by one.

use std::collections::BTreeMap;

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// The first basic leaf, and the first extended one, which contains the number of the last one.
pub(super) const BASIC: u32 = 0;
pub(super) const EXTENDED: u32 = 0x8000_0000;

/// The values of EAX, EBX, ECX and EDX.
pub(super) type CpuidRegisters = [u32; 4];

/// Leaves and subleaves, each at most once.
#[derive(Debug)]
pub(super) struct Leaves {
    pub(super) entries: BTreeMap<(u32, u32), kvm_cpuid_entry2>,
}

impl Leaves {
    /// Collects `entries`. Of several for one subleaf it takes the first, as KVM does.
    pub(super) fn new(entries: &[kvm_cpuid_entry2]) -> Self {
        let mut leaves = Self { entries: BTreeMap::new() };
        for entry in entries {
            leaves.entries.entry((entry.function, entry.index)).or_insert(*entry);
        }
        leaves
    }

    /// Returns the registers of a leaf without subleaves: zeros, as on a CPU, if it is missing.
    pub(super) fn get(&self, function: u32) -> CpuidRegisters {
        let entry = self.entries.get(&(function, 0));
        entry.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
    }

    /// Changes the leaf `function`, which has no subleaves. A missing leaf is all zeros.
    pub(super) fn change(&mut self, function: u32, change: impl FnOnce(&mut kvm_cpuid_entry2)) {
        let new = kvm_cpuid_entry2 { function, ..Default::default() };
        change(self.entries.entry((function, 0)).or_insert(new));
    }

    /// Replaces the leaf `function` by the given subleaves.
    pub(super) fn set_subleaves(&mut self, function: u32, subleaves: &[CpuidRegisters]) {
        self.remove(function);
        for (index, [eax, ebx, ecx, edx]) in (0..).zip(subleaves.iter().copied()) {
            let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
            let entry =
                kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, padding: [0; 3] };
            self.entries.insert((function, index), entry);
        }
    }

    /// Removes a leaf with all its subleaves.
    pub(super) fn remove(&mut self, function: u32) {
        self.entries.retain(|(other, _), _| *other != function);
    }

    /// Returns the entries for KVM. The first leaf of each kind gets the number of the last one.
    /// Entries of zeros are left out, because KVM returns zeros for missing ones and takes 256 at
    /// most.
    pub(super) fn into_entries(mut self) -> Vec<kvm_cpuid_entry2> {
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
