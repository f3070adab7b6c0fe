//! A guest is stopped as a whole, is read as it stands, and goes on without having noticed.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use ktstr::prelude::*;
use ktstr_core::machine::MachineSpec;
use ktstr_core::wire::{Decoder, Encoder, GuestMessage, Request, RunRequest};
use ktstr_vmm::btf::Btf;
use ktstr_vmm::paging::read_virtual;
use ktstr_vmm::{Event, Registers, Vm};
use rustix::time::{ClockId, clock_gettime};

use super::super::Prepared;

/// What the guest tells the addresses of.
const SYMBOLS: [&str; 6] =
    ["linux_banner", "jiffies_64", "init_task", "__per_cpu_offset", "__start_BTF", "__stop_BTF"];

/// Variable of a body that is to go on until it is stopped.
const GOES_ON: &str = "KTSTR_TICKS";

/// How long the guest stands still, and how much of it its clock may have counted.
const FREEZE: Duration = Duration::from_secs(3);
const UNNOTICED: Duration = Duration::from_millis(1500);

/// How long it does after that: a kernel compares its clocks twice a second, and does not count
/// what took much longer.
const SHORT_FREEZES: [Duration; 3] = [Duration::from_millis(500); 3];

/// How long anything may take on the slowest machine of all.
const PATIENCE: Duration = Duration::from_secs(120);

#[ktstr_test(cores = 2)]
fn ticking(_: &Ctx) -> Result<AssertResult> {
    let symbols = fs::read_to_string("/proc/kallsyms")?;
    let mut found = 0;
    for line in symbols.lines() {
        if let [address, _, name] = line.split_whitespace().collect::<Vec<_>>()[..]
            && SYMBOLS.contains(&name)
        {
            ensure!(u64::from_str_radix(address, 16)? != 0, "kptr_restrict hides {name}");
            println!("{name} {address}");
            found += 1;
        }
    }
    ensure!(found == SYMBOLS.len(), "{found} of {} symbols", SYMBOLS.len());
    while std::env::var_os(GOES_ON).is_some() {
        let now = Duration::try_from(clock_gettime(ClockId::Monotonic))?;
        println!("clock {:x}", now.as_nanos());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(AssertResult::pass())
}

/// A guest whose body runs.
struct Guest {
    vm: Box<dyn Vm>,
    decoder: Decoder,
    encoder: Encoder,
    spec: MachineSpec,
    text: String,
    console: Vec<u8>,
    addresses: HashMap<String, u64>,
    /// What its monotonic clock showed, the last time it told.
    clock: Option<Duration>,
}

impl Guest {
    fn boot(prepared: &Prepared) -> Self {
        let vm = prepared.choice.engine.boot(&prepared.config).unwrap();
        let mut guest = Self {
            vm,
            decoder: Decoder::default(),
            encoder: Encoder::default(),
            spec: prepared.spec.clone(),
            text: String::new(),
            console: Vec::new(),
            addresses: HashMap::new(),
            clock: None,
        };
        guest.tick();
        guest
    }

    /// Runs until the body tells the time; returns how much has passed since it last did.
    fn tick(&mut self) -> Duration {
        let before = self.clock.take();
        let deadline = Instant::now() + PATIENCE;
        while self.clock.is_none() {
            match self.vm.next_event(deadline).unwrap() {
                Event::Console(bytes) => self.console.extend(bytes),
                Event::Port { bytes, .. } => self.hear(&bytes),
                event => panic!("{event:?}\n{}", String::from_utf8_lossy(&self.console)),
            }
        }
        self.clock.unwrap() - before.unwrap_or_default()
    }

    /// Runs until so much has passed for the body.
    fn run(&mut self, time: Duration) {
        let mut passed = Duration::ZERO;
        while passed < time {
            passed += self.tick();
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
        while let Some(report) = self.decoder.next().unwrap() {
            match report {
                GuestMessage::Hello(_) => {
                    let test = super::test_name(concat!(module_path!(), "::ticking"));
                    let env = vec![(GOES_ON.into(), "1".into())];
                    let request =
                        Request::Run(RunRequest { test, machine: self.spec.clone(), env });
                    self.vm.send(0, &self.encoder.encode(&request).unwrap()).unwrap();
                }
                GuestMessage::Log { bytes, .. } => {
                    self.text += std::str::from_utf8(&bytes).unwrap()
                }
                GuestMessage::End(end) => panic!("{end:?}"),
                _ => {}
            }
        }
        let end = self.text.rfind('\n').map_or(0, |end| end + 1);
        for line in self.text.drain(..end).collect::<String>().lines() {
            let Some((name, value)) = line.split_once(' ') else { continue };
            let Ok(value) = u64::from_str_radix(value, 16) else { continue };
            match name {
                "clock" => self.clock = Some(Duration::from_nanos(value)),
                name => drop(self.addresses.insert(name.to_owned(), value)),
            }
        }
    }

    /// The bytes at a symbol and so far behind it, as the CPU with these registers sees them.
    fn read(&mut self, registers: &Registers, symbol: &str, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let at = self.addresses[symbol] + offset;
        read_virtual(&mut *self.vm, registers, at, &mut bytes).unwrap();
        bytes
    }

    fn read_u64(&mut self, registers: &Registers, symbol: &str, offset: u64) -> u64 {
        let bytes = self.read(registers, symbol, offset, 8);
        u64::from_le_bytes(bytes.try_into().unwrap())
    }

    /// Stops all CPUs; returns the registers of each, one in the kernel's own code first.
    fn freeze(&mut self) -> Vec<(u64, Registers)> {
        self.vm.pause().unwrap();
        let mut all: Vec<_> =
            (0..2).map(|cpu| (cpu, self.vm.registers(cpu as usize).unwrap())).collect();
        all.sort_by_key(|(_, registers)| !is_in_kernel(registers));
        all
    }
}

fn is_in_kernel(registers: &Registers) -> bool {
    registers.rip >> 63 == 1
}

#[test]
#[ignore = "QEMU does not tell registers: cargo xtask nested"]
fn a_frozen_guest_is_read_and_does_not_notice() {
    let prepared = super::prepare(concat!(module_path!(), "::ticking"));
    let mut guest = Guest::boot(&prepared);
    let said_before = guest.console.len();

    let cpus = guest.freeze();
    let kernel = cpus[0].1;
    assert!(is_in_kernel(&kernel), "one of two CPUs idles: {cpus:x?}");
    let banner = guest.read(&kernel, "linux_banner", 0, 64);
    let wanted = format!("Linux version {} ", prepared.kernel.version);
    assert!(banner.starts_with(wanted.as_bytes()), "{wanted}: {}", banner.escape_ascii());
    for (cpu, registers) in cpus.iter().filter(|(_, registers)| is_in_kernel(registers)) {
        let own = guest.read_u64(&kernel, "__per_cpu_offset", 8 * cpu);
        assert_eq!(registers.gs_base, own, "CPU {cpu}");
    }
    assert_eq!(name_of_init_task(&mut guest, &kernel), b"swapper/0");

    let jiffies = guest.read_u64(&kernel, "jiffies_64", 0);
    std::thread::sleep(FREEZE);
    assert_eq!(guest.read_u64(&kernel, "jiffies_64", 0), jiffies);
    guest.vm.resume().unwrap();
    // What was under way when it was stopped, and what came after.
    let counted = guest.tick() + guest.tick();
    assert!(counted < UNNOTICED, "the guest's clock has counted {counted:?}");

    for freeze in SHORT_FREEZES {
        guest.run(Duration::from_secs(1));
        guest.vm.pause().unwrap();
        std::thread::sleep(freeze);
        guest.vm.resume().unwrap();
    }
    guest.run(Duration::from_secs(1));
    let kernel = guest.freeze()[0].1;
    assert!(guest.read_u64(&kernel, "jiffies_64", 0) > jiffies);
    guest.vm.resume().unwrap();
    guest.tick();
    guest.vm.stop().unwrap();
    let said = String::from_utf8_lossy(&guest.console[said_before..]).to_lowercase();
    // Not all that is said of a clocksource: 7.2 says so, too, when the other CPU was slow to answer,
    // which on a busy host it is.
    for complaint in ["lockup", "unstable", "skew", "long readout", "stall", "hung", "blocked for"]
    {
        assert!(!said.contains(complaint), "{said}");
    }
}

/// Reads `init_task.comm`, whose place the kernel's own type information tells.
fn name_of_init_task(guest: &mut Guest, kernel: &Registers) -> Vec<u8> {
    let len = guest.addresses["__stop_BTF"] - guest.addresses["__start_BTF"];
    let btf = guest.read(kernel, "__start_BTF", 0, len.try_into().unwrap());
    let offset = Btf::parse(&btf).unwrap().member_offset("task_struct", "comm").unwrap();
    let comm = guest.read(kernel, "init_task", offset, 16);
    comm.split(|byte| *byte == 0).next().unwrap().to_vec()
}
