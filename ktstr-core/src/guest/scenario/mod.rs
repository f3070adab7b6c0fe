//! Scenarios: operations on cgroups, workers, programs and CPUs as data, and the code that executes them.
//!
//! A scenario is a [`Backdrop`](ops::Backdrop) and [`Step`](ops::Step)s of [`Op`](ops::Op)s.
//! [`execute_scenario`] carries them out and returns the verdict; everything that a step created is undone
//! when it ends.

mod apply;
mod capture;
mod cgroup_state;
mod confine;
mod cpuset;
mod cpusets;
mod ctx;
mod def;
mod execute;
mod first_error;
mod hold;
mod hotplug;
mod knob;
mod layer;
mod oom;
mod op;
pub mod ops;
mod payloads;
mod placed;
mod share;
mod state;
mod step;
mod teardown;
#[cfg(test)]
mod tests;

pub use cpuset::CpusetSpec;
pub use ctx::Ctx;
pub use def::CgroupDef;
pub use execute::{execute_defs, execute_scenario, execute_steps, execute_steps_with};
pub use knob::CgroupKnob;
