//! Guests that end, or try to.

use std::time::{Duration, Instant};

use ktstr_vmm::{Event, ExitReason};

use crate::code::Code;
use crate::machine::{Guest, Machine, SOON};
use crate::virtio::{Rings, SIZE, TRANSMIT, available, descriptor, flood_through_window};

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn exit_reason_matches_the_register() {
    for (port, value, want) in [
        (0x600, 0x34, ExitReason::PowerOff),
        (0x602, 0x01, ExitReason::Reset),
        (0x064, 0xfe, ExitReason::Reset),
        (0xcf9, 0x06, ExitReason::Reset),
    ] {
        let mut machine = Guest::new(|code| code.out8(port, value).spin()).boot();
        assert_eq!(machine.run(SOON).reason, want, "{port:#x}");
        assert_eq!(machine.run(SOON).reason, want, "{port:#x}, repeated");
        machine.promptly(|vm| vm.stop().unwrap());
        assert_eq!(machine.run(SOON).reason, want, "{port:#x}, stopped after its end");
    }
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn exit_reason_of_a_triple_fault_is_reset() {
    // The interrupt table is empty: ud2; int3
    for code in [&[0x0f, 0x0b][..], &[0xcc]] {
        let mut machine = Guest::new(|guest| guest.raw(code).spin()).boot();
        assert_eq!(machine.run(SOON).reason, ExitReason::Reset);
    }
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn exit_after_a_jump_out_of_memory_has_registers() {
    for target in [0xd000_0000_u32, 0xd800_0000, 0x5000_0000, 0xffff_fff0] {
        // jmp rdi
        let mut machine = Guest::new(|code| code.edi(target).raw(&[0xff, 0xe7])).boot();
        let reason = machine.run(SOON).reason;
        let ExitReason::EngineDied { status, stderr } = reason else { panic!("{reason:?}") };
        assert!(status.contains("vCPU 0"), "{status}");
        assert!(stderr.contains(&format!("rip: {target:x},")), "{stderr}");
    }
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn kernel_of_zeros_ends() {
    // Two zeros are `add [rax], al`; execution continues to the end of memory.
    let mut machine = Guest::new(|code| code.eax(0x20_0000)).boot();
    let reason = machine.run(3 * SOON).reason;
    assert!(matches!(reason, ExitReason::Reset | ExitReason::EngineDied { .. }), "{reason:?}");
}

const RINGS: [Rings; 2] = [Rings::at(0x200_0000), Rings::at(0x201_0000)];
/// Bytes of each chain in a full queue.
const CHAIN: u32 = 64 << 10;

/// Returns a guest that fills both transmit queues, then runs `last`.
fn full_queues(last: impl FnOnce(&mut Code) -> &mut Code) -> Guest {
    let heads: Vec<u16> = (0..SIZE).collect();
    let mut guest = Guest::new(|code| {
        code.find_device();
        for (queue, rings) in TRANSMIT.into_iter().zip(RINGS) {
            code.enable(queue, rings);
        }
        code.go();
        for queue in TRANSMIT {
            code.notify(queue);
        }
        last(code)
    });
    for rings in RINGS {
        let table: Vec<u8> =
            heads.iter().flat_map(|_| descriptor(0x100_0000, CHAIN, 0, 0)).collect();
        guest.data.push((rings.table as u32, table));
        guest.data.push((rings.available as u32, available(SIZE, &heads)));
    }
    guest
}

fn wait_for_end(machine: &mut Machine) {
    machine.watch(Duration::ZERO);
    std::thread::sleep(Duration::from_secs(1));
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn exit_follows_the_output_of_full_queues() {
    let mut machine = full_queues(|code| code.power_off()).boot();
    wait_for_end(&mut machine);
    assert!(machine.growth() < 16 << 20, "{}", machine.growth());
    let end = machine.run(SOON);
    assert_eq!(end.reason, ExitReason::PowerOff);
    assert_eq!(end.port_bytes, 2 * usize::from(SIZE) * CHAIN as usize);
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn flushing_machine_can_be_stopped_dropped_and_paused() {
    for what in ["stop", "drop", "pause", "take one and stop"] {
        let mut machine = full_queues(|code| code.power_off()).boot();
        wait_for_end(&mut machine);
        if what == "pause" {
            machine.promptly(|vm| vm.pause().unwrap());
            machine.promptly(|vm| vm.resume().unwrap());
            assert_eq!(machine.run(SOON).reason, ExitReason::PowerOff);
        }
        if what.starts_with("take") {
            let event = machine.vm().next_event(Instant::now() + SOON).unwrap();
            assert!(matches!(event, Event::Port { .. }), "{event:?}");
        }
        if what.ends_with("stop") {
            machine.promptly(|vm| vm.stop().unwrap());
            assert_eq!(machine.run(SOON).reason, ExitReason::PowerOff);
        }
    }
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn exit_is_not_delayed_by_a_running_cpu() {
    const AVAILABLE: u16 = 0x6000;
    let serial = vec![0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfd];
    for flood in [flood_through_window(AVAILABLE, TRANSMIT[0]), serial] {
        let rings = Rings { available: AVAILABLE.into(), ..RINGS[0] };
        let mut guest = Guest::new(|code| {
            code.find_device().enable(TRANSMIT[0], rings).go().open_window().start_others(&flood);
            // Long enough for the other CPU to start.
            code.repeat(100_000_000, |code| code).power_off()
        });
        guest.data.push((rings.table as u32, descriptor(0x100_0000, CHAIN, 0, 0)));
        guest.others = 1;
        let mut machine = guest.boot();
        let end = machine.run(3 * SOON);
        assert_eq!(end.reason, ExitReason::PowerOff);
        assert!(end.port_bytes + end.console.len() > 0);
    }
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn exit_is_not_delayed_by_rings_that_feed_each_other() {
    // Each queue's used ring is at the other's available ring, or at its own.
    let [one, other] = RINGS;
    for used in [[other.available, one.available], [one.available, other.available]] {
        let mut guest = full_queues(|code| code.power_off());
        let [first, second] = used;
        guest.code = Code::default();
        let code = &mut guest.code;
        code.find_device().enable(TRANSMIT[0], Rings { used: first, ..one });
        code.enable(TRANSMIT[1], Rings { used: second, ..other }).go();
        for queue in TRANSMIT {
            code.notify(queue);
        }
        code.power_off();
        assert_eq!(guest.boot().run(3 * SOON).reason, ExitReason::PowerOff);
    }
}
