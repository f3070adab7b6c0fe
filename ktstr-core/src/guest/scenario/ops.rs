//! The words of a scenario: operations, steps, the backdrop they play before.

use std::fmt;
use std::time::Duration;

pub use super::{
    CgroupDef, CpusetSpec, execute_defs, execute_scenario, execute_steps, execute_steps_with,
};

use super::CgroupKnob;
use crate::guest::payload::PayloadRun;
use crate::guest::workload::{AffinityIntent, WorkSpec};
use crate::linux::cgroup::Controller;

/// One thing to do. Built by the constructors of the same name.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "each variant is what the constructor of its name says")]
pub enum Op {
    AddCgroup {
        cgroup: String,
    },
    AddCgroupDef {
        def: CgroupDef,
    },
    RemoveCgroup {
        cgroup: String,
    },
    StopCgroup {
        cgroup: String,
    },
    SetKnob {
        cgroup: String,
        knob: CgroupKnob,
    },
    SwapCpusets {
        a: String,
        b: String,
    },
    Spawn {
        placement: SpawnPlacement,
        work: WorkSpec,
    },
    SetAffinity {
        cgroup: String,
        affinity: AffinityIntent,
    },
    MoveAllTasks {
        from: String,
        to: String,
    },
    FreezeCgroup {
        cgroup: String,
    },
    UnfreezeCgroup {
        cgroup: String,
    },
    CaptureCgroupProcs {
        tag: String,
        cgroup: String,
    },
    CaptureSnapshot {
        name: String,
    },
    HotplugCpu {
        cpu: u32,
        online: bool,
    },
    /// `cgroup: None` starts it in the cgroup of the test's body.
    RunPayload {
        run: PayloadRun,
        cgroup: Option<String>,
    },
    WaitPayload {
        name: String,
        timeout: Duration,
    },
    KillPayload {
        name: String,
    },
}

impl Op {
    /// Makes a cgroup.
    pub fn add_cgroup(cgroup: impl Into<String>) -> Self {
        Self::AddCgroup { cgroup: cgroup.into() }
    }

    /// Makes a cgroup, sets its knobs and starts its workers.
    pub fn add_cgroup_def(def: CgroupDef) -> Self {
        Self::AddCgroupDef { def }
    }

    /// Stops the workers and payloads of a cgroup that an operation made, and removes it.
    pub fn remove_cgroup(cgroup: impl Into<String>) -> Self {
        Self::RemoveCgroup { cgroup: cgroup.into() }
    }

    /// Stops the workers and payloads of a cgroup, which stays.
    pub fn stop_cgroup(cgroup: impl Into<String>) -> Self {
        Self::StopCgroup { cgroup: cgroup.into() }
    }

    /// Sets a knob of a cgroup.
    pub fn set_knob(cgroup: impl Into<String>, knob: CgroupKnob) -> Self {
        Self::SetKnob { cgroup: cgroup.into(), knob }
    }

    /// Sets the CPUs of a cgroup.
    pub fn set_cpuset(cgroup: impl Into<String>, cpus: CpusetSpec) -> Self {
        Self::set_knob(cgroup, CgroupKnob::Cpuset(Some(cpus)))
    }

    /// Gives a cgroup the CPUs of the one above.
    pub fn clear_cpuset(cgroup: impl Into<String>) -> Self {
        Self::set_knob(cgroup, CgroupKnob::Cpuset(None))
    }

    /// Gives each of two cgroups the cpuset that was set for the other.
    pub fn swap_cpusets(a: impl Into<String>, b: impl Into<String>) -> Self {
        Self::SwapCpusets { a: a.into(), b: b.into() }
    }

    /// Starts workers: all are placed, then all are released.
    pub fn spawn(placement: SpawnPlacement, work: WorkSpec) -> Self {
        Self::Spawn { placement, work }
    }

    /// Pins the workers of a cgroup to other CPUs.
    pub fn set_affinity(cgroup: impl Into<String>, affinity: AffinityIntent) -> Self {
        Self::SetAffinity { cgroup: cgroup.into(), affinity }
    }

    /// Moves all processes of a cgroup to another. Payloads cannot be moved.
    pub fn move_all_tasks(from: impl Into<String>, to: impl Into<String>) -> Self {
        Self::MoveAllTasks { from: from.into(), to: to.into() }
    }

    /// Freezes a cgroup.
    pub fn freeze_cgroup(cgroup: impl Into<String>) -> Self {
        Self::FreezeCgroup { cgroup: cgroup.into() }
    }

    /// Thaws a cgroup.
    pub fn unfreeze_cgroup(cgroup: impl Into<String>) -> Self {
        Self::UnfreezeCgroup { cgroup: cgroup.into() }
    }

    /// Captures the processes of a cgroup under `tag`, for the body and for the host.
    pub fn capture_cgroup_procs(tag: impl Into<String>, cgroup: impl Into<String>) -> Self {
        Self::CaptureCgroupProcs { tag: tag.into(), cgroup: cgroup.into() }
    }

    /// Captures what all cgroups of the scenario hold and have used, and what all workers have done,
    /// under `name`, for the body and for the host.
    pub fn capture_snapshot(name: impl Into<String>) -> Self {
        Self::CaptureSnapshot { name: name.into() }
    }

    /// Switches a CPU on or off. It is as it was before when the step ends.
    pub fn hotplug_cpu(cpu: u32, online: bool) -> Self {
        Self::HotplugCpu { cpu, online }
    }

    /// Starts a program in a cgroup, where it is from its first instruction on: in a group of its own
    /// below. Whatever still runs of it at the end of the step is stopped.
    pub fn run_payload(payload: impl Into<PayloadRun>, cgroup: impl Into<String>) -> Self {
        Self::RunPayload { run: payload.into(), cgroup: Some(cgroup.into()) }
    }

    /// Waits until a program that was started has ended, and judges it. That it still runs after
    /// `timeout` is an error. Cgroups are judged meanwhile as in a hold.
    pub fn wait_payload(name: impl Into<String>, timeout: Duration) -> Self {
        Self::WaitPayload { name: name.into(), timeout }
    }

    /// Kills a program that was started, with all that it started itself. Its exit status is not
    /// judged, unless it had ended before; its metrics are, as far as it had printed them.
    pub fn kill_payload(name: impl Into<String>) -> Self {
        Self::KillPayload { name: name.into() }
    }

    /// The controllers it needs.
    pub(crate) fn controllers(&self) -> Vec<Controller> {
        match self {
            Self::AddCgroupDef { def } => def.knobs.iter().map(CgroupKnob::controller).collect(),
            Self::SetKnob { knob, .. } => vec![knob.controller()],
            _ => Vec::new(),
        }
    }
}

/// As a timeline tells it: `spawn 2 x target (SpinWait) in cg_target`.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddCgroup { cgroup } => write!(f, "add cgroup {cgroup}"),
            Self::AddCgroupDef { def } => {
                write!(f, "add cgroup {}", def.name)?;
                def.knobs.iter().try_for_each(|knob| write!(f, ", {knob}"))
            }
            Self::RemoveCgroup { cgroup } => write!(f, "remove cgroup {cgroup}"),
            Self::StopCgroup { cgroup } => write!(f, "stop the workers of {cgroup}"),
            Self::RunPayload { run, cgroup: Some(cgroup) } => write!(f, "run {run} in {cgroup}"),
            Self::RunPayload { run, cgroup: None } => write!(f, "run {run}"),
            Self::WaitPayload { name, timeout } => write!(f, "wait for {name}, up to {timeout:?}"),
            Self::KillPayload { name } => write!(f, "kill {name}"),
            Self::SetKnob { cgroup, knob } => write!(f, "set {knob} of {cgroup}"),
            Self::SwapCpusets { a, b } => write!(f, "swap the cpusets of {a} and {b}"),
            Self::Spawn { placement: SpawnPlacement::Cgroup(cgroup), work } => {
                write!(f, "spawn {work} in {cgroup}")
            }
            Self::SetAffinity { cgroup, affinity } => {
                write!(f, "pin the workers of {cgroup}: {affinity:?}")
            }
            Self::MoveAllTasks { from, to } => write!(f, "move the tasks of {from} to {to}"),
            Self::FreezeCgroup { cgroup } => write!(f, "freeze {cgroup}"),
            Self::UnfreezeCgroup { cgroup } => write!(f, "thaw {cgroup}"),
            Self::CaptureCgroupProcs { tag, cgroup } => {
                write!(f, "capture the processes of {cgroup} as {tag}")
            }
            Self::CaptureSnapshot { name } => write!(f, "capture a snapshot as {name}"),
            Self::HotplugCpu { cpu, online: true } => write!(f, "switch CPU {cpu} on"),
            Self::HotplugCpu { cpu, online: false } => write!(f, "switch CPU {cpu} off"),
        }
    }
}

/// Where workers go before they are released.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnPlacement {
    /// Into a cgroup of the scenario.
    Cgroup(String),
}

impl SpawnPlacement {
    /// Into the cgroup `name`, which an operation has made before.
    pub fn cgroup(name: impl Into<String>) -> Self {
        Self::Cgroup(name.into())
    }
}

/// How long a step lasts after its operations.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum HoldSpec {
    /// A fixed time.
    Fixed(Duration),
    /// A part of the test's duration.
    Frac(f64),
    /// A time in which nothing is judged of cgroups, then a part of the test's duration;
    /// [`Ctx::settled_hold`](super::Ctx::settled_hold).
    Settled(Duration, f64),
    /// The whole duration of the test; the operations are done again every so often.
    LoopAt(Duration),
}

impl HoldSpec {
    /// The whole duration of the test.
    pub const FULL: Self = Self::Frac(1.0);

    /// A fixed time.
    pub fn fixed(hold: Duration) -> Self {
        Self::Fixed(hold)
    }

    /// The part `frac` of the test's duration, 0.0 or more.
    pub fn frac(frac: f64) -> Self {
        Self::Frac(frac)
    }

    /// The whole duration of the test, in which the operations are done again every `interval`.
    pub fn loop_at(interval: Duration) -> Self {
        Self::LoopAt(interval)
    }
}

/// Cgroups and programs that are set up before the operations of a step or a backdrop, once.
///
/// Made from definitions: `vec![CgroupDef::named("a")].into()`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Setup {
    pub(crate) defs: Vec<CgroupDef>,
    /// [`Op::RunPayload`], after the cgroups.
    pub(crate) payloads: Vec<Op>,
}

impl From<Vec<CgroupDef>> for Setup {
    fn from(defs: Vec<CgroupDef>) -> Self {
        Self { defs, payloads: Vec::new() }
    }
}

impl<const N: usize> From<[CgroupDef; N]> for Setup {
    fn from(defs: [CgroupDef; N]) -> Self {
        Vec::from(defs).into()
    }
}

/// A setup, operations, and the time they are left to act, in this order. Everything that a step
/// made is removed when it ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The cgroups and programs that exist before the operations; not repeated with those.
    pub setup: Setup,
    /// The operations, in order.
    pub ops: Vec<Op>,
    /// How long the step lasts after its operations.
    pub hold: HoldSpec,
}

impl Step {
    /// Creates a step that carries out `ops` in order and then holds.
    pub fn new(ops: impl Into<Vec<Op>>, hold: HoldSpec) -> Self {
        Self { setup: Setup::default(), ops: ops.into(), hold }
    }

    /// Creates a step that sets up cgroups and then holds.
    ///
    /// To add cgroups to a step that exists, call the method of the same name:
    /// [`StepExt::with_defs`].
    pub fn with_defs(defs: impl IntoIterator<Item = CgroupDef>, hold: HoldSpec) -> Self {
        Self { setup: defs.into_iter().collect::<Vec<_>>().into(), ops: Vec::new(), hold }
    }

    /// Adds a program that is started in a cgroup before the operations, once, however often these
    /// are repeated. It is stopped at the end of the hold if it still runs then: to have it run to its
    /// own end, wait for it ([`Op::wait_payload`]).
    pub fn with_payload(
        mut self,
        payload: impl Into<PayloadRun>,
        cgroup: impl Into<String>,
    ) -> Self {
        self.setup.payloads.push(Op::run_payload(payload, cgroup));
        self
    }

    /// Adds an operation.
    pub fn with_op(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }

    /// Replaces all operations.
    pub fn set_ops(mut self, ops: impl Into<Vec<Op>>) -> Self {
        self.ops = ops.into();
        self
    }

    /// Sets how long the step lasts after its operations.
    pub fn hold(mut self, hold: HoldSpec) -> Self {
        self.hold = hold;
        self
    }
}

/// The method `with_defs` of a [`Step`].
///
/// A trait, because the step's constructor has the same name: `Step::with_defs(defs, hold)` creates a
/// step, `step.with_defs(defs)` adds to it.
pub trait StepExt {
    /// Adds cgroups that exist before the operations.
    #[must_use = "the step is consumed and returned"]
    fn with_defs(self, defs: impl IntoIterator<Item = CgroupDef>) -> Self;
}

impl StepExt for Step {
    fn with_defs(mut self, defs: impl IntoIterator<Item = CgroupDef>) -> Self {
        self.setup.defs.extend(defs);
        self
    }
}

/// What exists from before the first step until after the last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Backdrop {
    pub(crate) setup: Setup,
    pub(crate) ops: Vec<Op>,
}

impl Backdrop {
    /// Creates an empty backdrop.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a cgroup that exists before the operations.
    pub fn push_cgroup(mut self, def: CgroupDef) -> Self {
        self.setup.defs.push(def);
        self
    }

    /// Adds cgroups that exist before the operations.
    pub fn extend_cgroups(mut self, defs: impl IntoIterator<Item = CgroupDef>) -> Self {
        self.setup.defs.extend(defs);
        self
    }

    /// Adds a program that is started after the cgroups and before the operations, in the cgroup of
    /// the test's body. To start one in a cgroup of the scenario, push [`Op::run_payload`].
    pub fn push_payload(mut self, payload: impl Into<PayloadRun>) -> Self {
        self.setup.payloads.push(Op::RunPayload { run: payload.into(), cgroup: None });
        self
    }

    /// Adds an operation.
    pub fn push_op(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }

    /// Adds operations.
    pub fn extend_ops(mut self, ops: impl IntoIterator<Item = Op>) -> Self {
        self.ops.extend(ops);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defs() -> [CgroupDef; 2] {
        ["a", "b"].map(CgroupDef::named)
    }

    #[test]
    fn step_is_the_same_however_it_is_constructed() {
        let ops = || vec![Op::add_cgroup("c")];
        let literal = Step { setup: defs().into(), ops: ops(), hold: HoldSpec::FULL };
        for step in [
            Step { setup: defs().to_vec().into(), ..literal.clone() },
            Step::with_defs(defs(), HoldSpec::FULL).set_ops(ops()),
            Step::with_defs(defs().to_vec(), HoldSpec::frac(0.1))
                .with_op(Op::add_cgroup("c"))
                .hold(HoldSpec::FULL),
            Step::new(ops(), HoldSpec::FULL).with_defs(defs()),
            Step::new([Op::remove_cgroup("c")], HoldSpec::FULL).set_ops(ops()).with_defs(defs()),
        ] {
            assert_eq!(step, literal);
        }
    }

    #[test]
    fn backdrop_keeps_the_order_of_what_is_added() {
        let [a, b] = defs();
        let [c, d] = ["c", "d"].map(Op::add_cgroup);
        let one_by_one =
            Backdrop::new().push_cgroup(a).push_cgroup(b).push_op(c.clone()).push_op(d.clone());
        assert_eq!(Backdrop::new().extend_cgroups(defs()).extend_ops([c, d]), one_by_one);
        assert_eq!(one_by_one.setup, defs().into());
    }
}
