//! Features that KVM supports and guests must not see.

use super::leaves::Leaves;

/// A register of a leaf.
#[derive(Debug, Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

/// Leaves that are removed.
const LEAVES: [u32; 24] = [
    // MONITOR and MWAIT.
    0x5,
    // Direct cache access.
    0x9,
    // Performance monitoring; with 1Ch its last branch records and 23h its extension.
    0xa,
    0x1c,
    0x23,
    0x8000_0022,
    // Monitoring and allocation of caches and bandwidth.
    0xf,
    0x10,
    0x8000_0020,
    // SGX, which needs enclave memory.
    0x12,
    // Processor Trace.
    0x14,
    // AMX: KVM supports its large state only with a permission that this process does not request.
    0x1d,
    0x1e,
    // Topology and caches, which are rewritten.
    0x4,
    0xb,
    0x1f,
    0x8000_001d,
    0x8000_001e,
    0x8000_0026,
    // Invariant TSC, see `hide`.
    0x8000_0007,
    // SVM: nested virtualization.
    0x8000_000a,
    // Instruction-based sampling and lightweight profiling.
    0x8000_001b,
    0x8000_001c,
    // Memory encryption.
    0x8000_001f,
];

/// Bits that are cleared in other leaves: leaf, subleaf, register, bits.
const BITS: [(u32, u32, Register, &[u32]); 9] = [
    // DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, PDCM, DCA; OSXSAVE follows the guest's CR4.
    (0x1, 0, Ecx, &[2, 3, 4, 5, 6, 7, 8, 15, 18, 27]),
    // DS, ACPI (thermal and clock control), TM, PBE.
    (0x1, 0, Edx, &[21, 22, 29, 31]),
    // SGX, RDT monitoring, RDT allocation, Processor Trace.
    (0x7, 0, Ebx, &[2, 12, 15, 25]),
    // SGX launch control; OSPKE follows the guest's CR4.
    (0x7, 0, Ecx, &[4, 30]),
    // Hybrid, PCONFIG, architectural LBR, AMX-BF16, AMX-TILE, AMX-INT8.
    (0x7, 0, Edx, &[15, 18, 19, 22, 24, 25]),
    // Performance monitoring's extension, AMX-FP16.
    (0x7, 1, Eax, &[8, 21]),
    // AMX-COMPLEX.
    (0x7, 1, Edx, &[8]),
    // PV EOI, see `hide`.
    (0x4000_0001, 0, Eax, &[6]),
    // SVM, IBS, SKINIT, WDT, LWP, PERFCTR_CORE, PERFCTR_NB, PTSC, PERFCTR_LLC.
    (0x8000_0001, 0, Ecx, &[2, 10, 12, 13, 15, 23, 24, 27, 28]),
];

/// Hides features that measure, cool or virtualize real hardware.
///
/// Without the invariant TSC a kernel uses kvmclock, the only clock that can be corrected after a
/// pause (Linux 6.12, arch/x86/kernel/kvmclock.c, `kvmclock_init`).
///
/// Without PV EOI a guest's interrupt handlers begin with an exit, unless the host virtualizes
/// APICs in hardware. This keeps guests from hanging on the SVM that QEMU emulates
/// (docs/decisions/0006).
pub(super) fn hide(leaves: &mut Leaves) {
    for function in LEAVES {
        leaves.remove(function);
    }
    // Of power management only the bit that KVM sets: the APIC timer never stops.
    leaves.change(0x6, |leaf| {
        leaf.eax &= 1 << 2;
        [leaf.ebx, leaf.ecx, leaf.edx] = [0; 3];
    });
    for (function, index, register, bits) in BITS {
        let Some(entry) = leaves.entries.get_mut(&(function, index)) else { continue };
        let value = match register {
            Eax => &mut entry.eax,
            Ebx => &mut entry.ebx,
            Ecx => &mut entry.ecx,
            Edx => &mut entry.edx,
        };
        *value &= !bits.iter().fold(0, |mask, bit| mask | 1 << bit);
    }
}
