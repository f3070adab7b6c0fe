//! More output and interrupts than anybody takes.

use std::thread::sleep;
use std::time::{Duration, Instant};

use ktstr_vmm::Event;

use crate::code::Code;
use crate::cpus::{COUNT, take_interrupts, with_handler};
use crate::machine::{Guest, SOON};
use crate::virtio::{Rings, SIZE, TRANSMIT, available, descriptor};

const RINGS: Rings = Rings::at(0x200_0000);

/// A guest that makes the same chain available again and again.
fn flood(len: u32, first: impl FnOnce(&mut Code) -> &mut Code) -> Guest {
    let mut guest = Guest::new(|code| {
        code.find_device();
        first(code);
        code.enable(TRANSMIT[0], RINGS).go();
        code.forever(|code| {
            code.inc16(RINGS.available as u32 + 2).notify(TRANSMIT[0]).wait_used(RINGS)
        })
    });
    guest.data.push((RINGS.table as u32, descriptor(0x100_0000, len, 0, 0)));
    guest.data.push((RINGS.available as u32, available(0, &vec![0; SIZE.into()])));
    guest
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn a_port_flood_waits_for_its_reader() {
    for len in [1, 1 << 20] {
        let mut machine = flood(len, |code| code).boot();
        sleep(Duration::from_secs(2));
        assert!(machine.growth() < 16 << 20, "{}", machine.growth());
        for _ in 0..100 {
            let event = machine.vm().next_event(Instant::now() + SOON).unwrap();
            assert!(matches!(event, Event::Port { port: 0, .. }), "{event:?}");
        }
        sleep(Duration::from_millis(300));
        machine.prove_governed();
    }
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn an_interrupt_for_each_of_its_own_chains_is_governed() {
    let guest = flood(1, |code| {
        take_interrupts(code);
        code.enable_msix(0x41)
    });
    let mut machine = with_handler(guest).boot();
    machine.watch_count(COUNT);
    machine.prove_governed();
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn a_serial_flood_does_not_wait() {
    // mov edx, COM1; out dx, al
    let guest =
        Guest::new(|code| code.edx(0x3f8).eax(b'x'.into()).forever(|code| code.raw(&[0xee])));
    let mut machine = guest.boot();
    sleep(Duration::from_secs(3));
    assert!(machine.growth() < 16 << 20, "{}", machine.growth());
    let event = machine.vm().next_event(Instant::now() + SOON).unwrap();
    let Event::Console(bytes) = event else { panic!("{event:?}") };
    assert!(bytes.len() > 1000, "{}", bytes.len());
    machine.prove_governed();
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn what_nobody_receives_does_not_get_in_the_way() {
    let mut machine = flood(1 << 20, |code| code).boot();
    for _ in 0..64 {
        machine.vm().send(0, &[0; 1 << 20]).unwrap();
    }
    machine.vm().send(0, b"one too many").unwrap_err();
    machine.vm().send(2, b"to nobody").unwrap_err();
    machine.prove_governed();
}
