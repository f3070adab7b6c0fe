//! Carries a scenario out, one phase after the other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};

use super::Ctx;
use super::ops::{Backdrop, HoldSpec, Op, SpawnPlacement, Step};
use crate::assert::{AssertDetail, AssertResult, DetailKind};
use crate::snapshot::{self, CgroupProcsSnapshot, ProcIdentity};
use crate::sys::since_boot_ns;
use crate::wire::{Report, ScenarioEvent};
use crate::workload::{WorkSpec, Worker};

/// A worker without progress is only called stuck when it had this long; shorter steps prove
/// nothing on a busy host.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// Sets the backdrop up, plays the steps in order, and takes everything down again.
///
/// Fails the test if a worker dies before it is stopped, or has done no work after five seconds.
///
/// # Errors
///
/// An operation that cannot be carried out; the error names its phase. What the scenario made is
/// gone by then, too.
pub fn execute_scenario(
    ctx: &Ctx<'_>,
    backdrop: Backdrop,
    steps: impl Into<Vec<Step>>,
) -> Result<AssertResult> {
    let mut scenario = Scenario { ctx, layers: Vec::new(), verdict: AssertResult::pass() };
    let played = scenario.play(&backdrop, &steps.into());
    // Layers that an error left standing come down here; the first error is the one that counts.
    let mut cleared = Ok(());
    while !scenario.layers.is_empty() {
        cleared = cleared.and(scenario.end_layer());
    }
    played.and(cleared)?;
    Ok(scenario.verdict)
}

struct Scenario<'a> {
    ctx: &'a Ctx<'a>,
    /// The backdrop, then the current step.
    layers: Vec<Layer>,
    verdict: AssertResult,
}

/// What one phase made.
struct Layer {
    phase: String,
    cgroups: Vec<String>,
    workers: Vec<PlacedWorker>,
}

struct PlacedWorker {
    worker: Worker,
    cgroup: String,
    released: Instant,
}

impl Scenario<'_> {
    fn play(&mut self, backdrop: &Backdrop, steps: &[Step]) -> Result<()> {
        self.begin_layer("backdrop".to_owned(), &backdrop.ops)?;
        for (index, step) in steps.iter().enumerate() {
            self.begin_layer(format!("step {index}"), &step.ops)?;
            if !self.hold(step.hold)? {
                break;
            }
            self.end_layer()?;
        }
        Ok(())
    }

    fn begin_layer(&mut self, phase: String, ops: &[Op]) -> Result<()> {
        self.layers.push(Layer { phase, cgroups: Vec::new(), workers: Vec::new() });
        for op in ops {
            self.tell(op.to_string());
            let apply = self.apply(op);
            apply.with_context(|| format!("{}: failed to {op}", self.layer().phase))?;
        }
        Ok(())
    }

    fn apply(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::AddCgroup { cgroup } => self.add_cgroup(cgroup),
            Op::RemoveCgroup { cgroup } => self.remove_cgroup(cgroup),
            Op::Spawn { placement: SpawnPlacement::Cgroup(cgroup), work } => {
                self.spawn(cgroup, work)
            }
            Op::CaptureCgroupProcs { tag, cgroup } => self.capture(tag, cgroup),
        }
    }

    fn add_cgroup(&mut self, cgroup: &str) -> Result<()> {
        // Whoever made it removes it; a second owner would remove it from under the first.
        ensure!(!self.made().any(|name| name == cgroup), "`{cgroup}` is there already");
        self.ctx.cgroups.create_cgroup(cgroup)?;
        self.layer_mut().cgroups.push(cgroup.to_owned());
        Ok(())
    }

    fn remove_cgroup(&mut self, cgroup: &str) -> Result<()> {
        self.known(cgroup)?;
        for index in 0..self.layers.len() {
            self.stop_workers(index, |worker| worker.cgroup == cgroup);
            self.layers[index].cgroups.retain(|name| name != cgroup);
        }
        Ok(self.ctx.cgroups.remove_cgroup(cgroup)?)
    }

    fn spawn(&mut self, cgroup: &str, work: &WorkSpec) -> Result<()> {
        self.known(cgroup)?;
        work.check().map_err(anyhow::Error::msg)?;
        let mut workers = Vec::new();
        for _ in 0..work.workers {
            let worker = Worker::fork(work).context("cannot fork a worker")?;
            self.ctx.cgroups.place_task_during_handshake(cgroup, worker.pid())?;
            workers.push(worker);
        }
        for mut worker in workers {
            worker.release().context("cannot release a worker")?;
            let released = Instant::now();
            let placed = PlacedWorker { worker, cgroup: cgroup.to_owned(), released };
            self.layer_mut().workers.push(placed);
        }
        Ok(())
    }

    fn capture(&self, tag: &str, cgroup: &str) -> Result<()> {
        ensure!(!tag.is_empty(), "a capture needs a tag: nobody could find it again");
        self.known(cgroup)?;
        let pids = self.ctx.cgroups.read_procs(cgroup)?;
        let capture = CgroupProcsSnapshot {
            tag: tag.to_owned(),
            cgroup: cgroup.to_owned(),
            procs: pids.iter().filter_map(|pid| ProcIdentity::read(*pid)).collect(),
            pids,
            at_ns: since_boot_ns(),
        };
        (self.ctx.report)(Report::Capture(capture.clone()));
        snapshot::collect(capture);
        Ok(())
    }

    /// Refuses a cgroup that no operation has made: a typo must not pass silently.
    fn known(&self, cgroup: &str) -> Result<()> {
        ensure!(!cgroup.is_empty(), "the cgroup has no name");
        if !self.made().any(|name| name == cgroup) {
            let made: Vec<_> = self.made().collect();
            bail!("no operation has made cgroup `{cgroup}`; there are {made:?}");
        }
        Ok(())
    }

    fn made(&self) -> impl Iterator<Item = &str> {
        self.layers.iter().flat_map(|layer| &layer.cgroups).map(String::as_str)
    }

    /// Waits while the workers work. False as soon as one has died, which decides the verdict.
    fn hold(&mut self, hold: HoldSpec) -> Result<bool> {
        let hold = match hold {
            HoldSpec::Fixed(hold) => hold,
            HoldSpec::Frac(frac) => {
                Duration::try_from_secs_f64(self.ctx.duration.as_secs_f64() * frac)
                    .with_context(|| format!("{frac} is no part of the duration"))?
            }
        };
        self.tell(format!("hold for {hold:?}"));
        let deadline = Instant::now() + hold;
        loop {
            let workers: Vec<_> = self.workers().map(|placed| placed.worker.pidfd()).collect();
            let mut fds: Vec<_> =
                workers.iter().map(|pidfd| PollFd::new(pidfd, PollFlags::IN)).collect();
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = left.try_into().context("the hold is too long")?;
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Ok(true),
                Ok(_) => return Ok(false),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno).context("cannot wait for the workers"),
            }
        }
    }

    /// Stops the workers of the innermost layer, judges them, and removes its cgroups.
    fn end_layer(&mut self) -> Result<()> {
        let index = self.layers.len() - 1;
        self.stop_workers(index, |_| true);
        let layer = self.layers.pop().expect("only called with a layer standing");
        let mut removed = Ok(());
        for cgroup in layer.cgroups.iter().rev() {
            removed = removed.and(self.ctx.cgroups.remove_cgroup(cgroup));
        }
        removed.with_context(|| format!("{}: failed to take it down", layer.phase))
    }

    fn stop_workers(&mut self, layer: usize, which: impl Fn(&PlacedWorker) -> bool) {
        let (stop, keep) =
            std::mem::take(&mut self.layers[layer].workers).into_iter().partition(which);
        self.layers[layer].workers = keep;
        let stop: Vec<PlacedWorker> = stop;
        for placed in &stop {
            if let Some(detail) = placed.judge() {
                self.tell(detail.to_string());
                let verdict = std::mem::replace(&mut self.verdict, AssertResult::pass());
                self.verdict = verdict.merge(AssertResult::fail(detail));
            }
        }
    }

    fn workers(&self) -> impl Iterator<Item = &PlacedWorker> {
        self.layers.iter().flat_map(|layer| &layer.workers)
    }

    fn layer(&self) -> &Layer {
        self.layers.last().expect("a layer stands while operations run")
    }

    fn layer_mut(&mut self) -> &mut Layer {
        self.layers.last_mut().expect("a layer stands while operations run")
    }

    fn tell(&self, what: String) {
        let phase = self.layer().phase.clone();
        tracing::info!("{phase}: {what}");
        (self.ctx.report)(Report::Event(ScenarioEvent { at_ns: since_boot_ns(), phase, what }));
    }
}

impl PlacedWorker {
    /// What speaks against the worker, while it has not been stopped yet.
    fn judge(&self) -> Option<AssertDetail> {
        let ran = self.released.elapsed();
        let who =
            format!("worker {} ({}) in {}", self.worker.pid(), self.worker.comm(), self.cgroup);
        match self.worker.ended() {
            Ok(None) if self.worker.iterations() > 0 || ran < STUCK_AFTER => None,
            Ok(None) => Some(AssertDetail::new(
                DetailKind::WorkerStuck,
                format!("{who} did no work in the {ran:.1?} after its release"),
            )),
            Ok(Some(status)) => Some(AssertDetail::new(
                DetailKind::WorkerDied,
                format!("{who} ended by {status} within {ran:.1?} of its release"),
            )),
            Err(error) => {
                Some(AssertDetail::new(DetailKind::WorkerDied, format!("{who} is lost: {error}")))
            }
        }
    }
}
