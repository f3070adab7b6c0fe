//! The CPUID of a guest's CPU.
//!
//! It is the CPUID that KVM supports on this host, without what is of no use to a test
//! ([`hidden`]), with the position of the CPU among the others ([`topology`]) and caches that are
//! the same on all hosts ([`caches`]). On hosts with a CPU of AMD or Hygon guests see the leaves of
//! AMD, on all others those of Intel.
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
use topology::CpuPlace;

/// Creates the CPUID of the vCPU that is CPU `cpu_idx` of `cpus` from the result of
/// `KVM_GET_SUPPORTED_CPUID`.
///
/// The APICs must be in KVM.
///
/// # Panics
///
/// If CPU `cpu_idx` does not exist.
pub(in crate::kvm) fn cpuid(
    supported: &[kvm_cpuid_entry2],
    cpus: &Cpus,
    cpu_idx: usize,
) -> Vec<kvm_cpuid_entry2> {
    let mut leaves = Leaves::new(supported);
    let place =
        CpuPlace { cpus, apic_id: cpus.list[cpu_idx].apic_id, node: cpus.list[cpu_idx].node };
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
