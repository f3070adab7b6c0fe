//! `cargo xtask bench cgroup`: measures what a write of a knob costs in the guest.
//!
//! Not criterion: its reports need a file system that outlives the machine, and its dozens of packages
//! would be in every guest program. Medians over alternating writes tolerate a machine of drifting
//! speed, and the comparison needs nothing more.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ktstr::__private::{MachineSpec, TestEntry};
use ktstr::prelude::*;
use ktstr::provision;
use ktstr::runner::{self, Program};

/// Arguments of the benchmark.
#[derive(Debug, clap::Args)]
pub(crate) struct Cgroup {
    /// Kernels to boot, as in `KTSTR_KERNEL`; the default one if none is given
    #[arg(long)]
    kernel: Vec<String>,
}

#[ktstr::__private::linkme::distributed_slice(ktstr::__private::TESTS)]
#[linkme(crate = ktstr::__private::linkme)]
static ENTRY: TestEntry = TestEntry {
    name: "bench_cgroup",
    module_path: module_path!(),
    duration: Duration::from_secs(120),
    body: measure,
    ..TestEntry::DEFAULT
};

const WRITES: usize = 1000;

/// The timeout of both ways that survive a stuck write.
const WITHIN: Duration = Duration::from_secs(2);

/// The most that the manager may cost, as a fraction of a thread per write.
const AT_MOST: f64 = 0.5;

impl Cgroup {
    /// Fails if the manager costs more than half of a thread per write.
    pub(crate) fn run(&self) -> Result<()> {
        let mut kernels = self.kernel.clone();
        if kernels.is_empty() {
            kernels.push(provision::KernelSpec::default_kernel().to_string());
        }
        for kernel in kernels {
            let (engine, reason) = runner::engine()?;
            println!("\n{kernel} on {engine}, 2 CPUs, {WRITES} writes each way ({reason})");
            let entry = TestEntry {
                machine: MachineSpec { kernel: Some(kernel.into()), ..ENTRY.machine.clone() },
                ..ENTRY.clone()
            };
            let program = Program::this_program();
            let result = runner::run_in_vm(&entry, program)?;
            if result.end != RunEnd::Verdict(AssertResult::pass()) {
                bail!("{}", result.end);
            }
        }
        Ok(())
    }
}

/// Runs in the guest.
fn measure(ctx: &Ctx) -> Result<AssertResult> {
    ctx.cgroups.setup(&[Controller::Cpu].into())?;
    ctx.cgroups.create_cgroup("cg")?;
    let path = ctx.cgroups.parent_path().join("cg/cpu.weight");
    let mut open = OpenOptions::new().write(true).open(&path)?;
    let mut ways: [(&str, Vec<Duration>); 4] = [
        "write(2) on an open descriptor",
        "open, write, close",
        "this manager",
        "a thread per write",
    ]
    .map(|name| (name, Vec::with_capacity(WRITES)));
    for turn in 0..WRITES {
        for (way, (_, times)) in ways.iter_mut().enumerate() {
            // A new value each time, so that each write changes something.
            let weight = 100 + ((turn * 4 + way) % 50) as u32;
            let began = Instant::now();
            match way {
                0 => drop(open.write(weight.to_string().as_bytes())?),
                1 => drop(write(&path, weight)?),
                2 => ctx.cgroups.set_cpu_weight("cg", weight)?,
                _ => thread_per_write(&path, weight)?,
            }
            times.push(began.elapsed());
        }
    }
    let medians = ways.each_mut().map(|(_, times)| {
        times.sort_unstable();
        times[WRITES / 2].as_secs_f64() * 1e6
    });
    println!("{:<34} {:>10} {:>24}", "", "median", "of a thread per write");
    for ((name, _), median) in ways.iter().zip(medians) {
        println!("{name:<34} {median:>7.1} us {:>24.2}", median / medians[3]);
    }
    let ratio = medians[2] / medians[3];
    ensure!(ratio <= AT_MOST, "the manager costs {ratio:.2} of a thread per write, not {AT_MOST}");
    Ok(AssertResult::pass())
}

fn write(path: &Path, weight: u32) -> Result<File> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(weight.to_string().as_bytes())?;
    Ok(file)
}

fn thread_per_write(path: &Path, weight: u32) -> Result<()> {
    let (done, wait) = mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || done.send(write(&path, weight).map(drop)));
    wait.recv_timeout(WITHIN).context("the write timed out")?
}
