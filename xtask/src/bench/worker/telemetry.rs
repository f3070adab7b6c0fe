//! Measures what the telemetry of a worker costs: iterations per second with it and without it.

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ktstr::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};

use super::median;

const ROUNDS: usize = 1000;

/// Iterations of one round, each way.
const ITERATIONS: u64 = 50;

/// The least ratio of iterations with telemetry to iterations without it.
const AT_LEAST: f64 = 0.97;

/// The work of one iteration.
type Unit = fn(&WorkerCtx);

/// The types that only run bursts. Most others add a system call to each iteration.
const TYPES: [(&str, Unit); 2] = [("SpinWait", WorkerCtx::spin), ("AluHot", WorkerCtx::compute)];

/// The worker's measurements; the worker is a process of its own.
static FOUND: OnceLock<File> = OnceLock::new();

/// Prints a table, and returns the least ratio.
pub(super) fn measure(ctx: &Ctx) -> Result<f64> {
    let found = File::from(memfd_create("found", MemfdFlags::CLOEXEC)?);
    let found = FOUND.get_or_init(|| found);
    let work = WorkSpec::default().work_type(WorkType::Custom(work));
    let long = HoldSpec::Fixed(Duration::from_secs(200));
    let step = Step::with_defs([CgroupDef::named("bench").work(work)], long);
    // The worker is done when it ends, and that ends the scenario.
    let verdict = execute_steps(ctx, [step])?;
    let length = usize::try_from(found.metadata()?.len())?;
    let mut text = vec![0; length];
    found.read_exact_at(&mut text, 0)?;
    let numbers = std::str::from_utf8(&text)?.split_whitespace().map(str::parse);
    let numbers = numbers.collect::<Result<Vec<f64>, _>>()?;
    let (alone, types) = match numbers.split_last() {
        Some((alone, types)) if types.len() == 3 * TYPES.len() => (alone, types),
        _ => bail!("the worker did not finish: {verdict:?}"),
    };
    println!("{:<34} {:>12} {:>12} {:>9}", "iterations per second", "without", "measured", "ratio");
    let mut least = f64::INFINITY;
    for ((name, _), found) in TYPES.iter().zip(types.chunks_exact(3)) {
        let [without, measured, ratio] = [found[0], found[1], found[2]];
        println!("{name:<34} {without:>12.0} {measured:>12.0} {ratio:>9.4}");
        least = least.min(ratio);
    }
    println!("{:<34} {alone:>12.0} ns", "telemetry of one iteration alone");
    let judged = if least >= AT_LEAST { "met" } else { "missed" };
    println!("ratio at least {AT_LEAST}: {judged}");
    Ok(least)
}

/// Fails if the ratio is too low.
pub(super) fn check(least: f64) -> Result<()> {
    ensure!(least >= AT_LEAST, "{least:.4} of the iterations are left (minimum {AT_LEAST})");
    Ok(())
}

/// Runs in the worker.
fn work(ctx: &WorkerCtx) {
    let mut text = String::new();
    for (_, unit) in TYPES {
        // One piece of code for both loops: two copies of a loop may differ by how they are aligned.
        let unit = black_box(unit);
        let [without, measured, ratio] = compare(ctx, unit);
        text += &format!("{without} {measured} {ratio} ");
    }
    let mut alone: Vec<_> = (0..ROUNDS).map(|_| time(|| ctx.record_iteration(1)) * 1e9).collect();
    text += &median(&mut alone).to_string();
    let written = FOUND.get().context("it was set before the fork").and_then(|mut found| {
        found.write_all(text.as_bytes())?;
        Ok(())
    });
    written.expect("a file in memory takes it");
}

/// Returns iterations per second without telemetry and with it, and the median of the rounds' ratios.
///
/// With telemetry it is the loop of `SpinWait` and `AluHot`, without it only the work of an iteration.
fn compare(ctx: &WorkerCtx, unit: Unit) -> [f64; 3] {
    let without = || time(|| unit(ctx));
    let measured = || {
        time(|| {
            if ctx.should_continue() {
                unit(ctx);
                ctx.record_iteration(1);
            }
        })
    };
    let rounds: Vec<_> = (0..ROUNDS)
        .map(|round| {
            if round % 2 == 0 {
                let without = without();
                (without, measured())
            } else {
                let measured = measured();
                (without(), measured)
            }
        })
        .collect();
    let per_second =
        |which: fn(&(f64, f64)) -> f64| median(&mut rounds.iter().map(which).collect::<Vec<_>>());
    [
        per_second(|(without, _)| 1.0 / without),
        per_second(|(_, measured)| 1.0 / measured),
        per_second(|(without, measured)| without / measured),
    ]
}

/// Returns the seconds per iteration.
fn time(turn: impl Fn()) -> f64 {
    let began = Instant::now();
    (0..ITERATIONS).for_each(|_| turn());
    began.elapsed().as_secs_f64() / ITERATIONS as f64
}
