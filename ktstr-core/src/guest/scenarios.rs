//! Canned scenarios: loads that are known to be difficult for schedulers, one function each.
//!
//! Each uses only the public items of [`scenario`](crate::guest::scenario) and can serve as a pattern.
//! It adapts to the machine, lasts for [`Ctx::duration`], and is judged by the keys of the test's
//! attribute, as [`execute_scenario`] is. On a machine that cannot run it, it is skipped with the reason.
//!
//! ```no_run
//! use ktstr_core::assert::AssertResult;
//! use ktstr_core::scenario::Ctx;
//! use ktstr_core::scenarios;
//!
//! fn holds_up(ctx: &Ctx) -> anyhow::Result<AssertResult> {
//!     Ok(scenarios::steady(ctx)?.merge(scenarios::oversubscribed(ctx)?))
//! }
//! ```

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::guest::assert::AssertResult;
use crate::guest::scenario::ops::{Backdrop, HoldSpec, Op, Step};
use crate::guest::scenario::{CgroupDef, CpusetSpec, Ctx, execute_defs, execute_scenario};
use crate::guest::workload::{AffinityIntent, WorkSpec, WorkType};

/// Runs one spinning worker per CPU in two cgroups on separate halves of the CPUs; in one cgroup on a
/// machine with one CPU.
///
/// Pressure: full CPUs. There is a CPU for each worker, so a scheduler need not migrate any of them or make
/// them wait.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn steady(ctx: &Ctx<'_>) -> Result<AssertResult> {
    execute_defs(ctx, halves(ctx).into_iter().map(|def| def.workers_pct(1.0)))
}

/// Runs one worker per CPU in one cgroup per last-level cache. A worker accesses more memory than a core's
/// own caches hold.
///
/// Pressure: caches. A migration costs a worker its cached data, and none is necessary.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn steady_llc(ctx: &Ctx<'_>) -> Result<AssertResult> {
    let llcs = 0..ctx.topo.llcs.len();
    execute_defs(
        ctx,
        llcs.map(|llc| {
            let def = CgroupDef::named(format!("llc_{llc}")).cpuset(CpusetSpec::llc(llc));
            def.workers_pct(1.0).work_type(WorkType::CachePressure)
        }),
    )
}

/// Runs the cgroups of [`steady`] with four workers per CPU: two that spin, one that yields all the time,
/// and one that works in bursts.
///
/// Pressure: run queues. There is always a task to pick, and another one that waits.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn oversubscribed(ctx: &Ctx<'_>) -> Result<AssertResult> {
    let defs = halves(ctx).into_iter().map(|def| {
        let of = |work_type, comm| WorkSpec::default().work_type(work_type).comm(comm);
        def.workers_pct(1.0)
            .work(of(WorkType::SpinWait, "spin_0"))
            .work(of(WorkType::SpinWait, "spin_1"))
            .work(of(WorkType::YieldHeavy, "yield"))
            .work(of(WorkType::Bursty, "bursty"))
    });
    execute_defs(ctx, defs)
}

/// Runs spinning workers in two cgroups on separate halves of the CPUs. Every quarter of the time, the
/// cpuset of the second cgroup changes between all CPUs and its half.
///
/// Pressure: cpuset changes. Tasks have to leave the first half's CPUs at once when they may not use them
/// any more, and should use them again when they may. Skipped on one CPU.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn cpuset_resize(ctx: &Ctx<'_>) -> Result<AssertResult> {
    if let Some(skip) = unless_two_cpus(ctx) {
        return Ok(skip);
    }
    let fixed = CgroupDef::named("fixed").cpuset(CpusetSpec::disjoint(0, 2)).workers_pct(1.0);
    let resized = CgroupDef::named("resized").cpuset(CpusetSpec::disjoint(1, 2));
    // With all CPUs in the cpuset, there is one for each worker.
    let resized = resized.workers(nr_cpus(ctx));
    let backdrop = Backdrop::new().push_cgroup(fixed).push_cgroup(resized);
    let sizes = [CpusetSpec::disjoint(0, 1), CpusetSpec::disjoint(1, 2)];
    let steps = sizes.iter().cycle().take(4);
    let steps = steps.map(|cpus| quarter(Op::set_cpuset("resized", cpus.clone())));
    execute_scenario(ctx, backdrop, steps.collect::<Vec<_>>())
}

/// Runs one spinning worker per CPU, and creates and removes three more cgroups with one worker each every
/// quarter of a second.
///
/// Pressure: creation and removal of cgroups, and the first placement of their tasks.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn cgroup_churn(ctx: &Ctx<'_>) -> Result<AssertResult> {
    const LIFETIME: Duration = Duration::from_millis(250);
    let backdrop = Backdrop::new().push_cgroup(CgroupDef::named("steady").workers_pct(1.0));
    let short_lived = [WorkType::SpinWait, WorkType::Bursty, WorkType::ForkExit];
    let defs = short_lived.into_iter().enumerate().map(|(index, work_type)| {
        CgroupDef::named(format!("churn_{index}")).work_type(work_type).cpu_weight(50)
    });
    let step = Step::with_defs(defs, HoldSpec::fixed(LIFETIME.min(ctx.duration)));
    let count = (ctx.duration.as_millis() / LIFETIME.as_millis()).max(1) as usize;
    execute_scenario(ctx, backdrop, vec![step; count])
}

/// Runs one spinning worker per CPU and changes the affinity of all of them every quarter of the time: to
/// one CPU, to a random subset, to the CPUs of one last-level cache, to all CPUs.
///
/// Pressure: affinity changes. While all are pinned to one CPU, the others have to stay idle. Skipped on
/// one CPU.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn affinity_change(ctx: &Ctx<'_>) -> Result<AssertResult> {
    if let Some(skip) = unless_two_cpus(ctx) {
        return Ok(skip);
    }
    let backdrop = Backdrop::new().push_cgroup(CgroupDef::named("pinned").workers_pct(1.0));
    let steps = [
        AffinityIntent::SingleCpu,
        AffinityIntent::RandomSubset(1),
        AffinityIntent::LlcAligned,
        AffinityIntent::Inherit,
    ]
    .map(|affinity| quarter(Op::set_affinity("pinned", affinity)));
    execute_scenario(ctx, backdrop, steps)
}

/// Runs the cgroups of [`steady`] and one more spinning worker per CPU in a cgroup without a cpuset.
///
/// Pressure: tasks without a cpuset compete with tasks that are confined to one. The scheduler can migrate
/// only the former freely.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn host_contention(ctx: &Ctx<'_>) -> Result<AssertResult> {
    let outside = CgroupDef::named("outside").comm("outside");
    let defs = halves(ctx).into_iter().chain([outside]);
    execute_defs(ctx, defs.map(|def| def.workers_pct(1.0)))
}

/// Runs workers that compute, sleep, fault pages, use pipes and futexes, and yield, in cgroups without
/// cpusets.
///
/// Pressure: tasks with opposite needs, long time slices and short wake-up latencies.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn mixed_workloads(ctx: &Ctx<'_>) -> Result<AssertResult> {
    let def = |name: &str, work_type| CgroupDef::named(name).comm(name).work_type(work_type);
    execute_defs(
        ctx,
        [
            def("compute", WorkType::AluHot).workers_pct(0.5),
            def("bursty", WorkType::Bursty).workers_pct(0.5),
            def("timer", WorkType::TimerLatency).workers(1),
            def("pages", WorkType::PageFaultChurn).workers(1),
            def("pipes", WorkType::PipeIo).workers(2),
            def("futexes", WorkType::FutexFanOut).workers(4),
            def("yield", WorkType::YieldHeavy).workers(1),
        ],
    )
}

/// Runs spinning workers in nested cgroups on the first half of the CPUs: in `outer/left`, and in
/// `outer/right/heavy` and `outer/right/light`, whose weights are 300 and 100. Each cgroup has one worker
/// per CPU of the half.
///
/// Pressure: shares that depend on the parent's share, and inherited cpusets.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn nested(ctx: &Ctx<'_>) -> Result<AssertResult> {
    let cpus = CpusetSpec::disjoint(0, nr_halves(ctx));
    let workers = ctx.cpuset_cpus(&cpus)?.len() as u32;
    let leaf = |name: &str, weight| CgroupDef::named(name).cpu_weight(weight).workers(workers);
    execute_defs(
        ctx,
        [
            CgroupDef::named("outer").cpuset(cpus),
            leaf("outer/left", 100),
            CgroupDef::named("outer/right").cpu_weight(100),
            leaf("outer/right/heavy", 300),
            leaf("outer/right/light", 100),
        ],
    )
}

/// Runs one spinning worker per CPU in each of three cgroups: the first may use a tenth of all CPU time,
/// the second a third, the third all of it.
///
/// Pressure: throttling. Tasks are throttled and unthrottled every tenth of a second while others run on.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn cpu_quota(ctx: &Ctx<'_>) -> Result<AssertResult> {
    let def = |name: &str| CgroupDef::named(name).workers_pct(1.0);
    let percent = 100 * nr_cpus(ctx);
    execute_defs(
        ctx,
        [
            def("tenth").cpu_quota_pct(percent / 10),
            def("third").cpu_quota_pct(percent / 3),
            def("unlimited"),
        ],
    )
}

/// Runs one worker per CPU that allocates memory page by page and frees it, in a cgroup with a
/// `memory.high` slightly below their demand and a `memory.max` far above it; and one spinning worker per
/// CPU in another cgroup.
///
/// Pressure: memory. The kernel reclaims memory and throttles the workers of the first cgroup in their page
/// faults. It kills none of them, and the other cgroup should not be affected.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn memory_pressure(ctx: &Ctx<'_>) -> Result<AssertResult> {
    // The memory that a worker of `PageFaultChurn` allocates, in addition to its own pages.
    const ALLOCATED: u64 = 1 << 20;
    let workers = nr_cpus(ctx);
    let pages = CgroupDef::named("pages").work_type(WorkType::PageFaultChurn).workers(workers);
    let limit = u64::from(workers) * ALLOCATED;
    execute_defs(
        ctx,
        [
            pages.memory_high(limit).memory_max(8 * limit + (64 << 20)),
            CgroupDef::named("spinning").workers(workers),
        ],
    )
}

/// Runs one spinning worker per CPU in a cgroup without a cpuset. The last CPU is offline during the first
/// and the third quarter of the time.
///
/// Pressure: tasks have to leave a CPU that goes offline, and should use it again when it is online. Skipped
/// on one CPU, and if the last CPU cannot be offlined.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn hotplug(ctx: &Ctx<'_>) -> Result<AssertResult> {
    if let Some(skip) = unless_two_cpus(ctx) {
        return Ok(skip);
    }
    let last = ctx.topo.cpus[ctx.topo.cpus.len() - 1];
    let switch = format!("/sys/devices/system/cpu/cpu{last}/online");
    if !Path::new(&switch).exists() {
        return Ok(AssertResult::skip(format!(
            "CPU {last} cannot be offlined: {switch} does not exist"
        )));
    }
    let backdrop = Backdrop::new().push_cgroup(CgroupDef::named("everywhere").workers_pct(1.0));
    let steps = [false, true, false, true];
    execute_scenario(ctx, backdrop, steps.map(|online| quarter(Op::hotplug_cpu(last, online))))
}

/// Returns `cg_0` and `cg_1`, each on its half of the CPUs; only `cg_0` on one CPU.
fn halves(ctx: &Ctx<'_>) -> Vec<CgroupDef> {
    let of = nr_halves(ctx);
    let half =
        |index| CgroupDef::named(format!("cg_{index}")).cpuset(CpusetSpec::disjoint(index, of));
    (0..of).map(half).collect()
}

fn nr_halves(ctx: &Ctx<'_>) -> usize {
    ctx.topo.cpus.len().min(2)
}

fn nr_cpus(ctx: &Ctx<'_>) -> u32 {
    ctx.topo.cpus.len() as u32
}

/// Returns a step that carries out `op` and holds for a quarter of the test's duration.
fn quarter(op: Op) -> Step {
    Step::new([op], HoldSpec::frac(0.25))
}

fn unless_two_cpus(ctx: &Ctx<'_>) -> Option<AssertResult> {
    (ctx.topo.cpus.len() < 2).then(|| {
        AssertResult::skip(format!("too few CPUs (minimum 2): the machine has {}", ctx.topo))
    })
}
