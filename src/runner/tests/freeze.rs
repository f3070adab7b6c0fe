//! Pauses a guest, reads its memory, and resumes it: the guest must not notice the pause.

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

/// The symbols whose addresses the guest prints.
const SYMBOLS: [&str; 6] =
    ["linux_banner", "jiffies_64", "init_task", "__per_cpu_offset", "__start_BTF", "__stop_BTF"];

/// The environment variable with which the test body runs until it is stopped.
const RUN_ENDLESSLY: &str = "KTSTR_TICKS";

/// How long the guest is paused, and the limit of what its clock may count meanwhile.
const PAUSE: Duration = Duration::from_secs(3);
const MAX_COUNTED: Duration = Duration::from_millis(1500);

/// The pauses after that. A kernel compares its clocks twice a second, and ignores intervals that
/// are much longer.
const SHORT_PAUSES: [Duration; 3] = [Duration::from_millis(500); 3];

/// The timeout of any step, on the slowest host.
const TIMEOUT: Duration = Duration::from_secs(120);

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
    ensure!(found == SYMBOLS.len(), "found {found} of {} symbols", SYMBOLS.len());
    while std::env::var_os(RUN_ENDLESSLY).is_some() {
        let now = Duration::try_from(clock_gettime(ClockId::Monotonic))?;
        println!("clock {:x}", now.as_nanos());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(AssertResult::pass())
}

/// A guest that runs the test body.
struct Guest {
    vm: Box<dyn Vm>,
    decoder: Decoder,
    encoder: Encoder,
    spec: MachineSpec,
    text: String,
    console: Vec<u8>,
    addresses: HashMap<String, u64>,
    /// The time of its monotonic clock that it printed last.
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

    /// Runs until the body prints the time. Returns how much has passed since it did so last.
    fn tick(&mut self) -> Duration {
        let before = self.clock.take();
        let deadline = Instant::now() + TIMEOUT;
        while self.clock.is_none() {
            match self.vm.next_event(deadline).unwrap() {
                Event::Console(bytes) => self.console.extend(bytes),
                Event::Port { bytes, .. } => self.handle_port_data(&bytes),
                event => panic!("{event:?}\n{}", String::from_utf8_lossy(&self.console)),
            }
        }
        self.clock.unwrap() - before.unwrap_or_default()
    }

    /// Runs until this much time has passed in the guest.
    fn run(&mut self, time: Duration) {
        let mut passed = Duration::ZERO;
        while passed < time {
            passed += self.tick();
        }
    }

    fn handle_port_data(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
        while let Some(report) = self.decoder.next().unwrap() {
            match report {
                GuestMessage::Hello(_) => {
                    let test = super::test_name(concat!(module_path!(), "::ticking"));
                    let env = vec![(RUN_ENDLESSLY.into(), "1".into())];
                    let request = Request::Run(RunRequest {
                        test,
                        machine: self.spec.clone(),
                        env,
                        restored: None,
                    });
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

    /// Reads the bytes at a symbol plus `offset`, as the CPU with these registers maps them.
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

    /// Pauses all CPUs. Returns the registers of each, sorted so that one in kernel code is first.
    fn pause(&mut self) -> Vec<(u64, Registers)> {
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
#[ignore = "needs KVM, because QEMU cannot read registers: cargo xtask nested"]
fn pause_is_readable_and_not_noticed_by_the_guest() {
    let prepared = super::prepare(concat!(module_path!(), "::ticking"));
    let mut guest = Guest::boot(&prepared);
    let console_before = guest.console.len();

    let cpus = guest.pause();
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
    std::thread::sleep(PAUSE);
    assert_eq!(guest.read_u64(&kernel, "jiffies_64", 0), jiffies);
    guest.vm.resume().unwrap();
    // The first time was printed around the pause, the second after it.
    let counted = guest.tick() + guest.tick();
    assert!(counted < MAX_COUNTED, "the guest's clock has counted {counted:?}");

    for pause in SHORT_PAUSES {
        guest.run(Duration::from_secs(1));
        guest.vm.pause().unwrap();
        std::thread::sleep(pause);
        guest.vm.resume().unwrap();
    }
    guest.run(Duration::from_secs(1));
    let kernel = guest.pause()[0].1;
    assert!(guest.read_u64(&kernel, "jiffies_64", 0) > jiffies);
    guest.vm.resume().unwrap();
    guest.tick();
    guest.vm.stop().unwrap();
    let messages = String::from_utf8_lossy(&guest.console[console_before..]).to_lowercase();
    // Not all messages about a clocksource: 7.2 also prints one when the other CPU was slow to
    // answer, as on a busy host.
    for complaint in ["lockup", "unstable", "skew", "long readout", "stall", "hung", "blocked for"]
    {
        assert!(!messages.contains(complaint), "{messages}");
    }
}

/// Reads `init_task.comm` at the offset in the kernel's own type information.
fn name_of_init_task(guest: &mut Guest, kernel: &Registers) -> Vec<u8> {
    let len = guest.addresses["__stop_BTF"] - guest.addresses["__start_BTF"];
    let btf = guest.read(kernel, "__start_BTF", 0, len.try_into().unwrap());
    let offset = Btf::parse(&btf).unwrap().member_offset("task_struct", "comm").unwrap();
    let comm = guest.read(kernel, "init_task", offset, 16);
    comm.split(|byte| *byte == 0).next().unwrap().to_vec()
}
