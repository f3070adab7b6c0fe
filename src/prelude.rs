//! Everything that a test usually needs: `use ktstr::prelude::*;`.

pub use anyhow::{Context, Result, bail, ensure};
pub use ktstr_core::assert::{Assert, AssertDetail, AssertResult, DetailKind, Outcome};
pub use ktstr_core::cgroup::{CgroupGroup, CgroupOps, Controller};
pub use ktstr_core::payload::{Check, Metric, Payload, PayloadEnd, PayloadReport, PayloadRun};
pub use ktstr_core::record::VmResult;
pub use ktstr_core::result::{ExitKind, RunEnd};
pub use ktstr_core::scenario::ops::{Backdrop, HoldSpec, Op, Setup, SpawnPlacement, Step, StepExt};
pub use ktstr_core::scenario::{
    CgroupDef, CgroupKnob, CpusetSpec, Ctx, execute_defs, execute_scenario, execute_steps,
    execute_steps_with,
};
pub use ktstr_core::snapshot::{
    Capture, CaptureCallback, CgroupProcsSnapshot, KernelSnapshot, Snapshot, SnapshotBridge,
};
pub use ktstr_core::workload::{
    AffinityIntent, MemoryPolicy, SchedPolicy, WorkSpec, WorkType, WorkerCtx, WorkerReport,
};
pub use ktstr_core::{claim, claim_present};
pub use ktstr_macros::ktstr_test;

// The expansion of the attribute uses this name. It resolves to this import if the dependency has
// another name, or is a dependency of a crate that re-exports it.
#[doc(hidden)]
pub use crate as ktstr;
