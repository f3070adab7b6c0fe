//! The state of a vCPU.
//!
//! Source: Linux 6.12, Documentation/virt/kvm/api.rst, 4 (the ioctls by their names).

use std::ops::RangeInclusive;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MAX_MSR_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs,
    kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd};

use super::super::codec::fields;
use crate::kvm_error::Error;

/// `MSR_IA32_TSC`, which is saved as the counter's offset instead.
const TSC: u32 = 0x10;
/// `MSR_IA32_TSC_DEADLINE`: it starts a timer if the local APIC and the counter are set.
const TSC_DEADLINE: u32 = 0x6e0;

/// MSRs that a guest can write and KVM does not list: the ranges and the default of MTRRs, the banks of
/// machine checks, and the configuration by which AMD's kernels make `LFENCE` serialize.
///
/// Source: Linux 6.12, arch/x86/kvm/x86.c (`msrs_to_save_base`, `emulated_msrs_all`), mtrr.c.
const UNLISTED: [RangeInclusive<u32>; 7] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    0x2ff..=0x2ff,
    0x400..=0x47f,
    0xc001_1029..=0xc001_1029,
];

/// Returns the MSRs to save: those that KVM lists, and [`UNLISTED`]. No CPU has all of them.
pub(in crate::kvm) fn msrs(kvm: &Kvm) -> Result<Vec<u32>, Error> {
    let listed = kvm.get_msr_index_list().map_err(Error::ioctl("KVM_GET_MSR_INDEX_LIST"))?;
    let listed = listed.as_slice().iter().copied().filter(|msr| *msr != TSC);
    Ok(listed.chain(UNLISTED.into_iter().flatten()).collect())
}

/// The state of a vCPU, which must not run while it is read.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::kvm) struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    /// FPU, vector and other extended state, in the format of `XSAVE`. This engine does not ask for
    /// the permission that larger state (AMX) needs.
    xsave: Box<[u32; 1024]>,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: Box<kvm_lapic_state>,
    events: kvm_vcpu_events,
    /// Those of [`msrs`] that this vCPU has.
    msrs: Vec<kvm_msr_entry>,
    /// The offset of the time-stamp counter from the host's.
    pub(in crate::kvm) tsc_offset: u64,
}

fields!(VcpuState {
    cpuid,
    mp_state,
    regs,
    sregs,
    xsave,
    xcrs,
    debug,
    lapic,
    events,
    msrs,
    tsc_offset,
});

impl VcpuState {
    /// Reads the state, with the MSRs of this list.
    pub(in crate::kvm) fn read(
        vcpu: &VcpuFd,
        msrs: &[u32],
        tsc_offset: u64,
    ) -> Result<Self, Error> {
        let cpuid =
            vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(Error::ioctl("KVM_GET_CPUID2"))?;
        Ok(Self {
            cpuid: cpuid.as_slice().to_vec(),
            mp_state: vcpu.get_mp_state().map_err(Error::ioctl("KVM_GET_MP_STATE"))?,
            regs: vcpu.get_regs().map_err(Error::ioctl("KVM_GET_REGS"))?,
            sregs: vcpu.get_sregs().map_err(Error::ioctl("KVM_GET_SREGS"))?,
            xsave: Box::new(vcpu.get_xsave().map_err(Error::ioctl("KVM_GET_XSAVE"))?.region),
            xcrs: vcpu.get_xcrs().map_err(Error::ioctl("KVM_GET_XCRS"))?,
            debug: vcpu.get_debug_regs().map_err(Error::ioctl("KVM_GET_DEBUGREGS"))?,
            lapic: Box::new(vcpu.get_lapic().map_err(Error::ioctl("KVM_GET_LAPIC"))?),
            events: vcpu.get_vcpu_events().map_err(Error::ioctl("KVM_GET_VCPU_EVENTS"))?,
            msrs: read_msrs(vcpu, msrs)?,
            tsc_offset,
        })
    }

    /// Sets the CPUID of a new vCPU, on which everything else depends.
    pub(in crate::kvm) fn restore_cpuid(&self, vcpu: &VcpuFd) -> Result<(), Error> {
        let cpuid = CpuId::from_entries(&self.cpuid)
            .map_err(|_| Error::ioctl("KVM_SET_CPUID2")(kvm_ioctls::Error::new(libc::E2BIG)))?;
        vcpu.set_cpuid2(&cpuid).map_err(Error::ioctl("KVM_SET_CPUID2"))
    }

    /// Sets the registers of vCPU `cpu`, except for those that [`VcpuState::restore_timer`] sets.
    pub(in crate::kvm) fn restore_registers(&self, vcpu: &VcpuFd, cpu: usize) -> Result<(), Error> {
        vcpu.set_mp_state(self.mp_state).map_err(Error::ioctl("KVM_SET_MP_STATE"))?;
        vcpu.set_regs(&self.regs).map_err(Error::ioctl("KVM_SET_REGS"))?;
        vcpu.set_sregs(&self.sregs).map_err(Error::ioctl("KVM_SET_SREGS"))?;
        let xsave = kvm_xsave { region: *self.xsave, ..kvm_xsave::default() };
        // SAFETY: KVM reads no more than the 4096 bytes of `region`, because this process has no
        // permission for larger state: `ARCH_REQ_XCOMP_GUEST_PERM` was not called.
        unsafe { vcpu.set_xsave(&xsave) }.map_err(Error::ioctl("KVM_SET_XSAVE"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(Error::ioctl("KVM_SET_XCRS"))?;
        vcpu.set_debug_regs(&self.debug).map_err(Error::ioctl("KVM_SET_DEBUGREGS"))?;
        vcpu.set_lapic(&self.lapic).map_err(Error::ioctl("KVM_SET_LAPIC"))?;
        let msrs: Vec<_> =
            self.msrs.iter().copied().filter(|msr| msr.index != TSC_DEADLINE).collect();
        set_msrs(vcpu, cpu, &msrs)
    }

    /// Sets the timer, once the counter has its value, and then the events that are pending.
    pub(in crate::kvm) fn restore_timer(&self, vcpu: &VcpuFd, cpu: usize) -> Result<(), Error> {
        let msrs: Vec<_> =
            self.msrs.iter().copied().filter(|msr| msr.index == TSC_DEADLINE).collect();
        set_msrs(vcpu, cpu, &msrs)?;
        vcpu.set_vcpu_events(&self.events).map_err(Error::ioctl("KVM_SET_VCPU_EVENTS"))
    }
}

/// Reads those MSRs of a list that the vCPU has.
fn read_msrs(vcpu: &VcpuFd, list: &[u32]) -> Result<Vec<kvm_msr_entry>, Error> {
    let entries: Vec<_> =
        list.iter().map(|&index| kvm_msr_entry { index, ..kvm_msr_entry::default() }).collect();
    let mut read = Vec::new();
    let mut rest = &entries[..];
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let mut msrs = Msrs::from_entries(some).expect("there are not too many");
        // KVM stops at the first one that it cannot read.
        let count = vcpu.get_msrs(&mut msrs).map_err(Error::ioctl("KVM_GET_MSRS"))?;
        read.extend_from_slice(&msrs.as_slice()[..count]);
        rest = &rest[some.len().min(count + 1)..];
    }
    Ok(read)
}

/// Sets MSRs. One that cannot be set must have its value already.
fn set_msrs(vcpu: &VcpuFd, cpu: usize, msrs: &[kvm_msr_entry]) -> Result<(), Error> {
    let mut rest = msrs;
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let set = Msrs::from_entries(some).expect("there are not too many");
        let count = vcpu.set_msrs(&set).map_err(Error::ioctl("KVM_SET_MSRS"))?;
        if let Some(&refused) = some.get(count) {
            let has_value = read_msrs(vcpu, &[refused.index])?.first() == Some(&refused);
            if !has_value {
                return Err(Error::Msr { cpu, index: refused.index, value: refused.data });
            }
        }
        rest = &rest[some.len().min(count + 1)..];
    }
    Ok(())
}

#[cfg(test)]
impl VcpuState {
    /// Returns a state in which every field has a value of its own.
    pub(super) fn sample() -> Self {
        let mut regs = kvm_regs { rip: 0xffff_ffff_8100_0000, ..kvm_regs::default() };
        regs.rflags = 2;
        let mut sregs = kvm_sregs { cr3: 0x1000, efer: 0xd01, ..kvm_sregs::default() };
        sregs.gs.base = 0xffff_8880_0000_0000;
        sregs.idt.limit = 0xfff;
        sregs.interrupt_bitmap[3] = 1 << 63;
        let mut events = kvm_vcpu_events { flags: 0xd, ..kvm_vcpu_events::default() };
        events.exception.error_code = 0xdead;
        events.interrupt.shadow = 1;
        events.nmi.masked = 1;
        events.smi.latched_init = 1;
        events.triple_fault.pending = 1;
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..kvm_xcrs::default() };
        xcrs.xcrs[0].value = 7;
        let msr = |index, data| kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
        Self {
            cpuid: vec![kvm_cpuid_entry2 { function: 1, edx: 5, ..kvm_cpuid_entry2::default() }; 2],
            mp_state: kvm_mp_state { mp_state: 3 },
            regs,
            sregs,
            xsave: Box::new(std::array::from_fn(|index| index as u32)),
            xcrs,
            debug: kvm_debugregs { db: [1, 2, 3, 4], dr7: 0x400, ..kvm_debugregs::default() },
            lapic: Box::new(kvm_lapic_state { regs: std::array::from_fn(|index| index as i8) }),
            events,
            msrs: vec![msr(TSC_DEADLINE, 0x1234), msr(0xc000_0080, 0xd01)],
            tsc_offset: 1_u64.wrapping_neg(),
        }
    }
}
