//! Values of the wrong type, and missing values.

use ktstr::prelude::*;

const CORES: u32 = 2;

#[ktstr_test(
    numa_nodes = 1.0,
    llcs = "1",
    cores = CORES,
    threads = -1,
    memory_mib = 2 * 256,
    duration_s = 5s,
    watchdog_timeout_s = true
)]
fn integers(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(expect_err = 1, kaslr = "false", auto_repro = yes, host_only = !true)]
fn booleans(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(expect_err = regex("a(b"))]
fn unreadable_pattern(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(expect_err = regex(CORES), kaslr = regex("a"))]
fn patterns(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(kernel = 6.12, workload_root_cgroup = b"/ktstr", ignore = true)]
fn strings(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(kernel = "", ignore = " ")]
fn empty_strings(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(post_vm = "check")]
fn quoted_function(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(post_vm = |result| Ok(()))]
fn closure(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(crate = "my_support::ktstr")]
fn quoted_crate(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(crate = my_support::ktstr::<u8>)]
fn crate_with_arguments(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(cores, kernel, workload_root_cgroup, post_vm, crate)]
fn no_value(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(cores =, kernel =, kaslr = ;, post_vm =)]
fn nothing_after_the_equals_sign(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(workload_root_cgroup = "/a\nb")]
fn line_break(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(workload_root_cgroup = "/sys/fs/cgroup/a")]
fn absolute_path(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

fn main() {}
