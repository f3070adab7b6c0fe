//! Carries a scenario out, one phase after the other.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};

use super::layer::{Layer, Made, PlacedWorker, is_in};
use super::ops::{Backdrop, HoldSpec, Op, Step};
use super::{CgroupDef, Ctx};
use crate::assert::{
    Assert, AssertDetail, AssertResult, CgroupSample, DetailKind, Surroundings, was_killed,
};
use crate::sys::since_boot_ns;
use crate::wire::{Report, ScenarioEvent};
use crate::workload::{WorkerReport, Workers};

/// A worker without progress is only called stuck when it had this long; shorter steps prove
/// nothing on a busy host.
const STUCK_AFTER: Duration = Duration::from_secs(2);

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
        Scenario { ctx, layers: Vec::new(), spawns: 0, workers: Vec::new(), cgroups: Vec::new() };
    let played = scenario.play(backdrop, steps);
    // Layers that an error left standing come down here; the first error is the one that counts.
    played.and(scenario.end_all())?;
    Ok(scenario.judge(assert))
}

/// What the workers of a scenario did, which is judged otherwise.
#[cfg(test)]
pub(super) fn play_for_reports(
    ctx: &Ctx<'_>,
    backdrop: &Backdrop,
    steps: &[Step],
) -> Result<Vec<WorkerReport>> {
    let mut scenario =
        Scenario { ctx, layers: Vec::new(), spawns: 0, workers: Vec::new(), cgroups: Vec::new() };
    scenario.play(backdrop, steps)?;
    scenario.end_all()?;
    Ok(std::mem::take(&mut scenario.workers))
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
    /// How many times workers were spawned.
    pub(super) spawns: u32,
    /// What the workers that were stopped had done.
    workers: Vec<WorkerReport>,
    /// What the kernel had counted for the cgroups when their workers were stopped.
    cgroups: Vec<CgroupSample>,
}

/// A panic of a callback leaves nothing behind, either.
impl Drop for Scenario<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end_all() {
            tracing::warn!("left behind: {error:#}");
        }
    }
}

impl Scenario<'_> {
    fn end_all(&mut self) -> Result<()> {
        let mut ended = Ok(());
        while !self.layers.is_empty() {
            ended = ended.and(self.end_layer());
        }
        ended
    }

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
            let next = Instant::now().checked_add(interval).filter(|next| *next < end);
            let Some(next) = next else { break };
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
        let how = placed.worker.ended().context("cannot ask how a worker ended")?;
        Ok(placed.oom_kill_expected && how.is_some_and(|how| was_killed(&how)))
    }

    /// Stops the workers of the innermost layer and undoes what it did.
    fn end_layer(&mut self) -> Result<()> {
        let inner = self.layers.len() - 1;
        let made: Vec<_> = self.layer().cgroups.iter().map(|made| made.name.clone()).collect();
        // Who works in a group of this layer cannot stay in it, whoever spawned it.
        let stopped =
            self.stop_workers(|layer, placed| layer == inner || made.contains(&placed.cgroup));
        let layer = self.layers.pop().expect("only called with a layer standing");
        let phase = layer.phase.clone();
        let undone = layer.take_down(self.ctx.cgroups);
        stopped.and(undone).with_context(|| format!("{phase}: failed to take it down"))
    }

    /// Stops workers, and keeps what they did. Groups that have none any more are not counted on, or
    /// an idle time would be that nobody asked for.
    pub(super) fn stop_workers(
        &mut self,
        which: impl Fn(usize, &PlacedWorker) -> bool,
    ) -> Result<()> {
        let all = self.layers.iter().enumerate();
        let going =
            all.flat_map(|(index, layer)| layer.workers.iter().map(move |one| (index, one)));
        let (going, staying): (Vec<_>, Vec<_>) = going.partition(|(index, one)| which(*index, one));
        let names = |workers: Vec<(usize, &PlacedWorker)>| -> BTreeSet<String> {
            workers.into_iter().map(|(_, placed)| placed.cgroup.clone()).collect()
        };
        let (left, used) = (names(going), names(staying));
        let is_used = |name: &str| used.iter().any(|cgroup| is_in(cgroup, name));
        let emptied = |name: &str| left.iter().any(|cgroup| is_in(cgroup, name)) && !is_used(name);
        // While they still work.
        let counted = self.end_counting_of(|made| emptied(&made.name));
        let mut stop = Vec::new();
        for (index, layer) in self.layers.iter_mut().enumerate() {
            stop.extend(layer.workers.extract_if(.., |placed| which(index, placed)));
        }
        let mut workers: Vec<_> = stop.iter_mut().map(|placed| &mut placed.worker).collect();
        let stopped = Workers::stop(&mut workers).context("cannot stop the workers");
        self.workers.extend(stop.iter().map(PlacedWorker::report));
        counted.and(stopped)
    }

    /// Ends counting for a group, and for those above and below, which its knobs concern as well.
    pub(super) fn end_counting(&mut self, cgroup: &str) -> Result<()> {
        self.end_counting_of(|made| is_in(&made.name, cgroup) || is_in(cgroup, &made.name))
    }

    fn end_counting_of(&mut self, which: impl Fn(&Made) -> bool) -> Result<()> {
        let made = self.layers.iter().flat_map(|layer| &layer.cgroups).map(|made| &made.name);
        let cpusets: HashMap<_, _> =
            made.map(|name| (name.clone(), self.cpuset_asked(name))).collect();
        let cgroups = self.ctx.cgroups;
        let made = self.layers.iter_mut().flat_map(|layer| &mut layer.cgroups);
        let ended = made.filter(|made| which(made)).map(|made| {
            let cpuset = cpusets.get(&made.name).and_then(Option::as_ref);
            made.end(cgroups, cpuset)
        });
        let samples = ended.collect::<Result<Vec<_>>>()?;
        self.cgroups.extend(samples.into_iter().flatten());
        Ok(())
    }

    /// Holds everything that was measured against the bounds.
    fn judge(&self, assert: &Assert) -> AssertResult {
        if self.workers.is_empty() {
            let nothing = "no worker worked in this scenario, so nothing was checked";
            return AssertResult::inconclusive(AssertDetail::new(DetailKind::Other, nothing));
        }
        let surroundings = Surroundings { stuck_after: STUCK_AFTER, nodes: &self.ctx.topo.nodes };
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
