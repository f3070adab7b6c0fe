//! Rust tests that run inside their own virtual machine.
//!
//! The attribute [`#[ktstr_test]`](macro@ktstr_test) marks a test. Its function runs as root in a guest
//! with the requested CPU topology and a stock Linux kernel. `cargo test` builds, runs and reports it like
//! any other test. The host needs no setup: kernel and QEMU are fetched and cached on first use, and
//! without KVM, QEMU emulates the CPUs. `cargo ktstr doctor` checks a machine.
//!
//! # Example
//!
//! ```no_run
//! use ktstr::prelude::*;
//!
//! #[ktstr_test(llcs = 2, cores = 2, memory_mib = 512, duration_s = 2)]
//! fn quota_is_kept(ctx: &Ctx) -> Result<AssertResult> {
//!     // Two cgroups with two workers each that spin, one with half a CPU.
//!     let defs = vec![
//!         ctx.cgroup_def("free"),
//!         ctx.cgroup_def("limited").cpu_quota_pct(50),
//!     ];
//!     execute_defs(ctx, defs)
//! }
//! # fn main() {}
//! ```
//!
//! The body gets a [`Ctx`](scenario::Ctx) with the cgroups, the topology and the parameters of the test. It
//! returns an error, panics, or returns an [`AssertResult`](assert::AssertResult), the verdict of its
//! checks. The report of a failure names the check, the measured value and the limit, shows a timeline and
//! the end of the guest's console, and has the command that runs the test again.
//!
//! # The most important keys
//!
//! | Keys | Meaning |
//! |---|---|
//! | `numa_nodes`, `llcs`, `cores`, `threads`, `memory_mib` | the machine |
//! | `kernel`, `kargs` | the kernel to boot, and extra words of its command line |
//! | `duration_s`, `settle_ms`, `watchdog_timeout_s` | run time of the body, and its limit |
//! | `max_gap_ms`, `max_spread_pct`, `min_work_rate`, ... | limits of what is measured |
//! | `payloads`, `env` | external programs and variables for the guest |
//! | `expect_err`, `allow_inconclusive`, `post_vm` | how the run is judged on the host |
//!
//! The attribute's documentation has the [table of all keys](macro@ktstr_test#keys).
//!
//! # Modules
//!
//! | Module | Contents |
//! |---|---|
//! | [`prelude`] | everything that a test usually needs |
//! | [`scenario`], [`scenarios`] | cgroups, workers and operations in steps; ready-made scenarios |
//! | [`workload`] | the types of work, their scheduling and affinity, and the reports of workers |
//! | [`payload`] | external programs in the guest, and the metrics of their output |
//! | [`assert`](mod@assert) | checks, limits and verdicts; [`claim!`] for values of your own |
//! | [`snapshot`] | captures of cgroups and kernel state while the scenario runs |
//! | [`cgroup`], [`process`] | the cgroup v2 manager and process containment, usable without a test |
//! | [`machine`], [`topology`] | the requested machine, and the topology that a machine has |
//! | [`record`], [`result`] | the record of a run, which `post_vm` receives |
//! | [`runner`], [`provision`] | the host side: running tests, kernels, QEMU |
//!
//! The guide in `docs/guide` explains how to write tests, ARCHITECTURE.md how ktstr works.

#![forbid(unsafe_code)]

// The tests of this crate use the same paths as its users.
#[cfg(test)]
extern crate self as ktstr;

mod gate;
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

/// The items that the expansion of `#[ktstr_test]` uses. Not a public interface.
#[doc(hidden)]
pub mod __private {
    pub use std::borrow::Cow;

    pub use ktstr_core::assert::Assert;
    pub use ktstr_core::linkme;
    pub use ktstr_core::machine::{Llcs, MachineSpec, Topology};
    pub use ktstr_core::registry::{ExpectErr, TESTS, TestEntry, last_component};

    pub use crate::libtest::{Hidden, NoHarness, requires_harness, requires_visible};
    pub use crate::report::{Style, Untrusted};
    pub use crate::runner::{TestResult, run};
}
