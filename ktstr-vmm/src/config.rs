//! What a virtual machine is made of.

use std::path::PathBuf;

/// A machine to boot.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// A bzImage, or an uncompressed `vmlinux` with a PVH note.
    pub kernel: PathBuf,
    /// The initramfs, in any form the kernel unpacks.
    pub initramfs: PathBuf,
    /// The kernel's command line, complete but for what the engine itself needs.
    pub cmdline: String,
    /// CPUs, caches and nodes.
    pub topology: Topology,
    /// Memory in MiB, over all nodes; nodes get equal shares, the last one the remainder.
    pub memory_mib: u32,
    /// The names of the virtio-console ports, in the order in which [`Event::Port`] and
    /// [`Vm::send`] number them.
    ///
    /// [`Event::Port`]: crate::Event::Port
    /// [`Vm::send`]: crate::Vm::send
    pub ports: Vec<String>,
}

/// CPUs, caches and memory nodes.
///
/// CPUs are numbered thread first, then core, then LLC, then node. All dimensions are at least 1
/// and `llcs` is a multiple of `numa_nodes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// NUMA nodes.
    pub numa_nodes: u32,
    /// Last-level caches, in total.
    pub llcs: u32,
    /// Cores that share one last-level cache.
    pub cores_per_llc: u32,
    /// SMT threads of one core.
    pub threads_per_core: u32,
}
