//! What libtest and its user get: each test below runs another one of this binary and checks its
//! outcome.

use std::process::{Command, Output};

use ktstr::assert::{Limit, Measurement, Scope};
use ktstr::prelude::*;

#[ktstr_test(cores = 1, post_vm = always_fails, ignore = "fails on purpose")]
fn passes_but_post_vm_fails(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

fn always_fails(_: &VmResult) -> Result<()> {
    bail!("no capture arrived")
}

#[ktstr_test(cores = 1, post_vm = always_panics, ignore = "fails on purpose")]
fn fails_and_post_vm_panics(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::fail(AssertDetail::new(DetailKind::Other, "5 of 4 CPUs are busy")))
}

fn always_panics(result: &VmResult) -> Result<()> {
    panic!("the first of {} captures is missing", result.captures.len())
}

#[ktstr_test(cores = 1, expect_err, ignore = "fails on purpose")]
fn passes_although_it_should_fail(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1, expect_err = "the disk is full", ignore = "fails on purpose")]
fn fails_with_another_error(_: &Ctx) -> Result<AssertResult> {
    bail!("the disk is gone")
}

#[ktstr_test(cores = 1, expect_err = "max_gap_ms: 63.2 ms")]
fn fails_with_what_was_expected(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::fail(gap()))
}

/// Returns a failed gap check that is not marked as time-based, so that steal time cannot excuse it.
fn gap() -> AssertDetail {
    let (comm, cgroup) = ("spin".to_owned(), "cg_0".to_owned());
    let measured = Measurement::new("gap", 63.2, "ms");
    let measured = measured.scope(Scope::Worker { pid: 77, comm, cgroup });
    let detail = AssertDetail::measured(DetailKind::Gap, measured).limit(Limit::AtMost(50.0));
    detail.cpu(2).at_ns(3_214_400_000)
}

#[ktstr_test(cores = 1, ignore = "fails on purpose")]
fn fails_and_notes(_: &Ctx) -> Result<AssertResult> {
    let mut verdict = AssertResult::fail(gap());
    verdict.note("the caches were warm").note_value("turns", 1000);
    claim!(verdict, verdict.details.len()).at_least(2);
    Ok(verdict)
}

#[ktstr_test(cores = 1, ignore = "fails on purpose")]
fn is_inconclusive(_: &Ctx) -> Result<AssertResult> {
    inconclusive()
}

fn inconclusive() -> Result<AssertResult> {
    Ok(AssertResult::inconclusive(AssertDetail::new(DetailKind::Other, "nothing was measured")))
}

#[ktstr_test(cores = 1, allow_inconclusive, ignore = "only shows how it is reported")]
fn is_inconclusive_and_may_be(_: &Ctx) -> Result<AssertResult> {
    inconclusive()
}

#[ktstr_test(cores = 1, post_vm_unconditional = always_fails, ignore = "fails on purpose")]
fn skips_and_is_examined(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::skip("this kernel has no sched_ext"))
}

#[ktstr_test(cores = 1, post_vm = always_fails, ignore = "only shows what a skip looks like")]
fn skips(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::skip("this kernel has no sched_ext"))
}

#[ktstr_test(cores = 1, ignore = "fails on purpose")]
fn panics_deep_down(ctx: &Ctx) -> Result<AssertResult> {
    let backdrop = Backdrop::new().push_op(Op::add_cgroup("cg"));
    let verdict = execute_scenario(ctx, backdrop, vec![])?;
    deep_down();
    Ok(verdict)
}

#[inline(never)]
fn deep_down() {
    panic!("far from the top");
}

fn outcome_of(test: &str) -> Result<(Output, String)> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--exact", test, "--include-ignored"])
        .env("NO_COLOR", "1")
        .env("RUST_LOG", "info")
        .env("RUST_BACKTRACE", "1")
        .output()?;
    let text = [&output.stdout[..], &output.stderr].concat();
    Ok((output, String::from_utf8_lossy(&text).into_owned()))
}

fn fails_with(test: &str, texts: &[&str]) -> Result<()> {
    let (output, text) = outcome_of(test)?;
    ensure!(!output.status.success(), "{test} passed\n{text}");
    for expected in texts {
        ensure!(text.contains(expected), "{expected:?} is missing in\n{text}");
    }
    Ok(())
}

#[test]
fn post_vm_that_fails_fails_the_test() -> Result<()> {
    let report = "FAIL passes_but_post_vm_fails\n  post_vm: no capture arrived";
    let (output, text) = outcome_of("passes_but_post_vm_fails")?;
    ensure!(!output.status.success() && text.contains(report), "{text}");
    // The command in the report runs the same test again.
    let rerun = text.lines().find_map(|line| line.trim().strip_prefix("rerun "));
    let rerun = rerun.with_context(|| format!("no command in\n{text}"))?;
    let output = Command::new("sh").args(["-c", rerun]).env("NO_COLOR", "1").output()?;
    ensure!(!output.status.success(), "`{rerun}` passed");
    // Uncaptured, the report is on standard error.
    ensure!(String::from_utf8_lossy(&output.stderr).contains(report), "`{rerun}`: {output:?}");
    Ok(())
}

#[test]
fn post_vm_that_panics_keeps_the_report() -> Result<()> {
    fails_with(
        "fails_and_post_vm_panics",
        &[
            "  fail: check: 5 of 4 CPUs are busy\n",
            "  post_vm: panicked: the first of 0 captures is missing\n",
            "artifacts",
        ],
    )
}

#[test]
fn expect_err_fails_a_test_that_passes() -> Result<()> {
    fails_with("passes_although_it_should_fail", &["(`expect_err`), but its verdict is pass"])
}

#[test]
fn expect_err_fails_a_test_with_another_failure() -> Result<()> {
    let heading = "the test is expected to fail with \"the disk is full\" (`expect_err`), but its failure is another one:\n";
    let report = format!(
        "FAIL fails_with_another_error\n  {heading}  test body returned an error: the disk is gone\n"
    );
    fails_with("fails_with_another_error", &[&report])
}

#[test]
fn report_begins_with_the_failed_checks_in_order() -> Result<()> {
    let report = "FAIL fails_and_notes\n  fail: max_gap_ms: 63.2 ms (limit 50 ms), \
                  worker 77 (spin), cgroup cg_0, CPU 2, at 3.214 s\n  \
                  fail: claim: verdict.details.len() = 1 (minimum 2)\n";
    let notes = ["  note      the caches were warm\n", "  note      turns = 1000\n"];
    fails_with("fails_and_notes", &[report, notes[0], notes[1]])
}

#[test]
fn inconclusive_verdict_fails_the_test() -> Result<()> {
    fails_with("is_inconclusive", &["inconclusive: check: nothing was measured"])
}

#[test]
fn allow_inconclusive_passes_and_shows_the_reason() -> Result<()> {
    let (output, text) = outcome_of("is_inconclusive_and_may_be")?;
    ensure!(output.status.success(), "{text}");
    let reason = "inconclusive: check: nothing was measured";
    ensure!(
        text.contains(&format!("ktstr: is_inconclusive_and_may_be: passed; {reason}")),
        "{text}"
    );
    Ok(())
}

#[test]
fn post_vm_unconditional_fails_a_skip() -> Result<()> {
    fails_with(
        "skips_and_is_examined",
        &["FAIL skips_and_is_examined\n  post_vm_unconditional: no capture arrived\n"],
    )
}

#[test]
fn skip_is_shown_although_libtest_has_none() -> Result<()> {
    let (output, text) = outcome_of("skips")?;
    ensure!(output.status.success(), "{text}");
    ensure!(text.contains("ktstr: skips: SKIPPED: this kernel has no sched_ext"), "{text}");
    Ok(())
}

#[test]
fn report_shows_log_and_backtrace_of_the_guest() -> Result<()> {
    fails_with(
        "panics_deep_down",
        &[
            "INFO ktstr_core::guest::scenario::state: backdrop: add cgroup cg",
            "thread 'panics_deep_down' (",
            ") panicked at tests/verdicts.rs:",
            "stack backtrace:",
            "verdicts::deep_down",
            "FAIL panics_deep_down\n  test body panicked: far from the top, tests/verdicts.rs:",
        ],
    )
}
