//! Rust tests that run inside their own virtual machine.
//!
//! A function marked [`#[ktstr_test]`](macro@ktstr_test) boots a Linux kernel with the CPU
//! topology it asks for and runs inside it as root; `cargo test` shows its verdict. See the
//! README for an example, ARCHITECTURE.md for how it works.

#![forbid(unsafe_code)]

// This crate's own tests name it as its users do.
#[cfg(test)]
extern crate self as ktstr;

mod libtest;
mod notice;
pub mod prelude;
pub mod provision;
mod report;
pub mod runner;
mod this_program;

pub use ktstr_core::{
    assert, cgroup, claim, claim_present, machine, payload, process, record, result, scenario,
    scenarios, snapshot, topology, workload,
};
pub use ktstr_macros::ktstr_test;

/// What the expansion of `#[ktstr_test]` names. Not for use by hand.
#[doc(hidden)]
pub mod __private {
    pub use std::borrow::Cow;

    pub use ktstr_core::assert::Assert;
    pub use ktstr_core::linkme;
    pub use ktstr_core::machine::{Llcs, MachineSpec, Topology};
    pub use ktstr_core::registry::{ExpectErr, TESTS, TestEntry, last_component};

    pub use crate::libtest::{Hidden, NoHarness, requires_harness, requires_visible};
    pub use crate::report::Style;
    pub use crate::runner::{TestResult, run};
}
