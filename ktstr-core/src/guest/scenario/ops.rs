//! The vocabulary of a scenario: operations, steps, the backdrop, and the functions that execute them.

pub use super::cpuset::CpusetSpec;
pub use super::def::CgroupDef;
pub use super::execute::{execute_defs, execute_scenario, execute_steps, execute_steps_with};
pub use super::op::{Op, SpawnPlacement};
pub use super::step::{Backdrop, HoldSpec, Setup, Step, StepExt};
