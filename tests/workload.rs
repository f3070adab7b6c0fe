//! Every type of work, in a guest with SMT and two memory nodes.

use std::time::Duration;

use ktstr::prelude::*;

/// The types with their number of workers: two groups, or the one group of all workers.
const TYPES: [(WorkType, u32); 27] = [
    (WorkType::SpinWait, 2),
    (WorkType::YieldHeavy, 2),
    (WorkType::Mixed, 2),
    (WorkType::AluHot, 2),
    (WorkType::SmtSiblingSpin, 4),
    (WorkType::Bursty, 2),
    (WorkType::IdleChurn, 2),
    (WorkType::TimerLatency, 2),
    (WorkType::WakeChain, 3),
    (WorkType::ThunderingHerd, 4),
    (WorkType::PipeIo, 4),
    (WorkType::FutexPingPong, 4),
    (WorkType::FutexFanOut, 4),
    (WorkType::MutexContention, 4),
    (WorkType::PriorityInversion, 6),
    (WorkType::ProducerConsumer, 4),
    (WorkType::CachePressure, 2),
    (WorkType::PageFaultChurn, 2),
    (WorkType::NumaSweep, 2),
    (WorkType::IoSyncWrite, 2),
    (WorkType::ForkExit, 2),
    (WorkType::AffinityChurn, 2),
    (WorkType::NiceSweep, 2),
    (WorkType::PolicyChurn, 2),
    (WorkType::RtStarvation, 2),
    (WorkType::EpollStorm, 3),
    (WorkType::SignalStorm, 4),
];

/// Runs the workers until each has made an iteration, for longer each time: a worker that others starve
/// gets some CPU time once in a second, and less of it on a busy host.
fn works(ctx: &Ctx, work: &WorkSpec) -> Result<AssertResult> {
    let bridge = SnapshotBridge::default();
    let _guard = bridge.clone().set_thread_local();
    let mut reports = Vec::new();
    for ms in [100, 1000, 5000, 25_000] {
        let backdrop = Backdrop::new().push_op(Op::add_cgroup("cg"));
        let backdrop = backdrop.push_op(Op::spawn(SpawnPlacement::cgroup("cg"), work.clone()));
        let done = Step::new([Op::capture_snapshot("done")], HoldSpec::fixed(Duration::ZERO));
        let hold = Step::new([], HoldSpec::fixed(Duration::from_millis(ms)));
        let verdict = execute_scenario(ctx, backdrop, [hold, done])?;
        let Some(snapshot) = bridge.drain_snapshots().pop() else { return Ok(verdict) };
        reports = snapshot.workers;
        if reports.iter().all(|worker| worker.iterations > 0) {
            return Ok(verdict);
        }
    }
    bail!("{work}: not all workers have made an iteration: {reports:?}")
}

/// A worker that exits early, for example with an error, fails the scenario.
#[ktstr_test(
    numa_nodes = 2,
    llcs = 2,
    cores = 1,
    threads = 2,
    memory_mib = 512,
    duration_s = 120,
    not_stuck = false,
    workload_root_cgroup = "/ktstr-suite"
)]
fn work_types_make_iterations_in_a_guest(ctx: &Ctx) -> Result<AssertResult> {
    let each = TYPES.map(|(work, workers)| {
        let comm = format!("{work:?}").chars().take(15).collect::<String>();
        works(ctx, &WorkSpec::default().comm(comm).work_type(work).workers(workers))
    });
    Ok(AssertResult::all_of(each.into_iter().collect::<Result<Vec<_>>>()?))
}

#[ktstr_test(
    numa_nodes = 2,
    llcs = 2,
    cores = 1,
    threads = 2,
    memory_mib = 512,
    duration_s = 120,
    not_stuck = false,
    workload_root_cgroup = "/ktstr-suite"
)]
fn work_spec_settings_apply_in_a_guest(ctx: &Ctx) -> Result<AssertResult> {
    let ms = Duration::from_millis;
    let deadline = SchedPolicy::Deadline { runtime: ms(1), deadline: ms(20), period: ms(40) };
    let spec = || WorkSpec::default().workers(2).work_type(WorkType::TimerLatency);
    let mut specs = vec![
        spec().policy(SchedPolicy::Batch).nice(-5),
        spec().policy(SchedPolicy::Idle),
        spec().policy(SchedPolicy::Fifo(10)),
        spec().policy(SchedPolicy::RoundRobin(10)),
        spec().policy(deadline),
        spec().affinity(AffinityIntent::SmtSiblingPair),
        spec().affinity(AffinityIntent::LlcAligned),
        spec().affinity(AffinityIntent::RandomSubset(7)),
        spec().affinity(AffinityIntent::Exact([1, 3].into())),
        spec().memory_policy(MemoryPolicy::Bind([1].into())),
        spec().memory_policy(MemoryPolicy::Interleave([0, 1].into())),
        spec().uid(1000).gid(1000),
    ];
    if std::path::Path::new("/sys/kernel/sched_ext").exists() {
        specs.push(spec().policy(SchedPolicy::Ext));
    }
    let each = specs.iter().map(|work| works(ctx, work));
    Ok(AssertResult::all_of(each.collect::<Result<Vec<_>>>()?))
}
