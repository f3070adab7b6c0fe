//! Keys that are unknown, repeated, or not keys at all.

use ktstr::prelude::*;

#[ktstr_test(core = 2, memroy_mib = 256, duration = 3, memory = 512, flavour = "sweet")]
fn unknown(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 2, llcs = 1, cores = 4, expect_err, expect_err = false)]
fn repeated(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 2, cores = 0)]
fn repeated_with_a_bad_value(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test("cores" = 2, = 3, !kaslr, llcs = 1,, threads = 1)]
fn not_a_key(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(cores(2), expect_err(true), unknown(3), kaslr: true, host::only)]
fn other_syntax(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 2 llcs = 0; threads = 9)]
fn missing_comma(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

fn main() {}
