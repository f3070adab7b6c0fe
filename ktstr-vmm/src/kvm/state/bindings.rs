//! The encodings of KVM's structs: all of their fields but padding.
//!
//! Source: Linux 6.12, arch/x86/include/uapi/asm/kvm.h.

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_dtable, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_vcpu_events__bindgen_ty_1,
    kvm_vcpu_events__bindgen_ty_2, kvm_vcpu_events__bindgen_ty_3, kvm_vcpu_events__bindgen_ty_4,
    kvm_vcpu_events__bindgen_ty_5, kvm_xcr, kvm_xcrs,
};

use super::super::codec::fields;

fields!(kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx }..Self::default());
fields!(kvm_mp_state { mp_state });
fields!(kvm_regs {
    rax,
    rbx,
    rcx,
    rdx,
    rsi,
    rdi,
    rsp,
    rbp,
    r8,
    r9,
    r10,
    r11,
    r12,
    r13,
    r14,
    r15,
    rip,
    rflags,
});
fields!(
    kvm_segment { base, limit, selector, type_, present, dpl, db, s, l, g, avl, unusable }
        ..Self::default()
);
fields!(kvm_dtable { base, limit }..Self::default());
fields!(kvm_sregs {
    cs,
    ds,
    es,
    fs,
    gs,
    ss,
    tr,
    ldt,
    gdt,
    idt,
    cr0,
    cr2,
    cr3,
    cr4,
    cr8,
    efer,
    apic_base,
    interrupt_bitmap,
});
fields!(kvm_xcr { xcr, value }..Self::default());
fields!(kvm_xcrs { nr_xcrs, flags, xcrs }..Self::default());
fields!(kvm_debugregs { db, dr6, dr7, flags }..Self::default());
fields!(kvm_lapic_state { regs });
fields!(kvm_vcpu_events__bindgen_ty_1 { injected, nr, has_error_code, pending, error_code });
fields!(kvm_vcpu_events__bindgen_ty_2 { injected, nr, soft, shadow });
fields!(kvm_vcpu_events__bindgen_ty_3 { injected, pending, masked }..Self::default());
fields!(kvm_vcpu_events__bindgen_ty_4 { smm, pending, smm_inside_nmi, latched_init });
fields!(kvm_vcpu_events__bindgen_ty_5 { pending });
fields!(
    kvm_vcpu_events {
        exception,
        interrupt,
        nmi,
        sipi_vector,
        flags,
        smi,
        triple_fault,
        exception_has_payload,
        exception_payload,
    }..Self::default()
);
fields!(kvm_msr_entry { index, data }..Self::default());
