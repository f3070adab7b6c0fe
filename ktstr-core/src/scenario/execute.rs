//! Carries a scenario out, one phase after the other.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};

use super::layer::Layer;
use super::ops::{Backdrop, HoldSpec, Op, Step};
use super::{CgroupDef, Ctx};
use crate::assert::{AssertDetail, AssertResult};
use crate::sys::since_boot_ns;
use crate::wire::{Report, ScenarioEvent};

/// Has cgroups work for the test's whole duration.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn execute_defs(
    ctx: &Ctx<'_>,
    defs: impl IntoIterator<Item = CgroupDef>,
) -> Result<AssertResult> {
    execute_steps(ctx, [Step::new([], HoldSpec::FULL).with_defs(defs)])
}

/// Plays steps in order.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn execute_steps(ctx: &Ctx<'_>, steps: impl Into<Vec<Step>>) -> Result<AssertResult> {
    execute_scenario(ctx, Backdrop::new(), steps)
}

/// Sets the backdrop up, plays the steps in order, and takes everything down again.
///
/// The controllers that any knob of the scenario needs are enabled before all else, once.
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
    let steps = steps.into();
    let controllers = controllers(&backdrop, &steps);
    if !controllers.is_empty() {
        ctx.cgroups.setup(&controllers).context("cannot enable controllers")?;
    }
    let mut scenario = Scenario { ctx, layers: Vec::new(), verdict: AssertResult::pass() };
    let played = scenario.play(&backdrop, &steps);
    // Layers that an error left standing come down here; the first error is the one that counts.
    let mut cleared = Ok(());
    while !scenario.layers.is_empty() {
        cleared = cleared.and(scenario.end_layer());
    }
    played.and(cleared)?;
    Ok(scenario.verdict)
}

fn controllers(backdrop: &Backdrop, steps: &[Step]) -> BTreeSet<crate::cgroup::Controller> {
    let defs = backdrop.defs.iter().chain(steps.iter().flat_map(|step| &step.defs));
    let of_defs = defs.flat_map(|def| &def.knobs).map(super::CgroupKnob::controller);
    let ops = backdrop.ops.iter().chain(steps.iter().flat_map(|step| &step.ops));
    of_defs.chain(ops.flat_map(Op::controllers)).collect()
}

pub(super) struct Scenario<'a> {
    pub(super) ctx: &'a Ctx<'a>,
    /// The backdrop, then the current step.
    pub(super) layers: Vec<Layer>,
    verdict: AssertResult,
}

impl Scenario<'_> {
    fn play(&mut self, backdrop: &Backdrop, steps: &[Step]) -> Result<()> {
        self.begin_layer("backdrop".to_owned(), &backdrop.defs, &backdrop.ops)?;
        for (index, step) in steps.iter().enumerate() {
            self.begin_layer(format!("step {index}"), &step.defs, &step.ops)?;
            if !self.hold(step)? {
                break;
            }
            self.end_layer()?;
        }
        Ok(())
    }

    fn begin_layer(&mut self, phase: String, defs: &[CgroupDef], ops: &[Op]) -> Result<()> {
        self.layers.push(Layer::new(phase));
        for def in defs {
            self.carry_out(&Op::add_cgroup_def(def.clone()))?;
        }
        ops.iter().try_for_each(|op| self.carry_out(op))
    }

    fn carry_out(&mut self, op: &Op) -> Result<()> {
        self.tell(op.to_string());
        self.apply(op).with_context(|| format!("{}: failed to {op}", self.layer().phase))
    }

    /// Waits while the workers work. False as soon as one has died, which decides the verdict.
    fn hold(&mut self, step: &Step) -> Result<bool> {
        let (hold, interval) = match step.hold {
            HoldSpec::Fixed(hold) => (hold, None),
            HoldSpec::Frac(frac) => {
                let hold = Duration::try_from_secs_f64(self.ctx.duration.as_secs_f64() * frac);
                (hold.with_context(|| format!("{frac} is no part of the duration"))?, None)
            }
            HoldSpec::LoopAt(interval) => {
                anyhow::ensure!(!interval.is_zero(), "operations cannot be done again every 0 s");
                (self.ctx.duration, Some(interval))
            }
        };
        match interval {
            None => self.tell(format!("hold for {hold:?}")),
            Some(interval) => self.tell(format!("hold for {hold:?}, again every {interval:?}")),
        }
        let end = Instant::now().checked_add(hold).context("the hold is too long")?;
        while let Some(interval) = interval {
            let next = Instant::now() + interval;
            if next >= end {
                break;
            }
            if !self.wait_until(next)? {
                return Ok(false);
            }
            step.ops.iter().try_for_each(|op| self.carry_out(op))?;
        }
        self.wait_until(end)
    }

    fn wait_until(&self, deadline: Instant) -> Result<bool> {
        let workers: Vec<_> = self.workers().map(|placed| placed.worker.pidfd()).collect();
        let mut fds: Vec<_> =
            workers.iter().map(|pidfd| PollFd::new(pidfd, PollFlags::IN)).collect();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = left.try_into().context("the hold is too long")?;
            match poll(&mut fds, Some(&timeout)) {
                Ok(ended) => return Ok(ended == 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno).context("cannot wait for the workers"),
            }
        }
    }

    /// Stops the workers of the innermost layer, judges them, and undoes what it did.
    fn end_layer(&mut self) -> Result<()> {
        let index = self.layers.len() - 1;
        self.stop_workers(index, |_| true);
        let layer = self.layers.pop().expect("only called with a layer standing");
        let phase = layer.phase.clone();
        layer
            .take_down(self.ctx.cgroups)
            .with_context(|| format!("{phase}: failed to take it down"))
    }

    pub(super) fn fail(&mut self, detail: AssertDetail) {
        self.tell(detail.to_string());
        let verdict = std::mem::replace(&mut self.verdict, AssertResult::pass());
        self.verdict = verdict.merge(AssertResult::fail(detail));
    }

    pub(super) fn layer(&self) -> &Layer {
        self.layers.last().expect("a layer stands while operations run")
    }

    pub(super) fn layer_mut(&mut self) -> &mut Layer {
        self.layers.last_mut().expect("a layer stands while operations run")
    }

    /// Sends an event to the host at once: it has the timeline even if the guest dies now.
    fn tell(&self, what: String) {
        let phase = self.layers.last().map_or_else(String::new, |layer| layer.phase.clone());
        tracing::info!("{phase}: {what}");
        (self.ctx.report)(Report::Event(ScenarioEvent { at_ns: since_boot_ns(), phase, what }));
    }
}
