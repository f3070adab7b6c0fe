//! A file that is given for a kernel: what the KVM engine loads of it, and what is unpacked from
//! it.

#![no_main]

mod machine;

use ktstr::provision::vmlinux;
use ktstr_vmm::Error;
use ktstr_vmm::kvm::{Error as KvmError, InitialMemory};
use libfuzzer_sys::fuzz_target;
use machine::{File, machine};

/// Guest-physical address and size of the memory of [`machine`].
const MEMORY: std::ops::Range<u64> = 0x10_0000..32 << 20;
/// Xz is another program's.
const XZ: &[u8] = b"\xfd7zXZ";

fuzz_target!(|data: &[u8]| {
    let (kernel, initramfs) = (File::new(data), File::new(b"initramfs"));
    match InitialMemory::new(&machine(&kernel, &initramfs), "console=ttyS0") {
        Ok(contents) => assert!(MEMORY.contains(&contents.entry()), "{:#x}", contents.entry()),
        Err(Error::Kvm(KvmError::Boot(_))) => {}
        Err(error) => panic!("{error}"),
    }
    if vmlinux::is_bzimage(data) && !data.windows(XZ.len()).any(|bytes| bytes == XZ) {
        let _ = vmlinux::bzimage_release(data);
        if let Ok(vmlinux) = vmlinux::from_bzimage(data) {
            vmlinux::has_pvh_entry(vmlinux.as_slice());
        }
    }
    vmlinux::has_pvh_entry(data);
});
