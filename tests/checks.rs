//! Checks on real workers and cgroups: each fires when what it is about happens, and not otherwise.
//!
//! Where a check is to fail, its message is the `expect_err`: another failure fails the test. What is
//! based on time is judged in the body: the host does not judge it where CPUs are emulated, and
//! excuses it on a busy machine. Its bounds are far from what is measured.

use std::time::Duration;

use ktstr::cgroup::{CgroupManager, Error};
use ktstr::prelude::*;
use rustix::process::{Pid, WaitOptions};
use rustix::thread::{CpuSet, sched_setaffinity};

const MIB: u64 = 1 << 20;

/// A bridge that does something to the cgroups when a capture is taken, by its tag, of which the
/// scenario's engine does not hear.
fn behind_its_back(
    ctx: &Ctx,
    act: impl Fn(&CgroupManager, &str) -> Result<(), Error> + Send + Sync + 'static,
) -> SnapshotBridge {
    let parent = ctx.cgroups.parent_path().to_owned();
    let act = move |tag: &str| act(&CgroupManager::new(&parent), tag);
    SnapshotBridge::default()
        .on_cgroup_procs(move |capture| act(&capture.tag).expect("the knob can be set"))
}

/// A bridge that freezes `cg` when a capture is taken as "freeze", and thaws it at any other.
fn freezing(ctx: &Ctx) -> SnapshotBridge {
    behind_its_back(ctx, |cgroups, tag| cgroups.set_freeze("cg", tag == "freeze"))
}

fn capture(tag: &str) -> Op {
    Op::capture_cgroup_procs(tag, "cg")
}

/// Has the cgroups work for the test's duration, with a capture of `cg` at its start.
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

/// Expects failures of one check, all based on time.
fn fires(verdict: &AssertResult, check: &str) -> Result<AssertResult> {
    let failed = verdict.details.iter().filter(|detail| detail.outcome == Outcome::Fail);
    let failed: Vec<_> = failed.map(|detail| (detail.time_based, detail.to_string())).collect();
    ensure!(!failed.is_empty(), "{verdict:?}");
    ensure!(failed.iter().all(|(time, text)| *time && text.starts_with(check)), "{failed:?}");
    Ok(AssertResult::pass())
}

/// Expects no failure, based on time or not.
fn is_quiet(verdict: AssertResult) -> Result<AssertResult> {
    ensure!(verdict.is_pass(), "{verdict:?}");
    Ok(verdict)
}

/// A worker that is spawned into a frozen group, which is thawed after `frozen` and left to work.
fn frozen_from_the_start(
    ctx: &Ctx,
    frozen: HoldSpec,
    thawed: Option<HoldSpec>,
) -> Result<AssertResult> {
    let bridge = freezing(ctx);
    let _guard = bridge.set_thread_local();
    let spawn = Op::spawn(SpawnPlacement::cgroup("cg"), WorkSpec::default());
    let backdrop = [Op::add_cgroup("cg"), capture("freeze"), spawn];
    let backdrop = backdrop.into_iter().fold(Backdrop::new(), Backdrop::push_op);
    let thawed = thawed.map(|hold| Step::new([capture("thaw")], hold));
    let steps = [Step::new([], frozen)].into_iter().chain(thawed);
    execute_scenario(ctx, backdrop, steps.collect::<Vec<_>>())
}

#[ktstr_test(cores = 1, duration_s = 6, expect_err = "not_stuck: no iteration in ")]
fn a_worker_that_is_frozen_is_stuck(ctx: &Ctx) -> Result<AssertResult> {
    frozen_from_the_start(ctx, HoldSpec::FULL, None)
}

#[ktstr_test(cores = 1, duration_s = 6)]
fn a_worker_that_is_thawed_is_not_stuck(ctx: &Ctx) -> Result<AssertResult> {
    let verdict = frozen_from_the_start(ctx, HoldSpec::FULL, Some(hold(2000)))?;
    ensure!(!has_note(&verdict, "made no iteration"), "{verdict:?}");
    Ok(verdict)
}

#[ktstr_test(cores = 1, duration_s = 1)]
fn a_short_time_without_a_turn_shows_nothing(ctx: &Ctx) -> Result<AssertResult> {
    let verdict = frozen_from_the_start(ctx, HoldSpec::FULL, None)?;
    ensure!(has_note(&verdict, "too short to call it stuck"), "{verdict:?}");
    ensure!(verdict.outcome == Outcome::Inconclusive, "{verdict:?}");
    Ok(AssertResult::pass())
}

/// A group that works, stands still for a while, and works again.
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
fn a_frozen_group_has_a_gap(ctx: &Ctx) -> Result<AssertResult> {
    fires(&interrupted(ctx, hold(1500))?, "max_gap_ms: ")
}

#[ktstr_test(cores = 1, max_gap_ms = 10_000)]
fn a_gap_within_the_bound_is_none(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(interrupted(ctx, hold(100))?)
}

/// Nobody is blamed for what the scenario itself does.
#[ktstr_test(cores = 1, duration_s = 3, max_gap_ms = 1000)]
fn a_freeze_that_was_asked_for_proves_nothing(ctx: &Ctx) -> Result<AssertResult> {
    let backdrop = Backdrop::new().push_cgroup(cg());
    let step = Step::new([Op::freeze_cgroup("cg")], HoldSpec::FULL);
    let thawed = Step::new([Op::unfreeze_cgroup("cg")], hold(500));
    let verdict = execute_scenario(ctx, backdrop, [step, thawed])?;
    ensure!(verdict.outcome == Outcome::Inconclusive, "{verdict:?}");
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, duration_s = 3, max_gap_ms = 1000)]
fn a_move_into_a_frozen_group_proves_nothing(ctx: &Ctx) -> Result<AssertResult> {
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

/// A freeze excuses its own time and no other.
#[ktstr_test(
    cores = 1,
    duration_s = 5,
    expect_err = regex("^not_stuck: no iteration in .* in which it was frozen, do not count")
)]
fn who_makes_no_turn_after_the_thaw_is_stuck(ctx: &Ctx) -> Result<AssertResult> {
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
    expect_err = regex("^not_stuck: no iteration for .*, at least one in 10.0s, worker .*, CPU 0, at ")
)]
fn a_worker_that_stalls_later_is_stuck(ctx: &Ctx) -> Result<AssertResult> {
    interrupted(ctx, HoldSpec::FULL)
}

/// A realtime task leaves nothing of its CPU: who is there cannot even die.
#[ktstr_test(
    cores = 2,
    duration_s = 3,
    expect_err = regex("(?s)has not ended 10s after SIGKILL: it gets no CPU.*not_stuck: no iteration in ")
)]
fn who_cannot_die_is_told_of_with_what_it_failed(ctx: &Ctx) -> Result<AssertResult> {
    let [hog, starved] = starved_on_cpu_1()?;
    let backdrop = Backdrop::new().push_cgroup(hog.sched_policy(SchedPolicy::Fifo(1)));
    let starved = Step::new([], HoldSpec::FULL).with_defs([starved]);
    execute_scenario(ctx, backdrop, [starved])
}

/// Returns `hog` and `starved` with one worker each on CPU 1, where realtime tasks leave nothing to fair
/// ones. This thread, and workers until their release, stay on CPU 0.
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

/// Lets realtime tasks have CPUs for as long as they want.
fn leave_nothing_to_fair_tasks() -> Result<()> {
    std::fs::write("/proc/sys/kernel/sched_rt_runtime_us", "-1")?;
    // The server of fair tasks, since Linux 6.12.
    for cpu in std::fs::read_dir("/sys/kernel/debug/sched/fair_server").into_iter().flatten() {
        std::fs::write(cpu?.path().join("runtime"), "0")?;
    }
    Ok(())
}

/// The load never lets go of the only CPU. Who leads the scenario runs all the same, and so does
/// the writing to cgroupfs; afterwards, the body is an ordinary task again.
#[ktstr_test(cores = 1, duration_s = 1)]
fn no_load_holds_the_scenario_up(ctx: &Ctx) -> Result<AssertResult> {
    leave_nothing_to_fair_tasks()?;
    let hog = cg().sched_policy(SchedPolicy::Fifo(98));
    let weigh = Op::set_knob("cg", CgroupKnob::CpuWeight(200));
    let again = HoldSpec::loop_at(Duration::from_millis(100));
    let verdict = execute_steps(ctx, [Step::new([weigh], again).with_defs([hog])])?;
    // Not libc's function, which is a stub in musl.
    // SAFETY: it takes a number and touches no memory.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
    ensure!(policy == i64::from(libc::SCHED_OTHER));
    Ok(verdict)
}

/// Expects one failure of `not_stuck`, in the guest. Returns whether the host may explain it.
fn is_stuck(verdict: &AssertResult, worker: &str) -> Result<bool> {
    let [detail] = &verdict.details[..] else { bail!("{verdict:?}") };
    ensure!(detail.outcome == Outcome::Fail, "{verdict:?}");
    ensure!(detail.kind == DetailKind::WorkerStuck && !detail.time_based, "{verdict:?}");
    ensure!(detail.worker.as_ref().is_some_and(|name| name.contains(worker)), "{verdict:?}");
    Ok(detail.explained_by.is_some())
}

fn compute_without_end(ctx: &WorkerCtx) {
    loop {
        ctx.compute();
    }
}

#[ktstr_test(cores = 1, duration_s = 3)]
fn a_worker_that_computes_without_an_iteration_is_stuck(ctx: &Ctx) -> Result<AssertResult> {
    let endless = cg().comm("endless").work_type(WorkType::Custom(compute_without_end));
    ensure!(is_stuck(&play(ctx, [endless])?, "(endless)")?);
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, duration_s = 3)]
fn a_worker_that_sleeps_is_stuck_whatever_the_host_does(ctx: &Ctx) -> Result<AssertResult> {
    let idle = cg().comm("idle").work_type(WorkType::Custom(idle));
    ensure!(!is_stuck(&play(ctx, [idle])?, "(idle)")?);
    Ok(AssertResult::pass())
}

/// No scheduler could treat a runnable task worse.
#[ktstr_test(cores = 2, duration_s = 3)]
fn a_runnable_worker_that_is_never_run_is_stuck(ctx: &Ctx) -> Result<AssertResult> {
    let [hog, starved] = starved_on_cpu_1()?;
    let hog = hog.sched_policy(SchedPolicy::Fifo(1));
    ensure!(is_stuck(&execute_defs(ctx, [hog, starved])?, "(starved)")?);
    Ok(AssertResult::pass())
}

/// A fair scheduler gives it less than a thousandth of the CPU.
#[ktstr_test(cores = 1, duration_s = 4)]
fn a_worker_of_sched_idle_beside_busy_ones_is_not_stuck(ctx: &Ctx) -> Result<AssertResult> {
    let idle = WorkSpec::default().workers(1).comm("idle").policy(SchedPolicy::Idle);
    let verdict = play(ctx, [cg().workers(8).comm("busy").work(idle)])?;
    ensure!(verdict.outcome == Outcome::Pass, "{verdict:?}");
    Ok(verdict)
}

/// More than a quota leaves them in the time of the test.
#[ktstr_test(cores = 1, duration_s = 4)]
fn workers_of_a_small_quota_are_not_stuck(ctx: &Ctx) -> Result<AssertResult> {
    let verdict = play(ctx, [cg().workers(33).cpu_quota_pct(1)])?;
    ensure!(verdict.outcome != Outcome::Fail, "{verdict:?}");
    Ok(AssertResult::pass())
}

/// What people ask comes in the order in which they do.
#[ktstr_test(cores = 1, max_gap_ms = 1000)]
fn a_failure_says_what_of_whom_where_and_when(ctx: &Ctx) -> Result<AssertResult> {
    let verdict = interrupted(ctx, hold(1500))?;
    ensure!(verdict.outcome == Outcome::Fail && verdict.details.len() == 1, "{verdict:?}");
    let text = verdict.details[0].to_string();
    let parts: Vec<_> = text.split(", ").collect();
    let [measured, bound, worker, cgroup, cpu, at] = parts[..] else { bail!("{text}") };
    let number = |part: &str, before: &str, after: &str| -> Result<f64> {
        let number = part.strip_prefix(before).and_then(|part| part.strip_suffix(after));
        Ok(number.with_context(|| format!("{part}: {text}"))?.parse()?)
    };
    ensure!(number(measured, "max_gap_ms: ", " ms")? >= 1500.0, "{text}");
    ensure!(number(bound, "at most ", " ms")? == 1000.0, "{text}");
    ensure!(number(worker, "worker ", " (spin)")? > 1.0, "{text}");
    ensure!(cgroup == "cgroup cg" && cpu == "CPU 0", "{text}");
    ensure!(number(at, "at ", " s")? > 2.0, "{text}");
    Ok(AssertResult::pass())
}

/// Two equal workers, each pinned to a CPU of its own, of which one has a realtime task.
#[ktstr_test(cores = 2, duration_s = 4, max_spread_pct = 50.0)]
fn a_starved_worker_spreads_the_shares(ctx: &Ctx) -> Result<AssertResult> {
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
    fires(&play(ctx, [cg().workers(2), hog])?, "max_spread_pct: ")
}

/// A realtime task spins, and its partner on the same CPU gets what the kernel saves for it.
#[ktstr_test(cores = 1, duration_s = 4, max_gap_ms = 300)]
fn a_starved_worker_has_gaps(ctx: &Ctx) -> Result<AssertResult> {
    fires(&play(ctx, [cg().work_type(WorkType::RtStarvation).workers(2)])?, "max_gap_ms: ")
}

#[ktstr_test(cores = 1, duration_s = 3, max_spread_pct = 50.0, max_gap_ms = 2000)]
fn two_fair_workers_share_a_cpu(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(play(ctx, [cg().workers(2)])?)
}

fn on_cpu_0() -> CgroupDef {
    cg().cpuset(CpusetSpec::exact([0]))
}

#[ktstr_test(cores = 2, duration_s = 2, expect_err = "isolation: ran on CPUs ")]
fn a_worker_outside_of_its_cpuset_is_seen(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = behind_its_back(ctx, |cgroups, _| cgroups.set_cpuset("cg", &[1].into()));
    let _guard = bridge.set_thread_local();
    play(ctx, [on_cpu_0()])
}

#[ktstr_test(cores = 2, duration_s = 2, isolation = false)]
fn a_worker_outside_is_let_pass_if_nobody_asks(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = behind_its_back(ctx, |cgroups, _| cgroups.set_cpuset("cg", &[1].into()));
    let _guard = bridge.set_thread_local();
    play(ctx, [on_cpu_0()])
}

/// A bridge that has the kernel keep `cg` on one CPU, whatever the scenario asks for.
fn kept_on(ctx: &Ctx, cpu: usize) -> SnapshotBridge {
    behind_its_back(ctx, move |cgroups, _| cgroups.set_cpuset("cg", &[cpu].into()))
}

fn set_cpuset(cpu: usize) -> Op {
    Op::set_cpuset("cg", CpusetSpec::exact([cpu]))
}

#[ktstr_test(
    cores = 2,
    duration_s = 2,
    expect_err = regex("^isolation: ran on CPUs 0(-1)?, only on 1, .* CPU 0")
)]
fn a_cpuset_that_was_left_later_is_no_excuse(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = kept_on(ctx, 0);
    let _guard = bridge.set_thread_local();
    let backdrop = Backdrop::new().push_cgroup(on_cpu_0());
    let ignored = Step::new([set_cpuset(1), capture("now")], HoldSpec::FULL);
    execute_scenario(ctx, backdrop, [Step::new([], hold(300)), ignored])
}

#[ktstr_test(cores = 2, duration_s = 2, expect_err = "isolation: ran on CPUs ")]
fn who_is_confined_later_has_to_stay_from_then_on(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = kept_on(ctx, 1);
    let _guard = bridge.set_thread_local();
    let confined = Step::new([set_cpuset(0), capture("now")], HoldSpec::FULL);
    execute_scenario(ctx, Backdrop::new().push_cgroup(cg()), [confined])
}

/// Spins on both CPUs all the time: whoever is told of it late is seen outside.
#[ktstr_test(cores = 2, duration_s = 2)]
fn who_follows_its_cpuset_at_once_is_never_outside(ctx: &Ctx) -> Result<AssertResult> {
    let other = CgroupDef::named("other").cpuset(CpusetSpec::exact([1])).workers(2);
    let backdrop = Backdrop::new().push_cgroup(on_cpu_0().workers(2)).push_cgroup(other);
    let swaps = (0..10).map(|_| Step::new([Op::swap_cpusets("cg", "other")], hold(20)));
    let moves = [("cg", "other"), ("other", "cg")];
    let moves = moves.map(|(from, to)| Step::new([Op::move_all_tasks(from, to)], hold(100)));
    execute_scenario(ctx, backdrop, swaps.chain(moves).collect::<Vec<_>>())
}

/// The kernel lets them run elsewhere then, and takes them back.
#[ktstr_test(cores = 2, duration_s = 1)]
fn who_has_lost_all_its_cpus_may_run_elsewhere(ctx: &Ctx) -> Result<AssertResult> {
    let backdrop = Backdrop::new().push_cgroup(cg().cpuset(CpusetSpec::exact([1])));
    let switch = |online| Step::new([Op::hotplug_cpu(1, online)], hold(300));
    let steps = [switch(false), switch(true), Step::new([set_cpuset(0)], hold(300))];
    execute_scenario(ctx, backdrop, steps)
}

#[ktstr_test(cores = 2, duration_s = 1)]
fn a_cpuset_that_was_asked_for_later_is_its_own(ctx: &Ctx) -> Result<AssertResult> {
    let backdrop = Backdrop::new().push_cgroup(on_cpu_0());
    let step = |cpu| Step::new([Op::set_cpuset("cg", CpusetSpec::exact([cpu]))], HoldSpec::FULL);
    execute_scenario(ctx, backdrop, [step(0), step(1)])
}

/// Takes 64 MiB, page by page, and keeps it.
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
    expect_err = "no_oom_kill: 1 killed for want of memory, none, cgroup cg"
)]
fn an_oom_kill_fails_the_test(ctx: &Ctx) -> Result<AssertResult> {
    play(ctx, [eater(16 * MIB)])
}

#[ktstr_test(cores = 1, memory_mib = 512, duration_s = 2)]
fn who_has_room_is_not_killed(ctx: &Ctx) -> Result<AssertResult> {
    play(ctx, [eater(256 * MIB)])
}

#[ktstr_test(
    cores = 1,
    memory_mib = 512,
    duration_s = 2,
    expect_err = "no_oom_kill: none killed for want of memory, at least one was expected, cgroup cg"
)]
fn an_expected_oom_kill_has_to_happen(ctx: &Ctx) -> Result<AssertResult> {
    play(ctx, [eater(256 * MIB).expect_oom_kill()])
}

#[ktstr_test(cores = 1, memory_mib = 512, duration_s = 5)]
fn an_expected_oom_kill_leaves_the_others_working(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = SnapshotBridge::default();
    let _guard = bridge.clone().set_thread_local();
    let backdrop = Backdrop::new()
        .push_cgroup(eater(16 * MIB).expect_oom_kill())
        .push_cgroup(CgroupDef::named("beside").workers(1));
    let captures =
        ["cg", "beside"].map(|cgroup| Op::capture_cgroup_procs("after the kill", cgroup));
    let steps = [Step::new([], HoldSpec::FULL), Step::new(captures, hold(100))];
    let verdict = execute_scenario(ctx, backdrop, steps)?;
    let left: Vec<_> =
        bridge.drain_cgroup_procs().iter().map(|capture| capture.procs.len()).collect();
    ensure!(left == [0, 1], "{left:?}");
    ensure!(has_note(&verdict, "(eater) in cg was killed, as was expected"), "{verdict:?}");
    Ok(verdict)
}

/// Dies of what no OOM killer sends.
fn abort(_: &WorkerCtx) {
    std::process::abort()
}

#[ktstr_test(
    cores = 1,
    duration_s = 60,
    expect_err = "worker died: signal 6 (SIGABRT), to run until it is stopped, worker "
)]
fn a_worker_that_dies_ends_the_scenario(ctx: &Ctx) -> Result<AssertResult> {
    let began = std::time::Instant::now();
    let doomed = WorkSpec::default().comm("doomed").work_type(WorkType::Custom(abort));
    // Even where one is expected to be killed.
    let verdict = play(ctx, [cg().work(doomed).comm("spin").expect_oom_kill()])?;
    ensure!(began.elapsed() < ctx.duration / 2, "it went on for {:?}", began.elapsed());
    Ok(verdict)
}

fn leave(ctx: &WorkerCtx) {
    ctx.record_iteration(1);
}

#[ktstr_test(
    cores = 1,
    duration_s = 60,
    expect_err = "worker died: exit status 0, to run until it is stopped, worker "
)]
fn a_worker_that_leaves_has_died(ctx: &Ctx) -> Result<AssertResult> {
    play(ctx, [cg().work_type(WorkType::Custom(leave))])
}

#[ktstr_test(cores = 1, duration_s = 2, max_throttled_pct = 20.0)]
fn a_group_beyond_its_quota_is_throttled(ctx: &Ctx) -> Result<AssertResult> {
    fires(&play(ctx, [cg().cpu_quota_pct(10)])?, "max_throttled_pct: ")
}

#[ktstr_test(cores = 1, duration_s = 2, max_throttled_pct = 20.0, max_quota_error_pct = 100.0)]
fn a_group_within_its_quota_is_not(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(play(ctx, [cg().cpu_quota_pct(300)])?)
}

#[ktstr_test(cores = 1, duration_s = 2, max_quota_error_pct = 100.0)]
fn a_quota_that_is_not_kept_is_seen(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = behind_its_back(ctx, |cgroups, _| cgroups.set_cpu_max("cg", None, 100_000));
    let _guard = bridge.set_thread_local();
    fires(&play(ctx, [cg().cpu_quota_pct(10)])?, "max_quota_error_pct: ")
}

#[ktstr_test(cores = 1, duration_s = 2, max_quota_error_pct = 40.0)]
fn a_quota_that_is_withheld_is_seen(ctx: &Ctx) -> Result<AssertResult> {
    let withhold =
        |cgroups: &CgroupManager, _: &str| cgroups.set_cpu_max("cg", Some(10_000), 100_000);
    let bridge = behind_its_back(ctx, withhold);
    let _guard = bridge.set_thread_local();
    fires(&play(ctx, [cg().cpu_quota_pct(80)])?, "max_quota_error_pct: ")
}

#[ktstr_test(cores = 1, duration_s = 2, max_quota_error_pct = 100.0)]
fn a_quota_that_is_kept_is_fine(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(play(ctx, [cg().cpu_quota_pct(30)])?)
}

fn unequal() -> [CgroupDef; 2] {
    [cg().cpu_weight(900), CgroupDef::named("light").workers(1).cpu_weight(100)]
}

#[ktstr_test(cores = 1, duration_s = 4, max_weight_error_pct = 20.0)]
fn a_weight_that_is_not_honoured_is_seen(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = behind_its_back(ctx, |cgroups, _| cgroups.set_cpu_weight("cg", 100));
    let _guard = bridge.set_thread_local();
    fires(&play(ctx, unequal())?, "max_weight_error_pct: ")
}

#[ktstr_test(cores = 1, duration_s = 4, max_weight_error_pct = 60.0)]
fn a_weight_that_is_honoured_is_fine(ctx: &Ctx) -> Result<AssertResult> {
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
fn remote_pages_are_seen(ctx: &Ctx) -> Result<AssertResult> {
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
fn pages_of_all_nodes_are_local_to_all_cpus(ctx: &Ctx) -> Result<AssertResult> {
    play(ctx, [sweep()])
}

#[ktstr_test(cores = 2, duration_s = 1, max_migration_ratio = 0.5)]
fn a_worker_that_migrates_each_turn_is_seen(ctx: &Ctx) -> Result<AssertResult> {
    fires(&play(ctx, [cg().work_type(WorkType::AffinityChurn)])?, "max_migration_ratio: ")
}

#[ktstr_test(cores = 2, duration_s = 1, max_migration_ratio = 0.0)]
fn a_pinned_worker_does_not_migrate(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(play(ctx, [cg().affinity(AffinityIntent::SingleCpu)])?)
}

#[ktstr_test(cores = 1, duration_s = 2, max_cpu_pressure_pct = 40.0)]
fn a_group_that_waits_for_its_cpu_is_under_pressure(ctx: &Ctx) -> Result<AssertResult> {
    fires(&play(ctx, [cg().workers(4)])?, "max_cpu_pressure_pct: ")
}

#[ktstr_test(cores = 1, duration_s = 2, max_cpu_pressure_pct = 80.0)]
fn a_group_that_is_alone_is_not(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(play(ctx, [cg()])?)
}

/// Some do ten times as much in a turn as others, by their number.
fn uneven(ctx: &WorkerCtx) {
    loop {
        let bursts = if std::process::id().is_multiple_of(2) { 1 } else { 10 };
        (0..bursts).for_each(|_| ctx.compute());
        ctx.record_iteration(1);
    }
}

#[ktstr_test(cores = 1, duration_s = 2, max_throughput_cv = 0.3)]
fn equal_workers_of_unequal_speed_are_seen(ctx: &Ctx) -> Result<AssertResult> {
    let four = cg().workers(4).work_type(WorkType::Custom(uneven));
    fires(&play(ctx, [four])?, "max_throughput_cv: ")
}

#[ktstr_test(cores = 1, duration_s = 2, max_throughput_cv = 0.3)]
fn equal_workers_do_equal_work(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(play(ctx, [cg().workers(4).work_type(WorkType::AluHot)])?)
}

/// A burst takes at least 5 us, and the quota leaves a fiftieth of the CPU.
#[ktstr_test(cores = 1, duration_s = 2, min_iteration_rate = 20_000, not_stuck = false)]
fn few_turns_are_seen(ctx: &Ctx) -> Result<AssertResult> {
    fires(&play(ctx, [cg().cpu_quota_pct(2)])?, "min_iteration_rate: ")
}

#[ktstr_test(cores = 1, duration_s = 2, min_iteration_rate = 10, min_work_rate = 100)]
fn many_turns_are_enough(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(play(ctx, [cg()])?)
}

/// Does a hundred bursts for what passes for one unit.
fn slow(ctx: &WorkerCtx) {
    loop {
        (0..100).for_each(|_| ctx.compute());
        ctx.record_iteration(1);
    }
}

#[ktstr_test(cores = 1, duration_s = 2, min_work_rate = 20_000)]
fn little_work_is_seen(ctx: &Ctx) -> Result<AssertResult> {
    fires(&play(ctx, [cg().work_type(WorkType::Custom(slow))])?, "min_work_rate: ")
}

fn doze(ctx: &WorkerCtx) {
    loop {
        ctx.sleep(Duration::from_millis(10));
        ctx.record_iteration(1);
    }
}

/// A sleeper that is frozen every other tenth of a second.
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
fn late_wake_ups_are_seen(ctx: &Ctx) -> Result<AssertResult> {
    fires(&interrupted_sleeper(ctx)?, "max_p99_wake_latency_ns: ")
}

#[ktstr_test(cores = 1, duration_s = 6, max_wake_latency_cv = 0.5)]
fn uneven_wake_ups_are_seen(ctx: &Ctx) -> Result<AssertResult> {
    fires(&interrupted_sleeper(ctx)?, "max_wake_latency_cv: ")
}

#[ktstr_test(
    cores = 1,
    duration_s = 2,
    max_p99_wake_latency_ns = 500_000_000,
    max_wake_latency_cv = 50,
    max_memory_pressure_pct = 50,
    max_io_pressure_pct = 50
)]
fn a_sleeper_alone_wakes_in_time_and_under_no_pressure(ctx: &Ctx) -> Result<AssertResult> {
    is_quiet(play(ctx, [cg().work_type(WorkType::TimerLatency)])?)
}

/// Goes through more memory than its group may have without being slowed down.
#[ktstr_test(cores = 1, memory_mib = 512, duration_s = 3, max_memory_pressure_pct = 1)]
fn a_group_without_enough_memory_is_under_pressure(ctx: &Ctx) -> Result<AssertResult> {
    let def = CgroupDef::named("cg").comm("eater").work_type(WorkType::Custom(eat));
    fires(&play(ctx, [def.memory_high(16 * MIB)])?, "max_memory_pressure_pct: ")
}

/// Shares a CPU, but not by weight: pinned elsewhere, before all fair tasks, or held back by a quota.
fn has_no_claim(ctx: &Ctx, defs: Vec<CgroupDef>, why: &str) -> Result<AssertResult> {
    let verdict = play(ctx, defs)?;
    ensure!(verdict.outcome == Outcome::Inconclusive, "{verdict:?}");
    ensure!(verdict.details.iter().all(|detail| detail.to_string().contains(why)), "{verdict:?}");
    Ok(AssertResult::pass())
}

fn weighed(name: &str, weight: u32) -> CgroupDef {
    CgroupDef::named(name).cpu_weight(weight)
}

#[ktstr_test(cores = 2, duration_s = 1, max_weight_error_pct = 20.0)]
fn weights_do_not_concern_the_pinned(ctx: &Ctx) -> Result<AssertResult> {
    let on = |def: CgroupDef, cpu| def.workers(2).affinity(AffinityIntent::Exact([cpu].into()));
    let defs = vec![on(weighed("cg", 300), 0), on(weighed("b", 100), 1)];
    has_no_claim(ctx, defs, "pinned")
}

#[ktstr_test(cores = 1, duration_s = 1, max_weight_error_pct = 50.0)]
fn weights_do_not_concern_realtime_tasks(ctx: &Ctx) -> Result<AssertResult> {
    let realtime = weighed("rt", 100).workers(1).sched_policy(SchedPolicy::Fifo(1));
    has_no_claim(ctx, vec![realtime, weighed("cg", 100).workers(1)], "no fair tasks")
}

#[ktstr_test(cores = 1, duration_s = 2, max_weight_error_pct = 30.0)]
fn a_quota_below_is_no_demand(ctx: &Ctx) -> Result<AssertResult> {
    let limited = CgroupDef::named("outer/x").cpu_quota_pct(20).workers(1);
    let defs = vec![weighed("outer", 100), limited, weighed("cg", 100).workers(1)];
    has_no_claim(ctx, defs, "fewer than two")
}

/// Has a child that takes all memory there is, and leaves when that is gone.
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
    expect_err = "no_oom_kill: 1 killed for want of memory elsewhere, none"
)]
fn an_oom_kill_of_whom_nobody_counts_fails_the_test(ctx: &Ctx) -> Result<AssertResult> {
    play(ctx, [cg().work_type(WorkType::Custom(feeds_a_child))])
}
