//! The accesses of an exit to an I/O port: a string instruction has several.
//!
//! Source: Linux 6.12, Documentation/virt/kvm/api.rst, 5 (`KVM_EXIT_IO`).

use kvm_ioctls::VcpuFd;

/// Returns the accesses of a vCPU after its `KVM_RUN` returned with `KVM_EXIT_IO`, in order.
/// All are to the same port and of the same size.
pub(super) fn accesses(vcpu: &mut VcpuFd) -> impl Iterator<Item = &mut [u8]> {
    let run = vcpu.get_kvm_run();
    // SAFETY: the caller has seen the exit reason for which `io` is the field of the union in use.
    let io = unsafe { run.__bindgen_anon_1.io };
    let size = usize::from(io.size);
    // SAFETY: KVM has put that many bytes at this offset in the mapping of `run`, which the vCPU's
    // descriptor owns, and does not access them until the next run. The vCPU stays mutably borrowed
    // for as long as the result is used, so it does not run meanwhile.
    let data = unsafe {
        let start = std::ptr::from_mut(run).cast::<u8>().add(io.data_offset as usize);
        std::slice::from_raw_parts_mut(start, size * io.count as usize)
    };
    data.chunks_mut(size.max(1))
}
