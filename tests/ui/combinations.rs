//! Valid values that contradict each other.

use ktstr::prelude::*;

#[ktstr_test(numa_nodes = 2, llcs = 3, memory_mib = 1024)]
fn llcs_do_not_divide(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(numa_nodes = 16)]
fn defaults_are_too_small(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(memory_mib = 64, llcs = 3, numa_nodes = 3)]
fn memory_is_too_small(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(llcs = 16, threads = 2, cores = 8)]
fn one_cpu_too_many(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(llcs = 128)]
fn one_cpu_too_many_by_default(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(numa_nodes = 2, llcs = 999, cores = 255)]
fn a_bad_value_is_not_combined(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(
    host_only,
    numa_nodes = 1,
    llcs = 1,
    cores = 1,
    threads = 1,
    memory_mib = 256,
    watchdog_timeout_s = 1,
    kernel = "debian:trixie",
    kaslr = false,
    auto_repro,
    post_vm = check,
    duration_s = 1,
    workload_root_cgroup = "/a",
    expect_err
)]
fn host_has_no_vm(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(ignore = "slow")]
#[ignore = "slow"]
fn ignored_twice(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

fn check(_: &VmResult) -> Result<()> {
    Ok(())
}

fn main() {}
