//! `kargs`: words that would break the runner's own arguments.

use ktstr::prelude::*;

#[ktstr_test(kargs = ["isolcpus=1"])]
fn list(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(kargs = " ")]
fn empty(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(kargs = "isolcpus=1 nr_cpus=2", cores = 4)]
fn word_of_another_key(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(kargs = "console=tty0")]
fn word_of_the_runner(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(kargs = "a=\"b c\"")]
fn quotes(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(kargs = "isolcpus=1", host_only)]
fn on_the_host(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

fn main() {}
