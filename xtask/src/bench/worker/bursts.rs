//! How long iterations of a burst are where many workers start at once on few CPUs.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ktstr::__private::{MachineSpec, TestEntry};
use ktstr::prelude::*;
use ktstr::topology::{Llcs, Topology};
use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, memfd_create};

use super::{median, pass};

const WORKERS: u32 = 33;

/// The iterations of each worker whose median is taken: preemption and steal time lengthen some of
/// them, mostly by milliseconds.
const ITERATIONS: usize = 100;

type Work = fn(&WorkerCtx);

/// The loops of the types that only run bursts.
const TYPES: [(&str, Work); 2] = [("SpinWait", spin), ("AluHot", compute)];

/// The shortest and the longest burst that [`WorkerCtx::spin`] documents.
const BURST_US: [f64; 2] = [5.0, 50.0];

/// The workers' measurements, one line each.
static FOUND: OnceLock<File> = OnceLock::new();

#[ktstr::__private::linkme::distributed_slice(ktstr::__private::TESTS)]
#[linkme(crate = ktstr::__private::linkme)]
static ENTRY: TestEntry = TestEntry {
    name: "bench_bursts",
    module_path: module_path!(),
    machine: MachineSpec {
        topology: Topology { llcs: Llcs::even(1, 4), ..Topology::DEFAULT },
        ..MachineSpec::DEFAULT
    },
    duration: Duration::from_secs(10),
    body: work,
    ..TestEntry::DEFAULT
};

/// Boots a guest of four CPUs and prints the length of an iteration of each type.
pub(super) fn measure(kernel: &'static str) -> Result<()> {
    let verdict = pass(&TestEntry {
        machine: MachineSpec { kernel: Some(kernel.into()), ..ENTRY.machine.clone() },
        ..ENTRY.clone()
    })?;
    println!("\n{kernel}, {WORKERS} workers on 4 CPUs: us per iteration, medians of the workers");
    println!("{:<34} {:>9} {:>9} {:>9} {:>9}", "", "workers", "least", "median", "most");
    for (name, _) in TYPES {
        let notes = verdict.notes.iter().filter(|note| note.name.as_deref() == Some(name));
        let mut each = notes.map(|note| note.text.parse()).collect::<Result<Vec<f64>, _>>()?;
        ensure!(!each.is_empty(), "no worker of {name} has finished {ITERATIONS} iterations");
        let middle = median(&mut each);
        let (least, most) = (each[0], each[each.len() - 1]);
        println!("{name:<34} {:>9} {least:>9.1} {middle:>9.1} {most:>9.1}", each.len());
    }
    println!("documented: {} to {} us, and what measuring takes", BURST_US[0], BURST_US[1]);
    Ok(())
}

/// Runs all workers of each type for the test's duration, and notes what each has measured.
fn work(ctx: &Ctx) -> Result<AssertResult> {
    let found = File::from(memfd_create("found", MemfdFlags::CLOEXEC)?);
    // The kernel does not serialize the position of a memfd, but it does serialize appending.
    fcntl_setfl(&found, OFlags::APPEND)?;
    let found = FOUND.get_or_init(|| found);
    let mut verdict = AssertResult::pass();
    for (name, work) in TYPES {
        found.set_len(0)?;
        let def = CgroupDef::named("bench").workers(WORKERS).work_type(WorkType::Custom(work));
        verdict.absorb(execute_defs(ctx, [def])?);
        let mut text = vec![0; usize::try_from(found.metadata()?.len())?];
        found.read_exact_at(&mut text, 0)?;
        for line in std::str::from_utf8(&text)?.lines() {
            verdict.note_value(name, line);
        }
    }
    Ok(verdict)
}

fn spin(ctx: &WorkerCtx) {
    iterate(ctx, WorkerCtx::spin);
}

fn compute(ctx: &WorkerCtx) {
    iterate(ctx, WorkerCtx::compute);
}

/// Measures the first iterations, and continues until the worker is stopped.
fn iterate(ctx: &WorkerCtx, burst: fn(&WorkerCtx)) {
    let iteration = || {
        let began = Instant::now();
        burst(ctx);
        ctx.record_iteration(1);
        began.elapsed().as_secs_f64() * 1e6
    };
    let mut lengths: Vec<_> = (0..ITERATIONS).map(|_| iteration()).collect();
    let line = format!("{}\n", median(&mut lengths));
    let written = FOUND.get().context("it was set before the fork").and_then(|mut found| {
        found.write_all(line.as_bytes())?;
        Ok(())
    });
    written.expect("a file in memory takes it");
    while ctx.should_continue() {
        iteration();
    }
}
