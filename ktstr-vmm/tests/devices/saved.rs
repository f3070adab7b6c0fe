//! The saved state of devices, restored into new devices with the same guest memory.

use ktstr_vmm::kvm::{Devices, DevicesState, StateError};

use crate::driver::*;

const ALL: u64 = F_MULTIPORT | F_EVENT_IDX | F_VERSION_1;

/// Saves the devices of a guest and replaces them by restored ones.
fn fork(guest: &mut Guest, ports: &[&str]) {
    let state = guest.devices.save();
    let bytes = state.encode();
    let decoded = DevicesState::decode(&bytes).unwrap();
    assert_eq!(decoded, state);
    guest.devices = Devices::restore(&names(ports), &decoded).unwrap();
    assert_eq!(guest.devices.save(), state, "nothing is lost");
}

#[test]
fn restored_ports_transfer_in_both_directions() {
    for features in [ALL, ALL & !F_EVENT_IDX] {
        let mut guest = Guest::booted_with(&["a", "b"], features);
        guest.open(2);
        guest.write_port(2, &[b"before"]);
        fork(&mut guest, &["a", "b"]);
        assert_eq!(guest.take_interrupts(), [Some(7)]);
        assert!(guest.take_used(7).is_some());

        guest.write_port(2, &[b"after"]);
        assert!(guest.take_used(7).is_some());
        assert_eq!(guest.take_interrupts(), [Some(7)]);
        assert_eq!(guest.output(1), b"beforeafter");

        guest.devices.send(1, b"from the host").unwrap();
        guest.service();
        assert_eq!(guest.take_interrupts(), [Some(6)]);
        assert_eq!(guest.read_port(2), b"from the host");
        // The other port is not open in the restored devices either.
        guest.devices.send(0, b"unread").unwrap();
        assert!(!guest.devices.wants_service());
        guest.open(1);
        guest.service();
        assert_eq!(guest.read_port(1), b"unread");
    }
}

#[test]
fn restored_devices_continue_an_initialization_at_any_step() {
    let mut guest = Guest::new(&["a"]);
    fork(&mut guest, &["a"]);
    guest.enumerate();
    fork(&mut guest, &["a"]);
    guest.initialize();
    fork(&mut guest, &["a"]);
    guest.fill(2, 1);
    guest.control(!0, 0, 1);
    guest.control(1, 3, 1);
    // A message for which the driver has no buffer.
    fork(&mut guest, &["a"]);
    let mut events = Vec::new();
    for _ in 0..3 {
        events.extend(guest.take_control().into_iter().map(|(id, event, ..)| (id, event)));
        fork(&mut guest, &["a"]);
    }
    assert_eq!(events, [(1, 1), (1, 7), (1, 6)]);
}

#[test]
fn restored_devices_have_the_bytes_on_their_way_to_the_guest() {
    let mut guest = Guest::booted(&["a"]);
    guest.open(1);
    let sent: Vec<u8> = (0..100_000_u32).map(|i| (i * 7 % 251) as u8).collect();
    guest.devices.send(0, &sent).unwrap();
    fork(&mut guest, &["a"]);
    assert!(guest.devices.wants_service());
    let mut received = Vec::new();
    while received.len() < sent.len() {
        guest.service();
        let bytes = guest.read_port(1);
        assert!(!bytes.is_empty());
        received.extend(bytes);
        fork(&mut guest, &["a"]);
    }
    assert!(received == sent);
}

#[test]
fn restored_devices_continue_a_chain_that_did_not_fit() {
    let mut guest = Guest::booted(&["a"]);
    guest.open(1);
    guest.board.room.set(5);
    guest.write_port(1, &[b"the ", b"first, ", b"rest"]);
    guest.write_port(1, &[b" and the next"]);
    assert_eq!(guest.output(0), b"the f");
    assert!(guest.devices.wants_room() && !guest.devices.is_drained());
    fork(&mut guest, &["a"]);
    // A new owner has room.
    assert!(guest.devices.wants_room() && guest.devices.wants_service());
    guest.board.room.set(1 << 20);
    guest.service();
    assert_eq!(guest.output(0), b"the first, rest and the next");
    assert!(guest.take_used(5).is_some() && guest.take_used(5).is_some());
    assert!(guest.devices.is_drained());
}

#[test]
fn restored_interrupts_stay_masked_and_pending() {
    let mut guest = Guest::booted(&["a"]);
    guest.open(1);
    // Vector control of queue 5.
    let control = guest.msix_table + 16 * 6 + 12;
    guest.mmio_write(control, &1_u32.to_le_bytes());
    guest.write_port(1, &[b"x"]);
    fork(&mut guest, &["a"]);
    assert_eq!(guest.take_interrupts(), []);
    assert_eq!(guest.mmio_read::<8>(guest.msix_pending), [1 << 6, 0, 0, 0, 0, 0, 0, 0]);
    guest.mmio_write(control, &0_u32.to_le_bytes());
    assert_eq!(guest.take_interrupts(), [Some(5)]);
}

#[test]
fn restored_serial_port_keeps_its_registers() {
    let guest = &mut Guest::new(&[]);
    // Divisor, line control, modem control, scratch, interrupt enable: an interrupt is pending.
    for (register, value) in [(3, 0x80), (0, 0x12), (1, 0x34), (3, 3), (4, 0x0b), (7, 0x5a), (1, 2)]
    {
        guest.outb(COM1 + register, value);
    }
    fork(guest, &[]);
    assert_eq!([1, 3, 4, 7].map(|register| guest.inb(COM1 + register)), [2, 3, 0x0b, 0x5a]);
    assert_eq!([guest.inb(COM1 + 2), guest.inb(COM1 + 2)], [0xc2, 0xc1]);
    guest.outb(COM1 + 3, 0x83);
    assert_eq!([guest.inb(COM1), guest.inb(COM1 + 1)], [0x12, 0x34]);
}

#[test]
fn restored_device_that_needs_a_reset_can_be_reset() {
    let mut guest = Guest::booted(&["a"]);
    let mut queue = guest.queues[5].clone();
    // No descriptor has this number.
    guest.publish(&mut queue, 0xfff0);
    guest.notify(5);
    assert_eq!(guest.status() & 64, 64);
    fork(&mut guest, &["a"]);
    assert_eq!(guest.status() & 64, 64);
    guest.initialize();
    guest.set_up_ports();
    guest.open(1);
    guest.write_port(1, &[b"again"]);
    assert_eq!(guest.output(0), b"again");
}

#[test]
fn restore_refuses_the_state_of_other_devices() {
    let guest = Guest::booted(&["a", "b"]);
    let state = guest.devices.save();
    for (ports, what) in [
        (&["a"][..], "number of MSI-X vectors"),
        (&["a", "b", "c"], "number of MSI-X vectors"),
        (&["a", "other"], "name of a port"),
    ] {
        let error = Devices::restore(&names(ports), &state).unwrap_err();
        assert_eq!(error, StateError::Device { what });
    }
}

/// Devices that accept a changed state behave like those of a hostile driver.
#[test]
fn restore_survives_any_changed_byte() {
    let mut guest = Guest::booted(&["a"]);
    guest.open(1);
    guest.board.room.set(3);
    guest.devices.send(0, b"to the guest").unwrap();
    guest.write_port(1, &[b"from ", b"the guest"]);
    let bytes = guest.devices.save().encode();
    let (mut accepted, mut refused) = (0, 0);
    for at in 0..bytes.len() {
        for value in [0, 1, 3, 0x40, 0xff] {
            let mut changed = bytes.clone();
            changed[at] = value;
            let state = DevicesState::decode(&changed);
            match state.and_then(|state| Devices::restore(&names(&["a"]), &state)) {
                Ok(devices) => {
                    accepted += 1;
                    guest.devices = devices;
                    guest.board.room.set(100);
                    let mut iterations = 0;
                    while guest.devices.service(&guest.board) && iterations < 1000 {
                        iterations += 1;
                    }
                    guest.devices.save();
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(accepted > bytes.len() && refused > 0, "{accepted} {refused}");
    for len in 0..bytes.len() {
        DevicesState::decode(&bytes[..len]).unwrap_err();
    }
}
