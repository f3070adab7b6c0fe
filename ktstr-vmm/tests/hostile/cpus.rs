//! CPUs that halt, loop or take interrupts without end.

use std::time::Duration;

use ktstr_vmm::{Event, ExitReason};

use crate::code::Code;
use crate::machine::{CODE, Guest, SOON};

const MOMENT: Duration = Duration::from_millis(300);

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn halted_cpu_is_controllable() {
    // cli; hlt
    Guest::new(|code| code.forever(|code| code.raw(&[0xfa, 0xf4]))).boot().check_controllable();
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn cpus_looping_without_interrupts_are_controllable() {
    let mut guest = Guest::new(|code| {
        // cli; jmp $
        code.raw(&[0xfa]).start_others(&[0xfa, 0xeb, 0xfe]).spin()
    });
    guest.others = 3;
    let mut machine = guest.boot();
    machine.watch(MOMENT);
    machine.promptly(|vm| vm.pause().unwrap());
    let places = [0, 1, 2, 3].map(|cpu| machine.vm().registers(cpu).unwrap().rip);
    let end = u64::from(CODE) + guest.code.0.len() as u64 - 2;
    assert_eq!(places, [end, 1, 1, 1]);
    assert!(machine.vm().registers(4).is_err());
    machine.promptly(|vm| vm.resume().unwrap());
    assert!(machine.vm().registers(0).is_err());
    machine.check_controllable();
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn vcpu_threads_are_confined_and_the_owner_is_not() {
    let mut guest = Guest::new(|code| code.start_others(&[0xeb, 0xfe]).spin());
    guest.others = 1;
    let _machine = guest.boot();
    // 2: a filter is active.
    let is_confined = |status: &str| status.contains("\nSeccomp:\t2\n");
    let mut confined = 0;
    for thread in std::fs::read_dir("/proc/self/task").unwrap() {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        if status.starts_with("Name:\tvcpu") {
            assert!(is_confined(&status), "{status}");
            confined += 1;
        }
    }
    assert!(!is_confined(&std::fs::read_to_string("/proc/thread-self/status").unwrap()));
    assert_eq!(confined, 2);
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn paused_machine_can_be_stopped_or_dropped() {
    for stops in [true, false] {
        let mut guest = Guest::new(|code| code.start_others(&[0xeb, 0xfe]).spin());
        guest.others = 1;
        let mut machine = guest.boot();
        machine.promptly(|vm| vm.pause().unwrap());
        machine.promptly(|vm| vm.pause().unwrap());
        let event = machine.vm().next_event(std::time::Instant::now()).unwrap();
        assert_eq!(event, Event::Deadline);
        if stops {
            machine.promptly(|vm| vm.stop().unwrap());
            assert_eq!(machine.run(SOON).reason, ExitReason::Stopped);
            assert!(machine.vm().pause().is_err());
            assert!(machine.vm().resume().is_err());
        }
    }
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn boot_and_drop_leaves_no_resources() {
    for _ in 0..20 {
        let mut guest = Guest::new(|code| code.spin());
        guest.others = 3;
        drop(guest.boot());
    }
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn timer_storm_is_controllable() {
    let guest = Guest::new(|code| {
        take_interrupts(code);
        for (register, value) in [(0x3e0, 0xb), (0x320, 0x2_0040), (0x380, 1)] {
            code.store32(0xfee0_0000 + register, value);
        }
        code.spin()
    });
    let mut machine = with_handler(guest).boot();
    machine.watch_count(COUNT);
    machine.check_controllable();
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn self_interrupts_are_controllable() {
    let guest = Guest::new(|code| {
        take_interrupts(code);
        // To itself, and to all CPUs.
        code.forever(|code| code.store32(0xfee0_0300, 0x4_4040).store32(0xfee0_0300, 0x8_4040))
    });
    let mut machine = with_handler(guest).boot();
    machine.watch_count(COUNT);
    machine.check_controllable();
}

/// The address at which the handler counts.
pub(crate) const COUNT: u32 = 0x20_0000;
const TABLE: u32 = 0x210_0000;
const HANDLER: u32 = 0x211_0000;

/// Enables interrupts: the table, a stack, the local APIC.
pub(crate) fn take_interrupts(code: &mut Code) {
    // mov esp, 0x800000; mov r15d, end of interrupt; lidt [rdi]; sti
    code.raw(&[0xbc, 0, 0, 0x80, 0, 0x41, 0xbf, 0xb0, 0x00, 0xe0, 0xfe]);
    code.edi(TABLE + 0x1000).raw(&[0x0f, 0x01, 0x1f]).store32(0xfee0_00f0, 0x1ff).raw(&[0xfb]);
}

/// Adds a table to a guest in which all vectors lead to a handler that counts.
pub(crate) fn with_handler(mut guest: Guest) -> Guest {
    let gate = [HANDLER & 0xffff | 0x10 << 16, HANDLER & 0xffff_0000 | 0x8e00, 0, 0];
    let gate: Vec<u8> = gate.iter().flat_map(|dword| dword.to_le_bytes()).collect();
    guest.data.push((TABLE, gate.repeat(256)));
    let pointer = [&0xfff_u16.to_le_bytes()[..], &u64::from(TABLE).to_le_bytes()].concat();
    guest.data.push((TABLE + 0x1000, pointer));
    // inc dword [COUNT]; mov dword [r15], 0; iretq
    let mut handler = vec![0xff, 0x04, 0x25];
    handler.extend(COUNT.to_le_bytes());
    handler.extend([0x41, 0xc7, 0x07, 0, 0, 0, 0, 0x48, 0xcf]);
    guest.data.push((HANDLER, handler));
    guest
}
