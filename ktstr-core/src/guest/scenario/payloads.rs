//! External programs in a scenario: what runs, and how it ends.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::execute::Scenario;
use super::layer::Made;
use crate::guest::assert::is_in;
use crate::guest::payload::{PayloadRun, Running};

impl Scenario<'_> {
    pub(super) fn run_payload(&mut self, run: &PayloadRun, cgroup: Option<&str>) -> Result<()> {
        cgroup.map_or(Ok(()), |cgroup| self.known(cgroup))?;
        if let Some(there) = self.payloads().find(|payload| payload.name() == run.name) {
            bail!(
                "a payload called `{}` is there already, in {}: wait for it, kill it, or give this \
                 run another name (`named`)",
                run.name,
                there.cgroup()
            );
        }
        let group = cgroup.map(|cgroup| self.ctx.cgroups.parent_path().join(cgroup));
        let cgroup = cgroup.unwrap_or_default();
        let running = Running::start(run.clone(), self.ctx.payloads, group.as_deref(), cgroup)?;
        self.layer_mut().payloads.push(running);
        self.note_waits();
        Ok(())
    }

    /// As in a hold, nothing is changed meanwhile, so cgroups are judged by it as well; and a worker
    /// that dies ends it.
    pub(super) fn wait_payload(&mut self, name: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now().checked_add(timeout).context("that is too long a time")?;
        let is_working = self.count_while(|scenario| {
            let payload = scenario.payload(name)?;
            scenario.wait_until(deadline, Some(payload.pidfd()))
        })?;
        if is_working {
            self.payload(name)?.ensure_ended(timeout)?;
        }
        self.stop_payloads("stopped", |_, payload| payload.name() == name)
    }

    pub(super) fn kill_payload(&mut self, name: &str) -> Result<()> {
        self.payload(name)?;
        self.stop_payloads("killed by the test", |_, payload| payload.name() == name)
    }

    /// Ends what a layer, or a group of it, has of payloads.
    pub(super) fn end_payloads(&mut self, inner: usize, made: &[String]) -> Result<()> {
        let how = format!("stopped at the end of {}", self.layer().phase);
        self.stop_payloads(&how, |layer, payload| {
            layer == inner || made.iter().any(|name| name == payload.cgroup())
        })
    }

    /// Ends payloads that still run, and judges all that `which` says. All of them, whatever fails;
    /// the first error is told.
    pub(super) fn stop_payloads(
        &mut self,
        how: &str,
        which: impl Fn(usize, &Running) -> bool,
    ) -> Result<()> {
        let mut going = Vec::new();
        for (index, layer) in self.layers.iter_mut().enumerate() {
            going.extend(layer.payloads.extract_if(.., |payload| which(index, payload)));
        }
        let mut stopped = Ok(());
        for payload in going {
            let name = payload.name().to_owned();
            let ended = self.end_payload(payload, how);
            stopped = stopped.and(ended.with_context(|| format!("payload `{name}`")));
        }
        stopped
    }

    fn end_payload(&mut self, payload: Running, how: &str) -> Result<()> {
        let may_be_killed =
            |made: &Made| made.oom_kill_expected && is_in(payload.cgroup(), &made.name);
        let may_be_killed = self.made().any(may_be_killed);
        let report = payload.finish(how, may_be_killed)?;
        self.tell(report.to_string());
        self.payloads.push(report);
        Ok(())
    }

    /// A payload that was started, or an error that names those that were.
    fn payload(&self, name: &str) -> Result<&Running> {
        let there: Vec<_> = self.payloads().map(Running::name).collect();
        let found = self.payloads().find(|payload| payload.name() == name);
        found
            .with_context(|| format!("no payload called `{name}` was started; there are {there:?}"))
    }

    /// Refuses to take a group's processes from under a payload, which is held where it was started.
    pub(super) fn check_no_payload_moves(&self, cgroup: &str) -> Result<()> {
        let stays = self.payloads().find(|payload| payload.cgroup() == cgroup);
        let name = stays.map_or("", Running::name);
        ensure!(stays.is_none(), "payload `{name}` runs in `{cgroup}`, and payloads do not move");
        Ok(())
    }

    pub(super) fn payloads(&self) -> impl Iterator<Item = &Running> {
        self.layers.iter().flat_map(|layer| &layer.payloads)
    }
}
