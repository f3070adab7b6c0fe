//! Jobs: no process that is started in a job outlives it.

mod api;
#[path = "../common/children.rs"]
mod children;
mod gone;
mod limits;
#[path = "../common/modes.rs"]
mod modes;
mod owners;
mod programs;
