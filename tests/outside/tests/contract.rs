//! Names and signatures that tests of users rely on.

use std::io;

use ktstr::cgroup::CgroupManager;
use ktstr::prelude::{
    AssertDetail, AssertResult, Backdrop, CaptureCallback, Context, Controller, Ctx, DetailKind,
    KernelSnapshot, Outcome, Result, RunEnd, SnapshotBridge, VmResult, WorkSpec, bail, ensure,
    ktstr_test,
};
use ktstr::scenario::ops::{
    CgroupDef, CpusetSpec, HoldSpec, Op, SpawnPlacement, Step, execute_defs, execute_scenario,
    execute_steps, execute_steps_with,
};

#[ktstr_test(llcs = 2, cores = 1, duration_s = 1, settle_ms = 50, workers_per_cgroup = 1)]
fn scenarios_run_in_every_way(ctx: &Ctx) -> Result<AssertResult> {
    let spawn = || Op::spawn(SpawnPlacement::cgroup("added"), WorkSpec::default().workers(1));
    let backdrop = Backdrop::new()
        .push_cgroup(ctx.cgroup_def("web").cpuset(CpusetSpec::llc(0)))
        .extend_cgroups([ctx.cgroup_def("batch")])
        .push_op(Op::add_cgroup("added"))
        .extend_ops([spawn()]);
    let literal = Step {
        setup: vec![CgroupDef::named("setup").workers(1)].into(),
        ops: vec![Op::capture_cgroup_procs("web", "web")],
        hold: HoldSpec::FULL,
    };
    let step = Step::with_defs(vec![ctx.cgroup_def("defs")], HoldSpec::FULL).set_ops(vec![]);
    let callback: CaptureCallback = std::sync::Arc::new(|_| None::<KernelSnapshot>);
    let bridge = SnapshotBridge::new(callback);
    let guard = bridge.clone().set_thread_local();
    let mut verdict = execute_scenario(ctx, backdrop, vec![literal])?;
    drop(guard);
    ensure!(bridge.len() == 1 && bridge.has("web") && bridge.cgroup_procs_by_tag("web").is_some());
    verdict = verdict.merge(execute_defs(ctx, vec![ctx.cgroup_def("alone")])?);
    verdict = verdict.merge(execute_steps(ctx, vec![step.clone()])?);
    for assert in [None, Some(&ctx.assert)] {
        verdict = verdict.merge(execute_steps_with(ctx, vec![step.clone()], assert)?);
    }
    Ok(verdict.merge(execute_steps_with(ctx, [step], &ctx.assert)?))
}

#[ktstr_test(llcs = 2, cores = 2, numa_nodes = 2)]
fn topology_is_counted(ctx: &Ctx) -> Result<AssertResult> {
    let topo = ctx.topo;
    ensure!((topo.total_cpus(), topo.num_llcs(), topo.num_numa_nodes()) == (4, 2, 2), "{topo}");
    ensure!(topo.all_cpus() == [0, 1, 2, 3], "{topo}");
    Ok(AssertResult::pass())
}

#[ktstr_test]
fn cgroup_errors_have_the_errno_in_their_chain(ctx: &Ctx) -> Result<AssertResult> {
    ensure!(Controller::Cpu.name() == "cpu");
    ctx.cgroups.setup(&[Controller::Cpu].into())?;
    let error = missing(ctx).err().context("a cgroup that does not exist was written to")?;
    let errno = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    ensure!(errno.and_then(io::Error::raw_os_error) == Some(2), "{error:?}"); // ENOENT
    ctx.cgroups.cleanup_all()?;
    Ok(AssertResult::pass())
}

/// Without an import of the trait.
#[ktstr_test]
fn cgroup_manager_has_its_methods(_: &Ctx) -> Result<AssertResult> {
    let manager = CgroupManager::new("/sys/fs/cgroup/contract");
    manager.setup(&[Controller::Cpu].into())?;
    manager.create_cgroup("limited")?;
    manager.set_cpu_max("limited", Some(20_000), 100_000)?;
    ensure!(manager.read_procs("limited")?.is_empty());
    manager.cleanup_all()?;
    ensure!(!manager.parent_path().join("limited").exists());
    Ok(AssertResult::pass())
}

fn missing(ctx: &Ctx<'_>) -> Result<()> {
    Ok(ctx.cgroups.set_cpu_max("missing", None, 100_000)?)
}

#[ktstr_test(allow_inconclusive, post_vm_unconditional = verdict_is_inconclusive)]
fn inconclusive_is_allowed(_ctx: &Ctx) -> Result<AssertResult> {
    let detail = |message: &str| AssertDetail::new(DetailKind::Other, message);
    let mut failed = AssertResult::fail_msg("first");
    failed.record_fail(detail("second"));
    failed.record_inconclusive(detail("third"));
    ensure!(failed.is_fail() && failed.failure_details().count() == 2, "{failed:?}");
    let mut verdict = AssertResult::pass();
    verdict.record_inconclusive(detail("not measured"));
    Ok(verdict)
}

fn verdict_is_inconclusive(result: &VmResult) -> Result<()> {
    let RunEnd::Verdict(verdict) = &result.end else { bail!("{}", result.end) };
    ensure!(verdict.outcome == Outcome::Inconclusive, "{verdict:?}");
    ensure!(verdict.details[0].message == "not measured", "{verdict:?}");
    Ok(())
}
