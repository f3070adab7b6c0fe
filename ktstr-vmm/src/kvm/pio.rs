//! The accesses of an exit to an I/O port: a string instruction brings several at once.
//!
//! Source: Linux 6.12, Documentation/virt/kvm/api.rst, 5 (`KVM_EXIT_IO`).

use kvm_ioctls::VcpuFd;

/// Of a vCPU whose `KVM_RUN` has just returned with `KVM_EXIT_IO`: each access, in order. They are
/// all to the same port and of the same size.
pub(super) fn accesses(vcpu: &mut VcpuFd) -> impl Iterator<Item = &mut [u8]> {
    let run = vcpu.get_kvm_run();
    // SAFETY: the caller has seen the exit reason that makes `io` the field of the union in use.
    let io = unsafe { run.__bindgen_anon_1.io };
    let size = usize::from(io.size);
    // SAFETY: KVM says where in the mapping of `run`, which the vCPU's descriptor owns, it has put
    // that many bytes; nothing else is there. The vCPU is borrowed mutably as long as they are, so
    // it does not run meanwhile.
    let data = unsafe {
        let start = std::ptr::from_mut(run).cast::<u8>().add(io.data_offset as usize);
        std::slice::from_raw_parts_mut(start, size * io.count as usize)
    };
    data.chunks_mut(size.max(1))
}
