//! A run that the body of a test starts and waits for.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::definition::{Payload, PayloadRun};
use super::report::PayloadReport;
use super::running::Running;
use crate::linux::cgroup::CgroupOps;
use crate::linux::process::is_job_cgroup;
use crate::linux::sys::since_boot_ns;
use crate::model::wire::{GuestMessage, ScenarioEvent};

/// A run that [`Ctx::payload`](crate::guest::scenario::Ctx::payload) prepares and [`run`](Self::run)
/// executes.
#[must_use = "nothing runs before `run` is called"]
pub struct PayloadCall<'a> {
    pub(crate) cgroups: &'a dyn CgroupOps,
    /// The programs in the guest.
    pub(crate) payloads: &'static [&'static Payload],
    pub(crate) send: &'a dyn Fn(GuestMessage),
    pub(crate) run: PayloadRun,
    pub(crate) cgroup: Option<String>,
    pub(crate) timeout: Option<Duration>,
}

impl PayloadCall<'_> {
    /// Appends arguments to those of every run.
    pub fn args(self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { run: self.run.with_args(args), ..self }
    }

    /// Sets the cgroup: the program runs in a child cgroup of it, from its first instruction on. By
    /// default, it runs in a child of the body's cgroup.
    pub fn in_cgroup(self, cgroup: impl Into<String>) -> Self {
        Self { cgroup: Some(cgroup.into()), ..self }
    }

    /// Sets how long the program may run.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    /// Starts the program, waits until it ends, and kills its descendants.
    ///
    /// # Errors
    ///
    /// If the cgroup or the program does not exist, the program cannot be started, or it times out, in
    /// which case it has been killed. A failed check is not an error, but part of the report's verdict.
    pub fn run(self) -> Result<PayloadReport> {
        let Self { cgroups, payloads, send, run, cgroup, timeout } = self;
        let what = cgroup.as_ref().map_or_else(String::new, |cgroup| format!(" in {cgroup}"));
        let what = format!("run {run}{what}");
        send_event(send, what.clone());
        let report = || {
            let directory = cgroup.as_ref().map(|cgroup| {
                check_cgroup(cgroups, cgroup)?;
                Ok::<_, anyhow::Error>(cgroups.parent_path().join(cgroup))
            });
            let directory = directory.transpose()?;
            let cgroup = cgroup.as_deref().unwrap_or_default();
            let running = Running::start(run, payloads, directory.as_deref(), cgroup)?;
            let waited = running.wait(timeout);
            // The output is printed even after a timeout.
            let report = running.finish("stopped", false);
            waited.and(report)
        };
        let report = report().with_context(|| format!("failed to {what}"))?;
        send_event(send, report.to_string());
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

fn send_event(send: &dyn Fn(GuestMessage), what: String) {
    let phase = "body".to_owned();
    send(GuestMessage::Event(ScenarioEvent { at_ns: since_boot_ns(), phase, what }));
}

/// Fails if the cgroup does not exist, with a list of those that do.
fn check_cgroup(cgroups: &dyn CgroupOps, cgroup: &str) -> Result<()> {
    match cgroups.read_procs(cgroup) {
        Err(error) if error.is_missing() => {
            let mut existing = Vec::new();
            list_cgroups(cgroups.parent_path(), "", &mut existing);
            existing.sort();
            bail!("unknown cgroup `{cgroup}`; existing cgroups: {existing:?}")
        }
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}

fn list_cgroups(directory: &Path, name: &str, existing: &mut Vec<String>) {
    for entry in directory.read_dir().into_iter().flatten().flatten() {
        let own = entry.file_name().to_string_lossy().into_owned();
        let is_cgroup = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // Cgroups of jobs, such as those of payloads, are internal.
        if is_cgroup && !is_job_cgroup(&own) {
            let path = if name.is_empty() { own } else { format!("{name}/{own}") };
            list_cgroups(&entry.path(), &path, existing);
            existing.push(path);
        }
    }
}
