//! A kernel's command line, and the names of kernels as command lines have them.

#![no_main]

mod machine;

use ktstr::provision::KernelSpec;
use ktstr_vmm::Error;
use ktstr_vmm::kvm::{BootError, Contents, Error as KvmError, tiny_kernel};
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
    match Contents::new(&config, text) {
        Ok(contents) => assert_eq!(found(&contents), text.as_bytes()),
        Err(Error::Kvm(KvmError::Boot(BootError::CmdlineTooLong { len }))) => {
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

/// The command line as a kernel finds it.
fn found(contents: &Contents) -> Vec<u8> {
    let mut pointer = [0; 4];
    contents.read(CMD_LINE_PTR, &mut pointer).expect("the zero page is memory");
    let mut bytes = vec![0; COMMAND_LINE_SIZE];
    contents.read(u32::from_le_bytes(pointer).into(), &mut bytes).expect("it is memory");
    let end = bytes.iter().position(|byte| *byte == 0).expect("it has an end");
    bytes.truncate(end);
    bytes
}
