//! Boots a kernel on KVM and prints its console, without any test.
//!
//! `boot KERNEL INITRAMFS MEMORY_MIB TOPOLOGY [CMDLINE]` runs until the guest ends. On standard error
//! it prints the wall and CPU time of this process in milliseconds. With `NOKASLR` in the environment
//! it does not move the kernel.
//!
//! With `FREEZE_AT=TEXT` in the environment it runs until TEXT is on the console. Then it pauses
//! the guest a hundred times, reads 64 KiB of its memory each time, and prints how long each pause
//! took.

use std::io::Write;
use std::time::{Duration, Instant};

use ktstr_core::machine::Topology;
use ktstr_vmm::kvm::Kvm;
use ktstr_vmm::{Engine, Event, Vm, VmConfig};
use rustix::time::{ClockId, clock_gettime};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const FREEZES: usize = 100;
/// The address of the kernel, which is followed by memory on all machines.
const READ_AT: u64 = 16 << 20;

fn main() -> Result<()> {
    let began = Instant::now();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initramfs, memory_mib, topology, cmdline @ ..] = &arguments[..] else {
        return Err("boot KERNEL INITRAMFS MEMORY_MIB TOPOLOGY [CMDLINE]".into());
    };
    let freeze_at = std::env::var("FREEZE_AT").ok();
    let config = VmConfig {
        kernel: kernel.into(),
        initramfs: initramfs.into(),
        cmdline: cmdline.join(" "),
        kaslr: std::env::var_os("NOKASLR").is_none(),
        topology: topology.parse::<Topology>()?,
        memory_mib: memory_mib.parse()?,
        ports: vec!["a port".to_owned()],
    };
    print_times("started", began)?;
    let kvm = Kvm::open()?;
    print_times("probed", began)?;
    let mut vm = kvm.boot(&config)?;
    print_times("booted", began)?;
    let mut console = Vec::new();
    loop {
        match vm.next_event(Instant::now() + Duration::from_secs(3600))? {
            Event::Console(bytes) => {
                std::io::stdout().write_all(&bytes)?;
                std::io::stdout().flush()?;
                console.extend_from_slice(&bytes);
                if let Some(text) = &freeze_at
                    && String::from_utf8_lossy(&console).contains(text)
                {
                    return freeze(&mut *vm);
                }
                // Discards what was searched, except for the last line, which may be incomplete.
                let line = console.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
                console.drain(..line);
            }
            Event::Port { .. } | Event::Deadline => {}
            Event::Exited(reason) => {
                print_times(&reason.to_string(), began)?;
                return Ok(());
            }
        }
    }
}

/// Prints when a step happened, and the CPU time of all threads until then.
fn print_times(what: &str, began: Instant) -> Result<()> {
    let wall = began.elapsed();
    let cpu = Duration::try_from(clock_gettime(ClockId::ProcessCPUTime))?;
    eprintln!("{what}: {:.3} ms, CPU {:.3} ms", millis(wall), millis(cpu));
    Ok(())
}

fn freeze(vm: &mut dyn Vm) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut times = Vec::new();
    for _ in 0..FREEZES {
        let began = Instant::now();
        vm.pause()?;
        vm.read_memory(READ_AT, &mut buffer)?;
        vm.resume()?;
        times.push(began.elapsed());
        std::thread::sleep(Duration::from_millis(2));
    }
    times.sort();
    let (median, longest) = (times[FREEZES / 2], times[FREEZES - 1]);
    eprintln!("frozen: {:.3} ms, at most {:.3} ms", millis(median), millis(longest));
    Ok(())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
