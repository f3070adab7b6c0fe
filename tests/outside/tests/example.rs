//! The test of the README, word for word.

use ktstr::prelude::*;

#[ktstr_test(llcs = 2, cores = 2, memory_mib = 512, duration_s = 4, max_gap_ms = 200)]
fn swapped_cpusets_stay_fair(ctx: &Ctx) -> Result<AssertResult> {
    let web = CgroupDef::named("web").cpuset(CpusetSpec::llc(0)).workers_pct(1.0).comm("web");
    let batch = CgroupDef::named("batch").cpuset(CpusetSpec::llc(1)).cpu_weight(50);
    let batch = batch.workers(4).comm("batch").work_type(WorkType::Bursty);
    let limit = CgroupKnob::CpuMax(Some(20_000), 100_000);
    let steps = [
        Step::new([], HoldSpec::frac(0.25)),
        Step::new([Op::swap_cpusets("web", "batch")], HoldSpec::frac(0.5)),
        Step::new([Op::set_knob("batch", limit)], HoldSpec::frac(0.25)),
    ];
    execute_scenario(ctx, Backdrop::new().push_cgroup(web).push_cgroup(batch), steps)
}
