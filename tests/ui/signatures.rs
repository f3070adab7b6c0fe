//! Functions that cannot be tests.

use ktstr::prelude::*;

#[ktstr_test]
const fn constant(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test]
async unsafe extern "C" fn qualified(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test]
fn generic<'a, T, const N: usize>(_ctx: &'a Ctx) -> Result<AssertResult>
where
    T: Copy,
{
    Ok(AssertResult::pass())
}

#[ktstr_test]
fn no_context() -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test]
fn more_than_the_context(_ctx: &Ctx, _name: &str, _n: u32) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test]
fn context_by_value(_ctx: Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test]
fn context_by_mutable_reference(_ctx: &'static mut Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test]
fn method(&self) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test]
fn no_result(_ctx: &Ctx) {}

#[ktstr_test]
unsafe extern "C" fn variadic(_ctx: &Ctx, _: ...) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 0, core = 1)]
async fn everything_at_once() {}

#[ktstr_test(cores = 0)]
struct NotAFunction;

#[ktstr_test]
mod not_a_function {}

// The function remains, so that this call is not an error.
fn main() {
    let _: fn(&Ctx) = no_result;
}
