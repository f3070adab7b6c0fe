//! Checks on real workers and cgroups: each fails when its event occurs, and not otherwise.
//!
//! The message of an expected failure is the `expect_err`, so that another failure fails the test.
//! Time-based checks are judged in the body, because the host does not judge them on emulated CPUs and
//! excuses them on a busy machine. Their limits are far from what is measured.

use std::time::Duration;

use ktstr::assert::{Limit, Measurement, Scope};
use ktstr::cgroup::{CgroupManager, Error};
use ktstr::prelude::*;
use rustix::process::{Pid, WaitOptions};
use rustix::thread::{CpuSet, sched_setaffinity};

const MIB: u64 = 1 << 20;

/// Returns a bridge that changes cgroups when a capture is taken, without the knowledge of the scenario.
/// `act` is called with the tag of the capture.
fn behind_its_back(
    ctx: &Ctx,
    act: impl Fn(&CgroupManager, &str) -> Result<(), Error> + Send + Sync + 'static,
) -> SnapshotBridge {
    let parent = ctx.cgroups.parent_path().to_owned();
    let act = move |tag: &str| act(&CgroupManager::new(&parent), tag);
    SnapshotBridge::default()
        .on_cgroup_procs(move |capture| act(&capture.tag).expect("the knob can be set"))
}

/// Returns a bridge that freezes `cg` at a capture with the tag "freeze", and thaws it at any other.
fn freezing(ctx: &Ctx) -> SnapshotBridge {
    behind_its_back(ctx, |cgroups, tag| cgroups.set_freeze("cg", tag == "freeze"))
}

fn capture(tag: &str) -> Op {
    Op::capture_cgroup_procs(tag, "cg")
}

/// Runs the cgroups for the duration of the test, with a capture of `cg` at its start.
fn play(ctx: &Ctx, defs: impl IntoIterator<Item = CgroupDef>) -> Result<AssertResult> {
    execute_steps(ctx, [Step::new([capture("now")], HoldSpec::FULL).with_defs(defs)])
}

fn cg() -> CgroupDef {
    CgroupDef::named("cg").workers(1)
}

fn hold(ms: u64) -> HoldSpec {
    HoldSpec::fixed(Duration::from_millis(ms))
}

fn has_note(verdict: &AssertResult, text: &str) -> bool {
    verdict.notes.iter().any(|note| note.to_string().contains(text))
}

/// Expects time-based failures of one check.
fn fires(verdict: &AssertResult, check: DetailKind) -> Result<AssertResult> {
    ensure!(verdict.failure_details().count() > 0, "{verdict:?}");
    let is_it = |detail: &AssertDetail| detail.time_based && detail.kind == check;
    ensure!(verdict.failure_details().all(is_it), "{verdict:?}");
    Ok(AssertResult::pass())
}

/// Expects a pass, including time-based checks.
fn is_quiet(verdict: AssertResult) -> Result<AssertResult> {
    ensure!(verdict.is_pass(), "{verdict:?}");
    Ok(verdict)
}

/// Spawns a worker into a frozen cgroup, which is thawed after `frozen` for the time of `thawed`.
fn start_frozen(ctx: &Ctx, frozen: HoldSpec, thawed: Option<HoldSpec>) -> Result<AssertResult> {
    let bridge = freezing(ctx);
    let _guard = bridge.set_thread_local();
    let spawn = Op::spawn(SpawnPlacement::cgroup("cg"), WorkSpec::default());
    let backdrop = [Op::add_cgroup("cg"), capture("freeze"), spawn];
    let backdrop = backdrop.into_iter().fold(Backdrop::new(), Backdrop::push_op);
    let thawed = thawed.map(|hold| Step::new([capture("thaw")], hold));
    let steps = [Step::new([], frozen)].into_iter().chain(thawed);
    execute_scenario(ctx, backdrop, steps.collect::<Vec<_>>())
}

#[ktstr_test(cores = 1, duration_s = 6, expect_err = regex("^not_stuck: .*no iteration completed"))]
fn not_stuck_fails_for_a_frozen_worker(ctx: &Ctx) -> Result<AssertResult> {
    start_frozen(ctx, HoldSpec::FULL, None)
}

#[ktstr_test(cores = 1, duration_s = 6)]
fn not_stuck_passes_after_a_thaw(ctx: &Ctx) -> Result<AssertResult> {
    let verdict = start_frozen(ctx, HoldSpec::FULL, Some(hold(2000)))?;
    ensure!(!has_note(&verdict, "completed no iteration"), "{verdict:?}");
    Ok(verdict)
}

#[ktstr_test(cores = 1, duration_s = 1)]
fn not_stuck_is_inconclusive_in_a_short_time(ctx: &Ctx) -> Result<AssertResult> {
    let verdict = start_frozen(ctx, HoldSpec::FULL, None)?;
    ensure!(has_note(&verdict, "too short to judge"), "{verdict:?}");
    ensure!(verdict.outcome == Outcome::Inconclusive, "{verdict:?}");
    Ok(AssertResult::pass())
}

/// Runs a cgroup that works, is frozen for a while, and works again.
fn interrupted(ctx: &Ctx, frozen: HoldSpec) -> Result<AssertResult> {
    let bridge = freezing(ctx);
    let _guard = bridge.set_thread_local();
    let backdrop = Backdrop::new().push_cgroup(cg().comm("spin"));
    let steps = [
        Step::new([], hold(500)),
        Step::new([capture("freeze")], frozen),
        Step::new([capture("thaw")], hold(1000)),
    ];
    execute_scenario(ctx, backdrop, steps)
}

#[ktstr_test(cores = 1, max_gap_ms = 1000)]
fn gap_fails_for_a_frozen_cgroup(ctx: &Ctx) -> Result<AssertResult> {
    fires(&interrupted(ctx, hold(1500))?, DetailKind::Gap)
}

#[ktstr_test(cores = 1, max_gap_ms = 10_000)]
fn gap_passes_within_the_limit(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(interrupted(ctx, hold(100))?)
}

/// A freeze by the scenario is not a failure of the worker.
#[ktstr_test(cores = 1, duration_s = 3, max_gap_ms = 1000)]
fn gap_is_inconclusive_after_a_requested_freeze(ctx: &Ctx) -> Result<AssertResult> {
    let backdrop = Backdrop::new().push_cgroup(cg());
    let step = Step::new([Op::freeze_cgroup("cg")], HoldSpec::FULL);
    let thawed = Step::new([Op::unfreeze_cgroup("cg")], hold(500));
    let verdict = execute_scenario(ctx, backdrop, [step, thawed])?;
    ensure!(verdict.outcome == Outcome::Inconclusive, "{verdict:?}");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, duration_s = 3, max_gap_ms = 1000)]
fn gap_is_inconclusive_after_a_move_into_a_frozen_cgroup(ctx: &Ctx) -> Result<AssertResult> {
    let backdrop = Backdrop::new().push_cgroup(cg()).push_op(Op::add_cgroup("cold"));
    let backdrop = backdrop.push_op(Op::freeze_cgroup("cold"));
    let moved = Step::new([Op::move_all_tasks("cg", "cold")], HoldSpec::FULL);
    let verdict = execute_scenario(ctx, backdrop, [Step::new([], hold(300)), moved])?;
    ensure!(verdict.outcome == Outcome::Inconclusive, "{verdict:?}");
    Ok(AssertResult::pass())
}

fn idle(_: &WorkerCtx) {
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

/// Only the frozen time itself is excused.
#[ktstr_test(
    cores = 1,
    duration_s = 5,
    expect_err = regex("^not_stuck: .*no iteration completed; .*; not counting .* while frozen")
)]
fn not_stuck_fails_without_an_iteration_after_the_thaw(ctx: &Ctx) -> Result<AssertResult> {
    let idle = WorkSpec::default().work_type(WorkType::Custom(idle));
    let spawn = Op::spawn(SpawnPlacement::cgroup("cg"), idle);
    let backdrop = [Op::add_cgroup("cg"), Op::freeze_cgroup("cg"), spawn];
    let backdrop = backdrop.into_iter().fold(Backdrop::new(), Backdrop::push_op);
    let thawed = Step::new([Op::unfreeze_cgroup("cg")], HoldSpec::FULL);
    execute_scenario(ctx, backdrop, [Step::new([], hold(200)), thawed])
}

#[ktstr_test(
    cores = 1,
    duration_s = 15,
    expect_err = regex(r"^not_stuck: [\d.]+ s \(limit 10 s\), worker .*, CPU 0, at ")
)]
fn not_stuck_fails_for_a_later_stall(ctx: &Ctx) -> Result<AssertResult> {
    interrupted(ctx, HoldSpec::FULL)
}

/// A realtime task starves the other tasks of its CPU, which then cannot even exit.
#[ktstr_test(
    cores = 2,
    duration_s = 3,
    expect_err = regex("(?s)has not ended 10s after SIGKILL: it gets no CPU.*not_stuck: ")
)]
fn not_stuck_failures_are_part_of_a_teardown_error(ctx: &Ctx) -> Result<AssertResult> {
    let [hog, starved] = starved_on_cpu_1()?;
    let backdrop = Backdrop::new().push_cgroup(hog.sched_policy(SchedPolicy::Fifo(1)));
    let starved = Step::new([], HoldSpec::FULL).with_defs([starved]);
    execute_scenario(ctx, backdrop, [starved])
}

/// Returns `hog` and `starved` with one worker each on CPU 1, where realtime tasks starve fair ones. This
/// thread, and workers until their release, stay on CPU 0.
fn starved_on_cpu_1() -> Result<[CgroupDef; 2]> {
    leave_nothing_to_fair_tasks()?;
    let mut cpus = CpuSet::new();
    cpus.set(0);
    sched_setaffinity(None, &cpus)?;
    Ok(["hog", "starved"].map(|name| {
        let def = CgroupDef::named(name).workers(1).comm(name);
        def.affinity(AffinityIntent::Exact([1].into()))
    }))
}

/// Lets realtime tasks use CPUs without limit.
fn leave_nothing_to_fair_tasks() -> Result<()> {
    std::fs::write("/proc/sys/kernel/sched_rt_runtime_us", "-1")?;
    // The server of fair tasks, since Linux 6.12.
    for cpu in std::fs::read_dir("/sys/kernel/debug/sched/fair_server").into_iter().flatten() {
        std::fs::write(cpu?.path().join("runtime"), "0")?;
    }
    Ok(())
}

/// The load never yields the only CPU. The thread of the scenario still runs and writes to cgroupfs;
/// afterwards, the body is an ordinary task again.
#[ktstr_test(cores = 1, duration_s = 1)]
fn scenario_is_not_delayed_by_its_load(ctx: &Ctx) -> Result<AssertResult> {
    leave_nothing_to_fair_tasks()?;
    let hog = cg().sched_policy(SchedPolicy::Fifo(98));
    let weigh = Op::set_knob("cg", CgroupKnob::CpuWeight(200));
    let again = HoldSpec::loop_at(Duration::from_millis(100));
    let verdict = execute_steps(ctx, [Step::new([weigh], again).with_defs([hog])])?;
    // Not libc's function, which is a stub in musl.
    // SAFETY: it takes a number and accesses no memory.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
    ensure!(policy == i64::from(libc::SCHED_OTHER));
    Ok(verdict)
}

/// Expects one failure of `not_stuck`, of a worker with this name. Returns whether steal time may
/// explain it.
fn is_stuck(verdict: &AssertResult, worker: &str) -> Result<bool> {
    let [detail] = &verdict.details[..] else { bail!("{verdict:?}") };
    ensure!(detail.outcome == Outcome::Fail, "{verdict:?}");
    ensure!(detail.kind == DetailKind::WorkerStuck && !detail.time_based, "{verdict:?}");
    let is_it = matches!(&detail.scope, Scope::Worker { comm, .. } if comm == worker);
    ensure!(is_it, "{verdict:?}");
    Ok(detail.explained_by.is_some())
}

fn compute_without_end(ctx: &WorkerCtx) {
    loop {
        ctx.compute();
    }
}

#[ktstr_test(cores = 1, duration_s = 3)]
fn not_stuck_fails_for_a_worker_that_only_computes(ctx: &Ctx) -> Result<AssertResult> {
    let endless = cg().comm("endless").work_type(WorkType::Custom(compute_without_end));
    ensure!(is_stuck(&play(ctx, [endless])?, "endless")?);
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, duration_s = 3)]
fn not_stuck_is_not_explained_by_steal_time_for_a_sleeper(ctx: &Ctx) -> Result<AssertResult> {
    let idle = cg().comm("idle").work_type(WorkType::Custom(idle));
    ensure!(!is_stuck(&play(ctx, [idle])?, "idle")?);
    Ok(AssertResult::pass())
}

/// The worst that a scheduler can do to a runnable task.
#[ktstr_test(cores = 2, duration_s = 3)]
fn not_stuck_fails_for_a_runnable_worker_without_a_cpu(ctx: &Ctx) -> Result<AssertResult> {
    let [hog, starved] = starved_on_cpu_1()?;
    let hog = hog.sched_policy(SchedPolicy::Fifo(1));
    ensure!(is_stuck(&execute_defs(ctx, [hog, starved])?, "starved")?);
    Ok(AssertResult::pass())
}

/// A fair scheduler gives the worker less than a thousandth of the CPU.
#[ktstr_test(cores = 1, duration_s = 4)]
fn not_stuck_passes_for_sched_idle_with_busy_workers(ctx: &Ctx) -> Result<AssertResult> {
    let idle = WorkSpec::default().workers(1).comm("idle").policy(SchedPolicy::Idle);
    let verdict = play(ctx, [cg().workers(8).comm("busy").work(idle)])?;
    ensure!(verdict.outcome == Outcome::Pass, "{verdict:?}");
    Ok(verdict)
}

/// The quota gives each worker less than one iteration during the test.
#[ktstr_test(cores = 1, duration_s = 4)]
fn not_stuck_passes_with_a_small_quota(ctx: &Ctx) -> Result<AssertResult> {
    let verdict = play(ctx, [cg().workers(33).cpu_quota_pct(1)])?;
    ensure!(verdict.outcome != Outcome::Fail, "{verdict:?}");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, max_gap_ms = 1000)]
fn gap_detail_has_value_limit_worker_cpu_and_time(ctx: &Ctx) -> Result<AssertResult> {
    let verdict = interrupted(ctx, hold(1500))?;
    let [detail] = &verdict.details[..] else { bail!("{verdict:?}") };
    ensure!(detail.kind == DetailKind::Gap && detail.outcome == Outcome::Fail, "{verdict:?}");
    let measured = detail.measured.as_ref().context("no value")?;
    ensure!(measured.value >= 1500.0 && measured.unit == "ms", "{measured:?}");
    ensure!(detail.limit == Some(Limit::AtMost(1000.0)), "{detail:?}");
    let Scope::Worker { pid, comm, cgroup } = &detail.scope else { bail!("{detail:?}") };
    ensure!(*pid > 1 && comm == "spin" && cgroup == "cg", "{detail:?}");
    ensure!(detail.cpu == Some(0) && detail.at_ns > Some(2_000_000_000), "{detail:?}");
    let measured = measured.clone().limit(detail.limit);
    ensure!(verdict.measurements.contains(&measured), "{verdict:?}");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, duration_s = 1, post_vm = has_measurements)]
fn measurements_reach_the_host_without_limits(ctx: &Ctx) -> Result<AssertResult> {
    play(ctx, [cg()])
}

fn has_measurements(result: &VmResult) -> Result<()> {
    for name in ["gap", "iteration_rate", "work_rate", "migration_ratio", "cpu_pressure"] {
        let is_it = |measured: &&Measurement| {
            measured.name == name && measured.scope.cgroup() == Some("cg")
        };
        let count = result.measurements.iter().filter(is_it).count();
        ensure!(count == 1, "{name}: {count} in {:?}", result.measurements);
    }
    Ok(())
}

#[ktstr_test(cores = 1, duration_s = 1, expect_err = "the disk is gone", post_vm = has_claim)]
fn measurements_reach_the_host_before_an_error(ctx: &Ctx) -> Result<AssertResult> {
    let mut verdict = play(ctx, [cg()])?;
    claim!(verdict, verdict.measurements.len()).at_least(1);
    bail!("the disk is gone")
}

fn has_claim(result: &VmResult) -> Result<()> {
    let claims = result.measurements.iter().filter(|measured| measured.scope == Scope::Claim);
    ensure!(claims.count() == 1, "{:?}", result.measurements);
    has_measurements(result)
}

/// Two equal workers on a CPU each, one of which also has a realtime task.
#[ktstr_test(cores = 2, duration_s = 4, max_spread_pct = 50.0)]
fn spread_fails_for_a_starved_worker(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = SnapshotBridge::default().on_cgroup_procs(|capture| {
        for (cpu, pid) in capture.pids.iter().enumerate() {
            let mut cpus = CpuSet::new();
            cpus.set(cpu);
            sched_setaffinity(Pid::from_raw(*pid), &cpus).expect("the worker is there");
        }
    });
    let _guard = bridge.set_thread_local();
    let hog = CgroupDef::named("hog").sched_policy(SchedPolicy::Fifo(1));
    let hog = hog.affinity(AffinityIntent::Exact([0].into()));
    fires(&play(ctx, [cg().workers(2), hog])?, DetailKind::Spread)
}

/// A realtime task spins, and its partner on the same CPU gets the time that the kernel reserves.
#[ktstr_test(cores = 1, duration_s = 4, max_gap_ms = 300)]
fn gap_fails_for_a_starved_worker(ctx: &Ctx) -> Result<AssertResult> {
    fires(&play(ctx, [cg().work_type(WorkType::RtStarvation).workers(2)])?, DetailKind::Gap)
}

#[ktstr_test(cores = 1, duration_s = 3, max_spread_pct = 50.0, max_gap_ms = 2000)]
fn spread_passes_for_fair_workers(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(play(ctx, [cg().workers(2)])?)
}

fn on_cpu_0() -> CgroupDef {
    cg().cpuset(CpusetSpec::exact([0]))
}

#[ktstr_test(cores = 2, duration_s = 2, expect_err = "isolation: ran on CPUs ")]
fn isolation_fails_outside_of_the_cpuset(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = behind_its_back(ctx, |cgroups, _| cgroups.set_cpuset("cg", &[1].into()));
    let _guard = bridge.set_thread_local();
    play(ctx, [on_cpu_0()])
}

#[ktstr_test(cores = 2, duration_s = 2, isolation = false)]
fn isolation_can_be_disabled(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = behind_its_back(ctx, |cgroups, _| cgroups.set_cpuset("cg", &[1].into()));
    let _guard = bridge.set_thread_local();
    play(ctx, [on_cpu_0()])
}

/// Returns a bridge that keeps `cg` on one CPU, whatever the scenario requests.
fn kept_on(ctx: &Ctx, cpu: usize) -> SnapshotBridge {
    behind_its_back(ctx, move |cgroups, _| cgroups.set_cpuset("cg", &[cpu].into()))
}

fn set_cpuset(cpu: usize) -> Op {
    Op::set_cpuset("cg", CpusetSpec::exact([cpu]))
}

#[ktstr_test(
    cores = 2,
    duration_s = 2,
    expect_err = regex(r"^isolation: ran on CPUs 0(-1)? \(cpuset 1\), .* CPU 0")
)]
fn isolation_fails_after_a_change_of_the_cpuset(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = kept_on(ctx, 0);
    let _guard = bridge.set_thread_local();
    let backdrop = Backdrop::new().push_cgroup(on_cpu_0());
    let ignored = Step::new([set_cpuset(1), capture("now")], HoldSpec::FULL);
    execute_scenario(ctx, backdrop, [Step::new([], hold(300)), ignored])
}

#[ktstr_test(cores = 2, duration_s = 2, expect_err = "isolation: ran on CPUs ")]
fn isolation_fails_outside_of_a_later_cpuset(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = kept_on(ctx, 1);
    let _guard = bridge.set_thread_local();
    let confined = Step::new([set_cpuset(0), capture("now")], HoldSpec::FULL);
    execute_scenario(ctx, Backdrop::new().push_cgroup(cg()), [confined])
}

/// Both CPUs are busy all the time, so that a worker with a late cpuset would be seen outside of it.
#[ktstr_test(cores = 2, duration_s = 2)]
fn isolation_passes_while_cpusets_change(ctx: &Ctx) -> Result<AssertResult> {
    let other = CgroupDef::named("other").cpuset(CpusetSpec::exact([1])).workers(2);
    let backdrop = Backdrop::new().push_cgroup(on_cpu_0().workers(2)).push_cgroup(other);
    let swaps = (0..10).map(|_| Step::new([Op::swap_cpusets("cg", "other")], hold(20)));
    let moves = [("cg", "other"), ("other", "cg")];
    let moves = moves.map(|(from, to)| Step::new([Op::move_all_tasks(from, to)], hold(100)));
    execute_scenario(ctx, backdrop, swaps.chain(moves).collect::<Vec<_>>())
}

/// The kernel lets the tasks of an empty cpuset run elsewhere until a CPU of it is online again.
#[ktstr_test(cores = 2, duration_s = 1)]
fn isolation_passes_while_the_cpuset_is_offline(ctx: &Ctx) -> Result<AssertResult> {
    let backdrop = Backdrop::new().push_cgroup(cg().cpuset(CpusetSpec::exact([1])));
    let switch = |online| Step::new([Op::hotplug_cpu(1, online)], hold(300));
    let steps = [switch(false), switch(true), Step::new([set_cpuset(0)], hold(300))];
    execute_scenario(ctx, backdrop, steps)
}

#[ktstr_test(cores = 2, duration_s = 1)]
fn isolation_passes_with_a_new_cpuset(ctx: &Ctx) -> Result<AssertResult> {
    let backdrop = Backdrop::new().push_cgroup(on_cpu_0());
    let step = |cpu| Step::new([Op::set_cpuset("cg", CpusetSpec::exact([cpu]))], HoldSpec::FULL);
    execute_scenario(ctx, backdrop, [step(0), step(1)])
}

/// Allocates 64 MiB in pieces of 1 MiB, and keeps them.
fn eat(ctx: &WorkerCtx) {
    let mut eaten = Vec::new();
    loop {
        if eaten.len() < 64 {
            eaten.push(vec![1_u8; MIB as usize]);
        }
        std::hint::black_box(&eaten);
        ctx.spin();
        ctx.record_iteration(1);
    }
}

fn eater(limit: u64) -> CgroupDef {
    let def = CgroupDef::named("cg").comm("eater").work_type(WorkType::Custom(eat));
    def.memory_max(limit).memory_swap_max(0)
}

#[ktstr_test(
    cores = 1,
    memory_mib = 512,
    duration_s = 10,
    expect_err = "no_oom_kill: 1 kills (limit 0 kills), cgroup cg"
)]
fn oom_kill_fails_the_test(ctx: &Ctx) -> Result<AssertResult> {
    play(ctx, [eater(16 * MIB)])
}

#[ktstr_test(cores = 1, memory_mib = 512, duration_s = 2)]
fn oom_kill_does_not_occur_with_enough_memory(ctx: &Ctx) -> Result<AssertResult> {
    play(ctx, [eater(256 * MIB)])
}

#[ktstr_test(
    cores = 1,
    memory_mib = 512,
    duration_s = 2,
    expect_err = "no_oom_kill: 0 kills (minimum 1 kills), cgroup cg"
)]
fn oom_kill_must_occur_if_expected(ctx: &Ctx) -> Result<AssertResult> {
    play(ctx, [eater(256 * MIB).expect_oom_kill()])
}

#[ktstr_test(cores = 1, memory_mib = 512, duration_s = 5)]
fn oom_kill_that_is_expected_leaves_other_workers_running(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = SnapshotBridge::default();
    let _guard = bridge.clone().set_thread_local();
    let backdrop = Backdrop::new()
        .push_cgroup(eater(16 * MIB).expect_oom_kill())
        .push_cgroup(CgroupDef::named("other").workers(1));
    let captures = ["cg", "other"].map(|cgroup| Op::capture_cgroup_procs("after the kill", cgroup));
    let steps = [Step::new([], HoldSpec::FULL), Step::new(captures, hold(100))];
    let verdict = execute_scenario(ctx, backdrop, steps)?;
    let left: Vec<_> =
        bridge.drain_cgroup_procs().iter().map(|capture| capture.procs.len()).collect();
    ensure!(left == [0, 1], "{left:?}");
    ensure!(has_note(&verdict, "(eater) in cg was killed as expected"), "{verdict:?}");
    Ok(verdict)
}

/// Ends by a signal that the OOM killer does not send.
fn abort(_: &WorkerCtx) {
    std::process::abort()
}

#[ktstr_test(
    cores = 1,
    duration_s = 60,
    expect_err = "worker exited early: signal 6 (SIGABRT) (expected to run until stopped), worker "
)]
fn worker_killed_by_a_signal_ends_the_scenario(ctx: &Ctx) -> Result<AssertResult> {
    let began = std::time::Instant::now();
    let doomed = WorkSpec::default().comm("doomed").work_type(WorkType::Custom(abort));
    // Also in a cgroup in which an OOM kill is expected.
    let verdict = play(ctx, [cg().work(doomed).comm("spin").expect_oom_kill()])?;
    ensure!(began.elapsed() < ctx.duration / 2, "the scenario took {:?}", began.elapsed());
    Ok(verdict)
}

fn leave(ctx: &WorkerCtx) {
    ctx.record_iteration(1);
}

#[ktstr_test(
    cores = 1,
    duration_s = 60,
    expect_err = "worker exited early: exit status 0 (expected to run until stopped), worker "
)]
fn worker_that_exits_fails_the_test(ctx: &Ctx) -> Result<AssertResult> {
    play(ctx, [cg().work_type(WorkType::Custom(leave))])
}

#[ktstr_test(cores = 1, duration_s = 2, max_throttled_pct = 20.0)]
fn throttled_fails_beyond_the_quota(ctx: &Ctx) -> Result<AssertResult> {
    fires(&play(ctx, [cg().cpu_quota_pct(10)])?, DetailKind::Throttled)
}

#[ktstr_test(cores = 1, duration_s = 2, max_throttled_pct = 20.0, max_quota_error_pct = 100.0)]
fn throttled_passes_within_the_quota(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(play(ctx, [cg().cpu_quota_pct(300)])?)
}

#[ktstr_test(cores = 1, duration_s = 2, max_quota_error_pct = 100.0)]
fn quota_error_fails_if_the_quota_is_not_enforced(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = behind_its_back(ctx, |cgroups, _| cgroups.set_cpu_max("cg", None, 100_000));
    let _guard = bridge.set_thread_local();
    fires(&play(ctx, [cg().cpu_quota_pct(10)])?, DetailKind::Quota)
}

#[ktstr_test(cores = 1, duration_s = 2, max_quota_error_pct = 40.0)]
fn quota_error_fails_if_the_quota_is_withheld(ctx: &Ctx) -> Result<AssertResult> {
    let withhold =
        |cgroups: &CgroupManager, _: &str| cgroups.set_cpu_max("cg", Some(10_000), 100_000);
    let bridge = behind_its_back(ctx, withhold);
    let _guard = bridge.set_thread_local();
    fires(&play(ctx, [cg().cpu_quota_pct(80)])?, DetailKind::Quota)
}

#[ktstr_test(cores = 1, duration_s = 2, max_quota_error_pct = 100.0)]
fn quota_error_passes_if_the_quota_is_enforced(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(play(ctx, [cg().cpu_quota_pct(30)])?)
}

fn unequal() -> [CgroupDef; 2] {
    [cg().cpu_weight(900), CgroupDef::named("light").workers(1).cpu_weight(100)]
}

#[ktstr_test(cores = 1, duration_s = 4, max_weight_error_pct = 20.0)]
fn weight_error_fails_with_another_weight(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = behind_its_back(ctx, |cgroups, _| cgroups.set_cpu_weight("cg", 100));
    let _guard = bridge.set_thread_local();
    fires(&play(ctx, unequal())?, DetailKind::Weight)
}

#[ktstr_test(cores = 1, duration_s = 4, max_weight_error_pct = 60.0)]
fn weight_error_passes_with_the_requested_weight(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(play(ctx, unequal())?)
}

fn sweep() -> CgroupDef {
    cg().work_type(WorkType::NumaSweep)
}

#[ktstr_test(
    numa_nodes = 2,
    llcs = 2,
    cores = 1,
    memory_mib = 512,
    duration_s = 2,
    min_page_locality = 0.9,
    expect_err = "min_page_locality: "
)]
fn page_locality_fails_for_remote_pages(ctx: &Ctx) -> Result<AssertResult> {
    play(ctx, [sweep().cpuset(CpusetSpec::numa(0))])
}

#[ktstr_test(
    numa_nodes = 2,
    llcs = 2,
    cores = 1,
    memory_mib = 512,
    duration_s = 2,
    min_page_locality = 0.9
)]
fn page_locality_passes_with_all_cpus(ctx: &Ctx) -> Result<AssertResult> {
    play(ctx, [sweep()])
}

#[ktstr_test(cores = 2, duration_s = 1, max_migration_ratio = 0.5)]
fn migration_ratio_fails_for_frequent_migrations(ctx: &Ctx) -> Result<AssertResult> {
    fires(&play(ctx, [cg().work_type(WorkType::AffinityChurn)])?, DetailKind::MigrationRatio)
}

#[ktstr_test(cores = 2, duration_s = 1, max_migration_ratio = 0.0)]
fn migration_ratio_passes_for_a_pinned_worker(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(play(ctx, [cg().affinity(AffinityIntent::SingleCpu)])?)
}

#[ktstr_test(cores = 1, duration_s = 2, max_cpu_pressure_pct = 40.0)]
fn cpu_pressure_fails_for_waiting_workers(ctx: &Ctx) -> Result<AssertResult> {
    fires(&play(ctx, [cg().workers(4)])?, DetailKind::CpuPressure)
}

#[ktstr_test(cores = 1, duration_s = 2, max_cpu_pressure_pct = 80.0)]
fn cpu_pressure_passes_for_a_single_worker(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(play(ctx, [cg()])?)
}

/// Does ten times as much work per iteration if the pid is odd.
fn uneven(ctx: &WorkerCtx) {
    loop {
        let bursts = if std::process::id().is_multiple_of(2) { 1 } else { 10 };
        (0..bursts).for_each(|_| ctx.compute());
        ctx.record_iteration(1);
    }
}

#[ktstr_test(cores = 1, duration_s = 2, max_throughput_cv = 0.3)]
fn throughput_cv_fails_for_unequal_speed(ctx: &Ctx) -> Result<AssertResult> {
    let four = cg().workers(4).work_type(WorkType::Custom(uneven));
    fires(&play(ctx, [four])?, DetailKind::ThroughputCv)
}

#[ktstr_test(cores = 1, duration_s = 2, max_throughput_cv = 0.3)]
fn throughput_cv_passes_for_equal_work(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(play(ctx, [cg().workers(4).work_type(WorkType::AluHot)])?)
}

/// A burst takes at least 5 us, and the quota is a fiftieth of the CPU.
#[ktstr_test(cores = 1, duration_s = 2, min_iteration_rate = 20_000, not_stuck = false)]
fn iteration_rate_fails_with_a_small_quota(ctx: &Ctx) -> Result<AssertResult> {
    fires(&play(ctx, [cg().cpu_quota_pct(2)])?, DetailKind::IterationRate)
}

#[ktstr_test(cores = 1, duration_s = 2, min_iteration_rate = 10, min_work_rate = 100)]
fn iteration_rate_passes_without_a_quota(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(play(ctx, [cg()])?)
}

/// Does a hundred bursts per work unit.
fn slow(ctx: &WorkerCtx) {
    loop {
        (0..100).for_each(|_| ctx.compute());
        ctx.record_iteration(1);
    }
}

#[ktstr_test(cores = 1, duration_s = 2, min_work_rate = 20_000)]
fn work_rate_fails_for_slow_work(ctx: &Ctx) -> Result<AssertResult> {
    fires(&play(ctx, [cg().work_type(WorkType::Custom(slow))])?, DetailKind::WorkRate)
}

fn doze(ctx: &WorkerCtx) {
    loop {
        ctx.sleep(Duration::from_millis(10));
        ctx.record_iteration(1);
    }
}

/// Runs a sleeper that is frozen every other tenth of a second.
fn interrupted_sleeper(ctx: &Ctx) -> Result<AssertResult> {
    let captures = std::sync::atomic::AtomicU32::new(0);
    let toggle = move |cgroups: &CgroupManager, _: &str| {
        let count = captures.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        cgroups.set_freeze("cg", count.is_multiple_of(2))
    };
    let bridge = behind_its_back(ctx, toggle);
    let _guard = bridge.set_thread_local();
    let backdrop = Backdrop::new().push_cgroup(cg().work_type(WorkType::Custom(doze)));
    let step = Step::new([capture("again")], HoldSpec::loop_at(Duration::from_millis(100)));
    execute_scenario(ctx, backdrop, [step])
}

#[ktstr_test(cores = 1, duration_s = 6, max_p99_wake_latency_ns = 20_000_000)]
fn p99_wake_latency_fails_for_late_wake_ups(ctx: &Ctx) -> Result<AssertResult> {
    fires(&interrupted_sleeper(ctx)?, DetailKind::WakeLatency)
}

#[ktstr_test(cores = 1, duration_s = 6, max_wake_latency_cv = 0.5)]
fn wake_latency_cv_fails_for_uneven_wake_ups(ctx: &Ctx) -> Result<AssertResult> {
    fires(&interrupted_sleeper(ctx)?, DetailKind::WakeLatencyCv)
}

#[ktstr_test(
    cores = 1,
    duration_s = 2,
    max_p99_wake_latency_ns = 500_000_000,
    max_wake_latency_cv = 50,
    max_memory_pressure_pct = 50,
    max_io_pressure_pct = 50
)]
fn wake_latency_passes_for_a_single_sleeper(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(play(ctx, [cg().work_type(WorkType::TimerLatency)])?)
}

/// The worker touches more memory than its cgroup may have without throttling.
#[ktstr_test(cores = 1, memory_mib = 512, duration_s = 3, max_memory_pressure_pct = 1)]
fn memory_pressure_fails_beyond_memory_high(ctx: &Ctx) -> Result<AssertResult> {
    let def = CgroupDef::named("cg").comm("eater").work_type(WorkType::Custom(eat));
    fires(&play(ctx, [def.memory_high(16 * MIB)])?, DetailKind::MemoryPressure)
}

/// Expects an inconclusive verdict for cgroups that do not share a CPU by their weights alone.
fn weights_are_inconclusive(ctx: &Ctx, defs: Vec<CgroupDef>, why: &str) -> Result<AssertResult> {
    let verdict = play(ctx, defs)?;
    ensure!(verdict.outcome == Outcome::Inconclusive, "{verdict:?}");
    ensure!(verdict.details.iter().all(|detail| detail.to_string().contains(why)), "{verdict:?}");
    Ok(AssertResult::pass())
}

fn weighed(name: &str, weight: u32) -> CgroupDef {
    CgroupDef::named(name).cpu_weight(weight)
}

#[ktstr_test(cores = 2, duration_s = 1, max_weight_error_pct = 20.0)]
fn weight_error_is_inconclusive_for_pinned_workers(ctx: &Ctx) -> Result<AssertResult> {
    let on = |def: CgroupDef, cpu| def.workers(2).affinity(AffinityIntent::Exact([cpu].into()));
    let defs = vec![on(weighed("cg", 300), 0), on(weighed("b", 100), 1)];
    weights_are_inconclusive(ctx, defs, "pinned")
}

#[ktstr_test(cores = 1, duration_s = 1, max_weight_error_pct = 50.0)]
fn weight_error_is_inconclusive_for_realtime_tasks(ctx: &Ctx) -> Result<AssertResult> {
    let realtime = weighed("rt", 100).workers(1).sched_policy(SchedPolicy::Fifo(1));
    weights_are_inconclusive(ctx, vec![realtime, weighed("cg", 100).workers(1)], "not fair tasks")
}

#[ktstr_test(cores = 1, duration_s = 2, max_weight_error_pct = 30.0)]
fn weight_error_is_inconclusive_with_a_quota_in_a_descendant(ctx: &Ctx) -> Result<AssertResult> {
    let limited = CgroupDef::named("outer/x").cpu_quota_pct(20).workers(1);
    let defs = vec![weighed("outer", 100), limited, weighed("cg", 100).workers(1)];
    weights_are_inconclusive(ctx, defs, "fewer than two")
}

/// Starts a child that allocates all memory, and exits after it.
fn feeds_a_child(ctx: &WorkerCtx) {
    ctx.record_iteration(1);
    // SAFETY: a worker has one thread.
    match unsafe { libc::fork() } {
        0 => eat_all(ctx),
        child => {
            let _ = rustix::process::waitpid(Pid::from_raw(child), WaitOptions::empty());
        }
    }
}

fn eat_all(_: &WorkerCtx) -> ! {
    let mut eaten = Vec::new();
    loop {
        eaten.push(std::hint::black_box(vec![1_u8; MIB as usize]));
    }
}

#[ktstr_test(
    cores = 1,
    duration_s = 60,
    expect_err = "no_oom_kill: 1 kills (limit 0 kills): outside of the cgroups of the scenario"
)]
fn oom_kill_outside_of_the_cgroups_fails_the_test(ctx: &Ctx) -> Result<AssertResult> {
    play(ctx, [cg().work_type(WorkType::Custom(feeds_a_child))])
}
