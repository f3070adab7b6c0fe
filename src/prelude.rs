//! What a test needs: `use ktstr::prelude::*;`.

pub use anyhow::{Context, Result, bail, ensure};
pub use ktstr_core::assert::{Assert, AssertDetail, AssertResult, DetailKind, Outcome};
pub use ktstr_core::cgroup::{CgroupGroup, CgroupOps, Controller};
pub use ktstr_core::result::{RunEnd, VmResult};
pub use ktstr_core::scenario::ops::{Backdrop, HoldSpec, Op, SpawnPlacement, Step};
pub use ktstr_core::scenario::{Ctx, execute_scenario};
pub use ktstr_core::snapshot::{CgroupProcsSnapshot, SnapshotBridge};
pub use ktstr_core::workload::{WorkSpec, WorkType};
pub use ktstr_core::{claim, claim_present};
pub use ktstr_macros::ktstr_test;
