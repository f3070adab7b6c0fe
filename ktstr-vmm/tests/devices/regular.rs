//! Drivers that follow the rules.

use ktstr_vmm::Error;

use crate::driver::*;

const ALL: u64 = F_MULTIPORT | F_EVENT_IDX | F_VERSION_1;

#[test]
fn control_adds_names_and_opens_ports_in_this_order() {
    let mut guest = Guest::new(&["ktstr.wire", "shell"]);
    guest.enumerate();
    guest.initialize();
    assert_eq!(guest.max_nr_ports(), 3);
    guest.fill(2, 8);
    guest.control(!0, 0, 1);
    assert_eq!(guest.take_control(), [(1, 1, 1, vec![]), (2, 1, 1, vec![])]);
    for (id, name) in [(1, "ktstr.wire"), (2, "shell")] {
        guest.fill(2 + 2 * id as usize, 16);
        guest.control(id, 3, 1);
        assert_eq!(guest.take_control(), [(id, 7, 1, name.into()), (id, 6, 1, vec![])]);
    }
    assert!(guest.take_interrupts().contains(&Some(2)));
}

#[test]
fn control_messages_wait_for_buffers() {
    let mut guest = Guest::new(&["a", "b", "c"]);
    guest.enumerate();
    guest.initialize();
    guest.control(!0, 0, 1);
    for id in 1..=3 {
        guest.control(id, 3, 1);
    }
    assert_eq!(guest.take_interrupts(), []);
    let mut messages = Vec::new();
    for _ in 0..9 {
        guest.fill(2, 1);
        messages.extend(guest.take_control().into_iter().map(|(id, event, ..)| (id, event)));
    }
    assert_eq!(messages, [(1, 1), (1, 7), (1, 6), (2, 1), (2, 7), (2, 6), (3, 1), (3, 7), (3, 6)]);
}

#[test]
fn ports_transfer_bytes_in_both_directions() {
    for features in [ALL, ALL & !F_EVENT_IDX] {
        let mut guest = Guest::booted_with(&["a", "b"], features);
        guest.open(2);
        guest.write_port(2, &[b"from ", b"the", b"", b" guest"]);
        assert_eq!(*guest.board.output.borrow(), [(1, b"from the guest".to_vec())]);
        assert!(guest.take_used(7).is_some());
        assert_eq!(guest.take_interrupts().last(), Some(&Some(7)));

        guest.devices.send(1, b"from the host").unwrap();
        assert!(guest.devices.wants_service());
        guest.service();
        assert_eq!(guest.take_interrupts(), [Some(6)]);
        assert_eq!(guest.read_port(2), b"from the host");
        assert!(guest.devices.is_drained());
    }
}

#[test]
fn ports_echo_megabytes_in_order() {
    for features in [ALL, ALL & !F_EVENT_IDX] {
        let mut guest = Guest::booted_with(&["a"], features);
        guest.open(1);
        let sent: Vec<u8> = (0..3_u32 << 20).map(|i| (i * 7 % 251) as u8).collect();
        guest.devices.send(0, &sent).unwrap();
        let buffer = guest.alloc(0x4000);
        let mut rounds = 0;
        while guest.output(0).len() < sent.len() {
            guest.service();
            let bytes = guest.read_port(1);
            for chunk in bytes.chunks(0x4000) {
                let slice = vm_memory::GuestAddress(buffer);
                vm_memory::Bytes::write_slice(&guest.board.memory, chunk, slice).unwrap();
                assert!(guest.has_free(5, 1));
                let len = chunk.len() as u32;
                guest.add_and_notify(5, &[Buffer { address: buffer, len, flags: 0 }]);
                while guest.take_used(5).is_some() {}
            }
            rounds += 1;
            assert!(rounds < 1000, "driver and device wait for each other");
        }
        assert!(guest.output(0) == sent);
    }
}

#[test]
fn send_waits_until_the_port_is_open() {
    let mut guest = Guest::booted(&["a"]);
    guest.devices.send(0, b"early").unwrap();
    assert!(!guest.devices.wants_service());
    guest.service();
    assert_eq!(guest.read_port(1), b"");
    guest.open(1);
    guest.service();
    assert_eq!(guest.read_port(1), b"early");
    guest.control(1, 6, 0);
    guest.devices.send(0, b"between").unwrap();
    guest.service();
    assert_eq!(guest.read_port(1), b"");
    guest.open(1);
    guest.service();
    assert_eq!(guest.read_port(1), b"between");
}

#[test]
fn transmit_continues_a_chain_when_there_is_room() {
    let mut guest = Guest::booted(&["a", "b"]);
    guest.open(1);
    guest.take_interrupts();
    guest.board.room.set(4);
    guest.write_port(1, &[b"abc", b"defg", b"hi"]);
    guest.write_port(1, &[b"jk"]);
    assert_eq!(guest.output(0), b"abcd");
    assert!(guest.take_used(5).is_none());
    assert!(guest.devices.wants_room() && !guest.devices.wants_service());
    assert!(!guest.devices.is_drained());

    assert!(!guest.devices.service(&guest.board), "no room yet");
    guest.board.room.set(3);
    assert!(!guest.devices.service(&guest.board));
    assert_eq!(guest.output(0), b"abcdefg");
    guest.board.room.set(3);
    guest.service();
    assert_eq!(guest.output(0), b"abcdefghij");
    assert!(guest.take_used(5).is_some() && guest.take_used(5).is_none());
    guest.board.room.set(100);
    guest.service();
    assert_eq!(guest.output(0), b"abcdefghijk");
    assert!(!guest.devices.wants_room() && guest.devices.is_drained());
    assert_eq!(guest.take_interrupts(), [Some(5), Some(5)]);
}

#[test]
fn service_does_a_bounded_part() {
    let mut guest = Guest::booted(&["a"]);
    guest.open(1);
    let address = guest.alloc(1 << 20);
    guest.add(5, &[Buffer { address, len: 1 << 20, flags: 0 }]);
    guest.notify(5);
    assert_eq!(guest.output(0).len(), 256 << 10);
    assert!(guest.devices.wants_service());
    assert!(guest.devices.service(&guest.board));
    assert_eq!(guest.output(0).len(), 512 << 10);
    guest.service();
    assert_eq!(guest.output(0).len(), 1 << 20);
    assert!(guest.devices.is_drained());
}

#[test]
fn send_limits_the_waiting_bytes() {
    let guest = Guest::booted(&["a", "b"]);
    guest.devices.send(0, &vec![0; 64 << 20]).unwrap();
    let error = guest.devices.send(0, &[0]).unwrap_err();
    assert_eq!(error.to_string(), "more than 64 MiB are waiting for the guest to read them");
    guest.devices.send(1, &[0]).unwrap();
    assert!(matches!(guest.devices.send(2, &[0]), Err(Error::NoPort(2))));
}

#[test]
fn msix_sends_a_pending_message_when_unmasked() {
    let mut guest = Guest::booted(&["a"]);
    guest.open(1);
    guest.take_interrupts();
    let entry = guest.msix_table + 16 * 6;
    let control = (guest.config(1, guest.msix_control) >> 16) as u16;

    guest.mmio_write(entry + 12, &1_u32.to_le_bytes());
    guest.write_port(1, &[b"x"]);
    assert!(guest.take_used(5).is_some());
    assert_eq!(guest.take_interrupts(), []);
    assert_eq!(guest.mmio_read(guest.msix_pending), (1_u64 << 6).to_le_bytes());
    guest.mmio_write(entry + 12, &0_u32.to_le_bytes());
    assert_eq!(guest.take_interrupts(), [Some(5)]);
    assert_eq!(guest.mmio_read(guest.msix_pending), [0; 8]);

    guest.set_config_word(1, guest.msix_control + 2, control | 0x4000);
    guest.write_port(1, &[b"y"]);
    assert_eq!(guest.take_interrupts(), []);
    guest.set_config_word(1, guest.msix_control + 2, control);
    assert_eq!(guest.take_interrupts(), [Some(5)]);
}

#[test]
fn initial_state_decodes_no_bar_and_masks_all_vectors() {
    let mut guest = Guest::new(&["a"]);
    assert_eq!(guest.config(1, 0x10), 0xd000_0000, "the choice of firmware");
    assert_eq!(guest.config(1, 4) & 0xffff, 0);
    assert_eq!(guest.mmio_read(0xd000_0012), [0xff; 2]);
    guest.enumerate();
    for vector in 0..7 {
        assert_eq!(guest.mmio_read(guest.msix_table + 16 * vector + 12), 1_u32.to_le_bytes());
    }
}

#[test]
fn isr_status_has_used_buffers_without_msix() {
    let mut guest = Guest::booted(&["a"]);
    guest.open(1);
    guest.set_config_word(1, guest.msix_control + 2, 0);
    guest.isr();
    guest.write_port(1, &[b"x"]);
    assert_eq!((guest.isr(), guest.isr()), (1, 0));
    assert_eq!(guest.take_interrupts(), []);
}

#[test]
fn feature_negotiation_rejects_features_not_offered() {
    for features in [0, F_MULTIPORT, ALL | 1, ALL | 1 << 28, ALL | 1 << 63] {
        let mut guest = Guest::new(&["a"]);
        guest.enumerate();
        guest.set_status(0);
        guest.set_status(3);
        guest.accept(features);
        guest.set_status(3 | 8);
        assert_eq!(guest.status(), 3, "{features:#x}");
        guest.set_status(3 | 8 | 4);
        assert_eq!(guest.status(), 3, "{features:#x}");
    }
}

#[test]
fn reset_keeps_unread_bytes_for_the_next_driver() {
    let mut guest = Guest::booted(&["a"]);
    guest.open(1);
    guest.board.room.set(1);
    guest.write_port(1, &[b"xyz"]);
    guest.control(1, 6, 0);
    guest.devices.send(0, b"kept").unwrap();
    guest.set_status(0);
    assert_eq!(guest.status(), 0);
    assert!(guest.devices.is_drained() && !guest.devices.wants_room());
    guest.board.room.set(100);

    guest.initialize();
    guest.set_up_ports();
    guest.open(1);
    guest.service();
    assert_eq!(guest.read_port(1), b"kept");
    guest.write_port(1, &[b"again"]);
    assert_eq!(guest.output(0), b"xagain", "the rest of a chain is lost with its queue");
}

#[test]
fn queues_stop_while_bus_mastering_is_disabled() {
    let mut guest = Guest::booted(&["a"]);
    guest.open(1);
    guest.set_config_word(1, 4, 0b010);
    guest.write_port(1, &[b"x"]);
    assert_eq!(guest.output(0), b"");
    guest.set_config_word(1, 4, 0b110);
    assert_eq!(guest.output(0), b"x");
}

#[test]
fn bar_is_accessible_through_the_configuration_space() {
    let guest = Guest::booted(&["a"]);
    let window = guest.capabilities().last().unwrap().0;
    assert_eq!(guest.config_byte(1, window + 3), 5);
    let data = window + 16;
    // `num_queues`
    guest.set_config(1, window + 8, 0x12);
    guest.set_config(1, window + 12, 2);
    assert_eq!(guest.config(1, data) & 0xffff, 6);
    // `queue_select`
    guest.set_config(1, window + 8, 0x16);
    guest.set_config(1, data, 3);
    assert_eq!(guest.common(0x16), 3_u16.to_le_bytes());
    // Over the end, unaligned, too long, another BAR.
    for (offset, len, bar) in [(0x7ffe, 4, 0), (0x15, 2, 0), (0, 8, 0), (!0, 1, 0), (0x16, 2, 1)] {
        guest.set_config(1, window + 4, bar);
        guest.set_config(1, window + 8, offset);
        guest.set_config(1, window + 12, len);
        guest.set_config(1, data, 0x77);
        assert_eq!(guest.config(1, data), 0x77);
    }
    assert_eq!(guest.common(0x16), 3_u16.to_le_bytes());
}

#[test]
fn bar_is_decoded_only_in_the_window() {
    let guest = Guest::booted(&["a"]);
    for (bar, is_decoded) in [
        (0xd000_0000_u32, true),
        (0xdfff_8000, true),
        (0xcfff_8000, false),
        (0xe000_0000, false),
        (0xffff_8000, false),
        (0, false),
        (0x10_0000, false),
        (0xfee0_0000, false),
    ] {
        guest.set_config(1, 0x10, bar);
        let want = if is_decoded { [6, 0] } else { [0xff; 2] };
        assert_eq!(guest.mmio_read(u64::from(bar) + 0x12), want, "{bar:#x}");
        assert_eq!(guest.mmio_read(u64::from(bar) + 0x8000), [0xff; 2]);
        assert_eq!(
            guest.mmio_read(u64::from(bar) + 0x7ffe),
            if is_decoded { [0; 2] } else { [0xff; 2] }
        );
        assert_eq!(guest.mmio_read(u64::from(bar) + 0x7fff), [0xff; 2], "over the end");
        assert_eq!(guest.mmio_read(u64::MAX), [0xff; 8]);
    }
}

#[test]
fn serial_console_writes_bytes_and_pulses_its_line() {
    let guest = Guest::new(&[]);
    // Divisor, 8 bits a character, modem control, then interrupts on an empty transmitter.
    for (register, value) in [(3, 0x83), (0, 1), (1, 0), (3, 3), (4, 0x0b), (1, 2)] {
        guest.outb(COM1 + register, value);
    }
    assert_eq!(*guest.board.irqs.borrow(), [(4, true), (4, false)]);
    assert_eq!(guest.inb(COM1 + 2) & 0xf, 2, "the transmitter is empty");
    assert_eq!(guest.inb(COM1 + 2) & 0xf, 1, "reading cleared it");
    guest.board.irqs.borrow_mut().clear();
    for byte in *b"hello" {
        assert_eq!(guest.inb(COM1 + 5) & 0x60, 0x60);
        guest.outb(COM1, byte);
    }
    assert_eq!(*guest.board.console.borrow(), b"hello");
    assert_eq!(
        *guest.board.irqs.borrow(),
        [(4, true), (4, false)],
        "one interrupt until the cause is read"
    );
}

#[test]
fn other_ports_and_addresses_have_no_device() {
    let guest = Guest::new(&["a"]);
    for port in [0x20, 0x61, 0x64, 0x70, 0x71, 0x600, 0x601, 0x602, 0xcf9, 0x2f8] {
        assert_eq!(guest.inb(port), 0, "{port:#x}");
    }
    assert_eq!(guest.inl(COM1), 0);
    assert_eq!(guest.inl(0xcfc), !0, "no address was enabled");
    guest.outl(0xcf8, 0x8001_0000);
    assert_eq!(guest.inl(0xcfc), !0, "another bus");
    guest.outl(0xcf8, 0x8000_0900);
    assert_eq!(guest.inl(0xcfc), !0, "another function");
    assert_eq!(guest.mmio_read(0xfed0_0000), [0xff; 4]);
}

#[test]
fn queues_handle_index_wrap_and_buffers_across_nodes() {
    let mut guest = Guest::booted(&["a"]);
    guest.open(1);
    let address = MEMORY as u64 / 2 - 4;
    guest.poke(address, u64::from_le_bytes(*b"in order"));
    for _ in 0..70_000 {
        guest.add_and_notify(5, &[Buffer { address, len: 8, flags: 0 }]);
        assert!(guest.take_used(5).is_some());
        assert_eq!(guest.board.output.take(), [(0, b"in order".to_vec())]);
        assert_eq!(guest.take_interrupts(), [Some(5)]);
    }
}

#[test]
fn receive_requests_a_notification_without_buffers() {
    for features in [ALL, ALL & !F_EVENT_IDX] {
        let mut guest = Guest::booted_with(&["a"], features);
        guest.open(1);
        guest.devices.send(0, &[b'x'; 17 * 0x1000]).unwrap();
        guest.service();
        assert_eq!(guest.take_interrupts().last(), Some(&Some(4)));
        // Buffers that the driver gives back are filled without a call of `service`.
        assert_eq!(guest.read_port(1).len(), 17 * 0x1000);
    }
}

#[test]
fn interrupts_are_sent_as_the_driver_requested() {
    let mut guest = Guest::booted(&["a"]);
    guest.write_port(1, &[b"a"]);
    guest.write_port(1, &[b"b"]);
    guest.write_port(1, &[b"c"]);
    assert_eq!(guest.take_interrupts(), [Some(5)], "a second one was not requested");
    while guest.take_used(5).is_some() {}
    guest.write_port(1, &[b"d"]);
    assert_eq!(guest.take_interrupts(), [Some(5)]);
}

#[test]
fn features_cannot_change_after_negotiation() {
    let guest = Guest::booted(&["a"]);
    guest.accept(0);
    guest.set_common(8, &0_u32.to_le_bytes());
    assert_eq!(guest.common(12), ((F_MULTIPORT | F_EVENT_IDX) as u32).to_le_bytes());
}
