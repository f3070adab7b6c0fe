//! What runs in the guest: PID 1, and what a test body does.

pub mod agent;
pub mod assert;
pub mod logging;
pub mod payload;
pub mod registry;
pub mod scenario;
pub mod scenarios;
pub mod snapshot;
pub mod topology;
pub mod workload;

mod chain;
mod exit;
mod measured;
