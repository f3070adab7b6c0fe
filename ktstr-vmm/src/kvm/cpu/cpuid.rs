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
mod leaves;
mod signature;
#[cfg(test)]
mod tests;
mod topology;

use kvm_bindings::kvm_cpuid_entry2;

use crate::kvm::cpus::Cpus;
use leaves::Leaves;
use topology::Place;

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
