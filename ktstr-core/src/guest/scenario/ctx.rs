//! The context of a test body.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::cpuset::CpusetSpec;
use super::def::CgroupDef;
use super::step::HoldSpec;
use crate::guest::assert::Assert;
use crate::guest::payload::{Payload, PayloadCall, PayloadRun};
use crate::guest::topology::TestTopology;
use crate::linux::cgroup::CgroupOps;
use crate::model::wire::GuestMessage;

/// The context of a test body: the machine, the cgroups and the test's parameters.
pub struct Ctx<'a> {
    /// The cgroups below the test's workload root.
    pub cgroups: &'a dyn CgroupOps,
    /// The CPUs, caches and nodes of this machine, as its sysfs shows them.
    pub topo: &'a TestTopology,
    /// The intended run time of the body, from the attribute's `duration_s`.
    pub duration: Duration,
    /// The time that a load is given to settle, from the attribute's `settle_ms`.
    pub settle: Duration,
    /// The number of workers in a cgroup of [`Ctx::cgroup_def`], from the attribute's
    /// `workers_per_cgroup`.
    pub workers_per_cgroup: u32,
    /// The checks of scenarios, from the attribute's keys.
    pub assert: Assert,
    /// The test, as libtest names it.
    pub test_name: &'a str,
    /// The programs in the guest.
    #[doc(hidden)]
    pub payloads: &'static [&'static Payload],
    /// The body runs on the host, without a virtual machine.
    #[doc(hidden)]
    pub is_on_host: bool,
    /// Sends a message to the host at once.
    #[doc(hidden)]
    pub send: &'a dyn Fn(GuestMessage),
}

impl Ctx<'_> {
    /// Returns a hold that lets the load settle and then lasts for the part `frac` of the duration.
    ///
    /// Cgroups are judged by the hold alone, workers from their release on.
    pub fn settled_hold(&self, frac: f64) -> HoldSpec {
        HoldSpec::Settled(self.settle, frac)
    }

    /// Defines a cgroup with the test's default number of workers, from the attribute's
    /// `workers_per_cgroup`. [`CgroupDef::named`] defines one without workers.
    pub fn cgroup_def(&self, name: impl Into<String>) -> CgroupDef {
        CgroupDef::named(name).default_workers(self.workers_per_cgroup)
    }

    /// Prepares a run of a program: `ctx.payload(&HACKBENCH).in_cgroup("cg").run()?` starts it and
    /// waits until it ends.
    pub fn payload(&self, payload: impl Into<PayloadRun>) -> PayloadCall<'_> {
        PayloadCall {
            cgroups: self.cgroups,
            payloads: self.payloads,
            send: self.send,
            run: payload.into(),
            cgroup: None,
            timeout: None,
        }
    }

    /// Returns the CPUs that a cpuset stands for on this machine.
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
