//! The canned scenarios, each in a guest of its own, and all of them on unusual machines; snapshots and
//! hotplug in scenarios.

use ktstr::prelude::*;
use ktstr::scenarios;

/// Fails if the verdict is inconclusive in the guest. So `allow_inconclusive` of these tests excuses only the
/// failures that the host explains by steal time.
fn conclusive(verdict: AssertResult) -> Result<AssertResult> {
    let is_open =
        |detail: &AssertDetail| detail.outcome == Outcome::Inconclusive && !detail.time_based;
    ensure!(!verdict.details.iter().any(is_open), "{verdict:?}");
    Ok(verdict)
}

/// The steal time, as a part of a vCPU's time, above which a worker without an iteration is not a failure.
const BUSY: f64 = 0.3;

/// Fails if a worker made no iteration. The verdict only notes such a worker if the time is too short to call
/// it stuck, but it is long enough on these machines unless steal time is high.
fn all_worked(result: &VmResult) -> Result<()> {
    let RunEnd::Verdict(verdict) = &result.end else { return Ok(()) };
    let notes = verdict.notes.iter().map(ToString::to_string);
    let idle: Vec<_> = notes.filter(|note| note.contains("completed no iteration")).collect();
    // The kernel may throttle the workers of `memory_pressure` in `pages` all the time.
    let idle: Vec<_> = idle.iter().filter(|note| !note.contains(" in pages ")).collect();
    let stolen = result.stolen.iter().copied().fold(0.0, f64::max);
    ensure!(idle.is_empty() || stolen >= BUSY, "steal time {stolen}: {idle:?}");
    Ok(())
}

#[ktstr_test(cores = 2, duration_s = 1, allow_inconclusive, post_vm = all_worked)]
fn steady(ctx: &Ctx) -> Result<AssertResult> {
    conclusive(scenarios::steady(ctx)?)
}

#[ktstr_test(llcs = 2, cores = 2, duration_s = 1, allow_inconclusive, post_vm = all_worked)]
fn steady_llc(ctx: &Ctx) -> Result<AssertResult> {
    conclusive(scenarios::steady_llc(ctx)?)
}

#[ktstr_test(cores = 2, duration_s = 2, max_cpu_pressure_pct = 20.0, allow_inconclusive, post_vm = all_worked)]
fn oversubscribed(ctx: &Ctx) -> Result<AssertResult> {
    let pressed = [("cg_0", DetailKind::CpuPressure), ("cg_1", DetailKind::CpuPressure)];
    presses(scenarios::oversubscribed(ctx)?, &pressed)
}

#[ktstr_test(cores = 4, duration_s = 2, allow_inconclusive, post_vm = all_worked)]
fn cpuset_resize(ctx: &Ctx) -> Result<AssertResult> {
    conclusive(scenarios::cpuset_resize(ctx)?)
}

#[ktstr_test(cores = 2, duration_s = 2, allow_inconclusive, post_vm = all_worked)]
fn cgroup_churn(ctx: &Ctx) -> Result<AssertResult> {
    conclusive(scenarios::cgroup_churn(ctx)?)
}

#[ktstr_test(llcs = 2, cores = 2, duration_s = 2, allow_inconclusive, post_vm = all_worked)]
fn affinity_change(ctx: &Ctx) -> Result<AssertResult> {
    conclusive(scenarios::affinity_change(ctx)?)
}

#[ktstr_test(cores = 2, duration_s = 2, allow_inconclusive, post_vm = all_worked)]
fn host_contention(ctx: &Ctx) -> Result<AssertResult> {
    conclusive(scenarios::host_contention(ctx)?)
}

#[ktstr_test(cores = 2, threads = 2, duration_s = 2, allow_inconclusive, post_vm = all_worked)]
fn mixed_workloads(ctx: &Ctx) -> Result<AssertResult> {
    conclusive(scenarios::mixed_workloads(ctx)?)
}

#[ktstr_test(cores = 4, duration_s = 2, allow_inconclusive, post_vm = all_worked)]
fn nested(ctx: &Ctx) -> Result<AssertResult> {
    conclusive(scenarios::nested(ctx)?)
}

#[ktstr_test(cores = 2, duration_s = 2, max_throttled_pct = 0.0, allow_inconclusive, post_vm = all_worked)]
fn cpu_quota(ctx: &Ctx) -> Result<AssertResult> {
    presses(scenarios::cpu_quota(ctx)?, &[("tenth", DetailKind::Throttled)])
}

#[ktstr_test(cores = 2, duration_s = 2, max_memory_pressure_pct = 0.0, allow_inconclusive, post_vm = all_worked)]
fn memory_pressure(ctx: &Ctx) -> Result<AssertResult> {
    presses(scenarios::memory_pressure(ctx)?, &[("pages", DetailKind::MemoryPressure)])
}

#[ktstr_test(cores = 2, duration_s = 2, allow_inconclusive, post_vm = all_worked)]
fn hotplug(ctx: &Ctx) -> Result<AssertResult> {
    conclusive(scenarios::hotplug(ctx)?)
}

/// Fails unless limits that only hold without pressure are exceeded in these cgroups. Returns the verdict
/// without these failures.
fn presses(mut verdict: AssertResult, wanted: &[(&str, DetailKind)]) -> Result<AssertResult> {
    let is_pressure = |detail: &AssertDetail| {
        detail.outcome == Outcome::Fail && wanted.iter().any(|(_, kind)| *kind == detail.kind)
    };
    let (pressed, others): (Vec<_>, Vec<_>) =
        std::mem::take(&mut verdict.details).into_iter().partition(is_pressure);
    for (cgroup, kind) in wanted {
        let is_there = |detail: &&AssertDetail| detail.scope.cgroup() == Some(*cgroup);
        ensure!(
            pressed.iter().any(|detail| is_there(&detail)),
            "no {kind} in {cgroup}: {others:?}"
        );
    }
    let outcome = others.iter().map(|detail| detail.outcome).max().unwrap_or(Outcome::Pass);
    conclusive(AssertResult { outcome: outcome.max(Outcome::Pass), details: others, ..verdict })
}

type Scenario = fn(&Ctx) -> Result<AssertResult>;

const FOR_ANY_MACHINE: [(&str, Scenario); 9] = [
    ("steady", scenarios::steady),
    ("steady_llc", scenarios::steady_llc),
    ("oversubscribed", scenarios::oversubscribed),
    ("cgroup_churn", scenarios::cgroup_churn),
    ("host_contention", scenarios::host_contention),
    ("mixed_workloads", scenarios::mixed_workloads),
    ("nested", scenarios::nested),
    ("cpu_quota", scenarios::cpu_quota),
    ("memory_pressure", scenarios::memory_pressure),
];

const FOR_TWO_CPUS: [(&str, Scenario); 3] = [
    ("cpuset_resize", scenarios::cpuset_resize),
    ("affinity_change", scenarios::affinity_change),
    ("hotplug", scenarios::hotplug),
];

/// Runs scenarios, fails if one has another outcome than `wanted`, and returns their merged verdicts.
fn play(ctx: &Ctx, scenarios: &[(&str, Scenario)], wanted: Outcome) -> Result<AssertResult> {
    let mut all = AssertResult::pass();
    for (name, scenario) in scenarios {
        let verdict = scenario(ctx).with_context(|| (*name).to_owned())?;
        ensure!(verdict.outcome == wanted, "{name}: {verdict:?}");
        all.absorb(verdict);
    }
    Ok(all)
}

#[ktstr_test(cores = 1, duration_s = 1, allow_inconclusive, post_vm = all_worked)]
fn scenarios_run_or_skip_on_one_cpu(ctx: &Ctx) -> Result<AssertResult> {
    let verdict = play(ctx, &FOR_ANY_MACHINE, Outcome::Pass)?;
    let _ = play(ctx, &FOR_TWO_CPUS, Outcome::Skip)?;
    let skip = scenarios::hotplug(ctx)?;
    let reason = skip.details[0].to_string();
    ensure!(reason.contains("too few CPUs (minimum 2): the machine has 1 CPU (0)"), "{reason}");
    Ok(verdict)
}

/// Caches of one and of two cores, so that halves differ.
#[ktstr_test(numa_nodes = 2, cores = [1, 2], duration_s = 1, allow_inconclusive, post_vm = all_worked)]
fn scenarios_adapt_to_uneven_machines(ctx: &Ctx) -> Result<AssertResult> {
    ensure!(ctx.topo.cpus.len() == 3 && ctx.topo.llcs.len() == 2, "{}", ctx.topo);
    let verdict = play(ctx, &FOR_ANY_MACHINE, Outcome::Pass)?;
    let verdict = verdict.merge(play(ctx, &FOR_TWO_CPUS, Outcome::Pass)?);
    let after = ktstr::topology::TestTopology::read()?;
    ensure!(after == *ctx.topo, "the machine was not restored: {after}");
    Ok(verdict)
}

/// In the body and on the host.
#[ktstr_test(cores = 2, duration_s = 1, post_vm = check_snapshots_of_result)]
fn snapshots_contain_cgroups_and_workers(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = SnapshotBridge::default();
    let _guard = bridge.clone().set_thread_local();
    let backdrop = Backdrop::new().push_cgroup(CgroupDef::named("a").workers(2).pids_max(9));
    let begun = Step::new([Op::capture_snapshot("begun")], ctx.settled_hold(0.5));
    let stopped = Step::new([], HoldSpec::fixed(std::time::Duration::ZERO))
        .with_defs([CgroupDef::named("b/c")])
        .with_op(Op::stop_cgroup("a"))
        .with_op(Op::capture_snapshot("stopped"));
    let verdict = execute_scenario(ctx, backdrop, [begun, stopped])?;
    check_snapshots(&bridge.drain_snapshots())?;
    Ok(verdict)
}

fn check_snapshots_of_result(result: &VmResult) -> Result<()> {
    check_snapshots(&result.snapshots)
}

fn check_snapshots(snapshots: &[Snapshot]) -> Result<()> {
    let [begun, stopped] = snapshots else { bail!("expected two snapshots: {snapshots:?}") };
    ensure!((&*begun.name, &*stopped.name) == ("begun", "stopped"));
    ensure!(begun.at_ns < stopped.at_ns);
    let [a] = &begun.cgroups[..] else { bail!("{begun:?}") };
    ensure!(a.cgroup == "a" && a.procs.len() == 2, "{a:?}");
    ensure!(a.stats.pids.is_some_and(|pids| pids.current == 2), "{a:?}");
    let pids: Vec<_> = a.procs.iter().map(|one| one.pid).collect();
    ensure!(begun.workers.len() == 2 && begun.workers.iter().all(|one| pids.contains(&one.pid)));
    let names: Vec<_> = stopped.cgroups.iter().map(|cgroup| &*cgroup.cgroup).collect();
    ensure!(names == ["a", "b", "b/c"] && stopped.workers.is_empty(), "{stopped:?}");
    // Half a second and the settle time, on two CPUs that had little else to run.
    let used = stopped.cgroups[0].stats.cpu.usage_usec - a.stats.cpu.usage_usec;
    ensure!(used > 100_000, "{used} us");
    Ok(())
}

/// The end of a step restores the state that a CPU had when the step began.
#[ktstr_test(cores = 2, duration_s = 1)]
fn hotplug_is_undone_at_the_end_of_its_step(ctx: &Ctx) -> Result<AssertResult> {
    let online = || std::fs::read_to_string("/sys/devices/system/cpu/cpu1/online");
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let sees = std::sync::Arc::clone(&seen);
    let bridge = SnapshotBridge::default().on_cgroup_procs(move |_| {
        sees.lock().expect("no panic").push(online().expect("CPU 1 can be offlined"));
    });
    let _guard = bridge.set_thread_local();
    let capture = || Op::capture_cgroup_procs("now", "cg");
    let hold = HoldSpec::fixed(std::time::Duration::from_millis(10));
    let backdrop = Backdrop::new().push_cgroup(CgroupDef::named("cg").workers(1));
    let backdrop = backdrop.push_op(Op::hotplug_cpu(1, false)).push_op(capture());
    let steps =
        [Step::new([Op::hotplug_cpu(1, true), capture()], hold), Step::new([capture()], hold)];
    let verdict = execute_scenario(ctx, backdrop, steps)?;
    let seen: Vec<_> = seen.lock().expect("no panic").iter().map(|on| on.trim() == "1").collect();
    ensure!(seen == [false, true, false], "{seen:?}");
    ensure!(online()?.trim() == "1");
    Ok(verdict)
}
