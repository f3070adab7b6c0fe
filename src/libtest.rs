//! Checks at compile time that libtest runs a `#[ktstr_test]`. Each expansion calls both.
//!
//! A test that is registered and that libtest does not know would be worse than one that does not
//! compile: nothing would ever run it.

/// Stands for a test in a target without libtest.
#[derive(Debug)]
pub struct NoHarness;

/// Stands for a test that its module does not have.
#[derive(Debug)]
pub struct Hidden;

/// What is a test in a target with libtest.
#[diagnostic::on_unimplemented(
    message = "this test is never run: its target has `harness = false`",
    label = "nothing runs this `#[ktstr_test]`",
    note = "remove `harness = false` from the target's section of Cargo.toml, and its `fn main`, or \
            move the test to a target that has libtest"
)]
pub trait Harnessed {}

impl<F: Fn()> Harnessed for F {}

/// Compiles where the compiler keeps tests.
pub fn requires_harness(_: impl Harnessed) {}

/// A function as its module has it, for one that is called `F` where it is defined.
#[diagnostic::on_unimplemented(
    message = "this test is never run: libtest cannot see it",
    label = "this `#[ktstr_test]` is inside a function or a constant",
    note = "libtest finds the functions of modules only: move the test to a module"
)]
pub trait VisibleAs<F> {}

impl<F> VisibleAs<F> for F {}

/// Compiles if both are the same function.
pub fn requires_visible<H, M: VisibleAs<H>>(_: H, _: M) {}
