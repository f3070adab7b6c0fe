//! What QEMU sends by QMP. A guest that has taken over QEMU writes it.
//!
//! The first byte is the size of the pieces of the stream.

#![no_main]

use ktstr_vmm::qemu::parse_qmp;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [size, stream @ ..] = data else { return };
    let whole = parse_qmp(std::iter::once(stream));
    let pieces = parse_qmp(stream.chunks(usize::from(*size) + 1));
    assert_eq!(whole.is_ok(), pieces.is_ok(), "{whole:?} {pieces:?}");
    if let (Ok(whole), Ok(pieces)) = (whole, pieces) {
        assert_eq!(whole, pieces);
    }
});
