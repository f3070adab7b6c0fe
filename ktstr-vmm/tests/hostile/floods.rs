//! More output and interrupts than are handled.

use std::thread::sleep;
use std::time::{Duration, Instant};

use ktstr_vmm::Event;

use crate::code::Code;
use crate::cpus::{COUNT, take_interrupts, with_handler};
use crate::machine::{Guest, SOON};
use crate::virtio::{Rings, SIZE, TRANSMIT, available, descriptor};

const RINGS: Rings = Rings::at(0x200_0000);

/// Returns a guest that makes the same chain available again and again.
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
fn port_flood_waits_for_its_reader() {
    for len in [1, 1 << 20] {
        let mut machine = flood(len, |code| code).boot();
        sleep(Duration::from_secs(2));
        assert!(machine.growth() < 16 << 20, "{}", machine.growth());
        for _ in 0..100 {
            let event = machine.vm().next_event(Instant::now() + SOON).unwrap();
            assert!(matches!(event, Event::Port { port: 0, .. }), "{event:?}");
        }
        sleep(Duration::from_millis(300));
        machine.check_controllable();
    }
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn interrupt_for_each_chain_is_controllable() {
    let guest = flood(1, |code| {
        take_interrupts(code);
        code.enable_msix(0x41)
    });
    let mut machine = with_handler(guest).boot();
    machine.watch_count(COUNT);
    machine.check_controllable();
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn serial_flood_does_not_wait() {
    // mov edx, COM1; out dx, al
    let guest =
        Guest::new(|code| code.edx(0x3f8).eax(b'x'.into()).forever(|code| code.raw(&[0xee])));
    let mut machine = guest.boot();
    sleep(Duration::from_secs(3));
    assert!(machine.growth() < 16 << 20, "{}", machine.growth());
    let event = machine.vm().next_event(Instant::now() + SOON).unwrap();
    let Event::Console(bytes) = event else { panic!("{event:?}") };
    assert!(bytes.len() > 1000, "{}", bytes.len());
    machine.check_controllable();
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn send_without_a_receiver_is_limited() {
    let mut machine = flood(1 << 20, |code| code).boot();
    for _ in 0..64 {
        machine.vm().send(0, &[0; 1 << 20]).unwrap();
    }
    machine.vm().send(0, b"one too many").unwrap_err();
    machine.vm().send(2, b"no such port").unwrap_err();
    machine.check_controllable();
}
