//! Undoes what a layer has created.

use std::collections::BTreeSet;

use anyhow::{Context, Result};

use super::first_error::FirstError;
use super::layer::Resource;
use super::placed::PlacedWorker;
use super::state::Scenario;
use crate::guest::chain;
use crate::guest::payload::Running;
use crate::guest::workload::Workers;

/// Undoes everything after a panic, too, as of a callback.
impl Drop for Scenario<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end_all_layers() {
            tracing::warn!("teardown after a panic is incomplete: {}", chain::describe(&error));
        }
    }
}

impl Scenario<'_> {
    /// Ends all layers, the innermost first.
    pub(super) fn end_all_layers(&mut self) -> Result<()> {
        let mut errors = FirstError::default();
        while !self.layers.is_empty() {
            errors.keep(self.end_layer());
        }
        errors.into_result()
    }

    /// Stops what runs in the innermost layer and undoes the rest in reverse order of creation.
    ///
    /// Everything is tried whatever fails; the first error is returned.
    pub(super) fn end_layer(&mut self) -> Result<()> {
        let mut errors = FirstError::default();
        // Step 1: payloads and workers stop before any state changes, because they are judged by it. All
        // workers stop together: one that ran on would be measured without its competitors. A worker or
        // payload of another layer stops too if it is in a cgroup of this one, which is removed below.
        let innermost = self.layers.innermost();
        let cgroups = self.layers.of_innermost().iter().filter_map(Resource::cgroup_name);
        let cgroups: BTreeSet<_> = cgroups.map(str::to_owned).collect();
        let ends = |layer: usize, cgroup: &str| layer == innermost || cgroups.contains(cgroup);
        let how = format!("stopped at the end of {}", self.layers.phase());
        errors.keep(self.stop_payloads(&how, |layer, payload| ends(layer, payload.cgroup())));
        errors.keep(self.stop_workers(|layer, placed| ends(layer, &placed.cgroup)));
        // Step 2: the rest, in reverse order of creation: a cgroup before its parent.
        while let Some(resource) = self.layers.pop() {
            errors.keep(self.undo(resource));
        }
        let phase = self.layers.phase().to_owned();
        self.layers.end();
        errors.into_result().with_context(|| format!("{phase}: teardown failed"))
    }

    fn undo(&mut self, resource: Resource) -> Result<()> {
        match resource {
            Resource::Cgroup(cgroup) => {
                let mut errors = FirstError::default();
                // The count is gone with the cgroup. Without it, the account is closed as uncounted.
                let killed = self.read_oom_kills(&cgroup.name);
                self.disown_cgroup(&cgroup.name, killed.as_ref().copied().unwrap_or_default());
                errors.keep(killed);
                errors.keep(self.ctx.cgroups.remove_cgroup(&cgroup.name));
                errors.into_result()
            }
            Resource::Cpu { cpu, was_online } => self.set_cpu_online(cpu, was_online).map(drop),
            // Stopped in step 1.
            Resource::Workers(_) | Resource::Payload(_) => Ok(()),
        }
    }

    /// Stops workers and keeps their reports.
    pub(super) fn stop_workers(
        &mut self,
        which: impl Fn(usize, &PlacedWorker) -> bool,
    ) -> Result<()> {
        let mut stopped = self.layers.take_workers(which);
        let mut workers: Vec<_> = stopped.iter_mut().map(|placed| &mut placed.worker).collect();
        let result = Workers::stop(&mut workers).context("failed to stop the workers");
        self.workers.extend(stopped.iter().map(PlacedWorker::report));
        result
    }

    /// Kills payloads that still run and judges them, the one that was started last first.
    ///
    /// All are killed whatever fails; the first error is returned.
    pub(super) fn stop_payloads(
        &mut self,
        how: &str,
        which: impl Fn(usize, &Running) -> bool,
    ) -> Result<()> {
        let mut errors = FirstError::default();
        for payload in self.layers.take_payloads(which) {
            let name = payload.name().to_owned();
            let ended = self.end_payload(payload, how);
            errors.keep(ended.with_context(|| format!("payload `{name}`")));
        }
        errors.into_result()
    }

    fn end_payload(&mut self, payload: Running, how: &str) -> Result<()> {
        let may_be_killed = self.oom.is_expected(payload.cgroup());
        let report = payload.finish(how, may_be_killed)?;
        self.send_event(report.to_string());
        self.payloads.push(report);
        Ok(())
    }

    /// Reads the number of OOM kills in a cgroup and its descendants, also those that were removed;
    /// `None` without the memory controller, and for a cgroup that something else has removed.
    pub(super) fn read_oom_kills(&self, cgroup: &str) -> Result<Option<u64>> {
        match self.ctx.cgroups.stats(cgroup) {
            Ok(stats) => Ok(stats.memory.map(|memory| memory.events.oom_kill)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
