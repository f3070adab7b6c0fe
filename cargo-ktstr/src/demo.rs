//! `cargo ktstr demo`: a test like that of the README, which needs no preparation.

use std::process::ExitCode;
use std::time::Duration;

use ktstr::__private::{Llcs, MachineSpec, TESTS, TestEntry, Topology, Untrusted, linkme};
use ktstr::prelude::*;

/// The expansion of `#[ktstr_test(llcs = 2, cores = 2, duration_s = 2, post_vm = show)]` for a
/// program with its own `main`.
#[linkme::distributed_slice(TESTS)]
#[linkme(crate = linkme)]
static DEMO: TestEntry = TestEntry {
    name: "two_workers_land_in_their_cgroup",
    module_path: module_path!(),
    machine: MachineSpec {
        topology: Topology { llcs: Llcs::even(2, 2), ..Topology::DEFAULT },
        ..MachineSpec::DEFAULT
    },
    duration: Duration::from_secs(2),
    post_vm: Some(show),
    body: two_workers_land_in_their_cgroup,
    ..TestEntry::DEFAULT
};

/// Runs the test and prints its report: to standard output if it passes, else to standard error.
pub(crate) fn run() -> ExitCode {
    eprintln!("ktstr: booting a machine with 2 last-level caches of 2 cores each, which starts 2");
    eprintln!("ktstr: workers in a cgroup; the kernel and QEMU are fetched if they are not cached");
    match ktstr::runner::run_without_libtest(&DEMO, "cargo ktstr demo") {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure:?}");
            ExitCode::FAILURE
        }
    }
}

fn two_workers_land_in_their_cgroup(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = SnapshotBridge::default();
    let _guard = bridge.clone().set_thread_local();
    let work = WorkSpec::default().workers(2).comm("target").work_type(WorkType::SpinWait);
    let step = Step::new(
        vec![
            Op::spawn(SpawnPlacement::cgroup("cg_target"), work),
            Op::capture_cgroup_procs("placed", "cg_target"),
        ],
        HoldSpec::fixed(Duration::from_millis(200)),
    );
    let backdrop = Backdrop::new().push_op(Op::add_cgroup("cg_target"));
    let verdict = execute_scenario(ctx, backdrop, vec![step])?;
    let captures = bridge.drain_cgroup_procs();
    ensure!(captures.len() == 1, "expected 1 capture, got {}", captures.len());
    ensure!(captures[0].pids.len() == 2, "expected 2 workers: {:?}", captures[0]);
    Ok(verdict)
}

fn show(result: &VmResult) -> Result<()> {
    for CgroupProcsSnapshot { tag, cgroup, procs, .. } in &result.captures {
        let [tag, cgroup] = [tag, cgroup].map(|text| Untrusted::new(text));
        println!("capture `{tag}`: cgroup {cgroup} has {} processes", procs.len());
        for process in procs {
            println!("  {} ({})", process.pid, Untrusted::new(&process.comm));
        }
    }
    Ok(())
}
