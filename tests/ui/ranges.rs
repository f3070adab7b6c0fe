//! Values outside of the range of their key.

use ktstr::prelude::*;

#[ktstr_test(
    numa_nodes = 0,
    llcs = 0,
    cores = 0u8,
    threads = 0,
    memory_mib = 63,
    duration_s = 0,
    workers_per_cgroup = 0,
    watchdog_timeout_s = 0
)]
fn below(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(
    numa_nodes = 65,
    llcs = 256,
    cores = 0x100,
    threads = 9,
    memory_mib = 1_048_577,
    duration_s = 86_401,
    watchdog_timeout_s = 99_999_999_999_999_999_999
)]
fn above(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(workload_root_cgroup = "ktstr")]
fn relative_cgroup(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(workload_root_cgroup = "/")]
fn root_cgroup(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(workload_root_cgroup = "/a//b")]
fn empty_component(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(workload_root_cgroup = "/a/../b")]
fn parent_component(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(workload_root_cgroup = "/a\0")]
fn nul_in_cgroup(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

fn main() {}
