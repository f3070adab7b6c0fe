//! Carries a scenario out, one phase after the other.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};

use super::ctx::Ctx;
use super::def::CgroupDef;
use super::knob::CgroupKnob;
use super::layer::{Layer, Made, PlacedWorker};
use super::op::Op;
use super::step::{Backdrop, HoldSpec, Setup, Step};
use crate::guest::assert::{
    Assert, AssertDetail, AssertResult, CgroupAsked, CgroupSample, DetailKind, OomKills, Outcome,
    Surroundings, is_in,
};
use crate::guest::chain;
use crate::guest::payload::PayloadReport;
use crate::guest::workload::{WorkerReport, Workers};
use crate::linux::cgroup::CgroupStats;
use crate::linux::sys::{HighestPriority, since_boot_ns};
use crate::model::wire::{Report, ScenarioEvent};

/// How long a worker has to be without an iteration to be called stuck: a hundred times as long as the
/// first iteration of any type takes on an emulated CPU, in an unoptimized build.
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
    execute_steps(ctx, [Step::with_defs(defs, HoldSpec::FULL)])
}

/// Plays steps in order.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn execute_steps(ctx: &Ctx<'_>, steps: impl Into<Vec<Step>>) -> Result<AssertResult> {
    execute_scenario(ctx, Backdrop::new(), steps)
}

/// Plays steps in order, checked by `assert` instead of the attribute's keys; with `None`, by these.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn execute_steps_with<'a>(
    ctx: &Ctx<'_>,
    steps: impl Into<Vec<Step>>,
    assert: impl Into<Option<&'a Assert>>,
) -> Result<AssertResult> {
    play(ctx, &Backdrop::new(), &steps.into(), assert.into().unwrap_or(&ctx.assert))
}

/// Sets the backdrop up, plays the steps in order, and takes everything down again.
///
/// The controllers that any knob of the scenario needs are enabled before all else, once. What the
/// workers and cgroups did is held against the attribute's keys ([`Assert`]), what payloads did against
/// their own checks; a worker that dies before it is stopped ends the scenario and fails the test.
///
/// In a guest, this thread runs before everything else meanwhile (`SCHED_FIFO` with priority 99): what
/// starves the workers must not hold up who changes things for them and counts what they do.
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
    // A host has more to do than this.
    let first = (!ctx.is_on_host).then(HighestPriority::begin).transpose();
    let _first = first.context(
        "cannot put the scenario before its load; EPERM means that the body has given CAP_SYS_NICE up, \
         or is in a cgroup without realtime time (RT_GROUP_SCHED)",
    )?;
    let controllers = controllers(backdrop, steps);
    if !controllers.is_empty() {
        ctx.cgroups.setup(&controllers).context("cannot enable controllers")?;
    }
    let mut scenario = Scenario::new(ctx);
    let played = scenario.play(backdrop, steps);
    // Layers that an error left standing come down here; the first error is the one that counts.
    let ended = played.and(scenario.end_all());
    scenario.note_oom_kills_elsewhere();
    let verdict = scenario.judge(assert);
    let Err(error) = ended else { return Ok(verdict) };
    // What failed before may well be why. What is based on time, the host judges.
    let has_failed = |detail: &&AssertDetail| detail.outcome == Outcome::Fail && !detail.time_based;
    let failed = verdict.details.iter().filter(has_failed);
    Err(match failed.map(|detail| format!("\n  {detail}")).collect::<String>() {
        failed if failed.is_empty() => error,
        failed => {
            let text = format!("{}; by then, this had failed:{failed}", chain::describe(&error));
            // A context, so that its causes stay in the chain.
            error.context(text)
        }
    })
}

/// What the workers of a scenario did, which is judged otherwise.
#[cfg(test)]
pub(super) fn play_for_reports(
    ctx: &Ctx<'_>,
    backdrop: &Backdrop,
    steps: &[Step],
) -> Result<Vec<WorkerReport>> {
    let mut scenario = Scenario::new(ctx);
    scenario.play(backdrop, steps)?;
    scenario.end_all()?;
    Ok(std::mem::take(&mut scenario.workers))
}

fn controllers(backdrop: &Backdrop, steps: &[Step]) -> BTreeSet<crate::linux::cgroup::Controller> {
    let defs = backdrop.setup.defs.iter().chain(steps.iter().flat_map(|step| &step.setup.defs));
    let of_defs = defs.flat_map(|def| &def.knobs).map(CgroupKnob::controller);
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
    /// What the kernel has counted for the cgroups in each hold.
    samples: Vec<CgroupSample>,
    /// What was killed in the cgroups that are gone.
    oom_kills: Vec<OomKills>,
    /// How many that were.
    oom_kills_counted: u64,
    /// How many had been killed on the machine when the scenario began.
    oom_kills_before: Option<u64>,
    /// The CPUs that are switched off now.
    pub(super) offline: BTreeSet<u32>,
    /// What came of the payloads that have ended.
    pub(super) payloads: Vec<PayloadReport>,
}

/// What the kernel has counted for a cgroup by now.
struct Count {
    at_ns: u64,
    stats: CgroupStats,
    waited: Duration,
    weighs: bool,
}

/// A panic of a callback leaves nothing behind, either.
impl Drop for Scenario<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end_all() {
            tracing::warn!("left behind: {}", chain::describe(&error));
        }
    }
}

impl<'a> Scenario<'a> {
    pub(super) fn new(ctx: &'a Ctx<'a>) -> Self {
        Self {
            ctx,
            layers: Vec::new(),
            spawns: 0,
            workers: Vec::new(),
            samples: Vec::new(),
            oom_kills: Vec::new(),
            oom_kills_counted: 0,
            oom_kills_before: oom_kills(),
            offline: BTreeSet::new(),
            payloads: Vec::new(),
        }
    }

    fn end_all(&mut self) -> Result<()> {
        let mut ended = Ok(());
        while !self.layers.is_empty() {
            ended = ended.and(self.end_layer());
        }
        ended
    }

    fn play(&mut self, backdrop: &Backdrop, steps: &[Step]) -> Result<()> {
        self.begin_layer("backdrop".to_owned(), &backdrop.setup, &backdrop.ops)?;
        for (index, step) in steps.iter().enumerate() {
            self.begin_layer(format!("step {index}"), &step.setup, &step.ops)?;
            if !self.hold(step)? {
                break;
            }
            self.end_layer()?;
        }
        Ok(())
    }

    fn begin_layer(&mut self, phase: String, setup: &Setup, ops: &[Op]) -> Result<()> {
        self.layers.push(Layer::new(phase));
        for def in &setup.defs {
            self.carry_out(&Op::add_cgroup_def(def.clone()))?;
        }
        setup.payloads.iter().chain(ops).try_for_each(|op| self.carry_out(op))
    }

    pub(super) fn carry_out(&mut self, op: &Op) -> Result<()> {
        self.tell(op.to_string());
        self.apply(op).with_context(|| format!("{}: failed to {op}", self.layer().phase))
    }

    /// Lets the workers work for as long as the step says. False if that is decided before.
    fn hold(&mut self, step: &Step) -> Result<bool> {
        let part = |frac: f64| {
            let part = Duration::try_from_secs_f64(self.ctx.duration.as_secs_f64() * frac);
            part.with_context(|| format!("{frac} is no part of the duration"))
        };
        let (settle, hold, interval) = match step.hold {
            HoldSpec::Fixed(hold) => (None, hold, None),
            HoldSpec::Frac(frac) => (None, part(frac)?, None),
            HoldSpec::Settled(settle, frac) => (Some(settle), part(frac)?, None),
            HoldSpec::LoopAt(interval) => {
                anyhow::ensure!(!interval.is_zero(), "operations cannot be done again every 0 s");
                (None, self.ctx.duration, Some(interval))
            }
        };
        if let Some(settle) = settle {
            self.tell(format!("settle for {settle:?}"));
            let settled = Instant::now().checked_add(settle).context("it settles too long")?;
            if !self.wait_until(settled, None)? {
                return Ok(false);
            }
        }
        match interval {
            None => self.tell(format!("hold for {hold:?}")),
            Some(interval) => self.tell(format!("hold for {hold:?}, again every {interval:?}")),
        }
        let end = Instant::now().checked_add(hold).context("the hold is too long")?;
        while let Some(interval) = interval {
            let next = Instant::now().checked_add(interval).filter(|next| *next < end);
            let Some(next) = next else { break };
            if !self.count_until(next)? {
                return Ok(false);
            }
            step.ops.iter().try_for_each(|op| self.carry_out(op))?;
        }
        self.count_until(end)
    }

    fn count_until(&mut self, deadline: Instant) -> Result<bool> {
        self.count_while(|scenario| scenario.wait_until(deadline, None))
    }

    /// Waits, and keeps what the kernel counts meanwhile for all cgroups with workers or payloads in
    /// them or below. Nothing is changed by then, so that it can be held against what was asked; and
    /// it is the same time for all, so that siblings can be compared.
    pub(super) fn count_while<T>(&mut self, wait: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let used = |made: &&Made| {
            self.workers().any(|placed| placed.is_in(&made.name))
                || self.payloads().any(|payload| is_in(payload.cgroup(), &made.name))
        };
        let made: Vec<_> = self.made().filter(used).collect();
        let count = || made.iter().map(|made| self.count(made)).collect::<Result<Vec<_>>>();
        let began_ns = since_boot_ns();
        let before = count()?;
        let waited = wait(self)?;
        let counts = before.into_iter().zip(count()?);
        let samples = made.iter().zip(counts).map(|(made, (before, after))| {
            let cpuset = self.cpuset_asked(&made.name).into_iter().flatten().collect();
            CgroupSample {
                name: made.name.clone(),
                made_ns: made.made_ns,
                asked: CgroupAsked { cpuset, ..made.asked.clone() },
                began_ns,
                wall: Duration::from_nanos(after.at_ns.saturating_sub(before.at_ns)),
                waited: after.waited.saturating_sub(before.waited),
                before: before.stats,
                after: after.stats,
                weighs: after.weighs,
            }
        });
        let samples: Vec<_> = samples.collect();
        self.samples.extend(samples);
        Ok(waited)
    }

    fn count(&self, made: &Made) -> Result<Count> {
        let own = || self.workers().filter(|placed| placed.is_in(&made.name));
        let waited = own().map(|placed| placed.worker.run_delay()).sum();
        let weighs = own().all(|placed| !placed.is_pinned && placed.worker.is_fair_and_free());
        let stats = self.ctx.cgroups.stats(&made.name)?;
        Ok(Count { at_ns: since_boot_ns(), stats, waited, weighs })
    }

    /// Waits while the workers work, and until `event` is readable. False as soon as a worker has died
    /// that was not to be killed, which decides the verdict.
    pub(super) fn wait_until(
        &self,
        deadline: Instant,
        event: Option<BorrowedFd<'_>>,
    ) -> Result<bool> {
        let mut workers: Vec<_> = self.workers().collect();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = left.try_into().context("the hold is too long")?;
            let pidfds = workers.iter().map(|placed| placed.worker.pidfd());
            let mut fds: Vec<_> = pidfds.map(|pidfd| PollFd::new(pidfd, PollFlags::IN)).collect();
            fds.extend(event.iter().map(|event| PollFd::new(event, PollFlags::IN)));
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
            if event.is_some() && working.last() == Some(&false) {
                return Ok(true);
            }
            let mut working = working.into_iter();
            workers.retain(|_| working.next() == Some(true));
        }
    }

    /// Whether a worker that has ended did so by what is expected of its cgroup.
    fn was_to_be_killed(&self, placed: &PlacedWorker) -> Result<bool> {
        let end = placed.worker.ended().context("cannot ask how a worker ended")?;
        Ok(placed.oom_kill_expected && end.is_some_and(|end| end.is_sigkill()))
    }

    /// Stops the workers of the innermost layer and undoes what it did.
    fn end_layer(&mut self) -> Result<()> {
        let inner = self.layers.len() - 1;
        let made: Vec<_> = self.layer().cgroups.iter().map(|made| made.name.clone()).collect();
        // Who works in a group of this layer cannot stay in it, whoever spawned it.
        let payloads = self.end_payloads(inner, &made);
        let stopped =
            self.stop_workers(|layer, placed| layer == inner || made.contains(&placed.cgroup));
        let stopped = payloads.and(stopped);
        let noted =
            made.iter().rev().map(|made| self.note_oom_kills(made)).fold(Ok(()), Result::and);
        let layer = self.layers.pop().expect("only called with a layer standing");
        let phase = layer.phase.clone();
        let undone = layer.take_down(self.ctx.cgroups);
        let switched = layer.cpus.iter().rev().map(|(cpu, online)| self.switch_cpu(*cpu, *online));
        let undone = switched.fold(undone, |undone, switched| undone.and(switched.map(drop)));
        stopped.and(noted).and(undone).with_context(|| format!("{phase}: failed to take it down"))
    }

    /// Stops workers, and keeps what they did.
    pub(super) fn stop_workers(
        &mut self,
        which: impl Fn(usize, &PlacedWorker) -> bool,
    ) -> Result<()> {
        let mut stop = Vec::new();
        for (index, layer) in self.layers.iter_mut().enumerate() {
            stop.extend(layer.workers.extract_if(.., |placed| which(index, placed)));
        }
        let mut workers: Vec<_> = stop.iter_mut().map(|placed| &mut placed.worker).collect();
        let stopped = Workers::stop(&mut workers).context("cannot stop the workers");
        self.workers.extend(stop.iter().map(PlacedWorker::report));
        stopped
    }

    /// Keeps what was killed for want of memory in a group that is to be removed. The kernel counts
    /// those of groups below as well, which have been removed before.
    pub(super) fn note_oom_kills(&mut self, cgroup: &str) -> Result<()> {
        let killed = match self.ctx.cgroups.stats(cgroup) {
            Ok(stats) => stats.memory.map(|memory| memory.events.oom_kill),
            // Somebody else has removed it.
            Err(error) if error.is_missing() => None,
            Err(error) => return Err(error.into()),
        };
        let Some(made) = self.made().find(|made| made.name == cgroup) else { return Ok(()) };
        let own = killed.map(|killed| killed.saturating_sub(made.oom_kills_below));
        let expected = made.oom_kill_expected;
        self.oom_kills_counted += own.unwrap_or(0);
        // Where one was expected above, those below are among them.
        if expected || !self.expects_oom_kill(cgroup) {
            let killed = if expected { killed } else { own };
            let kills = OomKills { cgroup: Some(cgroup.to_owned()), expected, killed };
            self.oom_kills.push(kills);
        }
        if let (Some(killed), Some((above, _))) = (killed, cgroup.rsplit_once('/')) {
            self.made_mut(above).for_each(|made| made.oom_kills_below += killed);
        }
        Ok(())
    }

    /// Whether a process of a group is to be killed for want of memory.
    pub(super) fn expects_oom_kill(&self, cgroup: &str) -> bool {
        self.made().any(|made| made.oom_kill_expected && is_in(cgroup, &made.name))
    }

    /// Notes what was killed for want of memory in none of the scenario's groups, or where the kernel
    /// does not count it by group. On a host, others may be at work.
    fn note_oom_kills_elsewhere(&mut self) {
        let all = self.oom_kills_before.zip(oom_kills()).map(|(before, now)| now - before);
        let killed = all.map(|all| all.saturating_sub(self.oom_kills_counted));
        if !self.ctx.is_on_host {
            self.oom_kills.push(OomKills { cgroup: None, expected: false, killed });
        }
    }

    /// Holds everything that was measured against the bounds.
    fn judge(&self, assert: &Assert) -> AssertResult {
        let payloads = self.payloads.iter().map(|report| report.verdict.clone());
        let of_payloads = payloads.fold(AssertResult::pass(), AssertResult::merge);
        let expects_kill = assert.no_oom_kill && self.oom_kills.iter().any(|kills| kills.expected);
        let is_checked = expects_kill || self.payloads.iter().any(|report| report.checked > 0);
        if self.workers.is_empty() && !is_checked {
            let nothing = "no worker worked in this scenario, so nothing was checked";
            let nothing = AssertDetail::new(DetailKind::Other, nothing);
            let of_cgroups = assert.judge_cgroups(&[], &self.oom_kills);
            return of_payloads.merge(of_cgroups).merge(AssertResult::inconclusive(nothing));
        }
        let surroundings = Surroundings { stuck_after: STUCK_AFTER, nodes: &self.ctx.topo.nodes };
        let of_workers = assert.judge_workers(&self.workers, &surroundings);
        let of_cgroups = assert.judge_cgroups(&self.samples, &self.oom_kills);
        of_payloads.merge(of_workers).merge(of_cgroups)
    }

    pub(super) fn layer(&self) -> &Layer {
        self.layers.last().expect("a layer stands while operations run")
    }

    pub(super) fn layer_mut(&mut self) -> &mut Layer {
        self.layers.last_mut().expect("a layer stands while operations run")
    }

    /// Sends an event to the host at once: it has the timeline even if the guest dies now.
    pub(super) fn tell(&self, what: String) {
        let phase = self.layers.last().map_or_else(String::new, |layer| layer.phase.clone());
        tracing::info!("{phase}: {what}");
        (self.ctx.report)(Report::Event(ScenarioEvent { at_ns: since_boot_ns(), phase, what }));
    }
}

/// How many processes the kernel has killed for want of memory since it booted.
///
/// Source: Linux 6.12, mm/vmstat.c, `oom_kill`.
fn oom_kills() -> Option<u64> {
    let counters = std::fs::read_to_string("/proc/vmstat").ok()?;
    counters.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}
