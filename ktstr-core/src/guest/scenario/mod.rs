//! Scenarios: what the machine should do, as data, and the engine that carries it out.

mod apply;
mod confine;
mod cpuset;
mod def;
mod execute;
mod hotplug;
mod knob;
mod layer;
pub mod ops;
mod payloads;
mod share;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

pub use cpuset::CpusetSpec;
pub use def::CgroupDef;
pub use execute::{execute_defs, execute_scenario, execute_steps, execute_steps_with};
pub use knob::CgroupKnob;

use crate::guest::assert::Assert;
use crate::guest::payload::{Payload, PayloadCall, PayloadRun};
use crate::guest::registry::TestEntry;
use crate::linux::cgroup::CgroupOps;
use crate::model::topology::TestTopology;
use crate::model::wire::Report;

/// What a test body has to work with.
pub struct Ctx<'a> {
    /// The cgroups below the test's workload root.
    pub cgroups: &'a dyn CgroupOps,
    /// The CPUs, caches and nodes of this machine, as its sysfs shows them.
    pub topo: &'a TestTopology,
    /// How long the body means to run, from the attribute's `duration_s`.
    pub duration: Duration,
    /// How long a load is given to settle, from the attribute's `settle_ms`.
    pub settle: Duration,
    /// How many workers a cgroup of [`Ctx::cgroup_def`] has, from the attribute's
    /// `workers_per_cgroup`.
    pub workers_per_cgroup: u32,
    /// What scenarios check, from the attribute's keys.
    pub assert: Assert,
    /// The test, as libtest names it.
    pub test_name: &'a str,
    /// The programs that the test has brought along.
    pub(crate) payloads: &'static [&'static Payload],
    /// There is no virtual machine.
    pub(crate) is_on_host: bool,
    /// Tells the host what happens, as it happens.
    pub(crate) report: &'a dyn Fn(Report),
}

impl<'a> Ctx<'a> {
    #[doc(hidden)]
    pub fn new(
        cgroups: &'a dyn CgroupOps,
        topo: &'a TestTopology,
        entry: &TestEntry,
        test_name: &'a str,
        report: &'a dyn Fn(Report),
    ) -> Self {
        Self {
            cgroups,
            topo,
            duration: entry.duration,
            settle: entry.settle,
            workers_per_cgroup: entry.workers_per_cgroup,
            assert: entry.assert,
            test_name,
            payloads: entry.payloads,
            is_on_host: entry.host_only,
            report,
        }
    }

    /// Lets the load settle, and then holds for the part `frac` of the duration. By what it did
    /// while it settled, no cgroup is judged; workers are, from their release on.
    pub fn settled_hold(&self, frac: f64) -> ops::HoldSpec {
        ops::HoldSpec::Settled(self.settle, frac)
    }

    /// Defines a cgroup with the test's default number of workers, from the attribute's
    /// `workers_per_cgroup`. [`CgroupDef::named`] defines one without workers.
    pub fn cgroup_def(&self, name: impl Into<String>) -> CgroupDef {
        CgroupDef::named(name).default_workers(self.workers_per_cgroup)
    }

    /// A run of a program, to be waited for: `ctx.payload(&HACKBENCH).in_cgroup("cg").run()?`.
    pub fn payload(&self, payload: impl Into<PayloadRun>) -> PayloadCall<'_> {
        PayloadCall::new(self, payload.into())
    }

    /// The CPUs that a cpuset stands for on this machine.
    ///
    /// # Errors
    ///
    /// As for [`CpusetSpec::resolve`].
    pub fn cpuset_cpus(&self, cpus: &CpusetSpec) -> anyhow::Result<BTreeSet<usize>> {
        cpus.resolve(self.topo)
    }
}

impl fmt::Debug for Ctx<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ctx")
            .field("cgroups", &self.cgroups)
            .field("topo", &self.topo)
            .field("duration", &self.duration)
            .field("settle", &self.settle)
            .field("workers_per_cgroup", &self.workers_per_cgroup)
            .field("assert", &self.assert)
            .field("test_name", &self.test_name)
            .finish_non_exhaustive()
    }
}
