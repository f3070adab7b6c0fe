//! A run that a body waits for.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Payload, PayloadReport, PayloadRun, Running};
use crate::linux::cgroup::CgroupOps;
use crate::linux::sys::since_boot_ns;
use crate::model::wire::{Report, ScenarioEvent};

/// A run that [`Ctx::payload`](crate::guest::scenario::Ctx::payload) prepares and [`run`](Self::run)
/// carries out.
#[must_use = "nothing runs before `run` is called"]
pub struct PayloadCall<'a> {
    cgroups: &'a dyn CgroupOps,
    /// The programs in the guest.
    payloads: &'static [&'static Payload],
    report: &'a dyn Fn(Report),
    run: PayloadRun,
    cgroup: Option<String>,
    timeout: Option<Duration>,
}

impl<'a> PayloadCall<'a> {
    pub(crate) fn new(
        cgroups: &'a dyn CgroupOps,
        payloads: &'static [&'static Payload],
        report: &'a dyn Fn(Report),
        run: PayloadRun,
    ) -> Self {
        Self { cgroups, payloads, report, run, cgroup: None, timeout: None }
    }

    /// Adds arguments behind those of every run.
    pub fn args(self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { run: self.run.with_args(args), ..self }
    }

    /// Sets the cgroup it runs in, from before its first instruction on, in a group of its own below
    /// it. Without one it runs in the body's.
    pub fn in_cgroup(self, cgroup: impl Into<String>) -> Self {
        Self { cgroup: Some(cgroup.into()), ..self }
    }

    /// Sets how long it may run.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    /// Starts the program and waits for its end. What it left running is killed.
    ///
    /// # Errors
    ///
    /// If there is no such cgroup or program, if it cannot be started, or takes longer than its
    /// timeout; it is gone by then. That a check fails is no error but the verdict of the report.
    pub fn run(self) -> Result<PayloadReport> {
        let Self { cgroups, payloads, report: send, run, cgroup, timeout } = self;
        let what = cgroup.as_ref().map_or_else(String::new, |cgroup| format!(" in {cgroup}"));
        let what = format!("run {run}{what}");
        tell(send, what.clone());
        let report = || {
            let group = cgroup.as_ref().map(|cgroup| {
                check_group(cgroups, cgroup)?;
                Ok::<_, anyhow::Error>(cgroups.parent_path().join(cgroup))
            });
            let group = group.transpose()?;
            let cgroup = cgroup.as_deref().unwrap_or_default();
            let running = Running::start(run, payloads, group.as_deref(), cgroup)?;
            let waited = running.wait(timeout);
            // What it has printed is shown in any case.
            let report = running.finish("stopped", false);
            waited.and(report)
        };
        let report = report().with_context(|| format!("failed to {what}"))?;
        tell(send, report.to_string());
        Ok(report)
    }
}

impl fmt::Debug for PayloadCall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PayloadCall")
            .field("run", &self.run)
            .field("cgroup", &self.cgroup)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

fn tell(send: &dyn Fn(Report), what: String) {
    let phase = "body".to_owned();
    send(Report::Event(ScenarioEvent { at_ns: since_boot_ns(), phase, what }));
}

/// Refuses a cgroup that there is not: a typo must not pass silently.
fn check_group(cgroups: &dyn CgroupOps, cgroup: &str) -> Result<()> {
    match cgroups.read_procs(cgroup) {
        Err(error) if error.is_missing() => {
            let mut there = Vec::new();
            list_groups(cgroups.parent_path(), "", &mut there);
            there.sort();
            bail!("there is no cgroup `{cgroup}`; there are {there:?}")
        }
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}

fn list_groups(folder: &Path, name: &str, there: &mut Vec<String>) {
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        let own = entry.file_name().to_string_lossy().into_owned();
        let is_group = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // Those of jobs, as of a payload, are not for others.
        if is_group && !own.starts_with("ktstr-job.") {
            let below = if name.is_empty() { own } else { format!("{name}/{own}") };
            list_groups(&entry.path(), &below, there);
            there.push(below);
        }
    }
}
