//! Invalid limits of checks, and an empty text for `expect_err`.

use ktstr::prelude::*;

const MOST: f64 = 5.0;

#[ktstr_test(
    max_gap_ms = 0,
    max_spread_pct = 100.5,
    max_throughput_cv = 1001,
    min_iteration_rate = 0,
    min_work_rate = 1e13,
    max_migration_ratio = 1.01,
    max_p99_wake_latency_ns = 4_294_967_296,
    max_wake_latency_cv = 1e999,
    min_page_locality = 2,
    max_throttled_pct = 101f64
)]
fn out_of_range(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(
    max_gap_ms = 0.5,
    max_spread_pct = -5.0,
    max_throughput_cv = MOST,
    min_iteration_rate = "1",
    min_work_rate = 5s,
    max_cpu_pressure_pct,
    max_io_pressure_pct =,
    not_stuck = 0,
    isolation = "no"
)]
fn of_the_wrong_kind(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(max_gap = 50, stuck = false, max_spread_pct = 5, max_spread_pct = 6)]
fn unknown_or_repeated(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(expect_err = " ")]
fn empty_text(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(expect_err = b"text")]
fn text_of_the_wrong_kind(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(host_only, max_gap_ms = 50, judge_emulated_time)]
fn nothing_is_emulated_on_the_host(_ctx: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

fn main() {}
