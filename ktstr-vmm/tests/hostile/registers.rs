//! Accesses to all registers, and to addresses without any.

use ktstr_vmm::ExitReason;

use crate::code::Code;
use crate::machine::{Guest, SOON};
use crate::virtio::{BAR, BAR_SIZE};

/// The address at which the host reads the result.
const RESULT: u32 = 0x20_0000;

/// Loads and stores of 1, 2, 4 and 8 bytes at RDI, with RAX.
const ACCESSES: [(u32, &[u8], &[u8]); 4] = [
    (1, &[0x8a, 0x07], &[0x88, 0x07]),
    (2, &[0x66, 0x8b, 0x07], &[0x66, 0x89, 0x07]),
    (4, &[0x8b, 0x07], &[0x89, 0x07]),
    (8, &[0x48, 0x8b, 0x07], &[0x48, 0x89, 0x07]),
];

/// Repeats `access` at `count` addresses from `start` on.
fn sweep(code: &mut Code, start: u32, stride: u32, count: u32, access: &[u8]) {
    code.edi(start).repeat(count, |code| {
        // add edi, stride
        code.raw(access).raw(&[0x81, 0xc7]).raw(&stride.to_le_bytes())
    });
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn device_registers_survive_reads_and_writes() {
    for (size, load, store) in ACCESSES {
        let mut machine = Guest::new(|code| {
            code.pci(0x04, 6);
            // Across both ends, and not aligned.
            let count = (BAR_SIZE + 16) / size;
            sweep(code, BAR - 7, size, count, load);
            for value in [0xffff_ffff, 1] {
                code.eax(value);
                sweep(code, BAR, size, count, store);
            }
            sweep(code, BAR - 7, size, count, load);
            code.power_off()
        })
        .boot();
        assert_eq!(machine.run(6 * SOON).reason, ExitReason::PowerOff, "{size} bytes");
    }
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn hole_for_devices_survives_reads_and_writes() {
    let mut machine = Guest::new(|code| {
        code.pci(0x04, 6);
        // An odd multiple of a page and some bytes, so that the offsets differ.
        let (stride, count) = (0x2_1004, 0x4000_0000 / 0x2_1004);
        for (_, load, store) in ACCESSES {
            sweep(code, 0xc000_0000, stride, count, load);
            code.eax(0);
            sweep(code, 0xc000_0000, stride, count, store);
        }
        // KVM's own addresses: I/O APIC, local APIC, those that KVM needs on Intel; firmware's on a
        // PC.
        for page in [0xfec0_0000, 0xfee0_0000, 0xfffb_c000, 0xfffb_d000, 0xffff_f000] {
            for (size, load, store) in ACCESSES {
                sweep(code, page, 4 * size, 1024 / size, load);
                code.eax(0);
                sweep(code, page, 4 * size, 1024 / size, store);
            }
        }
        code.power_off()
    })
    .boot();
    assert_eq!(machine.run(6 * SOON).reason, ExitReason::PowerOff);
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn firmware_range_is_memory() {
    let mut machine = Guest::new(|code| {
        for page in [0xa_0000, 0xc_0000, 0xe_0000, 0xf_f000] {
            code.store32(page, 0x1234_5678);
        }
        code.power_off()
    })
    .boot();
    assert_eq!(machine.run(SOON).reason, ExitReason::PowerOff);
    for page in [0xa_0000, 0xc_0000, 0xe_0000, 0xf_f000] {
        assert_eq!(machine.read32(page), 0x1234_5678, "{page:#x}");
    }
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn moved_bar_does_not_hide_other_devices() {
    const PLACES: [u32; 10] = [
        0x0000_0000,
        0x0020_0000,
        0x0100_0000,
        0xbfff_8000,
        0xc000_0000,
        0xcfff_8000,
        0xe000_0000,
        0xfec0_0000,
        0xfee0_0000,
        0xffff_8000,
    ];
    let mut machine = Guest::new(|code| {
        code.pci(0x04, 6);
        // The local APIC's version before the moves.
        code.copy32(0xfee0_0030, RESULT);
        for place in PLACES {
            code.pci(0x10, place).store8(place + 0x14, 0x3).store16(place + 0x16, 5);
            code.store32(place + 0x3000, 5);
        }
        // The same afterwards; and the device's number of queues at a valid address.
        code.copy32(0xfee0_0030, RESULT + 4);
        code.pci(0x10, 0xdfff_8000).copy32(0xdfff_8010, RESULT + 8);
        code.copy32(BAR + 0x10, RESULT + 12);
        code.power_off()
    })
    .boot();
    assert_eq!(machine.run(SOON).reason, ExitReason::PowerOff);
    let version = machine.read32(RESULT);
    assert_ne!(version, 0);
    assert_eq!(machine.read32(RESULT + 4), version);
    assert_eq!(machine.read32(RESULT + 8) >> 16, 8);
    assert_eq!(machine.read32(RESULT + 12), u32::MAX, "the device has moved");
    assert_eq!(machine.read32(0x20_3000), 5, "memory stays memory");
}
