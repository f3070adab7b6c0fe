//! Canned scenarios: loads that schedulers are known to stumble over, one function each.
//!
//! Each is written in the words of [`scenario`](crate::guest::scenario) alone and can serve as a pattern.
//! It fits whatever machine it finds, lasts as long as [`Ctx::duration`] says, and is held against
//! the keys of the test's attribute, as [`execute_scenario`] is. What a machine cannot do is a skip
//! with the reason.
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

/// Two cgroups on separate halves of the CPUs, one on a machine of one CPU, with one spinning worker
/// per CPU.
///
/// Pressure: none beyond full CPUs. Everybody has a place, and a scheduler that moves anybody or
/// makes anybody wait does so without need.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn steady(ctx: &Ctx<'_>) -> Result<AssertResult> {
    execute_defs(ctx, halves(ctx).into_iter().map(|def| def.workers_pct(1.0)))
}

/// One cgroup per last-level cache, with one worker per CPU that goes through more memory than a
/// core's own caches hold.
///
/// Pressure: on the caches. Whoever is moved pays for it, and nobody has to be.
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

/// As [`steady`], with four workers per CPU: two that spin, one that gives its CPU back all the
/// time, and one that comes and goes.
///
/// Pressure: on the run queues. There is always somebody to pick, and somebody who waits.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn oversubscribed(ctx: &Ctx<'_>) -> Result<AssertResult> {
    let groups = halves(ctx).into_iter().map(|def| {
        let of = |work_type, comm| WorkSpec::default().work_type(work_type).comm(comm);
        def.workers_pct(1.0)
            .work(of(WorkType::SpinWait, "spin_0"))
            .work(of(WorkType::SpinWait, "spin_1"))
            .work(of(WorkType::YieldHeavy, "yield"))
            .work(of(WorkType::Bursty, "bursty"))
    });
    execute_defs(ctx, groups)
}

/// Two cgroups with one spinning worker per CPU of theirs; every quarter of the time the second one
/// is given all CPUs, or goes back to its half.
///
/// Pressure: on the way from a cpuset to where tasks are. They have to leave the first half's CPUs
/// at once, and should use them again when they may. Skipped on one CPU.
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
    // Each has a CPU of its own once there is room.
    let resized = resized.workers(nr_cpus(ctx));
    let backdrop = Backdrop::new().push_cgroup(fixed).push_cgroup(resized);
    let sizes = [CpusetSpec::disjoint(0, 1), CpusetSpec::disjoint(1, 2)];
    let steps = sizes.iter().cycle().take(4);
    let steps = steps.map(|cpus| quarter(Op::set_cpuset("resized", cpus.clone())));
    execute_scenario(ctx, backdrop, steps.collect::<Vec<_>>())
}

/// One spinning worker per CPU, and every quarter of a second three cgroups with a worker each that
/// are made and removed beside them.
///
/// Pressure: on the making and removal of groups, and on the first placement of their tasks.
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

/// One spinning worker per CPU, all of which are pinned to one CPU, to some, to those below one
/// last-level cache, and to none in particular, a quarter of the time each.
///
/// Pressure: on the way from an affinity to where tasks are; between, all wait for one CPU while the
/// others idle, as they must. Skipped on one CPU.
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

/// As [`steady`], and one spinning worker per CPU outside, in a group without a cpuset.
///
/// Pressure: from neighbours who may go anywhere on tasks which may not; the scheduler can give way
/// with the one, not with the other.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn host_contention(ctx: &Ctx<'_>) -> Result<AssertResult> {
    let outside = CgroupDef::named("outside").comm("outside");
    let groups = halves(ctx).into_iter().chain([outside]);
    execute_defs(ctx, groups.map(|def| def.workers_pct(1.0)))
}

/// Cgroups without cpusets whose workers compute, sleep, page, talk through pipes and futexes, and
/// give their CPU back.
///
/// Pressure: on the choice between tasks that want opposite things: long slices, and short waits.
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

/// Groups in groups, three deep, within the first half of the CPUs: `outer/left`, and
/// `outer/right/heavy` and `outer/right/light`, which weigh 300 and 100. Each has a spinning worker
/// per CPU of the half.
///
/// Pressure: on shares that depend on other shares, and on cpusets that come from above.
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

/// One spinning worker per CPU in each of three cgroups: one may use a tenth of all CPU time, one a
/// third, one has no limit.
///
/// Pressure: on throttling. Tasks that may not run any more have to stand back and to be let in
/// again, every tenth of a second, while others take their place.
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

/// One worker per CPU that takes memory page by page and gives it back, in a group whose
/// `memory.high` is a little less than they take and whose `memory.max` is far away; and one
/// spinning worker per CPU beside them.
///
/// Pressure: on memory. The kernel reclaims, and slows the takers down in their page faults; nobody
/// is killed, and those beside them should not notice.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn memory_pressure(ctx: &Ctx<'_>) -> Result<AssertResult> {
    // What a worker of `PageFaultChurn` takes; its own pages come on top of it.
    const TAKEN: u64 = 1 << 20;
    let workers = nr_cpus(ctx);
    let pages = CgroupDef::named("pages").work_type(WorkType::PageFaultChurn).workers(workers);
    let limit = u64::from(workers) * TAKEN;
    execute_defs(
        ctx,
        [
            pages.memory_high(limit).memory_max(8 * limit + (64 << 20)),
            CgroupDef::named("beside").workers(workers),
        ],
    )
}

/// One spinning worker per CPU in a group without a cpuset; the last CPU is off for the first and
/// the third quarter of the time.
///
/// Pressure: on the way off a CPU that goes, and back to it. Skipped on one CPU, and where the last
/// one cannot be switched.
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
        return Ok(AssertResult::skip(format!("CPU {last} cannot be switched: no {switch}")));
    }
    let backdrop = Backdrop::new().push_cgroup(CgroupDef::named("everywhere").workers_pct(1.0));
    let steps = [false, true, false, true];
    execute_scenario(ctx, backdrop, steps.map(|online| quarter(Op::hotplug_cpu(last, online))))
}

/// `cg_0` and `cg_1`, each on its half of the CPUs; of one CPU there is one half.
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

/// A quarter of the test's duration with `op` done.
fn quarter(op: Op) -> Step {
    Step::new([op], HoldSpec::frac(0.25))
}

fn unless_two_cpus(ctx: &Ctx<'_>) -> Option<AssertResult> {
    (ctx.topo.cpus.len() < 2)
        .then(|| AssertResult::skip(format!("it takes 2 CPUs, the machine has {}", ctx.topo)))
}
