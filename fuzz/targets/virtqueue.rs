//! A guest with a virtio console's driver that breaks the rules of its queues.

#![no_main]

use ktstr_vmm::kvm::fuzz_queues;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_queues(data));
