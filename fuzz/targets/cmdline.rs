//! A kernel's command line, and the names of kernels as command lines have them.

#![no_main]

mod machine;

use ktstr::provision::KernelSpec;
use ktstr_vmm::Error;
use ktstr_vmm::kvm::{BootError, Error as KvmError, InitialMemory};
use libfuzzer_sys::fuzz_target;
use machine::{File, machine};

/// Linux 6.12, Documentation/arch/x86/boot.rst: `cmd_line_ptr`, in the page at 0x7000.
const CMD_LINE_PTR: u64 = 0x7000 + 0x228;
/// `COMMAND_LINE_SIZE` of x86 kernels.
const COMMAND_LINE_SIZE: usize = 2048;

thread_local! {
    static KERNEL: File = File::new(&tiny_kernel());
    static INITRAMFS: File = File::new(b"initramfs");
}

fuzz_target!(|text: &str| {
    let config = KERNEL.with(|kernel| INITRAMFS.with(|initramfs| machine(kernel, initramfs)));
    match InitialMemory::new(&config, text) {
        Ok(contents) => assert_eq!(found(&contents), text.as_bytes()),
        Err(Error::Kvm(KvmError::Boot(BootError::CmdlineTooLong { len, .. }))) => {
            assert!(len == text.len() && len >= COMMAND_LINE_SIZE);
        }
        Err(Error::Kvm(KvmError::Boot(BootError::CmdlineNul))) => assert!(text.contains('\0')),
        Err(error) => panic!("{error}"),
    }
    match text.parse::<KernelSpec>() {
        Ok(spec) => assert_eq!(spec.to_string(), text),
        Err(error) => assert!(error.to_string().contains(text)),
    }
});

/// Returns the command line as a kernel finds it.
fn found(contents: &InitialMemory) -> Vec<u8> {
    let mut pointer = [0; 4];
    contents.read(CMD_LINE_PTR, &mut pointer).expect("the zero page is memory");
    let mut bytes = vec![0; COMMAND_LINE_SIZE];
    contents.read(u32::from_le_bytes(pointer).into(), &mut bytes).expect("it is memory");
    let end = bytes.iter().position(|byte| *byte == 0).expect("it has an end");
    bytes.truncate(end);
    bytes
}

/// Returns an ELF file of one segment at 16 MiB, which is never run.
fn tiny_kernel() -> Vec<u8> {
    let mut file = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1]); // ET_EXEC, EM_X86_64, EV_CURRENT
    put(24, &0x100_0000_u64.to_le_bytes()); // e_entry
    put(32, &64_u64.to_le_bytes()); // e_phoff
    put(54, &[56, 0, 1, 0]); // e_phentsize, e_phnum
    put(64, &[1]); // PT_LOAD
    for (field, value) in [(8, 0_u64), (24, 0x100_0000), (32, 4096), (40, 4096)] {
        put(64 + field, &value.to_le_bytes()); // p_offset, p_paddr, p_filesz, p_memsz
    }
    file
}
