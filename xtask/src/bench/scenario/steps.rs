//! What the scenario engine adds to its operations.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ktstr::prelude::*;

use super::median;

const ROUNDS: usize = 40;

/// Steps of one round, each with the operations below.
const STEPS: usize = 10;

const NOW: HoldSpec = HoldSpec::Fixed(Duration::ZERO);

/// All without workers: what those cost is theirs.
fn operations() -> [Op; 5] {
    [
        Op::add_cgroup("cg"),
        Op::set_knob("cg", CgroupKnob::CpuWeight(150)),
        Op::freeze_cgroup("cg"),
        Op::unfreeze_cgroup("cg"),
        Op::remove_cgroup("cg"),
    ]
}

/// The same without an engine.
const CALLS: [fn(&dyn CgroupOps) -> Result<()>; 5] = [
    |cgroups| Ok(cgroups.create_cgroup("cg")?),
    |cgroups| Ok(cgroups.set_cpu_weight("cg", 150)?),
    |cgroups| Ok(cgroups.set_freeze("cg", true)?),
    |cgroups| Ok(cgroups.set_freeze("cg", false)?),
    |cgroups| Ok(cgroups.remove_cgroup("cg")?),
];

/// Prints a table, and returns the microseconds of each call alone.
pub(super) fn measure(ctx: &Ctx) -> Result<[f64; CALLS.len()]> {
    ctx.cgroups.setup(&[Controller::Cpu].into())?;
    let play = |step: fn() -> Step| {
        let steps: Vec<_> = (0..STEPS).map(|_| step()).collect();
        time(|| execute_steps(ctx, steps).map(drop))
    };
    let calls = || CALLS.iter().try_for_each(|call| call(ctx.cgroups));
    let mut single = [const { Vec::new() }; CALLS.len()];
    let (mut direct, mut engine, mut empty) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        direct.push(time(|| (0..STEPS).try_for_each(|_| calls()))?);
        for (call, times) in CALLS.iter().zip(&mut single) {
            times.push(time(|| call(ctx.cgroups))?);
        }
        engine.push(play(|| Step::new(operations(), NOW))?);
        empty.push(play(|| Step::new([], NOW))?);
    }
    println!("\n{:<34} {:>12} {:>12}", "", "us each", "per second");
    for (name, times, count) in [
        ("the calls alone", &mut direct, STEPS * CALLS.len()),
        ("as operations of steps", &mut engine, STEPS * CALLS.len()),
        ("steps without an operation", &mut empty, STEPS),
    ] {
        let each = median(times) / count as f64;
        println!("{name:<34} {:>12.1} {:>12.0}", each * 1e6, 1.0 / each);
    }
    Ok(single.map(|mut times| median(&mut times) * 1e6))
}

/// Prints what each operation took in a guest, by its own clock: until the next event. Beside it,
/// what the call alone took.
pub(super) fn print_operations(result: &VmResult, single: &[f64]) {
    println!("\n{:<34} {:>12} {:>12}", "us each", "the call", "operation");
    for (operation, single) in operations().iter().zip(single) {
        let operation = operation.to_string();
        let pairs = result.events.windows(2).filter(|pair| pair[0].what == operation);
        let times = pairs.map(|pair| pair[1].at_ns.saturating_sub(pair[0].at_ns) as f64 / 1e3);
        let operation_us = median(&mut times.collect::<Vec<_>>());
        println!("{operation:<34} {single:>12.1} {operation_us:>12.1}");
    }
}

/// Seconds.
fn time(what: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    what().context("a round failed")?;
    Ok(began.elapsed().as_secs_f64())
}
