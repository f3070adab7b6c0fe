//! Scenarios on cgroups that are only recorded; their workers are real.

use super::ops::{Backdrop, HoldSpec, Op, SpawnPlacement, Step};
use super::*;
use crate::assert::{AssertResult, Outcome};
use crate::cgroup::RecordingCgroups;
use crate::workload::WorkSpec;

fn play(
    cgroups: &RecordingCgroups,
    backdrop: Backdrop,
    ops: Vec<Op>,
) -> anyhow::Result<AssertResult> {
    let topology = TestTopology::read()?;
    let ctx = Ctx::new(cgroups, &topology, Duration::from_secs(1), "test", &|_| ());
    let step = Step::new(ops, HoldSpec::fixed(Duration::from_millis(10)));
    execute_scenario(&ctx, backdrop, vec![step])
}

fn spawn_in(cgroup: &str) -> Op {
    Op::spawn(SpawnPlacement::cgroup(cgroup), WorkSpec::default().workers(2))
}

#[test]
fn a_scenario_takes_down_what_it_made_the_last_first() {
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
fn a_worker_that_cannot_be_placed_fails_the_scenario_and_is_gone() {
    let cgroups = RecordingCgroups::new();
    cgroups.fail("place_task_during_handshake", "a", libc::EBUSY);
    let error = play(&cgroups, Backdrop::new().push_op(Op::add_cgroup("a")), vec![spawn_in("a")]);
    let error = format!("{:#}", error.unwrap_err());
    assert!(error.starts_with("step 0: failed to spawn 2 x "), "{error}");
    assert!(error.contains("EBUSY (Device or resource busy)"), "{error}");
    assert_eq!(cgroups.groups(), [""; 0], "what was made is removed all the same");
    let placed: i32 = cgroups.calls()[1].value.parse().unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{placed}")).exists(), "nobody works elsewhere");
}

#[test]
fn the_first_error_counts_and_teardown_goes_on() {
    let cgroups = RecordingCgroups::new();
    cgroups.fail("remove_cgroup", "b", libc::EBUSY);
    let backdrop = Backdrop::new().push_op(Op::add_cgroup("a")).push_op(Op::add_cgroup("b"));
    let error = format!("{:#}", play(&cgroups, backdrop, vec![]).unwrap_err());
    assert!(error.contains("backdrop: failed to take it down"), "{error}");
    assert!(error.contains("remove_cgroup /sys/fs/cgroup/recording/b: EBUSY"), "{error}");
    assert_eq!(cgroups.calls_of("remove_cgroup"), ["b", "a"]);
    assert_eq!(cgroups.groups(), ["b"]);
}
