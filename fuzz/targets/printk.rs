//! The ring of the kernel's messages in memory that a guest has written, and a vmlinux with such a ring.

#![no_main]

use ktstr_vmm::Error;
use ktstr_vmm::printk::{PrintkLayout, PrintkOffsets};
use libfuzzer_sys::fuzz_target;

/// The image is mapped at its physical address, and the memory begins with it.
const IMAGE_BASE: u64 = 0xffff_ffff_8000_0000;

/// The form of Linux 6.12. The ring is followed by the pointer to the one in use.
const LAYOUT: PrintkLayout = PrintkLayout {
    ring: IMAGE_BASE,
    descs: IMAGE_BASE + 0x100,
    initial_id: 0xffff_fff7,
    pointer: IMAGE_BASE + 88,
    image_base: IMAGE_BASE,
    offsets: PrintkOffsets {
        ring_len: 88,
        count_bits: 0,
        descs: 8,
        infos: 16,
        head_id: 24,
        tail_id: 32,
        size_bits: 48,
        data: 56,
        head_lpos: 64,
        tail_lpos: 72,
        desc_len: 24,
        state_var: 0,
        begin: 8,
        next: 16,
        info_len: 24,
        ts_nsec: 8,
        text_len: 16,
    },
};

fuzz_target!(|memory: &[u8]| {
    // Each read may be followed by one that the guest has prepared for.
    let mut asked = 0;
    let mut read = |gpa: u64, buf: &mut [u8]| {
        let (start, len) = (usize::try_from(gpa).unwrap_or(usize::MAX), buf.len());
        let bytes = memory.get(start..start.saturating_add(len));
        buf.copy_from_slice(bytes.ok_or(Error::OutsideMemory { gpa, len })?);
        asked += len;
        Ok(())
    };
    let _ = LAYOUT.position(&mut read);
    if let Ok(messages) = LAYOUT.read_messages(&mut read) {
        let text: usize = messages.iter().map(|message| message.text.len()).sum();
        assert!(messages.len() <= memory.len() / 24 && text <= memory.len());
    }
    assert!(asked <= 4 * memory.len() + 4096, "{asked} of {}", memory.len());
    let _ = PrintkLayout::find(memory);
});
