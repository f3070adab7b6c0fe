//! The state of a scenario while it runs.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

use super::cgroup_state::CgroupState;
use super::cpusets::CpusetTracker;
use super::ctx::Ctx;
use super::hotplug::CPU_DIRECTORY;
use super::layer::{Layers, Resource};
use super::oom::{OomLedger, kills_since_boot};
use crate::guest::assert::{CgroupSample, is_in};
use crate::guest::payload::PayloadReport;
use crate::guest::workload::WorkerReport;
use crate::linux::sys::since_boot_ns;
use crate::model::wire::{GuestMessage, ScenarioEvent};

/// A scenario while it runs: what it has to undo, and what it has measured.
pub(super) struct Scenario<'a> {
    pub(super) ctx: &'a Ctx<'a>,
    pub(super) layers: Layers,
    pub(super) cpusets: CpusetTracker,
    pub(super) oom: OomLedger,
    pub(super) spawns: u32,
    /// The reports of the workers that have been stopped.
    pub(super) workers: Vec<WorkerReport>,
    /// The kernel's counters of the cgroups at both ends of each hold.
    pub(super) samples: Vec<CgroupSample>,
    /// The reports of the payloads that have ended.
    pub(super) payloads: Vec<PayloadReport>,
    pub(super) cpu_directory: PathBuf,
}

impl<'a> Scenario<'a> {
    pub(super) fn new(ctx: &'a Ctx<'a>) -> Self {
        Self {
            ctx,
            layers: Layers::default(),
            cpusets: CpusetTracker::default(),
            oom: OomLedger::new(kills_since_boot()),
            spawns: 0,
            workers: Vec::new(),
            samples: Vec::new(),
            payloads: Vec::new(),
            cpu_directory: CPU_DIRECTORY.into(),
        }
    }

    /// Fails if no operation has created the cgroup: a typo must not pass silently.
    pub(super) fn check_known(&self, cgroup: &str) -> Result<()> {
        ensure!(!cgroup.is_empty(), "the cgroup has no name");
        if self.layers.cgroup(cgroup).is_none() {
            let known: Vec<_> = self.layers.cgroups().map(|cgroup| &*cgroup.name).collect();
            bail!("unknown cgroup `{cgroup}`; this scenario created: {}", listed(&known));
        }
        Ok(())
    }

    /// Adds a cgroup that was created, or is about to be, to the innermost layer.
    pub(super) fn own_cgroup(&mut self, cgroup: &str) {
        self.layers.push(Resource::Cgroup(CgroupState::new(cgroup)));
        self.oom.open(cgroup);
    }

    /// Forgets a cgroup that was removed; `oom_kills` is the last count of its OOM kills.
    pub(super) fn disown_cgroup(&mut self, cgroup: &str, oom_kills: Option<u64>) {
        self.layers.forget_cgroup(cgroup);
        self.cpusets.forget(cgroup);
        self.oom.close(cgroup, oom_kills);
    }

    /// Returns whether a cgroup or an ancestor is frozen.
    pub(super) fn is_frozen(&self, cgroup: &str) -> bool {
        self.layers.cgroups().any(|other| other.is_frozen && is_in(cgroup, &other.name))
    }

    /// Returns whether a cgroup or an ancestor has a `memory.high`.
    pub(super) fn has_memory_high(&self, cgroup: &str) -> bool {
        self.layers.cgroups().any(|other| other.has_memory_high && is_in(cgroup, &other.name))
    }

    /// Sends an event to the host at once: the timeline is complete even if the guest crashes now.
    pub(super) fn send_event(&self, what: String) {
        let phase = self.layers.phase().to_owned();
        tracing::info!("{phase}: {what}");
        (self.ctx.send)(GuestMessage::Event(ScenarioEvent { at_ns: since_boot_ns(), phase, what }));
    }
}

/// Joins the names of what exists for an error; `nothing` if there are none.
pub(super) fn listed(names: &[&str]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}
