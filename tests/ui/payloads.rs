//! `payloads`: values that are not lists, and elements that are not payloads.

use ktstr::prelude::*;

const LOAD: Payload = Payload::new("load");

#[ktstr_test(payloads = LOAD)]
fn not_a_list(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(payloads = [LOAD, "load", &LOAD, Payload::new("load")])]
fn not_all_paths(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(payloads = [])]
fn empty(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(payloads)]
fn no_value(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(payloads = [LOAD], host_only)]
fn on_the_host(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(payloads = [LOAD, self::LOAD, LOAD])]
fn listed_twice(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

fn main() {}
