//! Every key, in every form that it takes.

#![forbid(unsafe_code)]
#![deny(warnings)]
#![allow(unused_imports, dead_code, reason = "a program without `--test` has no tests")]

use ktstr::prelude::*;

const LOAD: Payload = Payload::new("load");
static OTHER: Payload = LOAD.package("load");

struct Loads;

impl Loads {
    const THIRD: Payload = LOAD.args(&["-q"]);
}

#[ktstr_test]
fn no_keys(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(
    numa_nodes = 2,
    llcs = 4u32,
    cores = 0x8,
    threads = 2,
    memory_mib = 1_048_576,
    duration_s = 86_400,
    settle_ms = 0,
    workers_per_cgroup = 1,
    watchdog_timeout_s = 1,
    kernel = "debian:trixie",
    workload_root_cgroup = "/a/b.slice",
    expect_err = true,
    allow_inconclusive = false,
    host_only = false,
    ignore = "needs a large host",
    kaslr = false,
    mitigations = true,
    fresh = true,
    auto_repro = false,
    post_vm = self::host::check,
    post_vm_unconditional = host::check,
    payloads = [LOAD, self::OTHER, <Loads>::THIRD],
    crate = ::ktstr,
    env = ["SEED=7", "EMPTY=", r"PATTERN=a=\d", "LIMIT"],
)]
fn all_keys(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

/// Documented.
#[ktstr_test(host_only, expect_err = regex(r"^check: \d"), ignore)]
#[cfg(not(any()))]
#[allow(unused_variables)]
pub fn bare_keys(ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(numa_nodes = 2, llcs = 4, cores = [4u32, 0x2, 1, 1,], threads = 2)]
fn list_of_cores(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(
    expect_err = "max_gap_ms",
    not_stuck = false,
    isolation,
    no_oom_kill = true,
    judge_emulated_time,
    max_gap_ms = 0x32,
    max_spread_pct = 5,
    max_throughput_cv = 0.2,
    min_iteration_rate = 1e3,
    min_work_rate = 0.001f64,
    max_migration_ratio = 1.0,
    max_p99_wake_latency_ns = 4_294_967_295,
    max_wake_latency_cv = 2u8,
    min_page_locality = 0.9,
    max_throttled_pct = 100,
    max_quota_error_pct = 0,
    max_weight_error_pct = 1_0.0,
    max_cpu_pressure_pct = 80,
    max_memory_pressure_pct = 1,
    max_io_pressure_pct = 1,
)]
fn checks(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test()]
#[ignore = "not yet"]
fn r#move(_: &'_ ktstr::prelude::Ctx) -> ktstr::prelude::Result<AssertResult> {
    Ok(AssertResult::pass())
}

macro_rules! test {
    ($name:ident, $cores:expr, $memory:literal, $check:path, $ctx:ty) => {
        #[ktstr_test(cores = $cores, memory_mib = $memory, post_vm = $check)]
        fn $name(_ctx: $ctx) -> Result<AssertResult> {
            Ok(AssertResult::pass())
        }
    };
}

macro_rules! uneven_test {
    ($name:ident, $($cores:expr),*) => {
        #[ktstr_test(cores = [$($cores),*])]
        fn $name(_ctx: &Ctx) -> Result<AssertResult> {
            Ok(AssertResult::pass())
        }
    };
}

uneven_test!(list_from_a_macro, 3, 1);

test!(from_a_macro, 4, 512, host::check, &Ctx);

mod host {
    use super::*;

    pub(crate) fn check(_: &VmResult) -> Result<()> {
        Ok(())
    }
}

fn main() {}
