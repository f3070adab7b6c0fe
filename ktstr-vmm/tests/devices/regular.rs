//! What happens with a driver that keeps the rules.

use ktstr_vmm::Error;

use crate::driver::*;

const ALL: u64 = F_MULTIPORT | F_EVENT_IDX | F_VERSION_1;

#[test]
fn ports_are_added_named_and_opened_in_this_order() {
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
fn messages_wait_until_the_driver_has_buffers_for_them() {
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
fn bytes_go_both_ways() {
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
fn megabytes_are_echoed_in_order() {
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
            assert!(rounds < 1000, "somebody waits for somebody");
        }
        assert!(guest.output(0) == sent);
    }
}

#[test]
fn bytes_wait_for_the_port_to_be_opened_and_again_after_it_was_closed() {
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
fn a_chain_waits_for_room_and_goes_on_where_it_stopped() {
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

    assert!(!guest.devices.service(&guest.board), "there is still no room");
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
fn each_call_does_a_bounded_part_and_tells_of_the_rest() {
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
fn what_waits_for_the_guest_is_bounded() {
    let guest = Guest::booted(&["a", "b"]);
    guest.devices.send(0, &vec![0; 64 << 20]).unwrap();
    let error = guest.devices.send(0, &[0]).unwrap_err();
    assert_eq!(error.to_string(), "more than 64 MiB are waiting for the guest to read them");
    guest.devices.send(1, &[0]).unwrap();
    assert!(matches!(guest.devices.send(2, &[0]), Err(Error::NoPort(2))));
}

#[test]
fn a_masked_message_is_pending_until_it_is_unmasked() {
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
fn at_first_nothing_is_decoded_and_all_is_masked() {
    let mut guest = Guest::new(&["a"]);
    assert_eq!(guest.config(1, 0x10), 0xd000_0000, "as firmware would choose");
    assert_eq!(guest.config(1, 4) & 0xffff, 0);
    assert_eq!(guest.mmio_read(0xd000_0012), [0xff; 2]);
    guest.enumerate();
    for vector in 0..7 {
        assert_eq!(guest.mmio_read(guest.msix_table + 16 * vector + 12), 1_u32.to_le_bytes());
    }
}

#[test]
fn without_msix_the_isr_status_tells_of_used_buffers() {
    let mut guest = Guest::booted(&["a"]);
    guest.open(1);
    guest.set_config_word(1, guest.msix_control + 2, 0);
    guest.isr();
    guest.write_port(1, &[b"x"]);
    assert_eq!((guest.isr(), guest.isr()), (1, 0));
    assert_eq!(guest.take_interrupts(), []);
}

#[test]
fn features_that_were_not_offered_are_refused() {
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
fn after_a_reset_a_new_driver_gets_what_the_old_one_left() {
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
    assert_eq!(guest.output(0), b"xagain", "the rest of a chain goes with its queue");
}

#[test]
fn nothing_happens_while_the_function_is_not_bus_master() {
    let mut guest = Guest::booted(&["a"]);
    guest.open(1);
    guest.set_config_word(1, 4, 0b010);
    guest.write_port(1, &[b"x"]);
    assert_eq!(guest.output(0), b"");
    guest.set_config_word(1, 4, 0b110);
    assert_eq!(guest.output(0), b"x");
}

#[test]
fn the_bar_is_reached_through_the_configuration_space_too() {
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
fn the_bar_is_decoded_in_its_window_only() {
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
fn the_console_is_heard_and_its_line_pulsed() {
    let guest = Guest::new(&[]);
    // Divisor, 8 bits a character, modem control, then interrupts on an empty transmitter.
    for (register, value) in [(3, 0x83), (0, 1), (1, 0), (3, 3), (4, 0x0b), (1, 2)] {
        guest.outb(COM1 + register, value);
    }
    assert_eq!(*guest.board.irqs.borrow(), [(4, true), (4, false)]);
    assert_eq!(guest.inb(COM1 + 2) & 0xf, 2, "the transmitter is empty");
    assert_eq!(guest.inb(COM1 + 2) & 0xf, 1, "reading took that back");
    guest.board.irqs.borrow_mut().clear();
    for byte in *b"hello" {
        assert_eq!(guest.inb(COM1 + 5) & 0x60, 0x60);
        guest.outb(COM1, byte);
    }
    assert_eq!(*guest.board.console.borrow(), b"hello");
    assert_eq!(*guest.board.irqs.borrow(), [(4, true), (4, false)], "one for what was not read");
}

#[test]
fn nothing_is_there_elsewhere() {
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
fn indices_wrap_and_buffers_may_lie_in_two_nodes() {
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
fn a_driver_without_buffers_is_asked_to_tell_of_the_next_one() {
    for features in [ALL, ALL & !F_EVENT_IDX] {
        let mut guest = Guest::booted_with(&["a"], features);
        guest.open(1);
        guest.devices.send(0, &[b'x'; 17 * 0x1000]).unwrap();
        guest.service();
        assert_eq!(guest.take_interrupts().last(), Some(&Some(4)));
        // What the driver gives back is filled without anybody calling for service.
        assert_eq!(guest.read_port(1).len(), 17 * 0x1000);
    }
}

#[test]
fn interrupts_come_when_the_driver_asked_for_them() {
    let mut guest = Guest::booted(&["a"]);
    guest.write_port(1, &[b"a"]);
    guest.write_port(1, &[b"b"]);
    guest.write_port(1, &[b"c"]);
    assert_eq!(guest.take_interrupts(), [Some(5)], "it has not asked for a second one");
    while guest.take_used(5).is_some() {}
    guest.write_port(1, &[b"d"]);
    assert_eq!(guest.take_interrupts(), [Some(5)]);
}

#[test]
fn features_stay_as_they_were_agreed_on() {
    let guest = Guest::booted(&["a"]);
    guest.accept(0);
    guest.set_common(8, &0_u32.to_le_bytes());
    assert_eq!(guest.common(12), ((F_MULTIPORT | F_EVENT_IDX) as u32).to_le_bytes());
}
