//! How long a verdict takes from the end of a scenario's last hold.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use ktstr::__private::TestEntry;
use ktstr::prelude::*;
use ktstr::topology::{Llcs, Topology};
use rustix::time::{ClockId, clock_gettime};

use super::{median, noted, pass};

#[ktstr::__private::linkme::distributed_slice(ktstr::__private::TESTS)]
#[linkme(crate = ktstr::__private::linkme)]
static ENTRY: TestEntry = TestEntry {
    name: "bench_verdict",
    module_path: module_path!(),
    topology: Topology { llcs: Llcs::even(1, 2), ..Topology::DEFAULT },
    body,
    ..TestEntry::DEFAULT
};

const HOLD: Duration = Duration::from_millis(500);

/// The name of the verdict's note that says when the body had it, since boot.
const JUDGED: &str = "judged at, us";

/// The guest's side: a cgroup with a worker per CPU.
fn body(ctx: &Ctx) -> Result<AssertResult> {
    let defs = [ctx.cgroup_def("cg").workers(2)];
    let mut verdict = execute_steps(ctx, [Step::with_defs(defs, HoldSpec::Fixed(HOLD))])?;
    let now = clock_gettime(ClockId::Boottime);
    verdict.note_value(JUDGED, now.tv_sec * 1_000_000 + now.tv_nsec / 1000);
    Ok(verdict)
}

/// Runs the test so many times, and prints medians.
pub(super) fn measure(kernel: &'static str, runs: u32) -> Result<()> {
    let entry = TestEntry { kernel: Some(kernel), ..ENTRY.clone() };
    let runs = (0..runs).map(|_| parts(pass(&entry)?)).collect::<Result<Vec<_>>>()?;
    println!("\n{:<34} {:>9} {:>9} {:>9}", "from the last hold's end, ms", "min", "median", "max");
    for (part, name) in PARTS.iter().enumerate() {
        let mut values: Vec<_> = runs.iter().map(|parts| parts[part]).collect();
        let median = median(&mut values);
        println!("{name:<34} {:>9.2} {median:>9.2} {:>9.2}", values[0], values[values.len() - 1]);
    }
    Ok(())
}

const PARTS: [&str; 3] =
    ["until the body has its verdict", "until the host has it", "until the machine is gone"];

/// The first by the guest's clock, the others by the host's: from the arrival of the event that says
/// that the last hold begins, less the hold.
fn parts((result, verdict): (VmResult, AssertResult)) -> Result<[f64; PARTS.len()]> {
    let [judged_us] = noted(&verdict, JUDGED)?[..] else { bail!("the body noted no time") };
    let last = result.events.last().context("there is no event")?;
    let in_guest = judged_us / 1e3 - last.at_ns as f64 / 1e6;
    let on_host = result.timings.last_event_to_verdict.context("the last event had no time")?;
    let gone = on_host + result.timings.teardown;
    Ok([in_guest, ms(on_host), ms(gone)].map(|time| time - ms(HOLD)))
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
