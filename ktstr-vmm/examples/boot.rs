//! Boots a kernel on KVM and prints its console: the engine without any test.
//!
//! `boot KERNEL INITRAMFS MEMORY_MIB LLCS CORES THREADS [CMDLINE]`, until the guest ends. Times on
//! standard error are milliseconds since the start of this process.

use std::io::Write;
use std::time::{Duration, Instant};

use ktstr_vmm::kvm::Kvm;
use ktstr_vmm::{Engine, Event, Topology, VmConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let began = Instant::now();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initramfs, memory_mib, llcs, cores, threads, cmdline @ ..] = &arguments[..] else {
        return Err("boot KERNEL INITRAMFS MEMORY_MIB LLCS CORES THREADS [CMDLINE]".into());
    };
    let config = VmConfig {
        kernel: kernel.into(),
        initramfs: initramfs.into(),
        cmdline: cmdline.join(" "),
        topology: Topology {
            numa_nodes: 1,
            llc_cores: vec![cores.parse()?; llcs.parse()?],
            threads_per_core: threads.parse()?,
        },
        memory_mib: memory_mib.parse()?,
        ports: vec!["a port".to_owned()],
    };
    let kvm = Kvm::open()?;
    eprintln!("probed {} ms", began.elapsed().as_millis());
    let mut vm = kvm.boot(&config)?;
    eprintln!("booted {} ms", began.elapsed().as_millis());
    let mut is_first = true;
    loop {
        match vm.next_event(Instant::now() + Duration::from_secs(3600))? {
            Event::Console(bytes) => {
                if std::mem::take(&mut is_first) {
                    eprintln!("first console byte {} ms", began.elapsed().as_millis());
                }
                std::io::stdout().write_all(&bytes)?;
            }
            Event::Port { .. } | Event::Deadline => {}
            Event::Exited(reason) => {
                eprintln!("{reason}, {} ms", began.elapsed().as_millis());
                return Ok(());
            }
        }
    }
}
