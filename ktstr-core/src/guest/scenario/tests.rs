//! Tests of scenarios on recorded cgroups with real workers.

use std::sync::Mutex;
use std::time::Duration;

use proptest::prelude::*;

use super::ops::{Backdrop, HoldSpec, Op, SpawnPlacement, Step, StepExt};
use super::state::Scenario;
use super::{CgroupDef, CgroupKnob, CpusetSpec, Ctx, execute, execute_scenario, execute_steps};
use crate::guest::assert::{Assert, AssertResult, Outcome};
use crate::guest::payload::Payload;
use crate::guest::topology::TestTopology;
use crate::guest::workload::{AffinityIntent, WorkSpec};
use crate::linux::cgroup::{
    CgroupOps, CgroupStats, Controller, MemoryEvents, MemoryStats, RecordingCgroups,
};
use crate::model::wire::{GuestMessage, ScenarioEvent};

/// Returns the context of a test with a duration, without the check for stuck workers: holds are short.
fn context<'a>(
    cgroups: &'a RecordingCgroups,
    topo: &'a TestTopology,
    duration: Duration,
    send: &'a dyn Fn(GuestMessage),
) -> Ctx<'a> {
    Ctx {
        cgroups,
        topo,
        test_name: "test",
        duration,
        settle: Duration::from_millis(20),
        workers_per_cgroup: 2,
        assert: Assert::DEFAULT.not_stuck(false),
        payloads: &[],
        // On this host, processes of others may be OOM-killed.
        is_on_host: true,
        send,
    }
}

fn play(
    cgroups: &RecordingCgroups,
    backdrop: Backdrop,
    ops: Vec<Op>,
) -> anyhow::Result<AssertResult> {
    let topology = TestTopology::read()?;
    let ctx = context(cgroups, &topology, Duration::from_secs(1), &|_| ());
    let step = Step::new(ops, HoldSpec::fixed(Duration::from_millis(10)));
    execute_scenario(&ctx, backdrop, vec![step])
}

fn spawn_in(cgroup: &str) -> Op {
    Op::spawn(SpawnPlacement::cgroup(cgroup), WorkSpec::default().workers(2))
}

#[test]
fn execute_scenario_removes_cgroups_in_reverse_order() {
    let cgroups = RecordingCgroups::new();
    let backdrop = Backdrop::new().push_op(Op::add_cgroup("a")).push_op(Op::add_cgroup("b"));
    let verdict = play(&cgroups, backdrop, vec![Op::add_cgroup("c"), spawn_in("a")]).unwrap();
    assert_eq!(verdict.outcome, Outcome::Pass);
    let calls: Vec<_> =
        cgroups.calls().into_iter().map(|call| (call.operation, call.cgroup)).collect();
    let wanted = [
        ("create_cgroup", "a"),
        ("create_cgroup", "b"),
        ("create_cgroup", "c"),
        ("place_task_during_handshake", "a"),
        ("place_task_during_handshake", "a"),
        ("remove_cgroup", "c"),
        ("remove_cgroup", "b"),
        ("remove_cgroup", "a"),
    ];
    assert_eq!(calls, wanted.map(|(operation, cgroup)| (operation, cgroup.to_owned())));
}

#[test]
fn spawn_that_cannot_place_workers_fails_and_leaves_none() {
    let cgroups = RecordingCgroups::new();
    cgroups.fail("place_task_during_handshake", "a", libc::EBUSY);
    let error = play(&cgroups, Backdrop::new().push_op(Op::add_cgroup("a")), vec![spawn_in("a")]);
    let error = format!("{:#}", error.unwrap_err());
    assert!(error.starts_with("step 0: failed to spawn 2 x "), "{error}");
    assert!(error.contains("EBUSY (Device or resource busy)"), "{error}");
    assert_eq!(cgroups.groups(), [""; 0], "cgroups are removed after an error, too");
    let placed: i32 = cgroups.calls()[1].value.parse().unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{placed}")).exists(), "the worker was killed");
}

#[test]
fn execute_scenario_returns_the_first_error_of_its_teardown() {
    let cgroups = RecordingCgroups::new();
    cgroups.fail("remove_cgroup", "b", libc::EBUSY);
    let backdrop = Backdrop::new().push_op(Op::add_cgroup("a")).push_op(Op::add_cgroup("b"));
    let error = format!("{:#}", play(&cgroups, backdrop, vec![]).unwrap_err());
    assert!(error.contains("backdrop: teardown failed"), "{error}");
    assert!(error.contains("remove_cgroup `/sys/fs/cgroup/recording/b`: EBUSY"), "{error}");
    assert_eq!(cgroups.calls_of("remove_cgroup"), ["b", "a"]);
    assert_eq!(cgroups.groups(), ["b"]);
}

/// Returns a directory like sysfs's with CPUs 1 and 2, which are online.
fn cpu_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for cpu in ["cpu1", "cpu2"] {
        std::fs::create_dir(directory.path().join(cpu)).unwrap();
        std::fs::write(directory.path().join(cpu).join("online"), "1").unwrap();
    }
    directory
}

/// Ends a layer with cgroups, workers and CPUs. The teardown fails for CPU 2 if `cpu`, and for some cgroups.
/// Returns the error and the cgroups that the teardown tried to remove.
fn end_layer_failing(cpu: bool, cgroups_failing: &[&str]) -> (String, Vec<String>) {
    let (cgroups, topology, cpus) = (RecordingCgroups::new(), machine(), cpu_directory());
    let ctx = context(&cgroups, &topology, Duration::ZERO, &|_| ());
    let mut scenario = Scenario::new(&ctx);
    scenario.cpu_directory = cpus.path().to_owned();
    scenario.layers.begin("step 0".to_owned());
    for op in [
        Op::add_cgroup("a"),
        Op::hotplug_cpu(1, false),
        Op::add_cgroup("b"),
        spawn_in("a"),
        Op::hotplug_cpu(2, false),
        Op::hotplug_cpu(1, true),
    ] {
        scenario.carry_out(&op).unwrap();
    }
    let online = |cpu| std::fs::read_to_string(cpus.path().join(cpu).join("online"));
    assert_eq!((online("cpu1").unwrap(), online("cpu2").unwrap()), ("1".into(), "0".into()));
    if cpu {
        std::fs::remove_file(cpus.path().join("cpu2/online")).unwrap();
    }
    cgroups_failing.iter().for_each(|cgroup| cgroups.fail("remove_cgroup", cgroup, libc::EBUSY));
    let ended = scenario.end_layer();
    assert!(scenario.layers.is_empty());
    assert_eq!(scenario.workers.len(), 2, "both workers were stopped and reported");
    assert_eq!(online("cpu1").unwrap(), "1");
    assert!(cpu || online("cpu2").unwrap() == "1");
    (
        ended.map_or_else(|error| format!("{error:#}"), |()| String::new()),
        cgroups.calls_of("remove_cgroup"),
    )
}

#[test]
fn end_layer_undoes_everything_in_reverse_and_returns_the_first_error() {
    let all = ["b", "a"];
    assert_eq!(end_layer_failing(false, &[]), (String::new(), all.map(str::to_owned).to_vec()));
    for (cpu, cgroups, first) in [
        (true, &["a", "b"][..], "step 0: teardown failed: cannot online or offline CPU 2"),
        (false, &["a", "b"], "remove_cgroup `/sys/fs/cgroup/recording/b`: EBUSY"),
        (false, &["a"], "remove_cgroup `/sys/fs/cgroup/recording/a`: EBUSY"),
    ] {
        let (error, removed) = end_layer_failing(cpu, cgroups);
        assert!(error.starts_with("step 0: teardown failed: ") && error.contains(first), "{error}");
        assert_eq!(removed, all, "{error}");
    }
}

#[test]
fn end_layer_stops_workers_before_it_removes_a_cgroup() {
    let (cgroups, topology) = (RecordingCgroups::new(), machine());
    let ctx = context(&cgroups, &topology, Duration::ZERO, &|_| ());
    let mut scenario = Scenario::new(&ctx);
    scenario.layers.begin("backdrop".to_owned());
    scenario.carry_out(&Op::add_cgroup("a")).unwrap();
    scenario.carry_out(&spawn_in("a")).unwrap();
    scenario.layers.begin("step 0".to_owned());
    scenario.carry_out(&Op::add_cgroup("b")).unwrap();
    scenario.carry_out(&Op::move_all_tasks("a", "b")).unwrap();
    scenario.carry_out(&spawn_in("a")).unwrap();
    // The first two are the backdrop's, but in a cgroup of the step; the other two are the step's.
    scenario.end_layer().unwrap();
    assert_eq!((scenario.workers.len(), scenario.layers.workers().count()), (4, 0));
    assert_eq!(cgroups.groups(), ["a"]);
}

#[test]
fn remove_cgroup_that_fails_does_not_count_oom_kills_twice() {
    let (cgroups, topology) = (RecordingCgroups::new(), machine());
    let ctx = context(&cgroups, &topology, Duration::ZERO, &|_| ());
    let mut scenario = Scenario::new(&ctx);
    scenario.layers.begin("step 0".to_owned());
    scenario.carry_out(&Op::add_cgroup("a")).unwrap();
    let events = MemoryEvents { oom_kill: 2, ..MemoryEvents::default() };
    let memory = Some(MemoryStats { events, ..MemoryStats::default() });
    cgroups.set_stats("a", CgroupStats { memory, ..CgroupStats::default() }).unwrap();
    cgroups.fail("remove_cgroup", "a", libc::EBUSY);
    scenario.carry_out(&Op::remove_cgroup("a")).unwrap_err();
    scenario.end_layer().unwrap();
    let kills: Vec<_> = scenario.oom.kills().iter().map(|kills| kills.killed).collect();
    assert_eq!(kills, [Some(2)]);
}

#[test]
fn carry_out_names_the_phase_once() {
    let cgroups = RecordingCgroups::new();
    cgroups.fail("place_task_during_handshake", "a", libc::EBUSY);
    let ops = vec![Op::add_cgroup_def(CgroupDef::named("a").workers(1))];
    let error = format!("{:#}", play(&cgroups, Backdrop::new(), ops).unwrap_err());
    assert!(error.starts_with("step 0: failed to add cgroup a: failed to spawn 1 x "), "{error}");
    assert_eq!(error.matches("step 0").count(), 1, "{error}");
}

fn machine() -> TestTopology {
    TestTopology {
        cpus: (0..4).collect(),
        nodes: vec![(0..4).collect()],
        llcs: vec![vec![0, 1], vec![2, 3]],
        cores: (0..4).map(|cpu| vec![cpu]).collect(),
    }
}

/// Executes a scenario on a machine of four CPUs; returns the result and the calls: `operation cgroup value`.
fn play_on_four(
    cgroups: &RecordingCgroups,
    backdrop: Backdrop,
    steps: Vec<Step>,
) -> (anyhow::Result<AssertResult>, Vec<String>) {
    let topology = machine();
    let ctx = context(cgroups, &topology, Duration::from_millis(10), &|_| ());
    let played = execute_scenario(&ctx, backdrop, steps);
    let shown = |call: crate::linux::cgroup::Call| {
        format!("{} {} {}", call.operation, call.cgroup, call.value)
    };
    let calls = cgroups.calls().into_iter().map(shown);
    (played, calls.map(|call| call.trim_end().to_owned()).collect())
}

const NOW: HoldSpec = HoldSpec::Fixed(Duration::ZERO);

#[test]
fn operations_make_their_calls_in_order() {
    let ab = || {
        Backdrop::new()
            .push_cgroup(CgroupDef::named("a").cpuset(CpusetSpec::llc(0)))
            .push_cgroup(CgroupDef::named("b").cpuset(CpusetSpec::llc(1)))
    };
    let tail = ["remove_cgroup b", "remove_cgroup a"];
    for (op, calls) in [
        (Op::add_cgroup("c"), vec!["create_cgroup c", "remove_cgroup c"]),
        (Op::add_cgroup("c/d"), vec!["create_cgroup c/d", "remove_cgroup c/d", "remove_cgroup c"]),
        (
            Op::add_cgroup_def(CgroupDef::named("c").cpu_quota_pct(50).memory_max(4096)),
            vec![
                "create_cgroup c",
                "cpu.max c 50000 100000",
                "memory.max c 4096",
                "remove_cgroup c",
            ],
        ),
        (Op::stop_cgroup("a"), vec![]),
        (Op::set_cpuset("a", CpusetSpec::disjoint(1, 4)), vec!["cpuset.cpus a 1"]),
        (Op::clear_cpuset("a"), vec!["cpuset.cpus a \n"]),
        (Op::swap_cpusets("a", "b"), vec!["cpuset.cpus a 2-3", "cpuset.cpus b 0-1"]),
        (Op::set_knob("b", CgroupKnob::PidsMax(None)), vec!["pids.max b max"]),
        (Op::freeze_cgroup("a"), vec!["set_freeze a true"]),
        (Op::unfreeze_cgroup("a"), vec!["set_freeze a false"]),
    ] {
        let cgroups = RecordingCgroups::new();
        let op_text = op.to_string();
        let (played, made) = play_on_four(&cgroups, ab(), vec![Step::new([op], NOW)]);
        assert_eq!(played.unwrap().outcome, Outcome::Inconclusive, "no workers");
        let calls: Vec<_> =
            calls.into_iter().chain(tail).map(|call| call.replace("\\n", "\n")).collect();
        let calls: Vec<_> = calls.iter().map(|call| call.trim_end()).collect();
        assert_eq!(made[5..], calls, "{op_text}");
        assert!(made[0].starts_with("setup  ") && made[0].contains("cpuset"), "{made:?}");
        assert_eq!(cgroups.groups(), [""; 0]);
    }
}

#[test]
fn execute_scenario_enables_all_controllers_once_and_first() {
    let cgroups = RecordingCgroups::new();
    let backdrop = Backdrop::new().push_cgroup(CgroupDef::named("a").io_weight(50));
    let steps = vec![
        Step::new([Op::set_knob("a", CgroupKnob::PidsMax(Some(3)))], NOW),
        Step::with_defs([CgroupDef::named("b").cpu_weight(7)], NOW),
    ];
    let (played, calls) = play_on_four(&cgroups, backdrop, steps);
    assert_eq!(played.unwrap().outcome, Outcome::Inconclusive);
    let setups: Vec<_> = calls.iter().filter(|call| call.starts_with("setup")).collect();
    assert_eq!(setups, [&calls[0]]);
    for controller in ["io", "pids", "cpu"] {
        assert!(calls[0].contains(controller), "{calls:?}");
    }
}

const LOAD: Payload = Payload::new("load");

#[test]
fn operations_report_what_they_cannot_find() {
    for op in [
        Op::remove_cgroup("typo"),
        Op::stop_cgroup("typo"),
        Op::set_cpuset("typo", CpusetSpec::llc(0)),
        Op::swap_cpusets("a", "typo"),
        Op::swap_cpusets("typo", "a"),
        spawn_in("typo"),
        Op::move_all_tasks("a", "typo"),
        Op::move_all_tasks("typo", "a"),
        Op::freeze_cgroup("typo"),
        Op::unfreeze_cgroup("typo"),
        Op::capture_cgroup_procs("tag", "typo"),
        Op::run_payload(&LOAD, "typo"),
    ] {
        let cgroups = RecordingCgroups::new();
        let op_text = op.to_string();
        let backdrop =
            Backdrop::new().push_cgroup(CgroupDef::named("a").cpuset(CpusetSpec::llc(0)));
        let (played, calls) = play_on_four(&cgroups, backdrop, vec![Step::new([op], NOW)]);
        let error = format!("{:#}", played.unwrap_err());
        assert!(
            error.contains("unknown cgroup `typo`; this scenario created: a"),
            "{op_text}: {error}"
        );
        assert!(!calls.iter().any(|call| call.contains("typo")), "{op_text}: {calls:?}");
    }
    for (op, why) in [
        (Op::capture_cgroup_procs("", "a"), "needs a tag"),
        (Op::capture_snapshot(""), "needs a name"),
        (Op::capture_cgroup_procs("tag", ""), "has no name"),
        (Op::freeze_cgroup(""), "has no name"),
        (Op::add_cgroup("a"), "cgroup `a` exists already"),
        (Op::swap_cpusets("a", "b"), "no cpuset was set for `b`"),
        (
            Op::set_cpuset("a", CpusetSpec::numa(1)),
            "node 1 is out of range: the machine has 4 CPUs",
        ),
        (Op::move_all_tasks("a", "b"), "`a` has no task to move"),
        (Op::set_affinity("a", AffinityIntent::SingleCpu), "`a` has no workers to pin"),
        (Op::hotplug_cpu(9999, false), "cannot online or offline CPU 9999"),
        (Op::wait_payload("load", Duration::ZERO), "unknown payload `load`"),
        (Op::kill_payload("load"), "unknown payload `load`; this scenario runs: nothing"),
        (Op::run_payload(&LOAD, "a"), "unknown program `load`"),
        (Op::run_payload(LOAD.named(""), "a"), "the run has an empty name"),
        (Op::run_payload(&Payload::new(""), "a"), "the program has no name"),
    ] {
        let cgroups = RecordingCgroups::new();
        let op_text = op.to_string();
        let backdrop = Backdrop::new()
            .push_cgroup(CgroupDef::named("a").cpuset(CpusetSpec::llc(0)))
            .push_cgroup(CgroupDef::named("b"));
        let (played, _) = play_on_four(&cgroups, backdrop, vec![Step::new([op], NOW)]);
        let error = format!("{:#}", played.unwrap_err());
        assert!(error.contains(why), "{op_text}: {error}");
        assert_eq!(cgroups.groups(), [""; 0], "{op_text}");
    }
}

#[test]
fn step_plays_setup_operations_and_hold_in_order() {
    let events = Mutex::new(Vec::new());
    let report = |report| {
        if let GuestMessage::Event(event) = report {
            events.lock().unwrap().push(format!("{}: {}", event.phase, event.what));
        }
    };
    let (cgroups, topology) = (RecordingCgroups::new(), machine());
    let ctx = context(&cgroups, &topology, Duration::from_millis(500), &report);
    let step = Step::new([], HoldSpec::loop_at(Duration::from_millis(50)))
        .with_op(Op::freeze_cgroup("a"))
        .with_defs([CgroupDef::named("a").pids_max(5)]);
    let next = Step::new([], HoldSpec::FULL).hold(HoldSpec::frac(0.1));
    let last = Step::new([], ctx.settled_hold(0.02));
    assert_eq!(execute_steps(&ctx, [step, next, last]).unwrap().outcome, Outcome::Inconclusive);
    let mut events = events.into_inner().unwrap();
    let frozen = events.iter().filter(|event| *event == "step 0: freeze a").count();
    // The number depends on the speed of the machine.
    assert!((2..=10).contains(&frozen), "{events:?}");
    events.dedup();
    assert_eq!(
        events,
        [
            "step 0: add cgroup a, pids.max 5",
            "step 0: freeze a",
            "step 0: hold for 500ms, operations every 50ms",
            "step 0: freeze a",
            "step 1: hold for 50ms",
            "step 2: settle for 20ms",
            "step 2: hold for 10ms",
        ]
    );
}

#[test]
fn step_is_undone_before_the_next_begins() {
    let cgroups = RecordingCgroups::new();
    let again = || Step::with_defs([CgroupDef::named("a").workers(1)], NOW);
    let (played, calls) = play_on_four(&cgroups, Backdrop::new(), vec![again(), again()]);
    assert!(played.unwrap().is_pass());
    let kinds: Vec<_> = calls.iter().filter_map(|call| call.split(' ').next()).collect();
    let once = ["create_cgroup", "place_task_during_handshake", "remove_cgroup"];
    assert_eq!(kinds, [once, once].concat());
}

/// Returns the worker reports of a scenario on a machine of four CPUs; the workers run on this one.
fn reports_of(backdrop: Backdrop, steps: Vec<Step>) -> Vec<crate::guest::workload::WorkerReport> {
    let (cgroups, topology) = (RecordingCgroups::new(), machine());
    cgroups.setup(&Controller::ALL.into()).unwrap();
    let ctx = context(&cgroups, &topology, Duration::from_millis(50), &|_| ());
    execute::play_for_reports(&ctx, &backdrop, &steps).unwrap()
}

#[test]
fn memory_high_marks_workers_below_it_as_throttled() {
    let spawn = || Op::spawn(SpawnPlacement::cgroup("a/b"), WorkSpec::default());
    let high = |bytes| Op::set_knob("a", CgroupKnob::MemoryHigh(bytes));
    let elsewhere = || [Op::add_cgroup("c"), Op::set_knob("c", CgroupKnob::MemoryHigh(Some(1)))];
    let move_to_c = || elsewhere().into_iter().chain([Op::move_all_tasks("a/b", "c")]).collect();
    for (before, after, is_memory_throttled) in [
        (vec![], vec![], false),
        (vec![high(Some(1))], vec![], true),
        (vec![high(Some(1)), high(None)], vec![], false),
        (vec![], vec![high(Some(1)), high(None)], true),
        (vec![], elsewhere().into(), false),
        (vec![], move_to_c(), true),
    ] {
        let made = [Op::add_cgroup("a"), Op::add_cgroup("a/b")].into_iter();
        let ops: Vec<_> = made.chain(before).chain([spawn()]).chain(after).collect();
        let op_text = format!("{ops:?}");
        let [report] = &reports_of(Backdrop::new(), vec![Step::new(ops, NOW)])[..] else {
            panic!("{op_text}")
        };
        assert_eq!(report.is_memory_throttled, is_memory_throttled, "{op_text}");
    }
}

fn cpusets(report: &crate::guest::workload::WorkerReport) -> Vec<&[u32]> {
    report.cpuset_periods.iter().map(|period| &*period.cpuset).collect()
}

#[test]
fn worker_reports_list_the_cpusets_that_confined_them() {
    let set = |cpus: CpusetSpec| Op::set_cpuset("a", cpus);
    let (zero, one) = (|| CpusetSpec::llc(0), || CpusetSpec::llc(1));
    let a = || CgroupDef::named("a");
    let spawn = |cgroup| Op::spawn(SpawnPlacement::cgroup(cgroup), WorkSpec::default());
    let now = |ops: Vec<Op>| Step::new(ops, NOW);
    for (why, def, ops, cpuset) in [
        ("its own", a().cpuset(zero()), vec![spawn("a")], vec![&[0, 1][..]]),
        (
            "the last one before it",
            a().cpuset(zero()).cpuset(one()),
            vec![spawn("a")],
            vec![&[2, 3]],
        ),
        (
            "no matter what was before",
            a().knob(CgroupKnob::Cpuset(None)).cpuset(one()),
            vec![spawn("a")],
            vec![&[2, 3]],
        ),
        ("all it had", a().cpuset(zero()), vec![spawn("a"), set(one())], vec![&[0, 1], &[2, 3]]),
        ("none before", a(), vec![spawn("a"), set(one())], vec![&[2, 3]]),
        ("none after", a().cpuset(zero()), vec![spawn("a"), Op::clear_cpuset("a")], vec![&[0, 1]]),
        ("none", a(), vec![spawn("a"), Op::clear_cpuset("a")], vec![]),
        (
            "of the parent",
            a().cpuset(zero()),
            vec![Op::add_cgroup("a/b"), spawn("a/b")],
            vec![&[0, 1]],
        ),
        (
            "of both",
            a().cpuset(CpusetSpec::range(0, 2)),
            vec![
                Op::add_cgroup_def(CgroupDef::named("a/b").cpuset(CpusetSpec::range(1, 3))),
                spawn("a/b"),
            ],
            vec![&[1, 2]],
        ),
        (
            "of the parent, if its own has none of them",
            a().cpuset(zero()),
            vec![
                Op::add_cgroup_def(CgroupDef::named("a/b").cpuset(one())),
                spawn("a/b"),
                Op::set_cpuset("a/b", CpusetSpec::range(1, 2)),
            ],
            vec![&[0, 1], &[1]],
        ),
        (
            "of where it goes",
            a().cpuset(zero()),
            vec![
                Op::add_cgroup_def(CgroupDef::named("b").cpuset(one())),
                Op::add_cgroup("c"),
                spawn("a"),
                Op::move_all_tasks("a", "b"),
                Op::move_all_tasks("b", "c"),
                Op::swap_cpusets("a", "b"),
                Op::move_all_tasks("c", "b"),
            ],
            vec![&[0, 1], &[2, 3], &[0, 1]],
        ),
    ] {
        let reports = reports_of(Backdrop::new().push_cgroup(def), vec![now(ops)]);
        let [report] = &reports[..] else { panic!("{why}: {reports:?}") };
        assert_eq!(cpusets(report), cpuset, "{why}");
    }
    // The same name in two steps means two cgroups.
    let step = |cpus| Step::new([spawn("a")], NOW).with_defs([a().cpuset(cpus)]);
    let reports = reports_of(Backdrop::new(), vec![step(zero()), step(one())]);
    let cpusets: Vec<_> = reports.iter().flat_map(cpusets).collect();
    assert_eq!(cpusets, [&[0, 1], &[2, 3]]);
    assert_ne!(reports[0].spawn, reports[1].spawn);
}

#[test]
fn worker_reports_list_the_periods_in_which_they_were_frozen() {
    let freeze = |cgroup| Op::freeze_cgroup(cgroup);
    let thaw = |cgroup| Op::unfreeze_cgroup(cgroup);
    let spawn = |cgroup| Op::spawn(SpawnPlacement::cgroup(cgroup), WorkSpec::default());
    let to = |to| Op::move_all_tasks("a/c", to);
    let place = || vec![spawn("a/c")];
    // The number of freezes, and whether the last one lasts.
    for (why, ops, times, is_open) in [
        ("never", place(), 0, false),
        ("by its parent, thawed", [place(), vec![freeze("a"), thaw("a")]].concat(), 1, false),
        ("by its parent, to the end", [place(), vec![freeze("a")]].concat(), 1, true),
        ("twice", [place(), vec![freeze("a"), thaw("a"), freeze("a/c")]].concat(), 2, true),
        (
            "by two",
            [place(), vec![freeze("a"), freeze("a/c"), thaw("a"), thaw("a/c")]].concat(),
            1,
            false,
        ),
        ("still by one", [place(), vec![freeze("a"), freeze("a/c"), thaw("a")]].concat(), 1, true),
        ("again", [place(), vec![freeze("a"), freeze("a")]].concat(), 1, true),
        ("from its start", [vec![freeze("a/c")], place(), vec![thaw("a/c")]].concat(), 1, false),
        ("by a move", [place(), vec![freeze("cold"), to("cold")]].concat(), 1, true),
        ("until a move", [place(), vec![freeze("a"), to("cold")]].concat(), 1, false),
        ("elsewhere", [place(), vec![freeze("cold")]].concat(), 0, false),
    ] {
        let backdrop = ["a/c", "cold"]
            .map(Op::add_cgroup)
            .into_iter()
            .fold(Backdrop::new(), Backdrop::push_op);
        let before_ns = crate::linux::sys::since_boot_ns();
        let reports = reports_of(backdrop, vec![Step::new(ops, NOW)]);
        let [report] = &reports[..] else { panic!("{why}: {reports:?}") };
        assert_eq!(report.frozen_periods.len(), times, "{why}: {report:?}");
        let mut last_ns = before_ns;
        for frozen in &report.frozen_periods {
            assert!(last_ns <= frozen.from_ns && frozen.from_ns <= frozen.until_ns, "{report:?}");
            last_ns = frozen.until_ns;
        }
        assert_eq!(times > 0 && last_ns >= report.until_ns, is_open, "{why}: {report:?}");
    }
}

#[test]
fn reconfine_unconfines_workers_during_a_change_and_after_its_failure() {
    let (cgroups, topology) = (RecordingCgroups::new(), machine());
    cgroups.setup(&Controller::ALL.into()).unwrap();
    let ctx = context(&cgroups, &topology, Duration::ZERO, &|_| ());
    let mut scenario = Scenario::new(&ctx);
    scenario.layers.begin("step 0".to_owned());
    let def = CgroupDef::named("a").workers(1).cpuset(CpusetSpec::llc(0));
    scenario.carry_out(&Op::add_cgroup_def(def)).unwrap();
    let is_held = |scenario: &Scenario<'_>| {
        scenario.layers.workers().all(|placed| placed.worker.cpuset().is_some())
    };
    assert!(is_held(&scenario));
    let mut change = |result: anyhow::Result<()>| {
        let changed = scenario.reconfine(
            |_| true,
            |scenario| {
                assert!(!is_held(scenario));
                result
            },
        );
        assert_eq!(is_held(&scenario), changed.is_ok());
    };
    change(Ok(()));
    change(Err(anyhow::anyhow!("refused")));
}

#[test]
fn execute_scenario_adds_failed_checks_to_an_error() {
    fn leave(_: &crate::guest::workload::WorkerCtx) {}
    let cgroups = RecordingCgroups::new();
    let leaving = WorkSpec::default().work_type(crate::guest::workload::WorkType::Custom(leave));
    let ops = [Op::add_cgroup("a"), Op::spawn(SpawnPlacement::cgroup("a"), leaving)];
    // The worker's early exit ends the hold.
    let steps = vec![Step::new(ops, HoldSpec::fixed(Duration::from_secs(60)))];
    cgroups.fail("remove_cgroup", "a", libc::EBUSY);
    let (played, _) = play_on_four(&cgroups, Backdrop::new(), steps);
    let error = played.unwrap_err();
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    assert_eq!(cause.and_then(std::io::Error::raw_os_error), Some(libc::EBUSY));
    let error = crate::guest::chain::describe(&error);
    assert_eq!(error.matches("EBUSY").count(), 1, "{error}");
    let (first, failed) = error.split_once("; checks that failed before:\n  ").unwrap();
    assert!(first.contains("remove_cgroup") && first.contains("EBUSY"), "{error}");
    assert!(failed.starts_with("worker exited early: exit status 0 "), "{error}");
}

#[test]
fn oom_kills_of_a_cgroup_are_not_counted_for_its_parent() {
    let cgroups = RecordingCgroups::new();
    let killing = |cgroup: &str, oom_kill| {
        let events = MemoryEvents { oom_kill, ..MemoryEvents::default() };
        let memory = Some(MemoryStats { events, ..MemoryStats::default() });
        cgroups.set_stats(cgroup, CgroupStats { memory, ..CgroupStats::default() }).unwrap();
    };
    let topology = machine();
    let kills = |child: u64, parent: u64, is_expected: bool| {
        // The parent is created with it.
        let def = CgroupDef::named("a/b").workers(1);
        let def = if is_expected { def.expect_oom_kill() } else { def };
        let backdrop = Backdrop::new().push_cgroup(def);
        let report = |report| {
            if matches!(report, GuestMessage::Event(ScenarioEvent { what, .. }) if what.starts_with("hold"))
            {
                killing("a/b", child);
                killing("a", parent);
            }
        };
        let ctx = context(&cgroups, &topology, Duration::from_millis(10), &report);
        execute_scenario(&ctx, backdrop, [Step::new([], HoldSpec::FULL)]).unwrap()
    };
    for (child, parent, expected, outcome, cgroup) in [
        (0, 0, false, Outcome::Pass, None),
        (2, 2, true, Outcome::Pass, None),
        (2, 3, true, Outcome::Fail, Some("a")),
        (2, 2, false, Outcome::Fail, Some("a/b")),
        (0, 0, true, Outcome::Fail, Some("a/b")),
    ] {
        let verdict = kills(child, parent, expected);
        assert_eq!(verdict.outcome, outcome, "{child} {parent} {expected}: {verdict:?}");
        let cgroups: Vec<_> = verdict.details.iter().map(|detail| detail.scope.cgroup()).collect();
        assert_eq!(cgroups, cgroup.map(Some).into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn add_cgroup_rejects_invalid_names() {
    for (name, reason) in [
        ("../x", "`..` would leave the parent"),
        ("a/../x", "`..` would leave the parent"),
        ("/x", "it starts with `/`"),
        ("a//x", "it has an empty component"),
        ("a/.x", "a component starts with a dot"),
        ("", "it is empty"),
    ] {
        for op in [Op::add_cgroup(name), Op::add_cgroup_def(CgroupDef::named(name).workers(1))] {
            let cgroups = RecordingCgroups::new();
            let error = format!("{:#}", play(&cgroups, Backdrop::new(), vec![op]).unwrap_err());
            assert!(error.contains(&format!("`{name}`")) && error.contains(reason), "{error}");
            assert_eq!(cgroups.groups(), [""; 0]);
        }
    }
}

#[test]
fn scenario_is_torn_down_after_a_panic() {
    let cgroups = RecordingCgroups::new();
    let bridge = crate::guest::snapshot::SnapshotBridge::default();
    let bridge = bridge.on_cgroup_procs(|_| panic!("in a callback"));
    let _guard = bridge.set_thread_local();
    let steps = vec![Step::new([Op::capture_cgroup_procs("tag", "a")], NOW)];
    let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        play_on_four(&cgroups, Backdrop::new().push_op(Op::add_cgroup("a")), steps)
    }));
    assert!(played.is_err());
    assert_eq!(cgroups.groups(), [""; 0]);
}

#[test]
fn cgroup_whose_removal_failed_is_removed_at_the_end() {
    let cgroups = RecordingCgroups::new();
    cgroups.fail("remove_cgroup", "a", libc::EBUSY);
    let ops = [Op::add_cgroup("a"), Op::remove_cgroup("a")];
    let (played, _) = play_on_four(&cgroups, Backdrop::new(), vec![Step::new(ops, NOW)]);
    assert!(format!("{:#}", played.unwrap_err()).contains("EBUSY"));
    assert_eq!(cgroups.groups(), [""; 0]);
}

#[test]
fn add_cgroup_fails_if_an_ancestor_cannot_be_read() {
    let cgroups = RecordingCgroups::new();
    cgroups.fail("read_procs", "a", libc::EBUSY);
    let backdrop = Backdrop::new().push_op(Op::add_cgroup("a/c"));
    let (played, calls) = play_on_four(&cgroups, backdrop, vec![]);
    assert!(format!("{:#}", played.unwrap_err()).contains("EBUSY"));
    assert_eq!(cgroups.groups(), [""; 0], "{calls:?}");
}

#[test]
fn cgroup_with_children_is_removed_after_them() {
    let cgroups = RecordingCgroups::new();
    let backdrop = Backdrop::new().push_op(Op::add_cgroup("a/c"));
    let steps = vec![Step::new([Op::remove_cgroup("a")], NOW)];
    let (played, calls) = play_on_four(&cgroups, backdrop, steps);
    assert!(format!("{:#}", played.unwrap_err()).starts_with("step 0: failed to remove cgroup a"));
    assert_eq!(cgroups.groups(), [""; 0], "{calls:?}");
}

fn any_op() -> impl Strategy<Value = Op> {
    let name = || prop::sample::select(vec!["a", "b", "a/c", "d"]);
    prop_oneof![
        name().prop_map(Op::add_cgroup),
        name().prop_map(|name| Op::add_cgroup_def(CgroupDef::named(name).pids_max(9))),
        name().prop_map(Op::remove_cgroup),
        name().prop_map(Op::stop_cgroup),
        name().prop_map(|name| Op::set_cpuset(name, CpusetSpec::llc(1))),
        name().prop_map(Op::clear_cpuset),
        (name(), name()).prop_map(|(a, b)| Op::swap_cpusets(a, b)),
        name().prop_map(spawn_in),
        (name(), name()).prop_map(|(a, b)| Op::move_all_tasks(a, b)),
        name().prop_map(Op::freeze_cgroup),
        name().prop_map(|name| Op::capture_cgroup_procs("tag", name)),
        name().prop_map(|name| Op::run_payload(&LOAD, name)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any operations in any order, whichever call fails, leave no cgroup and no worker.
    #[test]
    fn any_scenario_is_torn_down_completely(
        backdrop in prop::collection::vec(any_op(), 0..3),
        steps in prop::collection::vec(prop::collection::vec(any_op(), 0..4), 0..3),
        failure in prop::option::of((
            prop::sample::select(vec![
                "create_cgroup", "place_task_during_handshake", "cpuset.cpus", "pids.max",
                "set_freeze", "move_tasks", "read_procs",
            ]),
            prop::sample::select(vec!["a", "b", "a/c", "d"]),
        )),
    ) {
        let cgroups = RecordingCgroups::new();
        if let Some((operation, cgroup)) = failure {
            cgroups.fail(operation, cgroup, libc::EBUSY);
        }
        let backdrop = backdrop.into_iter().fold(Backdrop::new(), Backdrop::push_op);
        let steps = steps.into_iter().map(|ops| Step::new(ops, NOW)).collect();
        let (_, calls) = play_on_four(&cgroups, backdrop, steps);
        prop_assert_eq!(cgroups.groups(), Vec::<String>::new(), "{:?}", calls);
        let placed = cgroups.calls().into_iter();
        for call in placed.filter(|call| call.operation == "place_task_during_handshake") {
            let worker = std::path::PathBuf::from(format!("/proc/{}", call.value));
            prop_assert!(!worker.exists(), "{:?} was left running", worker);
        }
    }
}
