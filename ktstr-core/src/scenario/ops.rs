//! The words of a scenario: operations, steps, the backdrop they play before.

use std::fmt;
use std::time::Duration;

use crate::workload::WorkSpec;

/// One thing to do. Built by the constructors of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Op {
    /// See [`Op::add_cgroup`].
    AddCgroup {
        /// The group's name.
        cgroup: String,
    },
    /// See [`Op::remove_cgroup`].
    RemoveCgroup {
        /// The group's name.
        cgroup: String,
    },
    /// See [`Op::spawn`].
    Spawn {
        /// Where the workers go.
        placement: SpawnPlacement,
        /// What they are.
        work: WorkSpec,
    },
    /// See [`Op::capture_cgroup_procs`].
    CaptureCgroupProcs {
        /// The name of the capture.
        tag: String,
        /// The group's name.
        cgroup: String,
    },
}

impl Op {
    /// Makes a cgroup.
    pub fn add_cgroup(cgroup: impl Into<String>) -> Self {
        Self::AddCgroup { cgroup: cgroup.into() }
    }

    /// Stops the workers of a cgroup that an operation made, and removes it.
    pub fn remove_cgroup(cgroup: impl Into<String>) -> Self {
        Self::RemoveCgroup { cgroup: cgroup.into() }
    }

    /// Starts workers: all are placed, then all are released.
    pub fn spawn(placement: SpawnPlacement, work: WorkSpec) -> Self {
        Self::Spawn { placement, work }
    }

    /// Captures the processes of a cgroup under `tag`, for the body and for the host.
    pub fn capture_cgroup_procs(tag: impl Into<String>, cgroup: impl Into<String>) -> Self {
        Self::CaptureCgroupProcs { tag: tag.into(), cgroup: cgroup.into() }
    }
}

/// As a timeline tells it: `spawn 2 x target (SpinWait) in cg_target`.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddCgroup { cgroup } => write!(f, "add cgroup {cgroup}"),
            Self::RemoveCgroup { cgroup } => write!(f, "remove cgroup {cgroup}"),
            Self::Spawn { placement: SpawnPlacement::Cgroup(cgroup), work } => {
                let WorkSpec { workers, comm, work_type } = work;
                write!(f, "spawn {workers} x {comm} ({work_type:?}) in {cgroup}")
            }
            Self::CaptureCgroupProcs { tag, cgroup } => {
                write!(f, "capture the processes of {cgroup} as {tag}")
            }
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
}

/// Operations, and the time they are left to act. What a step made is gone when it ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub(crate) ops: Vec<Op>,
    pub(crate) hold: HoldSpec,
}

impl Step {
    /// A step that does `ops` in order and then holds.
    pub fn new(ops: impl Into<Vec<Op>>, hold: HoldSpec) -> Self {
        Self { ops: ops.into(), hold }
    }
}

/// What is there before the first step and until after the last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backdrop {
    pub(crate) ops: Vec<Op>,
}

impl Backdrop {
    /// An empty backdrop.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an operation.
    pub fn push_op(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }
}
