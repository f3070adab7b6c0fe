//! `env`: values that are not lists, and elements that are not environment variables.

use ktstr::prelude::*;

#[ktstr_test(env = "SEED=7")]
fn not_a_list(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(env = ["SEED=7", "=7", "", 7, "A\0B", "SEED"])]
fn not_all_variables(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(env = [])]
fn empty(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(env = ["SEED"], host_only)]
fn on_the_host(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

fn main() {}
