//! The cgroup manager in the guest, on the cgroupfs of the kernel.

#[path = "../common/children.rs"]
mod children;
mod churn;
mod cpusets;
mod delegation;
mod knobs;
mod limits;
#[path = "../common/modes.rs"]
mod modes;
mod rules;
mod tasks;
mod threaded;

use std::time::Duration;

use ktstr::prelude::*;

#[ktstr_test(
    llcs = 2,
    cores = 2,
    threads = 1,
    memory_mib = 512,
    duration_s = 2,
    workload_root_cgroup = "/ktstr-suite",
    post_vm = host_has_the_capture
)]
fn workers_land_in_their_cgroup(ctx: &Ctx) -> Result<AssertResult> {
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
    check(&bridge.drain_cgroup_procs())?;
    Ok(verdict)
}

fn host_has_the_capture(result: &VmResult) -> Result<()> {
    check(&result.captures)
}

fn check(captures: &[CgroupProcsSnapshot]) -> Result<()> {
    let [capture] = captures else { bail!("expected one capture, got {}", captures.len()) };
    ensure!(capture.tag == "placed", "the tag is {:?}", capture.tag);
    ensure!(capture.cgroup == "cg_target", "the cgroup is {:?}", capture.cgroup);
    ensure!(
        capture.pids.len() == 2,
        "two workers were spawned, the cgroup contains {:?}",
        capture.pids
    );
    ensure!(capture.pids.iter().all(|pid| *pid > 0), "pids are positive: {:?}", capture.pids);
    ensure!(capture.procs.iter().all(|proc| proc.comm == "target"), "{:?}", capture.procs);
    Ok(())
}
