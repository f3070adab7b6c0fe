//! The names that tests of other cgroup managers use, each in a way that a change of it would break.

use std::io;
use std::time::Duration;

use ktstr::cgroup::{CgroupManager, RecordingCgroups};
use ktstr::prelude::*;

const TRUE: Payload = Payload::new("true");

fn def(name: &str) -> CgroupDef {
    CgroupDef::named(name)
}

#[test]
fn steps_and_backdrops_are_built_in_every_way() {
    let ops = vec![Op::add_cgroup("b")];
    let literal =
        Step { setup: vec![def("a")].into(), ops: ops.clone(), hold: HoldSpec::frac(0.5) };
    assert_eq!(Step::with_defs(vec![def("a")], HoldSpec::frac(0.5)).set_ops(ops.clone()), literal);
    assert_eq!(
        Step::new(ops.clone(), HoldSpec::FULL).with_defs([def("a")]).hold(literal.hold),
        literal
    );

    let backdrop =
        Backdrop::new().push_cgroup(def("a")).push_cgroup(def("b")).push_op(ops[0].clone());
    assert_eq!(Backdrop::new().extend_cgroups([def("a"), def("b")]).extend_ops(ops), backdrop);
    assert_ne!(backdrop.clone().push_payload(&TRUE), backdrop);
}

#[test]
fn verdicts_are_recorded_and_read() {
    let detail = |text: &str| AssertDetail::new(DetailKind::Other, text);
    let mut verdict = AssertResult::pass();
    verdict.record_inconclusive(detail("no sample"));
    assert!(verdict.outcome == Outcome::Inconclusive && !verdict.is_fail());
    verdict.record_fail(detail("5 of 4 CPUs"));
    assert!(verdict.is_fail() && AssertResult::fail_msg("disk full").is_fail());
    let failed: Vec<_> = verdict.failure_details().map(|detail| detail.message.clone()).collect();
    assert_eq!(failed, ["5 of 4 CPUs"]);
}

#[test]
fn controllers_have_the_names_of_the_kernel() {
    let names = Controller::ALL.map(Controller::name);
    assert_eq!(names, ["cpuset", "cpu", "memory", "pids", "io"]);
}

fn clean_up(cgroups: &dyn CgroupOps) -> Result<()> {
    cgroups.cleanup_all()?;
    Ok(())
}

#[test]
fn cleanup_fails_with_the_errno_in_the_chain() {
    clean_up(&CgroupManager::new("/nonexistent/cgroup")).expect("nothing is there");
    let cgroups = RecordingCgroups::new();
    cgroups.fail("cleanup_all", "", 16);
    let error = clean_up(&cgroups).expect_err("a failure was planned");
    let errno = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
    assert_eq!(errno, Some(16), "{error:?}");
}

#[ktstr_test(numa_nodes = 2, llcs = 2, cores = [2, 1], duration_s = 1, payloads = [TRUE])]
fn topology_is_counted_and_programs_run(ctx: &Ctx) -> Result<AssertResult> {
    let topo = ctx.topo;
    let counts = (topo.total_cpus(), topo.num_llcs(), topo.num_numa_nodes());
    ensure!(counts == (3, 2, 2) && topo.all_cpus() == [0, 1, 2], "{topo}");
    let backdrop = Backdrop::new().push_payload(&TRUE).push_cgroup(ctx.cgroup_def("cg"));
    let wait = Op::wait_payload("true", Duration::from_secs(30));
    execute_scenario(ctx, backdrop, vec![Step::new([wait], HoldSpec::FULL)])
}

/// Nothing works in this scenario, which shows nothing.
#[ktstr_test(cores = 1, allow_inconclusive, post_vm_unconditional = the_verdict_arrived)]
fn inconclusive_verdict_passes_if_allowed(ctx: &Ctx) -> Result<AssertResult> {
    execute_defs(ctx, [def("idle")])
}

fn the_verdict_arrived(result: &VmResult) -> Result<()> {
    ensure!(
        matches!(&result.end, RunEnd::Verdict(verdict) if !verdict.is_pass()),
        "{}",
        result.end
    );
    Ok(())
}
