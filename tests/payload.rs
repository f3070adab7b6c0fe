//! External programs in the guest: small ones of this host with known ends, outputs and cgroups.

use std::time::Duration;

use ktstr::prelude::*;

const CAT: Payload = Payload::new("cat")
    .args(&["/proc/self/cgroup"])
    .metrics(&[Metric::regex("root", "0::/(ktstr)/cg/")])
    .checks(&[Check::Exists("root")]);

const SH: Payload = Payload::new("sh")
    .args(&["-c"])
    .metrics(&[Metric::regex("n", r"n=(\S+)"), Metric::exit_code("code")])
    .checks(&[Check::Max("n", 5.0)]);

const SLEEP: Payload = Payload::new("sleep").args(&["1000"]);

const NOW: HoldSpec = HoldSpec::Fixed(Duration::ZERO);
const MINUTE: Duration = Duration::from_secs(60);

fn has_note(verdict: &AssertResult, text: &str) -> bool {
    verdict.notes.iter().any(|note| note.to_string().contains(text))
}

/// Executes `ops` in a step with a cgroup `cg`.
fn in_cg(ctx: &Ctx, ops: impl Into<Vec<Op>>) -> Result<AssertResult> {
    let step = Step::new(ops, NOW).with_defs([CgroupDef::named("cg")]);
    execute_steps(ctx, [step])
}

/// A payload reads its own cgroup with its first line of output: a child of `cg`. Its resource usage
/// counts for `cg`.
#[ktstr_test(cores = 1, payloads = [CAT, SH])]
fn payload_is_in_its_cgroup_from_the_start(ctx: &Ctx) -> Result<AssertResult> {
    let cg = CgroupDef::named("cg").cpu_quota_pct(20).workload(&CAT);
    let spin = SH.with_args(["n=0; while [ $n -lt 30000 ]; do n=$((n+1)); done; echo n=1"]);
    let wait = ["cat", "sh"].map(|name| Op::wait_payload(name, MINUTE));
    let step = Step::new(wait, NOW).with_defs([cg]).with_payload(spin, "cg");
    let assert = Assert::DEFAULT.max_throttled_pct(0.0);
    let verdict = execute_steps_with(ctx, [step], &assert)?;
    // The cgroup is judged although it has no workers.
    let throttled = |detail: &AssertDetail| detail.kind == DetailKind::Throttled;
    ensure!(verdict.details.iter().all(throttled), "{verdict:?}");
    ensure!(verdict.outcome == Outcome::Fail, "{verdict:?}");

    let mut group = CgroupGroup::new(ctx.cgroups);
    group.add_cgroup_no_cpuset("cg")?;
    let report = ctx.payload(&CAT).in_cgroup("cg").run()?;
    ensure!(report.stdout.text.starts_with("0::/ktstr/cg/ktstr-job."), "{report:?}");
    ensure!(report.verdict.is_pass() && report.wall > report.cpu_time, "{report:?}");
    let outside = ctx.payload(&CAT).run()?;
    ensure!(outside.verdict.outcome == Outcome::Fail, "{outside:?}");
    ensure!(outside.metric("root").is_err() && outside.metric("toor").is_err(), "{outside:?}");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, payloads = [SH])]
fn payload_run_is_judged_by_its_end_and_metrics(ctx: &Ctx) -> Result<AssertResult> {
    // More than the capacity of a pipe, and more than is kept.
    let much = "s=0123456789; for i in 1 2 3 4 5 6 7; do s=$s$s$s; done
                for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do echo $s; echo $s >&2; done; echo n=1";
    // A descendant that is still running is killed without waiting for it.
    let leaves = "echo n=1; while :; do :; done & exit 0";
    for (script, outcome, text) in [
        ("echo n=5", Outcome::Pass, ""),
        ("echo n=5.5 >&2", Outcome::Fail, "payload metric: n = 5.5 (limit 5), payload sh"),
        (
            "echo n=5.5x",
            Outcome::Inconclusive,
            "payload metric: n could not be measured: not a number: \"5.5x\"",
        ),
        ("echo m=5", Outcome::Inconclusive, "payload metric: n could not be measured: nothing"),
        (
            "echo n=1; echo why >&2; exit 7",
            Outcome::Fail,
            "payload end: exit status 7 (expected exit status 0); its last output: why, payload sh",
        ),
        (
            "echo n=1; kill -SEGV $$",
            Outcome::Fail,
            "payload end: signal 11 (SIGSEGV) (expected exit status 0)",
        ),
        (leaves, Outcome::Pass, ""),
        (much, Outcome::Pass, ""),
    ] {
        let report = ctx.payload(&SH).args([script]).timeout(MINUTE).run()?;
        let details: Vec<_> = report.verdict.details.iter().map(ToString::to_string).collect();
        ensure!(report.verdict.outcome == outcome, "{script}: {report:?}");
        ensure!(details.first().map_or("", |detail| detail).starts_with(text), "{details:?}");
        ensure!(details.len() == usize::from(outcome != Outcome::Pass), "{details:?}");
        let dropped = [&report.stdout, &report.stderr].map(|output| output.dropped > 0);
        ensure!(dropped == [script == much; 2], "{dropped:?}: {script}");
        let has_left = has_note(&report.verdict, "sh left 1 processes running: ");
        ensure!(has_left == (script == leaves), "{:?}", report.verdict);
    }
    Ok(AssertResult::pass())
}

/// Operations on payloads, each with its error, or with its outcome, detail and note.
#[ktstr_test(cores = 1, payloads = [SH, SLEEP])]
fn payload_operations_report_errors_and_verdicts(ctx: &Ctx) -> Result<AssertResult> {
    let sleep = || Op::run_payload(&SLEEP, "cg");
    let short = Duration::from_millis(300);
    for (ops, why) in [
        (vec![Op::run_payload(&SLEEP, "gc")], "unknown cgroup `gc`; this scenario created: cg"),
        (
            vec![Op::run_payload(&CAT, "cg")],
            "unknown program `cat` in this guest: add its payload to `payloads",
        ),
        (vec![sleep(), Op::wait_payload("sleep", short)], "failed to wait for sleep, up to 300ms"),
        (vec![sleep(), Op::wait_payload("sleep", short)], ") timed out: it has been running for "),
        (
            vec![sleep(), Op::wait_payload("slep", short)],
            "unknown payload `slep`; this scenario runs: sleep",
        ),
        (vec![Op::kill_payload("sleep")], "unknown payload `sleep`; this scenario runs: nothing"),
        (vec![sleep(), sleep()], "payload `sleep` already runs in cg"),
        (
            vec![sleep(), Op::add_cgroup("b"), Op::move_all_tasks("cg", "b")],
            "payloads cannot be moved",
        ),
    ] {
        let error = format!("{:#}", in_cg(ctx, ops).unwrap_err());
        ensure!(error.contains(why), "{error}");
    }
    let nothing = "this scenario has no workers, so nothing was checked";
    for (ops, outcome, detail, note) in [
        (
            vec![sleep(), Op::kill_payload("sleep")],
            Outcome::Inconclusive,
            nothing,
            "sleep was killed by the test",
        ),
        (vec![sleep()], Outcome::Inconclusive, nothing, "sleep was stopped at the end of step 0"),
        (
            vec![sleep(), Op::remove_cgroup("cg")],
            Outcome::Inconclusive,
            nothing,
            "sleep was stopped with cg",
        ),
        // In a frozen cgroup as well.
        (
            vec![sleep(), Op::freeze_cgroup("cg"), Op::kill_payload("sleep")],
            Outcome::Inconclusive,
            nothing,
            "sleep was killed by the test",
        ),
        (
            // It has a check that is inconclusive.
            vec![Op::run_payload(SH.with_args(["while :; do :; done"]), "cg")],
            Outcome::Inconclusive,
            nothing,
            "sh was stopped at the end of step 0",
        ),
        (
            vec![
                Op::run_payload(SH.with_args(["echo n=1"]).named("one"), "cg"),
                Op::run_payload(SH.with_args(["echo n=6; exit 3"]).named("two"), "cg"),
                Op::wait_payload("two", MINUTE),
                Op::wait_payload("one", MINUTE),
            ],
            Outcome::Fail,
            "exit status 3 (expected exit status 0); its last output: n=6, payload two, cgroup cg",
            "two: n = 6",
        ),
    ] {
        let verdict = in_cg(ctx, ops)?;
        ensure!(verdict.outcome == outcome && has_note(&verdict, note), "{note}: {verdict:?}");
        let details: Vec<_> = verdict.details.iter().map(ToString::to_string).collect();
        ensure!(details.iter().any(|text| text.contains(detail)), "{verdict:?}");
    }
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, payloads = [SH])]
fn payload_may_be_oom_killed_if_expected(ctx: &Ctx) -> Result<AssertResult> {
    let eats = || SH.with_args(["echo n=1; s=0123456789; while :; do s=$s$s; done"]);
    let cg = || CgroupDef::named("cg").memory_max(8 << 20).memory_swap_max(0).workload(eats());
    let play =
        |cg| execute_steps(ctx, [Step::new([Op::wait_payload("sh", MINUTE)], NOW).with_defs([cg])]);
    let verdict = play(cg())?;
    let details: Vec<_> = verdict.details.iter().map(ToString::to_string).collect();
    for text in ["no_oom_kill: ", "payload end: signal 9 (SIGKILL) (expected exit status 0)"] {
        ensure!(details.iter().any(|detail| detail.starts_with(text)), "{details:?}");
    }
    let verdict = play(cg().expect_oom_kill())?;
    ensure!(has_note(&verdict, "sh was killed as expected after"), "{verdict:?}");
    Ok(verdict)
}

/// Starting a process in a frozen cgroup would block the body until it is thawed.
#[ktstr_test(cores = 1, payloads = [SH], expect_err = "cgroup `cg` is frozen: thaw it before starting a payload in it")]
fn payload_cannot_start_in_a_frozen_cgroup(ctx: &Ctx) -> Result<AssertResult> {
    let run = Op::run_payload(SH.with_args(["exit 0"]), "cg");
    in_cg(ctx, [Op::freeze_cgroup("cg"), run])
}

#[ktstr_test(
    cores = 1,
    payloads = [SH],
    expect_err = "unknown program `/opt/new/sh` in this guest: add its payload to `payloads = [...]` of the \
                  test's attribute; this test has [\"sh\"]"
)]
fn payload_is_not_replaced_by_another_of_its_name(ctx: &Ctx) -> Result<AssertResult> {
    const OTHER: Payload = Payload::new("/opt/new/sh").args(&["-c", "exit 0"]);
    Ok(ctx.payload(&OTHER).run()?.verdict)
}

fn leave(ctx: &WorkerCtx) {
    ctx.record_iteration(1);
}

/// The same as in a hold.
#[ktstr_test(cores = 1, duration_s = 60, payloads = [SLEEP], expect_err = "worker exited early: exit status 0 ")]
fn wait_payload_ends_when_a_worker_exits(ctx: &Ctx) -> Result<AssertResult> {
    let began = std::time::Instant::now();
    let cg = CgroupDef::named("cg").work_type(WorkType::Custom(leave)).workload(&SLEEP);
    let step = Step::new([Op::wait_payload("sleep", MINUTE)], NOW).with_defs([cg]);
    let verdict = execute_steps(ctx, [step])?;
    ensure!(began.elapsed() < ctx.duration / 2, "the scenario took {:?}", began.elapsed());
    Ok(verdict)
}

/// A payload of the backdrop runs until the end of the scenario.
#[ktstr_test(cores = 1, payloads = [SLEEP])]
fn payload_of_the_backdrop_runs_through_all_steps(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = SnapshotBridge::default();
    let _guard = bridge.clone().set_thread_local();
    let cg = CgroupDef::named("cg").workers(1).comm("spin").workload(SLEEP.named("nap"));
    let capture = || Step::new([Op::capture_cgroup_procs("now", "cg")], NOW);
    let end = Step::new([Op::kill_payload("nap"), Op::capture_cgroup_procs("end", "cg")], NOW);
    let verdict =
        execute_scenario(ctx, Backdrop::new().push_cgroup(cg), [capture(), capture(), end])?;
    let captures = bridge.drain_cgroup_procs();
    let comms = |capture: &CgroupProcsSnapshot| -> Vec<_> {
        capture.procs.iter().map(|process| process.comm.clone()).collect()
    };
    let comms: Vec<_> = captures.iter().map(comms).collect();
    ensure!(comms == [vec!["spin", "sleep"], vec!["spin", "sleep"], vec!["spin"]], "{comms:?}");
    Ok(verdict)
}

#[ktstr_test(cores = 1, payloads = [SH], expect_err = regex(r"^payload metric: n = 6 \(limit 5\), payload sh, cgroup cg$"))]
fn payload_check_fails_the_test(ctx: &Ctx) -> Result<AssertResult> {
    let run = Op::run_payload(SH.with_args(["echo n=6"]), "cg");
    in_cg(ctx, [run, Op::wait_payload("sh", MINUTE)])
}

#[ktstr_test(cores = 1, payloads = [SLEEP], expect_err = "unknown cgroup `nowhere`; existing cgroups: [\"a\", \"a/b\"]")]
fn payload_call_lists_cgroups_if_one_is_unknown(ctx: &Ctx) -> Result<AssertResult> {
    let mut group = CgroupGroup::new(ctx.cgroups);
    group.add_cgroup_no_cpuset("a")?;
    group.add_cgroup_no_cpuset("a/b")?;
    Ok(ctx.payload(&SLEEP).in_cgroup("nowhere").run()?.verdict)
}
