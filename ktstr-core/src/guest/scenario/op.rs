//! Operations.

use std::fmt;
use std::time::Duration;

use super::cpuset::CpusetSpec;
use super::def::CgroupDef;
use super::knob::CgroupKnob;
use crate::guest::payload::PayloadRun;
use crate::guest::workload::{AffinityIntent, WorkSpec};
use crate::linux::cgroup::Controller;

/// One operation of a scenario. Built by the constructors of the same name.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the constructor of its name documents each variant")]
pub enum Op {
    AddCgroup { cgroup: String },
    AddCgroupDef { def: CgroupDef },
    RemoveCgroup { cgroup: String },
    StopCgroup { cgroup: String },
    SetKnob { cgroup: String, knob: CgroupKnob },
    SwapCpusets { a: String, b: String },
    Spawn { placement: SpawnPlacement, work: WorkSpec },
    SetAffinity { cgroup: String, affinity: AffinityIntent },
    MoveAllTasks { from: String, to: String },
    FreezeCgroup { cgroup: String },
    UnfreezeCgroup { cgroup: String },
    CaptureCgroupProcs { tag: String, cgroup: String },
    CaptureSnapshot { name: String },
    HotplugCpu { cpu: u32, online: bool },
    // `cgroup: None` starts it in the cgroup of the test's body.
    RunPayload { run: PayloadRun, cgroup: Option<String> },
    WaitPayload { name: String, timeout: Duration },
    KillPayload { name: String },
}

impl Op {
    /// Creates a cgroup.
    pub fn add_cgroup(cgroup: impl Into<String>) -> Self {
        Self::AddCgroup { cgroup: cgroup.into() }
    }

    /// Creates a cgroup, sets its knobs and starts its workers.
    pub fn add_cgroup_def(def: CgroupDef) -> Self {
        Self::AddCgroupDef { def }
    }

    /// Stops the workers and payloads of a cgroup that this scenario created, and removes it.
    pub fn remove_cgroup(cgroup: impl Into<String>) -> Self {
        Self::RemoveCgroup { cgroup: cgroup.into() }
    }

    /// Stops the workers and payloads of a cgroup without removing it.
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

    /// Clears the cpuset of a cgroup, which then has the CPUs of its parent.
    pub fn clear_cpuset(cgroup: impl Into<String>) -> Self {
        Self::set_knob(cgroup, CgroupKnob::Cpuset(None))
    }

    /// Swaps the cpusets that were set for two cgroups.
    pub fn swap_cpusets(a: impl Into<String>, b: impl Into<String>) -> Self {
        Self::SwapCpusets { a: a.into(), b: b.into() }
    }

    /// Starts workers. All are placed before the first is released.
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

    /// Captures the processes of a cgroup under `tag`. The body and the host get the capture.
    pub fn capture_cgroup_procs(tag: impl Into<String>, cgroup: impl Into<String>) -> Self {
        Self::CaptureCgroupProcs { tag: tag.into(), cgroup: cgroup.into() }
    }

    /// Captures the members and counters of all cgroups of the scenario and the reports of all workers
    /// under `name`. The body and the host get the snapshot.
    pub fn capture_snapshot(name: impl Into<String>) -> Self {
        Self::CaptureSnapshot { name: name.into() }
    }

    /// Onlines or offlines a CPU. Its former state is restored when the step ends.
    pub fn hotplug_cpu(cpu: u32, online: bool) -> Self {
        Self::HotplugCpu { cpu, online }
    }

    /// Starts a program in a child cgroup of its own, where it is from its first instruction on. Its
    /// processes that still run at the end of the step are killed.
    pub fn run_payload(payload: impl Into<PayloadRun>, cgroup: impl Into<String>) -> Self {
        Self::RunPayload { run: payload.into(), cgroup: Some(cgroup.into()) }
    }

    /// Waits until a program that was started has ended, and judges it. The operation fails if the program
    /// still runs after `timeout`. The wait counts as a hold for the checks of cgroups.
    pub fn wait_payload(name: impl Into<String>, timeout: Duration) -> Self {
        Self::WaitPayload { name: name.into(), timeout }
    }

    /// Kills a program that was started and its descendants. Its exit status is judged only if it had
    /// ended before; its metrics are judged as far as it had printed them.
    pub fn kill_payload(name: impl Into<String>) -> Self {
        Self::KillPayload { name: name.into() }
    }

    /// Returns the controllers of the knobs that it sets.
    pub(crate) fn controllers(&self) -> Vec<Controller> {
        match self {
            Self::AddCgroupDef { def } => def.knobs.iter().map(CgroupKnob::controller).collect(),
            Self::SetKnob { knob, .. } => vec![knob.controller()],
            _ => Vec::new(),
        }
    }
}

/// The line of a timeline: `spawn 2 x target (SpinWait) in cg_target`.
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
            Self::HotplugCpu { cpu, online: true } => write!(f, "online CPU {cpu}"),
            Self::HotplugCpu { cpu, online: false } => write!(f, "offline CPU {cpu}"),
        }
    }
}

/// Where workers are placed before they are released.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnPlacement {
    /// In a cgroup of the scenario.
    Cgroup(String),
}

impl SpawnPlacement {
    /// Places workers in the cgroup `name`, which an earlier operation created.
    pub fn cgroup(name: impl Into<String>) -> Self {
        Self::Cgroup(name.into())
    }
}
