//! Captures of cgroups and workers.

use anyhow::{Context, Result, ensure};

use super::cgroup_state::CgroupState;
use super::placed::PlacedWorker;
use super::state::Scenario;
use crate::guest::snapshot::{
    self, Capture, CgroupProcsSnapshot, CgroupSnapshot, ProcIdentity, Snapshot,
};
use crate::linux::sys::since_boot_ns;
use crate::model::wire::{GuestMessage, MAX_PAYLOAD};

/// The limit of a snapshot in bytes: a frame of the wire, less some room for its other fields.
const MAX_SNAPSHOT: usize = MAX_PAYLOAD - 64;

impl Scenario<'_> {
    pub(super) fn capture(&self, tag: &str, cgroup: &str) -> Result<()> {
        ensure!(!tag.is_empty(), "a capture needs a tag, by which it is found");
        self.check_known(cgroup)?;
        let pids = self.pids_of(cgroup)?;
        let capture = CgroupProcsSnapshot {
            tag: tag.to_owned(),
            cgroup: cgroup.to_owned(),
            procs: identities(&pids)?,
            pids,
            at_ns: since_boot_ns(),
        };
        (self.ctx.send)(GuestMessage::Capture(capture.clone()));
        snapshot::collect(Capture::CgroupProcs(capture));
        Ok(())
    }

    /// Returns the processes of a cgroup and of its payloads, which are in child cgroups that the scenario
    /// did not create.
    fn pids_of(&self, cgroup: &str) -> Result<Vec<i32>> {
        let mut pids = self.ctx.cgroups.read_procs(cgroup)?;
        for payload in self.layers.payloads().filter(|payload| payload.cgroup() == cgroup) {
            pids.extend(payload.pids()?);
        }
        Ok(pids)
    }

    pub(super) fn capture_snapshot(&self, name: &str) -> Result<()> {
        ensure!(!name.is_empty(), "a snapshot needs a name, by which it is found");
        let at_ns = since_boot_ns();
        let of = |cgroup: &CgroupState| -> Result<CgroupSnapshot> {
            let procs = identities(&self.pids_of(&cgroup.name)?)?;
            let stats = self.ctx.cgroups.stats(&cgroup.name)?;
            Ok(CgroupSnapshot { cgroup: cgroup.name.clone(), procs, stats })
        };
        let snapshot = Snapshot {
            name: name.to_owned(),
            at_ns,
            cgroups: self.layers.cgroups().map(of).collect::<Result<_>>()?,
            workers: self.layers.workers().map(PlacedWorker::report).collect(),
            kernel: snapshot::kernel_snapshot(name),
        };
        let bytes = postcard::to_allocvec(&snapshot)?.len();
        ensure!(
            bytes <= MAX_SNAPSHOT,
            "snapshot of {} cgroups and {} workers is too large: {bytes} bytes (limit {MAX_SNAPSHOT})",
            snapshot.cgroups.len(),
            snapshot.workers.len()
        );
        (self.ctx.send)(GuestMessage::Snapshot(snapshot.clone()));
        snapshot::collect(Capture::Snapshot(snapshot));
        Ok(())
    }
}

/// Reads the identities of those processes that have not exited.
fn identities(pids: &[i32]) -> Result<Vec<ProcIdentity>> {
    let read = pids.iter().filter_map(|pid| ProcIdentity::read(*pid).transpose());
    read.collect::<Result<_, _>>().context("failed to identify the processes of a cgroup")
}
