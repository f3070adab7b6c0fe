//! The files of a saved machine: the state of KVM, and the manifest of QEMU.
//!
//! The first byte selects a state whose header is made up around it (a checksum is not guessed), a state
//! with its own header, or a manifest.

#![no_main]

use ktstr_vmm::kvm::reencode_state;
use ktstr_vmm::qemu::reencode_manifest;
use libfuzzer_sys::fuzz_target;

/// Magic and version of a state.
const BEGINNING: &[u8] = b"ktstrkvm\x01\0\0\0";

fuzz_target!(|data: &[u8]| {
    let [kind, data @ ..] = data else { return };
    match kind % 3 {
        0 => state(&with_header(data)),
        1 => state(data),
        _ => manifest(data),
    }
});

/// A state that is accepted has one encoding.
fn state(bytes: &[u8]) {
    if let Ok(again) = reencode_state(bytes) {
        assert!(again == bytes, "{} bytes became {}", bytes.len(), again.len());
    }
}

/// A manifest that is accepted survives being written again.
fn manifest(bytes: &[u8]) {
    if let Ok(again) = reencode_manifest(bytes) {
        assert_eq!(reencode_manifest(&again).as_ref(), Ok(&again));
    }
}

fn with_header(body: &[u8]) -> Vec<u8> {
    let hash = body.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let len = body.len() as u64;
    [BEGINNING, &len.to_le_bytes(), &hash.to_le_bytes(), body].concat()
}
