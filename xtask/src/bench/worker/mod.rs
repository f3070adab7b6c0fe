//! `cargo xtask bench worker`: how long the iterations of workers are, and what measuring them costs.

mod bursts;
mod telemetry;

use std::time::Duration;

use anyhow::{Result, bail};
use ktstr::__private::{MachineSpec, TestEntry};
use ktstr::cgroup::RecordingCgroups;
use ktstr::prelude::*;
use ktstr::provision;
use ktstr::runner::{self, Program};
use ktstr::topology::TestTopology;

/// Arguments of the benchmark.
#[derive(Debug, clap::Args)]
pub(crate) struct Worker {
    /// Kernels to boot, as in `KTSTR_KERNEL`; the default one if none is given.
    #[arg(long)]
    kernel: Vec<String>,
    /// Measure only the length of bursts.
    #[arg(long)]
    bursts: bool,
}

#[ktstr::__private::linkme::distributed_slice(ktstr::__private::TESTS)]
#[linkme(crate = ktstr::__private::linkme)]
static ENTRY: TestEntry = TestEntry {
    name: "bench_worker",
    module_path: module_path!(),
    duration: Duration::from_secs(300),
    body: measure,
    ..TestEntry::DEFAULT
};

impl Worker {
    /// Fails if measuring costs more than it may on the host. In a guest, whose CPUs may be emulated, the
    /// result is only printed.
    pub(crate) fn run(&self) -> Result<()> {
        if self.bursts {
            return self.kernels().into_iter().try_for_each(bursts::measure);
        }
        println!("on this host");
        let (cgroups, topology) = (RecordingCgroups::new(), TestTopology::read()?);
        let ctx = Ctx {
            cgroups: &cgroups,
            topo: &topology,
            test_name: ENTRY.name,
            duration: ENTRY.duration,
            settle: ENTRY.settle,
            workers_per_cgroup: ENTRY.workers_per_cgroup,
            assert: ENTRY.assert,
            payloads: &[],
            is_on_host: true,
            send: &|_| (),
        };
        let least = telemetry::measure(&ctx)?;
        for kernel in self.kernels() {
            let (engine, reason) = runner::engine()?;
            println!("\n{kernel} on {engine}, 2 CPUs ({reason})");
            let _pass = pass(&TestEntry {
                machine: MachineSpec { kernel: Some(kernel.into()), ..ENTRY.machine.clone() },
                ..ENTRY.clone()
            })?;
            bursts::measure(kernel)?;
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

/// Runs in the guest.
fn measure(ctx: &Ctx) -> Result<AssertResult> {
    telemetry::measure(ctx)?;
    Ok(AssertResult::pass())
}

/// Runs a test of this program and returns its verdict, which has to be a pass.
fn pass(entry: &TestEntry) -> Result<AssertResult> {
    let program = Program::this_program();
    let result = runner::run_in_vm(entry, program)?;
    match result.end {
        RunEnd::Verdict(verdict) if verdict.is_pass() => Ok(verdict),
        end => bail!("{end}"),
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
