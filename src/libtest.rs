//! Checks at compile time that libtest runs a `#[ktstr_test]`. Each expansion calls both functions.
//!
//! A registered test that libtest does not find would never run, which is worse than a compile error.

/// Represents a test in a target without libtest.
#[derive(Debug)]
pub struct NoHarness;

/// Represents a test that is not a member of its module.
#[derive(Debug)]
pub struct Hidden;

/// Implemented by tests in targets with libtest.
#[diagnostic::on_unimplemented(
    message = "this test is never run: its target has `harness = false`",
    label = "nothing runs this `#[ktstr_test]`",
    note = "remove `harness = false` from the target's section of Cargo.toml, and its `fn main`, or \
            move the test to a target that has libtest"
)]
pub trait Harnessed {}

impl<F: Fn()> Harnessed for F {}

/// Compiles only where the compiler keeps tests.
pub fn requires_harness(_: impl Harnessed) {}

/// Implemented by a function that its module sees as `F`.
#[diagnostic::on_unimplemented(
    message = "this test is never run: libtest cannot see it",
    label = "this `#[ktstr_test]` is inside a function or a constant",
    note = "libtest finds the functions of modules only: move the test to a module"
)]
pub trait VisibleAs<F> {}

impl<F> VisibleAs<F> for F {}

/// Compiles only if both are the same function.
pub fn requires_visible<H, M: VisibleAs<H>>(_: H, _: M) {}
