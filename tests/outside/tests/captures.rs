//! Captures of a cgroup's processes, as the test of a cgroup manager takes them.

use std::sync::Arc;
use std::time::Duration;

use ktstr::assert::{AssertDetail, AssertResult, DetailKind};
use ktstr::ktstr_test;
use ktstr::prelude::{
    Backdrop, Capture, CgroupProcsSnapshot, KernelSnapshot, Result, SnapshotBridge, SpawnPlacement,
    VmResult, WorkSpec, WorkType, ensure,
};
use ktstr::scenario::Ctx;
use ktstr::scenario::ops::{CgroupDef, HoldSpec, Op, Step, execute_scenario, execute_steps};

fn fail_unless(holds: bool, message: String) -> AssertResult {
    match holds {
        true => AssertResult::pass(),
        false => AssertResult::fail(AssertDetail::new(DetailKind::Other, message)),
    }
}

#[ktstr_test(
    workload_root_cgroup = "/captures",
    llcs = 1,
    cores = 2,
    threads = 1,
    memory_mib = 256,
    duration_s = 1,
    watchdog_timeout_s = 20,
    auto_repro = false
)]
fn capture_lists_the_workers_of_its_cgroup(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = SnapshotBridge::new(Arc::new(|_| None));
    let collected = bridge.clone();
    let _guard = bridge.set_thread_local();

    let backdrop = Backdrop::new().push_op(Op::add_cgroup("full")).push_op(Op::add_cgroup("empty"));
    let work = WorkSpec::default().workers(3).comm("counted").work_type(WorkType::SpinWait);
    let ops = vec![
        Op::spawn(SpawnPlacement::cgroup("full"), work),
        Op::capture_cgroup_procs("workers", "full"),
        Op::capture_cgroup_procs("no workers", "empty"),
    ];
    let played =
        execute_scenario(ctx, backdrop, vec![Step::new(ops, HoldSpec::fixed(Duration::ZERO))])?;
    drop(played); // Too short to judge the workers.

    let captures = collected.drain_cgroup_procs();
    let seen: Vec<_> = captures
        .iter()
        .map(|CgroupProcsSnapshot { tag, cgroup, pids, .. }| (&**tag, &**cgroup, pids.len()))
        .collect();
    let wanted = [("workers", "full", 3), ("no workers", "empty", 0)];
    let verdict = fail_unless(seen == wanted, format!("captured {seen:?}, expected {wanted:?}"));
    let pids = &captures[0].pids;
    let positive = pids.iter().all(|pid| *pid > 0);
    Ok(verdict.merge(fail_unless(positive, format!("not all are process ids: {pids:?}"))))
}

/// Captures of both kinds stay in order, and the kernel values of the callback reach body and host.
#[ktstr_test(cores = 1, duration_s = 1, workers_per_cgroup = 3, post_vm = check_kernel_values_on_host)]
fn bridge_collects_both_kinds_in_order(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = SnapshotBridge::new(Arc::new(|name: &str| {
        (name == "reported").then(|| KernelSnapshot::new().with_value("answer", 42))
    }));
    let bridge = bridge.on_cgroup_procs(|capture| println!("{} is captured", capture.tag));
    let collected = bridge.clone();
    let _guard = bridge.set_thread_local();

    let step = Step {
        setup: vec![ctx.cgroup_def("cg"), CgroupDef::named("empty")].into(),
        ops: vec![
            Op::capture_snapshot("reported"),
            Op::capture_cgroup_procs("cg", "cg"),
            Op::capture_cgroup_procs("empty", "empty"),
            Op::capture_snapshot("bare"),
        ],
        hold: HoldSpec::FULL,
    };
    let verdict = execute_steps(ctx, vec![step])?;

    ensure!(!collected.is_empty() && collected.len() == 4 && collected.has("bare"));
    ensure!(!collected.has("reported twice"));
    let workers = collected.cgroup_procs_by_tag("cg").map(|capture| capture.pids.len());
    ensure!(workers == Some(3), "workers_per_cgroup = 3, but the cgroup holds {workers:?}");
    let captures = collected.drain_ordered();
    let names: Vec<_> = captures.iter().map(Capture::name).collect();
    ensure!(names == ["reported", "cg", "empty", "bare"], "{names:?}");
    let values: Vec<_> = captures.iter().filter_map(kernel_value).collect();
    ensure!(values == [42], "{captures:?}");
    Ok(verdict)
}

fn kernel_value(capture: &Capture) -> Option<u64> {
    let Capture::Snapshot(snapshot) = capture else { return None };
    snapshot.kernel.as_ref()?.values.get("answer").copied()
}

fn check_kernel_values_on_host(result: &VmResult) -> Result<()> {
    let reports: Vec<_> = result.snapshots.iter().map(|snapshot| &snapshot.kernel).collect();
    let wanted = KernelSnapshot::new().with_value("answer", 42);
    ensure!(reports == [&Some(wanted), &None], "{reports:?}");
    ensure!(result.log.contains("cg is captured\n") && result.captures.len() == 2);
    Ok(())
}
