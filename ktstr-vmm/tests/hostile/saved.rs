//! Machines that are saved at any instruction, and copies of them.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use ktstr_vmm::{Engine, Error, Event, Vm};

use crate::cpus::{COUNT, take_interrupts, with_handler};
use crate::machine::{Guest, Machine, SOON, engine};
use crate::virtio::{DESC_WRITE, Rings, SIZE, available, descriptor};

/// The address of the first CPU's time-stamp counter.
const TSC: u32 = 0x20_1000;
/// The address at which the second CPU counts.
const OTHER: u32 = 0x6000;

/// The address at which a guest reports that it is set up.
const READY: u32 = 0x20_0000;

/// A guest that writes ascending bytes to the console and its counter to memory, and counts on its
/// second CPU.
fn counting() -> Guest {
    let mut guest = Guest::new(|code| {
        // inc dword [OTHER]; jmp back
        code.start_others(&[0x66, 0xff, 0x06, 0x00, 0x60, 0xeb, 0xf9]);
        // xor ebx, ebx
        code.raw(&[0x31, 0xdb]).forever(|code| {
            // mov eax, ebx; out dx, al; inc ebx
            code.edx(0x3f8).raw(&[0x89, 0xd8, 0xee, 0xff, 0xc3]);
            // rdtsc; shl rdx, 32; or rax, rdx; mov [rdi], rax
            code.edi(TSC).raw(&[0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0]);
            code.raw(&[0x48, 0x89, 0x07])
        })
    });
    guest.others = 1;
    guest
}

fn restore(machine: &Machine, dir: &Path) -> Result<Box<dyn Vm>, Error> {
    engine().restore(&machine.config, dir)
}

/// Output is handed over at most this late.
const HAND_OVER: Duration = Duration::from_millis(100);

/// Returns the last byte of the console output until this time has passed.
fn last_byte_until(vm: &mut dyn Vm, time: Duration) -> Option<u8> {
    let (deadline, mut last) = (Instant::now() + time, None);
    loop {
        match vm.next_event(deadline).unwrap() {
            Event::Console(bytes) => last = bytes.last().copied(),
            Event::Deadline => return last,
            event => panic!("{event:?}"),
        }
    }
}

/// Pauses the machine and returns the last byte that it wrote to the console.
fn last_byte(vm: &mut dyn Vm) -> u8 {
    loop {
        vm.pause().unwrap();
        if let Some(last) = last_byte_until(vm, HAND_OVER) {
            return last;
        }
        // All of its output was read before.
        vm.resume().unwrap();
    }
}

/// Returns the next console output.
fn console(vm: &mut dyn Vm) -> Vec<u8> {
    match vm.next_event(Instant::now() + SOON).unwrap() {
        Event::Console(bytes) => bytes,
        event => panic!("{event:?}"),
    }
}

fn is_ascending(bytes: &[u8]) -> bool {
    bytes.windows(2).all(|pair| pair[0].wrapping_add(1) == pair[1])
}

fn read32(vm: &mut dyn Vm, at: u32) -> u32 {
    let mut bytes = [0; 4];
    vm.read_memory(at.into(), &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

fn read64(vm: &mut dyn Vm, at: u32) -> u64 {
    u64::from(read32(vm, at + 4)) << 32 | u64::from(read32(vm, at))
}

/// Waits until a count at `at` exceeds `count`.
fn wait_count(vm: &mut dyn Vm, at: u32, count: u32) {
    let deadline = Instant::now() + SOON;
    while read32(vm, at) <= count {
        assert!(Instant::now() < deadline, "nothing was counted at {at:#x} after {count}");
        vm.next_event(Instant::now() + Duration::from_millis(50)).unwrap();
    }
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn restored_machines_continue_at_the_next_instruction() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = counting().boot();
    machine.watch_count(OTHER);
    let last = last_byte(machine.vm());
    let (tsc, other) = (read64(machine.vm(), TSC), read32(machine.vm(), OTHER));
    let registers = machine.vm().registers(0).unwrap();
    machine.vm().save(dir.path()).unwrap();
    assert_eq!(machine.vm().registers(0).unwrap(), registers, "it is still paused");
    // It continues for a while, which does not change its copies.
    machine.vm().resume().unwrap();
    assert_eq!(console(machine.vm())[0], last.wrapping_add(1));
    machine.watch(Duration::from_secs(2));
    machine.vm().pause().unwrap();
    let later = read64(machine.vm(), TSC);

    for _ in 0..2 {
        let mut copy = restore(&machine, dir.path()).unwrap();
        let vm = &mut *copy;
        let output = console(vm);
        assert_eq!(output[0], last.wrapping_add(1), "no access is lost or repeated");
        assert!(is_ascending(&output));
        wait_count(vm, OTHER, other);
        vm.pause().unwrap();
        // The counter continues from its value at the pause.
        let counted = read64(vm, TSC);
        assert!(tsc < counted && counted < later, "{tsc} {counted} {later}");
        let last = last_byte(vm);
        // A copy is a machine like others, which can be saved in turn.
        let again = tempfile::tempdir().unwrap();
        vm.save(again.path()).unwrap();
        let mut second = restore(&machine, again.path()).unwrap();
        for vm in [&mut *second, vm] {
            vm.resume().unwrap();
            assert_eq!(console(vm)[0], last.wrapping_add(1));
            vm.stop().unwrap();
        }
    }
    assert_eq!(read64(machine.vm(), TSC), later, "the memory of copies is their own");
}

/// A guest whose second CPU writes ascending bytes to the console, while the first one offers buffers for
/// all that a port receives.
fn receiving() -> Guest {
    const RECEIVE: u16 = 4;
    const CONTROL: u16 = 3;
    const BUFFERS: Rings = Rings::at(0x200_0000);
    const MESSAGES: Rings = Rings::at(0x210_0000);
    let mut guest = Guest::new(|code| {
        code.find_device().enable(RECEIVE, BUFFERS).enable(CONTROL, MESSAGES).go();
        // In real mode: mov dx, 0x3f8; then out dx, al; inc al; jmp back
        code.notify(CONTROL).start_others(&[0xba, 0xf8, 0x03, 0xee, 0xfe, 0xc0, 0xeb, 0xfb]);
        code.store32(READY, 1).forever(|code| {
            // mov ax, [used + 2]; add ax, SIZE; mov [available + 2], ax
            code.edi(BUFFERS.used as u32 + 2)
                .raw(&[0x66, 0x8b, 0x07, 0x66, 0x83, 0xc0, SIZE as u8]);
            code.edi(BUFFERS.available as u32 + 2).raw(&[0x66, 0x89, 0x07]).notify(RECEIVE)
        })
    });
    guest.others = 1;
    // The first port is open.
    guest.data.push((0x220_0000, vec![1, 0, 0, 0, 6, 0, 1, 0]));
    guest.data.push((MESSAGES.table as u32, descriptor(0x220_0000, 8, 0, 0)));
    guest.data.push((MESSAGES.available as u32, available(1, &[0])));
    guest.data.push((BUFFERS.table as u32, descriptor(0x280_0000, 1 << 20, DESC_WRITE, 0)));
    guest.data.push((BUFFERS.available as u32, available(0, &vec![0; SIZE.into()])));
    guest
}

/// While the device has work, a vCPU that has left the guest for an access looks at the owner's command
/// before KVM has finished the access: until then its registers are those before the instruction.
#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn saved_access_is_finished() {
    let mut machine = receiving().boot();
    machine.watch_count(READY);
    let mut last = None;
    for _ in 0..8 {
        let dir = tempfile::tempdir().unwrap();
        let vm = machine.vm();
        vm.send(0, &vec![b'x'; 16 << 20]).unwrap();
        // Until the second CPU has left the guest, while the device still works.
        last = last_byte_until(vm, Duration::from_millis(3)).or(last);
        vm.pause().unwrap();
        last = last_byte_until(vm, HAND_OVER).or(last);
        let last = last.expect("the guest writes all the time");
        vm.save(dir.path()).unwrap();
        let mut copy = restore(&machine, dir.path()).unwrap();
        let output = console(&mut *copy);
        assert_eq!(output[0], last.wrapping_add(1), "the access is repeated");
        assert!(is_ascending(&output));
        copy.stop().unwrap();
        machine.vm().resume().unwrap();
    }
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn restored_timers_and_interrupts_continue() {
    let guest = Guest::new(|code| {
        take_interrupts(code);
        for (register, value) in [(0x3e0, 0xb), (0x320, 0x2_0040), (0x380, 100_000)] {
            code.store32(0xfee0_0000 + register, value);
        }
        // sti; hlt
        code.forever(|code| code.raw(&[0xfb, 0xf4]))
    });
    let dir = tempfile::tempdir().unwrap();
    let mut machine = with_handler(guest).boot();
    machine.watch_count(COUNT);
    machine.vm().save(dir.path()).unwrap();
    // It runs, as before it was saved.
    let count = machine.read32(COUNT);
    wait_count(machine.vm(), COUNT, count);
    let mut copy = restore(&machine, dir.path()).unwrap();
    let count = read32(&mut *copy, COUNT);
    wait_count(&mut *copy, COUNT, count + 10);
}

/// MSRs that KVM does not list and a guest can write: of MTRRs and of machine checks.
const UNLISTED: [(u32, u64); 5] = [
    (0x2ff, 0xc00),
    (0x200, 0x1234_0006),
    (0x201, 0xffff_f800),
    (0x250, 0x0606_0606_0606_0606),
    (0x400, u64::MAX),
];

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn restored_machines_keep_msrs_that_kvm_does_not_list() {
    const VALUES: u32 = 0x20_2000;
    let guest = Guest::new(|code| {
        for (msr, value) in UNLISTED {
            // wrmsr
            code.ecx(msr).eax(value as u32).edx((value >> 32) as u32).raw(&[0x0f, 0x30]);
        }
        code.forever(|code| {
            for ((msr, _), at) in UNLISTED.into_iter().zip((VALUES..).step_by(8)) {
                // rdmsr; mov [rdi], eax; mov [rdi + 4], edx
                code.ecx(msr).edi(at).raw(&[0x0f, 0x32, 0x89, 0x07, 0x89, 0x57, 0x04]);
            }
            // inc dword [rdi]
            code.edi(COUNT).raw(&[0xff, 0x07])
        })
    });
    let values = |vm: &mut dyn Vm| {
        let at = (VALUES..).step_by(8);
        UNLISTED.iter().zip(at).map(|((msr, _), at)| (*msr, read64(vm, at))).collect::<Vec<_>>()
    };
    let dir = tempfile::tempdir().unwrap();
    let mut machine = guest.boot();
    machine.watch_count(COUNT);
    machine.vm().pause().unwrap();
    assert_eq!(values(machine.vm()), UNLISTED);
    let count = machine.read32(COUNT);
    machine.vm().save(dir.path()).unwrap();
    let mut copy = restore(&machine, dir.path()).unwrap();
    // It has read all of them since it was restored.
    wait_count(&mut *copy, COUNT, count + 1);
    copy.pause().unwrap();
    assert_eq!(values(&mut *copy), UNLISTED);
}

/// Changes a file.
type Damage<'a> = &'a dyn Fn(&Path);

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn restore_refuses_files_that_were_changed() {
    let mut machine = Guest::new(|code| code.spin()).boot();
    let write = |path: &Path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        // Until the time stamp changes, which has the resolution of the kernel's tick.
        while file.metadata().unwrap().modified().unwrap() == before {
            file.write_all_at(b"?", 100).unwrap();
        }
    };
    let truncate = |path: &Path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    };
    let delete = |path: &Path| fs::remove_file(path).unwrap();
    let damages: [(&str, Damage<'_>, &str); 6] = [
        ("state", &write, "is damaged: its checksum"),
        ("state", &truncate, "bytes (expected: "),
        ("state", &delete, "is missing"),
        ("memory", &write, "was changed after it was saved"),
        ("memory", &truncate, "bytes (expected: 67108864)"),
        ("memory", &delete, "is missing"),
    ];
    for (name, damage, want) in damages {
        let dir = tempfile::tempdir().unwrap();
        machine.vm().save(dir.path()).unwrap();
        let path = dir.path().join(name);
        damage(&path);
        let error = restore(&machine, dir.path()).unwrap_err();
        assert!(matches!(&error, Error::Damaged { path: at, .. } if *at == path), "{error:?}");
        assert!(error.to_string().contains(want), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    machine.vm().save(dir.path()).unwrap();
    let mut other = machine.config.clone();
    other.ports.pop();
    let error = engine().restore(&other, dir.path()).unwrap_err();
    assert!(matches!(error, Error::OtherMachine { .. }), "{error:?}");
    restore(&machine, dir.path()).unwrap().stop().unwrap();

    // A save that fails leaves no files of its own, and the machine runs on.
    let error = machine.vm().save(dir.path()).unwrap_err();
    assert!(matches!(error, Error::File { operation: "create", .. }), "{error:?}");
    restore(&machine, dir.path()).unwrap().stop().unwrap();
    fs::remove_file(dir.path().join("memory")).unwrap();
    machine.vm().save(dir.path()).unwrap_err();
    assert!(!dir.path().join("memory").exists());
    machine.check_controllable();
}
