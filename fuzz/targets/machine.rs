//! A machine of files without names.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use ktstr_core::machine::{Llcs, Topology};
use ktstr_vmm::VmConfig;
use rustix::fs::{MemfdFlags, memfd_create};

/// A file in memory.
pub struct File(std::fs::File);

impl File {
    pub fn new(content: &[u8]) -> Self {
        let fd = memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("files in memory are to be had");
        let mut file = std::fs::File::from(fd);
        file.write_all(content).expect("a few pages are to be had");
        Self(file)
    }

    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// One CPU and 32 MiB of memory: a kernel may lie at 16 MiB, and then have a random address.
pub fn machine(kernel: &File, initramfs: &File) -> VmConfig {
    VmConfig {
        kernel: kernel.path(),
        initramfs: initramfs.path(),
        cmdline: String::new(),
        kaslr: true,
        topology: Topology { llcs: Llcs::even(1, 1), ..Topology::DEFAULT },
        memory_mib: 32,
        ports: Vec::new(),
    }
}
