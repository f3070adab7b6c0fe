//! Steps and the backdrop: operations with the time they are given.

use std::time::Duration;

use super::def::CgroupDef;
use super::op::Op;
use crate::guest::payload::PayloadRun;

/// The time that a step lasts after its operations.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum HoldSpec {
    /// A fixed time.
    Fixed(Duration),
    /// A part of the test's duration.
    Frac(f64),
    /// A time in which cgroups are not judged, then a part of the test's duration;
    /// [`Ctx::settled_hold`](crate::guest::scenario::Ctx::settled_hold).
    Settled(Duration, f64),
    /// The whole duration of the test; the operations are repeated with this interval.
    LoopAt(Duration),
}

impl HoldSpec {
    /// The whole duration of the test.
    pub const FULL: Self = Self::Frac(1.0);

    /// Holds for a fixed time.
    pub fn fixed(hold: Duration) -> Self {
        Self::Fixed(hold)
    }

    /// Holds for the part `frac` of the test's duration, 0.0 or more.
    pub fn frac(frac: f64) -> Self {
        Self::Frac(frac)
    }

    /// Holds for the whole duration of the test and repeats the operations every `interval`.
    pub fn loop_at(interval: Duration) -> Self {
        Self::LoopAt(interval)
    }
}

/// Cgroups and programs that are set up before the operations of a step or a backdrop, once.
///
/// Made from definitions: `vec![CgroupDef::named("a")].into()`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Setup {
    pub(crate) defs: Vec<CgroupDef>,
    /// [`Op::RunPayload`], after the cgroups.
    pub(crate) payloads: Vec<Op>,
}

impl From<Vec<CgroupDef>> for Setup {
    fn from(defs: Vec<CgroupDef>) -> Self {
        Self { defs, payloads: Vec::new() }
    }
}

impl<const N: usize> From<[CgroupDef; N]> for Setup {
    fn from(defs: [CgroupDef; N]) -> Self {
        Vec::from(defs).into()
    }
}

/// A setup, operations and a hold, in this order. Everything that a step created is removed when it
/// ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The cgroups and programs that exist before the operations; not repeated with those.
    pub setup: Setup,
    /// The operations, in order.
    pub ops: Vec<Op>,
    /// The time that the step lasts after its operations.
    pub hold: HoldSpec,
}

impl Step {
    /// Creates a step that carries out `ops` in order and then holds.
    pub fn new(ops: impl Into<Vec<Op>>, hold: HoldSpec) -> Self {
        Self { setup: Setup::default(), ops: ops.into(), hold }
    }

    /// Creates a step that sets up cgroups and then holds.
    ///
    /// To add cgroups to a step that exists, call the method of the same name:
    /// [`StepExt::with_defs`].
    pub fn with_defs(defs: impl IntoIterator<Item = CgroupDef>, hold: HoldSpec) -> Self {
        Self { setup: defs.into_iter().collect::<Vec<_>>().into(), ops: Vec::new(), hold }
    }

    /// Adds a program that is started in a cgroup before the operations, once even if these are
    /// repeated. It is killed at the end of the hold if it still runs; [`Op::wait_payload`] waits for
    /// its end instead.
    pub fn with_payload(
        mut self,
        payload: impl Into<PayloadRun>,
        cgroup: impl Into<String>,
    ) -> Self {
        self.setup.payloads.push(Op::run_payload(payload, cgroup));
        self
    }

    /// Adds an operation.
    pub fn with_op(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }

    /// Replaces all operations.
    pub fn set_ops(mut self, ops: impl Into<Vec<Op>>) -> Self {
        self.ops = ops.into();
        self
    }

    /// Sets the time that the step lasts after its operations.
    pub fn hold(mut self, hold: HoldSpec) -> Self {
        self.hold = hold;
        self
    }
}

/// The method `with_defs` of a [`Step`].
///
/// A trait, because the step's constructor has the same name: `Step::with_defs(defs, hold)` creates a
/// step, `step.with_defs(defs)` adds to it.
pub trait StepExt {
    /// Adds cgroups that exist before the operations.
    #[must_use = "the step is consumed and returned"]
    fn with_defs(self, defs: impl IntoIterator<Item = CgroupDef>) -> Self;
}

impl StepExt for Step {
    fn with_defs(mut self, defs: impl IntoIterator<Item = CgroupDef>) -> Self {
        self.setup.defs.extend(defs);
        self
    }
}

/// The cgroups, programs and operations that are in effect during all steps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Backdrop {
    pub(crate) setup: Setup,
    pub(crate) ops: Vec<Op>,
}

impl Backdrop {
    /// Creates an empty backdrop.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a cgroup that exists before the operations.
    pub fn push_cgroup(mut self, def: CgroupDef) -> Self {
        self.setup.defs.push(def);
        self
    }

    /// Adds cgroups that exist before the operations.
    pub fn extend_cgroups(mut self, defs: impl IntoIterator<Item = CgroupDef>) -> Self {
        self.setup.defs.extend(defs);
        self
    }

    /// Adds a program that is started after the cgroups and before the operations, in the cgroup of
    /// the test's body. To start one in a cgroup of the scenario, push [`Op::run_payload`].
    pub fn push_payload(mut self, payload: impl Into<PayloadRun>) -> Self {
        self.setup.payloads.push(Op::RunPayload { run: payload.into(), cgroup: None });
        self
    }

    /// Adds an operation.
    pub fn push_op(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }

    /// Adds operations.
    pub fn extend_ops(mut self, ops: impl IntoIterator<Item = Op>) -> Self {
        self.ops.extend(ops);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defs() -> [CgroupDef; 2] {
        ["a", "b"].map(CgroupDef::named)
    }

    #[test]
    fn step_constructors_are_equivalent() {
        let ops = || vec![Op::add_cgroup("c")];
        let literal = Step { setup: defs().into(), ops: ops(), hold: HoldSpec::FULL };
        for step in [
            Step { setup: defs().to_vec().into(), ..literal.clone() },
            Step::with_defs(defs(), HoldSpec::FULL).set_ops(ops()),
            Step::with_defs(defs().to_vec(), HoldSpec::frac(0.1))
                .with_op(Op::add_cgroup("c"))
                .hold(HoldSpec::FULL),
            Step::new(ops(), HoldSpec::FULL).with_defs(defs()),
            Step::new([Op::remove_cgroup("c")], HoldSpec::FULL).set_ops(ops()).with_defs(defs()),
        ] {
            assert_eq!(step, literal);
        }
    }

    #[test]
    fn backdrop_keeps_the_order_of_additions() {
        let [a, b] = defs();
        let [c, d] = ["c", "d"].map(Op::add_cgroup);
        let one_by_one =
            Backdrop::new().push_cgroup(a).push_cgroup(b).push_op(c.clone()).push_op(d.clone());
        assert_eq!(Backdrop::new().extend_cgroups(defs()).extend_ops([c, d]), one_by_one);
        assert_eq!(one_by_one.setup, defs().into());
    }
}
