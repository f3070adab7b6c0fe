//! Carries a scenario out, one phase after the other.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};

use super::layer::{Layer, Made, PlacedWorker};
use super::ops::{Backdrop, HoldSpec, Op, Step};
use super::{CgroupDef, Ctx};
use crate::assert::{Assert, AssertResult, CgroupSample, Surroundings, was_killed};
use crate::sys::since_boot_ns;
use crate::wire::{Report, ScenarioEvent};
use crate::workload::{WorkerReport, Workers};

/// A worker without progress is only called stuck when it had this long; shorter steps prove
/// nothing on a busy host.
const STUCK_AFTER: Duration = Duration::from_secs(5);

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

/// Plays steps in order, checked by `assert` instead of the attribute's keys.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn execute_steps_with(
    ctx: &Ctx<'_>,
    steps: impl Into<Vec<Step>>,
    assert: &Assert,
) -> Result<AssertResult> {
    play(ctx, &Backdrop::new(), &steps.into(), assert)
}

/// Sets the backdrop up, plays the steps in order, and takes everything down again.
///
/// The controllers that any knob of the scenario needs are enabled before all else, once. What the
/// workers and cgroups did is held against the attribute's keys ([`Assert`]); a worker that dies before
/// it is stopped ends the scenario and fails the test.
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
    play(ctx, &backdrop, &steps.into(), &ctx.assert)
}

fn play(
    ctx: &Ctx<'_>,
    backdrop: &Backdrop,
    steps: &[Step],
    assert: &Assert,
) -> Result<AssertResult> {
    let controllers = controllers(backdrop, steps);
    if !controllers.is_empty() {
        ctx.cgroups.setup(&controllers).context("cannot enable controllers")?;
    }
    let mut scenario =
        Scenario { ctx, layers: Vec::new(), workers: Vec::new(), cgroups: Vec::new() };
    let played = scenario.play(backdrop, steps);
    // Layers that an error left standing come down here; the first error is the one that counts.
    let mut cleared = Ok(());
    while !scenario.layers.is_empty() {
        cleared = cleared.and(scenario.end_layer());
    }
    played.and(cleared)?;
    Ok(scenario.judge(assert))
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
    /// What the workers that were stopped had done.
    workers: Vec<WorkerReport>,
    /// What the kernel had counted for the cgroups when their workers were stopped.
    cgroups: Vec<CgroupSample>,
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

    pub(super) fn carry_out(&mut self, op: &Op) -> Result<()> {
        self.tell(op.to_string());
        self.apply(op).with_context(|| format!("{}: failed to {op}", self.layer().phase))
    }

    /// Waits while the workers work. False as soon as one has died that was not to be killed, which
    /// decides the verdict.
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
        let mut workers: Vec<_> = self.workers().collect();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = left.try_into().context("the hold is too long")?;
            let pidfds = workers.iter().map(|placed| placed.worker.pidfd());
            let mut fds: Vec<_> = pidfds.map(|pidfd| PollFd::new(pidfd, PollFlags::IN)).collect();
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno).context("cannot wait for the workers"),
            }
            let working: Vec<_> = fds.iter().map(|fd| fd.revents().is_empty()).collect();
            for (placed, working) in workers.iter().zip(&working) {
                if !working && !self.was_to_be_killed(placed)? {
                    return Ok(false);
                }
            }
            let mut working = working.into_iter();
            workers.retain(|_| working.next() == Some(true));
        }
    }

    /// Whether a worker that has ended did so by what is expected of its cgroup.
    fn was_to_be_killed(&self, placed: &PlacedWorker) -> Result<bool> {
        let mut made = self.layers.iter().flat_map(|layer| &layer.cgroups);
        let expected = made.any(|made| made.name == placed.cgroup && made.expects_oom_kill());
        let how = placed.worker.ended().context("cannot ask how a worker ended")?;
        Ok(expected && how.is_some_and(|how| was_killed(&how)))
    }

    /// Stops the workers of the innermost layer and undoes what it did.
    fn end_layer(&mut self) -> Result<()> {
        let inner = self.layers.len() - 1;
        let made: Vec<_> = self.layer().cgroups.iter().map(|made| made.name.clone()).collect();
        // Who works in a group of this layer cannot stay in it, whoever spawned it.
        let stopped = self.stop_workers_of(
            |layer, placed| layer == inner || made.contains(&placed.cgroup),
            |name| made.contains(&name.name),
        );
        let layer = self.layers.pop().expect("only called with a layer standing");
        let phase = layer.phase.clone();
        let undone = layer.take_down(self.ctx.cgroups);
        stopped.and(undone).with_context(|| format!("{phase}: failed to take it down"))
    }

    /// Stops workers and takes down what they did, and what was counted for groups until then.
    pub(super) fn stop_workers(
        &mut self,
        which: impl Fn(&PlacedWorker) -> bool,
        groups: impl Fn(&Made) -> bool,
    ) -> Result<()> {
        self.stop_workers_of(|_, placed| which(placed), groups)
    }

    fn stop_workers_of(
        &mut self,
        which: impl Fn(usize, &PlacedWorker) -> bool,
        groups: impl Fn(&Made) -> bool,
    ) -> Result<()> {
        let (mut stop, mut cgroups) = (Vec::new(), Vec::new());
        for (index, layer) in self.layers.iter_mut().enumerate() {
            for placed in layer.workers.extract_if(.., |placed| which(index, placed)) {
                cgroups.push(placed.cgroup);
                stop.push(placed.worker);
            }
        }
        // While they still work, or an idle time would be counted that nobody asked for.
        let made = self.layers.iter().flat_map(|layer| &layer.cgroups).filter(|made| groups(made));
        let samples: Result<Vec<_>> = made.map(|made| made.sample(self.ctx.cgroups)).collect();
        let stopped = Workers::stop(&mut stop).context("cannot stop the workers");
        let reports = stop.iter().zip(&cgroups).map(|(worker, cgroup)| worker.report(cgroup));
        self.workers.extend(reports);
        self.cgroups.extend(samples?.into_iter().flatten());
        stopped
    }

    /// Holds everything that was measured against the bounds.
    fn judge(&self, assert: &Assert) -> AssertResult {
        let asked = self.cgroups.iter();
        let asked = asked.map(|sample| (sample.name.clone(), sample.asked.clone())).collect();
        let surroundings =
            Surroundings { stuck_after: STUCK_AFTER, cgroups: &asked, nodes: &self.ctx.topo.nodes };
        let of_workers = assert.judge_workers(&self.workers, &surroundings);
        of_workers.merge(assert.judge_cgroups(&self.cgroups, &self.workers))
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
