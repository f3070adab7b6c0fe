//! A guest that reads and writes ports, PCI configuration space and device registers.

#![no_main]

#[path = "../../ktstr-vmm/tests/devices/board.rs"]
mod board;
#[allow(dead_code, reason = "another target runs the other kind of guest")]
#[path = "../../ktstr-vmm/tests/devices/random.rs"]
mod random;

libfuzzer_sys::fuzz_target!(|data: &[u8]| random::fuzz_registers(data));
