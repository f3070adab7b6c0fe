//! `cargo xtask bench scenario`: what measuring a worker costs, what the scenario engine adds to its
//! operations, and how long a verdict takes from a scenario's end.
//!
//! The first two are measured on this host and again in a guest, by the same functions: on the host
//! with cgroups that are only recorded, in the guest with real ones.

mod bursts;
mod steps;
mod telemetry;
mod verdict;

use std::time::Duration;

use anyhow::{Result, bail};
use ktstr::__private::TestEntry;
use ktstr::cgroup::RecordingCgroups;
use ktstr::prelude::*;
use ktstr::provision;
use ktstr::runner::{self, Program};
use ktstr::scenario::CtxParams;
use ktstr::topology::{Llcs, TestTopology, Topology};

/// Arguments of the benchmark.
#[derive(Debug, clap::Args)]
pub(crate) struct Scenario {
    /// Kernels to boot, as in `KTSTR_KERNEL`; the default one if none is given.
    #[arg(long)]
    kernel: Vec<String>,
    /// How many tests are run to their verdicts, per kernel.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    verdicts: u32,
    /// Measure only the length of bursts.
    #[arg(long)]
    bursts: bool,
}

#[ktstr::__private::linkme::distributed_slice(ktstr::__private::TESTS)]
#[linkme(crate = ktstr::__private::linkme)]
static ENTRY: TestEntry = TestEntry {
    name: "bench_scenario",
    module_path: module_path!(),
    topology: Topology { llcs: Llcs::even(1, 2), ..Topology::DEFAULT },
    duration: Duration::from_secs(300),
    body: measure,
    ..TestEntry::DEFAULT
};

impl Scenario {
    /// Fails if measuring costs more than it may on the host; where the CPUs are emulated, that is
    /// only told.
    pub(crate) fn run(&self) -> Result<()> {
        if self.bursts {
            return self.kernels().into_iter().try_for_each(bursts::measure);
        }
        println!("on this host, cgroups recorded");
        let (cgroups, topology) = (RecordingCgroups::new(), TestTopology::read()?);
        let params = CtxParams {
            test_name: ENTRY.name,
            duration: ENTRY.duration,
            settle: ENTRY.settle,
            workers_per_cgroup: ENTRY.workers_per_cgroup,
            assert: ENTRY.assert,
            payloads: &[],
            is_on_host: true,
        };
        let ctx = Ctx::new(&cgroups, &topology, params, &|_| ());
        let least = telemetry::measure(&ctx)?;
        steps::measure(&ctx)?;
        for kernel in self.kernels() {
            let (engine, reason) = runner::engine()?;
            println!("\n{kernel} on {engine}, 2 CPUs ({reason})");
            let (result, verdict) = pass(&TestEntry { kernel: Some(kernel), ..ENTRY.clone() })?;
            steps::print_operations(&result, &noted(&verdict, SINGLE)?);
            bursts::measure(kernel)?;
            verdict::measure(kernel, self.verdicts)?;
        }
        telemetry::check(least)
    }

    /// Returns the kernels to boot, as test entries hold them.
    fn kernels(&self) -> Vec<&'static str> {
        let mut kernels = self.kernel.clone();
        if kernels.is_empty() {
            kernels.push(provision::KernelSpec::default_kernel().to_string());
        }
        kernels.into_iter().map(|kernel| &*kernel.leak()).collect()
    }
}

/// The name of the notes that say what each call alone took.
const SINGLE: &str = "the call alone, us";

/// The guest's side.
fn measure(ctx: &Ctx) -> Result<AssertResult> {
    telemetry::measure(ctx)?;
    let mut verdict = AssertResult::pass();
    for single in steps::measure(ctx)? {
        verdict.note_value(SINGLE, single);
    }
    Ok(verdict)
}

/// The numbers that a verdict has noted under a name.
fn noted(verdict: &AssertResult, name: &str) -> Result<Vec<f64>> {
    let notes = verdict.notes.iter().filter(|note| note.name.as_deref() == Some(name));
    Ok(notes.map(|note| note.text.parse()).collect::<Result<_, _>>()?)
}

/// Runs a test of this program that has to pass.
fn pass(entry: &TestEntry) -> Result<(VmResult, AssertResult)> {
    let program = Program::this_program();
    let result = runner::run_in_vm(entry, program)?;
    match result.end.clone() {
        RunEnd::Verdict(verdict) if verdict.is_pass() => Ok((result, verdict)),
        end => bail!("{end}"),
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
