//! Queues with invalid contents or addresses.

use ktstr_vmm::ExitReason;

use crate::machine::{Guest, MEMORY, SOON};
use crate::virtio::{
    DESC_INDIRECT, DESC_NEXT, NEEDS_RESET, Rings, SIZE, TRANSMIT, available, descriptor,
};

const RINGS: Rings = Rings::at(0x200_0000);
const END: u64 = MEMORY as u64;
/// The address at which the host reads the device status.
const STATUS: u32 = 0x20_0000;

/// Runs a guest that notifies a queue. Returns the device status after that, and the bytes of
/// output.
fn notify(rings: Rings, table: Vec<u8>, ring: Vec<u8>) -> (u32, usize) {
    let mut guest = Guest::new(|code| {
        code.find_device().enable(TRANSMIT[0], rings).go().notify(TRANSMIT[0]);
        // A second notification must not change the result.
        code.notify(TRANSMIT[0]).keep_status(STATUS).power_off()
    });
    for (at, bytes) in [(rings.table, table), (rings.available, ring)] {
        if (0x200_0000..0x300_0000).contains(&at) {
            guest.data.push((at as u32, bytes));
        }
    }
    let mut machine = guest.boot();
    let end = machine.run(SOON);
    assert_eq!(end.reason, ExitReason::PowerOff);
    (machine.read32(STATUS), end.port_bytes)
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn valid_queue_works() {
    let table = descriptor(0x100_0000, 100, 0, 0);
    assert_eq!(notify(RINGS, table, available(1, &[0])), (15, 100));
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn broken_chain_breaks_the_device() {
    let two = |one: Vec<u8>, other: Vec<u8>| [one, other].concat();
    for (what, table, head) in [
        ("itself again", descriptor(0x100_0000, 8, DESC_NEXT, 0), 0),
        (
            "a loop",
            two(descriptor(0x100_0000, 8, DESC_NEXT, 1), descriptor(0x100_0000, 8, DESC_NEXT, 0)),
            0,
        ),
        ("over the end of memory", descriptor(END - 4, 8, 0, 0), 0),
        ("far behind memory", descriptor(1 << 40, 8, 0, 0), 0),
        ("in the hole", descriptor(0xd000_0000, 8, 0, 0), 0),
        ("in the local APIC", descriptor(0xfee0_0000, 8, 0, 0), 0),
        ("over the end of addresses", descriptor(u64::MAX - 3, 8, 0, 0), 0),
        // Near the end of memory: a device with megabytes to send does so while the guest continues.
        ("4 GiB", descriptor(END - 0x1000, u32::MAX, 0, 0), 0),
        ("a head behind the table", Vec::new(), SIZE),
        ("a table in the hole", descriptor(0xd000_0000, 32, DESC_INDIRECT, 0), 0),
    ] {
        let (status, _) = notify(RINGS, table, available(1, &[head]));
        assert_eq!(status, 15 | NEEDS_RESET, "{what}");
    }
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn queue_outside_of_memory_breaks_the_device() {
    for at in [0x5000_0000, 0xd000_0000, 0xfee0_0000, 1 << 32, 1 << 52, u64::MAX - 0xfff] {
        for rings in [
            Rings { table: at, ..RINGS },
            Rings { available: at, ..RINGS },
            Rings { used: at, ..RINGS },
        ] {
            let table = descriptor(0x100_0000, 8, 0, 0);
            let (status, bytes) = notify(rings, table, available(1, &[0]));
            assert_eq!((status & NEEDS_RESET, bytes), (NEEDS_RESET, 0), "{rings:x?}");
        }
    }
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn queue_at_the_end_of_memory_is_checked_exactly() {
    let size = u64::from(SIZE);
    for (rings, is_fine) in [
        (Rings { used: END - 6 - 8 * size - 2, ..RINGS }, true),
        (Rings { used: END - 8 * size, ..RINGS }, false),
    ] {
        let table = descriptor(0x100_0000, 8, 0, 0);
        let (status, bytes) = notify(rings, table, available(1, &[0]));
        assert_eq!((status & NEEDS_RESET == 0, bytes), (is_fine, if is_fine { 8 } else { 0 }));
    }
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn available_index_that_jumps_breaks_the_device() {
    for index in [SIZE + 1, 0x7fff, 0x8000, 0xffff] {
        let table = descriptor(0x100_0000, 8, 0, 0);
        let (status, bytes) = notify(RINGS, table, available(index, &[0; 64]));
        assert_eq!((status, bytes), (15 | NEEDS_RESET, 0), "{index:#x}");
    }
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn overlapping_rings_are_survived() {
    let Rings { table, available: ring, used } = RINGS;
    for rings in [
        Rings { table, available: ring, used: ring },
        Rings { table, available: ring, used: table },
        Rings { table, available: table, used },
        Rings { table, available: table, used: table },
        Rings { table, available: ring, used: ring - 4 },
        Rings { table: 0x100_0000, available: 0x100_0000, used: 0x100_0800 },
    ] {
        // Whatever the device does, the guest reaches its end.
        let chains = descriptor(0x100_0000, 8, 0, 0).repeat(SIZE.into());
        notify(rings, chains, available(SIZE, &[0; 64]));
    }
}
