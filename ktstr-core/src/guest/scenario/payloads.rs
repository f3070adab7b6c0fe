//! External programs in a scenario.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::layer::Resource;
use super::state::{Scenario, listed};
use crate::guest::payload::{PayloadRun, Running};

impl Scenario<'_> {
    pub(super) fn run_payload(&mut self, run: &PayloadRun, cgroup: Option<&str>) -> Result<()> {
        cgroup.map_or(Ok(()), |cgroup| self.check_known(cgroup))?;
        if let Some(other) = self.layers.payloads().find(|payload| payload.name() == run.name) {
            bail!(
                "payload `{}` already runs in {}: wait for it, kill it, or give this run another name \
                 (`named`)",
                run.name,
                other.cgroup()
            );
        }
        let directory = cgroup.map(|cgroup| self.ctx.cgroups.parent_path().join(cgroup));
        let cgroup = cgroup.unwrap_or_default();
        let running = Running::start(run.clone(), self.ctx.payloads, directory.as_deref(), cgroup)?;
        self.layers.push(Resource::Payload(Box::new(running)));
        self.update_waits();
        Ok(())
    }

    /// Waits until a payload has ended. As in a hold, cgroups are sampled and a worker that exits early
    /// ends the wait.
    pub(super) fn wait_payload(&mut self, name: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now().checked_add(timeout).context("timeout is too long")?;
        let is_undecided = self.sample_while(|scenario| {
            let payload = scenario.payload(name)?;
            scenario.wait_until(deadline, Some(payload.pidfd()))
        })?;
        if is_undecided {
            self.payload(name)?.ensure_ended(timeout)?;
        }
        self.stop_payloads("stopped", |_, payload| payload.name() == name)
    }

    pub(super) fn kill_payload(&mut self, name: &str) -> Result<()> {
        self.payload(name)?;
        self.stop_payloads("killed by the test", |_, payload| payload.name() == name)
    }

    fn payload(&self, name: &str) -> Result<&Running> {
        let found = self.layers.payloads().find(|payload| payload.name() == name);
        found.with_context(|| {
            let running: Vec<_> = self.layers.payloads().map(Running::name).collect();
            format!("unknown payload `{name}`; this scenario runs: {}", listed(&running))
        })
    }

    /// Fails if a payload runs in a cgroup: its processes cannot be moved out of its own cgroup below.
    pub(super) fn check_no_payload(&self, cgroup: &str) -> Result<()> {
        let found = self.layers.payloads().find(|payload| payload.cgroup() == cgroup);
        let name = found.map_or("", Running::name);
        ensure!(found.is_none(), "payload `{name}` runs in `{cgroup}`; payloads cannot be moved");
        Ok(())
    }
}
