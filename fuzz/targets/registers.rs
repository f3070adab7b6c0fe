//! A guest that reads and writes ports, PCI configuration space and device registers.

#![no_main]

use ktstr_vmm::kvm::fuzz_registers;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_registers(data));
