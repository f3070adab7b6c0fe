use ktstr::prelude::*;

#[ktstr_test(llcs = 2, cores = 2, memory_mib = 512, duration_s = 2)]
fn workers_land_in_their_cgroup(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = SnapshotBridge::new(|_| ());
    let _guard = bridge.set_thread_local();
    let workers = WorkSpec::default().workers(2).comm("spin").work_type(WorkType::SpinWait);
    let step = Step::new(
        vec![
            Op::spawn(SpawnPlacement::cgroup("cg_target"), workers),
            Op::capture_cgroup_procs("placed", "cg_target"),
        ],
        HoldSpec::frac(0.5),
    );
    let backdrop = Backdrop::new().push_op(Op::add_cgroup("cg_target"));
    let verdict = execute_scenario(ctx, backdrop, vec![step])?;
    let captures = bridge.drain_cgroup_procs();
    ensure!(captures[0].pids.len() == 2, "two workers were spawned: {captures:?}");
    Ok(verdict)
}
