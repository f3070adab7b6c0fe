//! `cargo xtask bench fork`: compares copies of a booted guest with boots.
//!
//! In each round a guest of each machine boots, and another one is restored from a guest that was
//! saved before. Both run a test that writes a line and then waits. The engine is that of this
//! host; for KVM in a nested machine: `cargo xtask nested --exec -- target/debug/xtask bench fork`.

mod guest;
mod usage;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use ktstr::__private::{Llcs, MachineSpec, TestEntry, Topology};
use ktstr::machine::Timing;
use ktstr::prelude::*;
use ktstr::runner::{self, Program, UnbootedMachine};
use ktstr_core::wire::{Decoder, Restored, RunRequest};

use guest::Guest;
use usage::Usage;

/// Arguments of the benchmark.
#[derive(Debug, clap::Args)]
pub(crate) struct Fork {
    /// Rounds; in each, every machine is booted once and restored once.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The kernel to boot, as in `KTSTR_KERNEL`.
    #[arg(long)]
    kernel: Option<String>,
}

#[ktstr::__private::linkme::distributed_slice(ktstr::__private::TESTS)]
#[linkme(crate = ktstr::__private::linkme)]
static ENTRY: TestEntry = TestEntry {
    name: "bench_fork",
    module_path: module_path!(),
    body: |_| {
        println!("the body runs");
        loop {
            std::thread::park();
        }
    },
    ..TestEntry::DEFAULT
};

/// The machines: nodes, caches, and cores per cache.
const MACHINES: [(&str, u32, u32, u32); 3] =
    [("1 CPU", 1, 1, 1), ("4 CPUs", 1, 2, 2), ("2 nodes, 2 CPUs", 2, 2, 1)];

/// How long a copy waits for its request before its memory is measured.
const IDLE: Duration = Duration::from_secs(1);

impl Fork {
    pub(crate) fn run(&self) -> Result<()> {
        let machines = MACHINES
            .map(|(name, nodes, llcs, cores)| Ok((name, self.prepare(nodes, llcs, cores)?)))
            .into_iter()
            .collect::<Result<Vec<_>>>()?;
        let (engine, reason) = runner::engine()?;
        println!("{engine}, {} rounds ({reason})", self.rounds);
        let mut tables = Vec::new();
        for (name, machine) in &machines {
            let template = Template::new(machine).with_context(|| format!("saving {name}"))?;
            tables.push((template, Vec::new()));
        }
        for round in 1..=self.rounds {
            for ((name, machine), (template, rounds)) in machines.iter().zip(&mut tables) {
                let result = compare(machine, template);
                rounds.push(result.with_context(|| format!("{name}, round {round}"))?);
            }
        }
        for ((name, machine), (template, rounds)) in machines.iter().zip(&tables) {
            let (spec, mib) = (&machine.request.machine, machine.config.memory_mib);
            let kernel = spec.kernel.as_deref().unwrap_or_default();
            println!("\n{name}, {mib} MiB, {kernel}: median (least to most)");
            print_rounds(rounds);
            template.print(machine).with_context(|| format!("a copy of {name}"))?;
        }
        Ok(())
    }

    fn prepare(&self, numa_nodes: u32, llcs: u32, cores: u32) -> Result<UnbootedMachine> {
        let topology = Topology { numa_nodes, llcs: Llcs::even(llcs, cores), ..Topology::DEFAULT };
        let kernel = self.kernel.clone().map(Into::into);
        let machine = MachineSpec { topology, kernel, ..MachineSpec::DEFAULT };
        let entry = TestEntry { machine, ..ENTRY.clone() };
        runner::prepare_unbooted(&entry, Program::this_program())
    }
}

/// A guest that was saved while it waited for a request.
struct Template {
    dir: tempfile::TempDir,
    decoder: Decoder,
    save_time: Duration,
}

impl Template {
    fn new(machine: &UnbootedMachine) -> Result<Self> {
        let vm = machine.engine.boot(&machine.config)?;
        let mut guest = Guest::new(vm, Decoder::default());
        guest.wait_for_greeting()?;
        let dir = tempfile::tempdir()?;
        let (decoder, save_time) = guest.save(dir.path())?;
        Ok(Self { dir, decoder, save_time })
    }

    fn restore(&self, machine: &UnbootedMachine) -> Result<Guest> {
        let vm = machine.engine.restore(&machine.config, self.dir.path())?;
        Ok(Guest::new(vm, self.decoder.clone()))
    }

    /// Prints the size of the saved machine, and of a copy.
    fn print(&self, machine: &UnbootedMachine) -> Result<()> {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        println!("saved in {:.0} ms, {:.1} MiB", ms(self.save_time), mib_on_disk(self.dir.path())?);
        let mut copy = self.restore(machine)?;
        // The kernel may have work to do that is not caused by the request.
        copy.run_for(IDLE)?;
        let idle = usage::own_memory_mib(self.dir.path())?;
        copy.send(restored(&machine.request)?)?;
        copy.wait_for_output()?;
        let busy = usage::own_memory_mib(self.dir.path())?;
        println!("memory of its own: {idle:.1} MiB idle, {busy:.1} MiB with the body");
        Ok(())
    }
}

/// Returns the request of a restored machine.
fn restored(request: &RunRequest) -> Result<RunRequest> {
    let mut entropy = vec![0; Restored::ENTROPY];
    let flags = rustix::rand::GetRandomFlags::empty();
    let length = rustix::rand::getrandom(&mut entropy, flags)?;
    ensure!(length == entropy.len(), "getrandom returned {length} bytes");
    let wall_clock = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(RunRequest { restored: Some(Restored { wall_clock, entropy }), ..request.clone() })
}

/// What a boot and a copy used: until the CPUs ran, until the body was about to start, and until its
/// output arrived.
type Round = [[Usage; EVENTS.len()]; 2];

const EVENTS: [&str; 3] = ["running CPUs", "the body", "its output"];

fn compare(machine: &UnbootedMachine, template: &Template) -> Result<Round> {
    let has_exits = machine.engine.timing() == Timing::Native;
    let began = Usage::begin(has_exits)?;
    let vm = machine.engine.boot(&machine.config)?;
    let running = began.usage()?;
    let mut guest = Guest::new(vm, Decoder::default());
    guest.wait_for_greeting()?;
    let [body, output] = run_body(guest, machine.request.clone(), &began)?;
    let booted = [running, body, output];
    let began = Usage::begin(has_exits)?;
    let guest = template.restore(machine)?;
    let running = began.usage()?;
    let [body, output] = run_body(guest, restored(&machine.request)?, &began)?;
    Ok([booted, [running, body, output]])
}

fn run_body(mut guest: Guest, request: RunRequest, began: &usage::Began) -> Result<[Usage; 2]> {
    guest.send(request)?;
    guest.wait_for_body()?;
    let body = began.usage()?;
    guest.wait_for_output()?;
    Ok([body, began.usage()?])
}

fn print_rounds(rounds: &[Round]) {
    println!("{:<32}{:>26}{:>26}{:>12}", "", "boot", "copy", "copy / boot");
    for (event, what) in EVENTS.into_iter().enumerate() {
        for (name, value) in usage::ROWS {
            let values = |way: usize| -> Option<Vec<f64>> {
                rounds.iter().map(|round| value(&round[way][event])).collect()
            };
            let (Some(boots), Some(copies)) = (values(0), values(1)) else { continue };
            // Within rounds, because the speed of a machine drifts.
            let ratios = copies.iter().zip(&boots).map(|(copy, boot)| copy / boot).collect();
            let [_, ratio, _] = spread(ratios);
            let title = format!("{name} to {what}");
            println!("{title:<32}{:>26}{:>26}{ratio:>12.3}", cell(boots), cell(copies));
        }
    }
}

fn cell(values: Vec<f64>) -> String {
    let digits = if values.iter().all(|value| value.fract() == 0.0) { 0 } else { 3 };
    let [least, median, most] = spread(values);
    format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
}

/// Returns the least, the median and the most of some values.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    let median = f64::midpoint(values[last / 2], values[values.len() / 2]);
    [values[0], median, values[last]]
}

fn mib_on_disk(dir: &Path) -> Result<f64> {
    use std::os::unix::fs::MetadataExt;
    let mut blocks = 0;
    for entry in dir.read_dir()? {
        blocks += entry?.metadata()?.blocks();
    }
    // Of 512 bytes, whatever the file system's are.
    Ok(blocks as f64 / 2048.0)
}
