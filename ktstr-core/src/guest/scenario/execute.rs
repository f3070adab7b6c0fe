//! Executes a scenario, one phase after the other, and judges it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};

use super::ctx::Ctx;
use super::def::CgroupDef;
use super::first_error::FirstError;
use super::knob::CgroupKnob;
use super::oom::kills_since_boot;
use super::op::Op;
use super::state::Scenario;
use super::step::{Backdrop, HoldSpec, Setup, Step};
use crate::guest::assert::{Assert, AssertDetail, AssertResult, DetailKind, Outcome, Surroundings};
#[cfg(test)]
use crate::guest::workload::WorkerReport;
use crate::guest::{chain, measured};
use crate::linux::cgroup::Controller;
use crate::linux::sys::HighestPriority;
use crate::model::measurement::{Measurement, Scope};

/// The time without an iteration after which a worker is called stuck: a hundred times the first iteration
/// of any type on an emulated CPU, in an unoptimized build.
const STUCK_AFTER: Duration = Duration::from_secs(2);

/// Runs the workers of cgroups for the test's whole duration.
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

/// Executes steps in order.
///
/// # Errors
///
/// As for [`execute_scenario`].
pub fn execute_steps(ctx: &Ctx<'_>, steps: impl Into<Vec<Step>>) -> Result<AssertResult> {
    execute_scenario(ctx, Backdrop::new(), steps)
}

/// Executes steps in order and judges them by `assert`, or by the attribute's keys if it is `None`.
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

/// Sets up the backdrop, executes the steps in order, and undoes everything.
///
/// The controllers of all knobs that the scenario sets are enabled once, before anything else. Workers and
/// cgroups are judged by the attribute's keys ([`Assert`]), payloads by their own checks. A worker that
/// exits before it is stopped ends the scenario and fails the test.
///
/// In a guest, this thread has a higher priority than any load (`SCHED_FIFO`, priority 99): a load that
/// starves the workers must not delay the operations and the sampling.
///
/// # Errors
///
/// If an operation fails; the error names its phase. The scenario has been torn down then, too.
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
    // Not on a host, where other programs need the CPUs.
    let priority = (!ctx.is_on_host).then(HighestPriority::begin).transpose();
    let _priority = priority.context(
        "failed to give the scenario priority over its load; EPERM means that the body has dropped \
         CAP_SYS_NICE, or is in a cgroup without realtime time (RT_GROUP_SCHED)",
    )?;
    let controllers = controllers(backdrop, steps);
    if !controllers.is_empty() {
        ctx.cgroups.setup(&controllers).context("failed to enable controllers")?;
    }
    let mut scenario = Scenario::new(ctx);
    let mut errors = FirstError::default();
    errors.keep(scenario.play(backdrop, steps));
    // An error leaves the current layers in place.
    errors.keep(scenario.end_all_layers());
    // On a host, the kernel may kill processes of other programs.
    if !ctx.is_on_host {
        scenario.oom.add_elsewhere(kills_since_boot());
    }
    let verdict = scenario.judge(assert);
    // The measurements of a payload were sent when it ended.
    let is_of_payload = |measured: &&Measurement| matches!(measured.scope, Scope::Payload { .. });
    measured::send(verdict.measurements.iter().filter(|measured| !is_of_payload(measured)));
    let Err(error) = errors.into_result() else { return Ok(verdict) };
    // Checks that failed before may be the reason. Time-based ones are left to the host, which knows the
    // steal time.
    let has_failed = |detail: &&AssertDetail| detail.outcome == Outcome::Fail && !detail.time_based;
    let failed = verdict.details.iter().filter(has_failed);
    let failed: String = failed.map(|detail| format!("\n  {detail}")).collect();
    if failed.is_empty() {
        return Err(error);
    }
    let text = format!("{}; checks that failed before:{failed}", chain::describe(&error));
    // As a context, so that the causes stay in the chain.
    Err(error.context(text))
}

/// Executes a scenario and returns the reports of its workers instead of judging them.
#[cfg(test)]
pub(super) fn play_for_reports(
    ctx: &Ctx<'_>,
    backdrop: &Backdrop,
    steps: &[Step],
) -> Result<Vec<WorkerReport>> {
    let mut scenario = Scenario::new(ctx);
    scenario.play(backdrop, steps)?;
    scenario.end_all_layers()?;
    Ok(std::mem::take(&mut scenario.workers))
}

fn controllers(backdrop: &Backdrop, steps: &[Step]) -> BTreeSet<Controller> {
    let defs = backdrop.setup.defs.iter().chain(steps.iter().flat_map(|step| &step.setup.defs));
    let of_defs = defs.flat_map(|def| &def.knobs).map(CgroupKnob::controller);
    let ops = backdrop.ops.iter().chain(steps.iter().flat_map(|step| &step.ops));
    of_defs.chain(ops.flat_map(Op::controllers)).collect()
}

impl Scenario<'_> {
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
        self.layers.begin(phase);
        for def in &setup.defs {
            self.carry_out(&Op::add_cgroup_def(def.clone()))?;
        }
        setup.payloads.iter().chain(ops).try_for_each(|op| self.carry_out(op))
    }

    fn judge(&self, assert: &Assert) -> AssertResult {
        let payloads = self.payloads.iter().map(|report| report.verdict.clone());
        let of_payloads = payloads.fold(AssertResult::pass(), AssertResult::merge);
        let expects_kill =
            assert.no_oom_kill && self.oom.kills().iter().any(|kills| kills.expected);
        let is_checked = expects_kill || self.payloads.iter().any(|report| report.checked > 0);
        if self.workers.is_empty() && !is_checked {
            let nothing = "this scenario has no workers, so nothing was checked";
            let nothing = AssertDetail::new(DetailKind::Other, nothing);
            let of_cgroups = assert.judge_cgroups(&[], self.oom.kills());
            return of_payloads.merge(of_cgroups).merge(AssertResult::inconclusive(nothing));
        }
        let surroundings = Surroundings { stuck_after: STUCK_AFTER, nodes: &self.ctx.topo.nodes };
        let of_workers = assert.judge_workers(&self.workers, &surroundings);
        let of_cgroups = assert.judge_cgroups(&self.samples, self.oom.kills());
        of_payloads.merge(of_workers).merge(of_cgroups)
    }
}
