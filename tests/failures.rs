//! Each way in which the guest's side of a test can fail, provoked in a real guest and told apart
//! by what the host says of it.

use std::fs;

use ktstr::prelude::*;
use ktstr::result::{GuestExit, KernelEventKind, RunPhase};
use rustix::system::{RebootCommand, reboot};

#[ktstr_test(expect_err, cores = 1, post_vm = says_why_the_body_failed)]
fn body_returns_an_error(_: &Ctx) -> Result<AssertResult> {
    Err(anyhow::anyhow!("the disk is full")).context("cannot store the result")
}

fn says_why_the_body_failed(result: &VmResult) -> Result<()> {
    expect(result, RunEnd::BodyError("cannot store the result: the disk is full".into()))
}

#[ktstr_test(expect_err, cores = 1, post_vm = says_where_the_body_panicked)]
fn body_panics(_: &Ctx) -> Result<AssertResult> {
    panic!("three is not {}", 4);
}

fn says_where_the_body_panicked(result: &VmResult) -> Result<()> {
    let RunEnd::BodyPanicked(message) = &result.end else { bail!("{}", result.end) };
    ensure!(message.starts_with("three is not 4, tests/failures.rs:"), "{message}");
    Ok(())
}

#[ktstr_test(cores = 1)]
fn a_caught_panic_is_no_failure(_: &Ctx) -> Result<AssertResult> {
    ensure!(std::panic::catch_unwind(|| panic!("caught")).is_err());
    Ok(AssertResult::pass())
}

#[ktstr_test(expect_err, cores = 1, post_vm = says_which_check_failed)]
fn body_returns_a_failed_verdict(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::fail(AssertDetail::new(DetailKind::Other, "5 of 4 CPUs are busy")))
}

fn says_which_check_failed(result: &VmResult) -> Result<()> {
    let detail = AssertDetail::new(DetailKind::Other, "5 of 4 CPUs are busy");
    expect(result, RunEnd::Verdict(AssertResult::fail(detail)))
}

#[ktstr_test(expect_err, cores = 1, post_vm = says_how_the_worker_died)]
fn worker_dies(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = SnapshotBridge::default().on_cgroup_procs(|capture| {
        let pid = rustix::process::Pid::from_raw(capture.pids[0]).expect("pids are positive");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it is ours");
    });
    let _guard = bridge.set_thread_local();
    let spawn = Op::spawn(SpawnPlacement::cgroup("cg"), WorkSpec::default().comm("victim"));
    let step = Step::new(vec![spawn, Op::capture_cgroup_procs("victim", "cg")], HoldSpec::FULL);
    execute_scenario(ctx, Backdrop::new().push_op(Op::add_cgroup("cg")), vec![step])
}

fn says_how_the_worker_died(result: &VmResult) -> Result<()> {
    let RunEnd::Verdict(verdict) = &result.end else { bail!("{}", result.end) };
    let detail = &verdict.details[0];
    ensure!(detail.kind == DetailKind::WorkerDied, "{detail}");
    let text = detail.to_string();
    let end = "worker exited early: signal 9 (SIGKILL) (expected to run until stopped), worker ";
    let whose = text.strip_prefix(end).context(text.clone())?;
    // On which CPU it was is only known if it has made a turn.
    ensure!(whose.contains(" (victim), cgroup cg, ") && !whose.ends_with("at 0.000 s"), "{text}");
    Ok(())
}

#[ktstr_test(expect_err, cores = 1, post_vm = says_that_the_typo_is_one)]
fn unknown_cgroup_is_named(ctx: &Ctx) -> Result<AssertResult> {
    let step = Step::new(vec![Op::capture_cgroup_procs("tag", "cg_b")], HoldSpec::FULL);
    execute_scenario(ctx, Backdrop::new().push_op(Op::add_cgroup("cg_a")), vec![step])
}

fn says_that_the_typo_is_one(result: &VmResult) -> Result<()> {
    let RunEnd::BodyError(error) = &result.end else { bail!("{}", result.end) };
    ensure!(error.contains("unknown cgroup `cg_b`; this scenario created: cg_a"), "{error}");
    Ok(())
}

#[ktstr_test(expect_err, cores = 1, post_vm = says_that_the_kernel_panicked)]
fn guest_kernel_panics(_: &Ctx) -> Result<AssertResult> {
    println!("about to crash");
    fs::write("/proc/sysrq-trigger", "c")?;
    bail!("the kernel survived its crash")
}

fn says_that_the_kernel_panicked(result: &VmResult) -> Result<()> {
    let RunEnd::GuestPanicked(message) = &result.end else { bail!("{}", result.end) };
    ensure!(message.contains("sysrq triggered crash"), "{message}");
    ensure!(result.kernel_events.iter().any(|event| event.kind == KernelEventKind::Panic));
    Ok(())
}

#[ktstr_test(expect_err, cores = 1, duration_s = 60, post_vm = says_that_memory_ran_out)]
fn body_eats_all_memory(_: &Ctx) -> Result<AssertResult> {
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    loop {
        eaten.push(vec![1; 1 << 20]);
    }
}

fn says_that_memory_ran_out(result: &VmResult) -> Result<()> {
    expect(result, exited(ExitKind::Signaled(libc::SIGKILL)))?;
    let event = result.kernel_events.iter().find(|event| event.kind == KernelEventKind::OomKill);
    ensure!(
        event.is_some_and(|event| event.line.contains("Killed process")),
        "{:?}",
        result.kernel_events
    );
    Ok(())
}

/// Takes the only CPU for itself: same priority as PID 1, never yields.
#[ktstr_test(expect_err, cores = 1, duration_s = 1, watchdog_timeout_s = 5, post_vm = says_that_the_guest_hung)]
fn guest_hangs(_: &Ctx) -> Result<AssertResult> {
    fs::write("/proc/sys/kernel/sched_rt_runtime_us", "-1")?;
    let (call, policy, priority) = (libc::SYS_sched_setscheduler, libc::SCHED_FIFO, 99_i32);
    // Not libc's function, which is a stub in musl.
    // SAFETY: the kernel reads the priority, the only field of its `sched_param`.
    ensure!(unsafe { libc::syscall(call, 0, policy, &raw const priority) } == 0);
    loop {
        std::hint::spin_loop();
    }
}

fn says_that_the_guest_hung(result: &VmResult) -> Result<()> {
    let RunEnd::GuestHung { silent, phase } = &result.end else { bail!("{}", result.end) };
    let allowed = 5.0 * result.timings.slowness;
    ensure!(silent.as_secs_f64() >= allowed, "{silent:?} of {allowed} s");
    ensure!(*phase == RunPhase::Body, "{phase}");
    Ok(())
}

#[ktstr_test(expect_err, cores = 1, duration_s = 1, watchdog_timeout_s = 1, post_vm = says_that_the_body_overran)]
fn body_overruns(_: &Ctx) -> Result<AssertResult> {
    loop {
        std::thread::park();
    }
}

fn says_that_the_body_overran(result: &VmResult) -> Result<()> {
    let RunEnd::BodyOverran { ran, allowed } = &result.end else { bail!("{}", result.end) };
    ensure!(ran >= allowed, "{ran:?} of {allowed:?}");
    Ok(())
}

#[ktstr_test(expect_err, cores = 1, post_vm = says_that_the_body_left)]
fn body_exits_with_success(_: &Ctx) -> Result<AssertResult> {
    std::process::exit(0);
}

fn says_that_the_body_left(result: &VmResult) -> Result<()> {
    expect(result, exited(ExitKind::Exited(0)))
}

#[ktstr_test(expect_err, cores = 1, post_vm = says_that_the_body_aborted)]
fn body_aborts(_: &Ctx) -> Result<AssertResult> {
    std::process::abort();
}

fn says_that_the_body_aborted(result: &VmResult) -> Result<()> {
    expect(result, exited(ExitKind::Signaled(libc::SIGABRT)))
}

#[ktstr_test(expect_err, cores = 1, post_vm = says_that_the_body_was_killed)]
fn body_is_killed(_: &Ctx) -> Result<AssertResult> {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)?;
    bail!("SIGKILL was survived")
}

fn says_that_the_body_was_killed(result: &VmResult) -> Result<()> {
    expect(result, exited(ExitKind::Signaled(libc::SIGKILL)))
}

#[ktstr_test(expect_err, cores = 1, post_vm = says_that_the_guest_left)]
fn guest_powers_off(_: &Ctx) -> Result<AssertResult> {
    reboot(RebootCommand::PowerOff)?;
    bail!("power-off was survived")
}

fn says_that_the_guest_left(result: &VmResult) -> Result<()> {
    expect(result, gone(GuestExit::PoweredOff))
}

#[ktstr_test(expect_err, cores = 1, post_vm = says_that_the_guest_reset)]
fn guest_resets(_: &Ctx) -> Result<AssertResult> {
    reboot(RebootCommand::Restart)?;
    bail!("a reset was survived")
}

fn says_that_the_guest_reset(result: &VmResult) -> Result<()> {
    expect(result, gone(GuestExit::Reset))
}

fn gone(exit: GuestExit) -> RunEnd {
    RunEnd::GuestGone { exit, phase: RunPhase::Body, unread_bytes: 0 }
}

fn exited(kind: ExitKind) -> RunEnd {
    RunEnd::BodyExited { kind, last_panic: None }
}

fn expect(result: &VmResult, end: RunEnd) -> Result<()> {
    ensure!(result.end == end, "expected {end:?}, got {:?}", result.end);
    Ok(())
}
