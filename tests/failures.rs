//! Each way in which the guest's side of a test can fail, provoked in a real guest. The host
//! distinguishes them by the end of the run.

use std::fs;

use ktstr::prelude::*;
use ktstr::result::{GuestExit, KernelEventKind, RunPhase};
use rustix::system::{RebootCommand, reboot};

#[ktstr_test(expect_err, cores = 1, post_vm = end_has_the_error)]
fn body_returns_an_error(_: &Ctx) -> Result<AssertResult> {
    Err(anyhow::anyhow!("the disk is full")).context("cannot store the result")
}

fn end_has_the_error(result: &VmResult) -> Result<()> {
    expect(result, RunEnd::BodyError("cannot store the result: the disk is full".into()))
}

#[ktstr_test(expect_err, cores = 1, post_vm = end_has_the_place_of_the_panic)]
fn body_panics(_: &Ctx) -> Result<AssertResult> {
    panic!("three is not {}", 4);
}

fn end_has_the_place_of_the_panic(result: &VmResult) -> Result<()> {
    let RunEnd::BodyPanicked(message) = &result.end else { bail!("{}", result.end) };
    ensure!(message.starts_with("three is not 4, tests/failures.rs:"), "{message}");
    Ok(())
}

#[ktstr_test(cores = 1)]
fn body_passes_after_a_caught_panic(_: &Ctx) -> Result<AssertResult> {
    ensure!(std::panic::catch_unwind(|| panic!("caught")).is_err());
    Ok(AssertResult::pass())
}

#[ktstr_test(expect_err, cores = 1, post_vm = end_has_the_failed_check)]
fn body_returns_a_failed_verdict(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::fail(AssertDetail::new(DetailKind::Other, "5 of 4 CPUs are busy")))
}

fn end_has_the_failed_check(result: &VmResult) -> Result<()> {
    let detail = AssertDetail::new(DetailKind::Other, "5 of 4 CPUs are busy");
    expect(result, RunEnd::Verdict(AssertResult::fail(detail)))
}

#[ktstr_test(expect_err, cores = 1, post_vm = detail_has_the_signal)]
fn worker_is_killed(ctx: &Ctx) -> Result<AssertResult> {
    let bridge = SnapshotBridge::default().on_cgroup_procs(|capture| {
        let pid = rustix::process::Pid::from_raw(capture.pids[0]).expect("pids are positive");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)
            .expect("the worker is a descendant");
    });
    let _guard = bridge.set_thread_local();
    let spawn = Op::spawn(SpawnPlacement::cgroup("cg"), WorkSpec::default().comm("victim"));
    let step = Step::new(vec![spawn, Op::capture_cgroup_procs("victim", "cg")], HoldSpec::FULL);
    execute_scenario(ctx, Backdrop::new().push_op(Op::add_cgroup("cg")), vec![step])
}

fn detail_has_the_signal(result: &VmResult) -> Result<()> {
    let RunEnd::Verdict(verdict) = &result.end else { bail!("{}", result.end) };
    let detail = &verdict.details[0];
    ensure!(detail.kind == DetailKind::WorkerExited, "{detail}");
    let text = detail.to_string();
    let end = "worker exited early: signal 9 (SIGKILL) (expected to run until stopped), worker ";
    let whose = text.strip_prefix(end).context(text.clone())?;
    // The CPU is known only if the worker has completed an iteration.
    ensure!(whose.contains(" (victim), cgroup cg, ") && !whose.ends_with("at 0.000 s"), "{text}");
    Ok(())
}

#[ktstr_test(expect_err, cores = 1, post_vm = error_names_the_unknown_cgroup)]
fn scenario_uses_an_unknown_cgroup(ctx: &Ctx) -> Result<AssertResult> {
    let step = Step::new(vec![Op::capture_cgroup_procs("tag", "cg_b")], HoldSpec::FULL);
    execute_scenario(ctx, Backdrop::new().push_op(Op::add_cgroup("cg_a")), vec![step])
}

fn error_names_the_unknown_cgroup(result: &VmResult) -> Result<()> {
    let RunEnd::BodyError(error) = &result.end else { bail!("{}", result.end) };
    ensure!(error.contains("unknown cgroup `cg_b`; this scenario created: cg_a"), "{error}");
    Ok(())
}

#[ktstr_test(expect_err, cores = 1, post_vm = end_has_the_panic_of_the_kernel)]
fn guest_kernel_panics(_: &Ctx) -> Result<AssertResult> {
    println!("about to crash");
    fs::write("/proc/sysrq-trigger", "c")?;
    bail!("the kernel survived its crash")
}

fn end_has_the_panic_of_the_kernel(result: &VmResult) -> Result<()> {
    let RunEnd::GuestPanicked(message) = &result.end else { bail!("{}", result.end) };
    ensure!(message.contains("sysrq triggered crash"), "{message}");
    ensure!(result.kernel_events.iter().any(|event| event.kind == KernelEventKind::Panic));
    Ok(())
}

#[ktstr_test(expect_err, cores = 1, duration_s = 60, post_vm = kernel_events_have_the_oom_kill)]
fn body_uses_all_memory(_: &Ctx) -> Result<AssertResult> {
    let mut used: Vec<Vec<u8>> = Vec::new();
    loop {
        used.push(vec![1; 1 << 20]);
    }
}

fn kernel_events_have_the_oom_kill(result: &VmResult) -> Result<()> {
    expect(result, exited(ExitKind::Signaled(libc::SIGKILL)))?;
    let event = result.kernel_events.iter().find(|event| event.kind == KernelEventKind::OomKill);
    ensure!(
        event.is_some_and(|event| event.line.contains("Killed process")),
        "{:?}",
        result.kernel_events
    );
    Ok(())
}

/// Occupies the only CPU: same priority as PID 1, never yields.
#[ktstr_test(expect_err, cores = 1, duration_s = 1, watchdog_timeout_s = 5, post_vm = end_has_the_silence_of_the_guest)]
fn guest_hangs(_: &Ctx) -> Result<AssertResult> {
    fs::write("/proc/sys/kernel/sched_rt_runtime_us", "-1")?;
    let (call, policy, priority) = (libc::SYS_sched_setscheduler, libc::SCHED_FIFO, 99_i32);
    // Not libc's function, which always fails in musl.
    // SAFETY: the kernel reads the priority, the only field of its `sched_param`.
    ensure!(unsafe { libc::syscall(call, 0, policy, &raw const priority) } == 0);
    loop {
        std::hint::spin_loop();
    }
}

fn end_has_the_silence_of_the_guest(result: &VmResult) -> Result<()> {
    let RunEnd::GuestHung { silent, phase } = &result.end else { bail!("{}", result.end) };
    let allowed = 5.0 * result.timings.slowness;
    ensure!(silent.as_secs_f64() >= allowed, "{silent:?} of {allowed} s");
    ensure!(*phase == RunPhase::Body, "{phase}");
    Ok(())
}

#[ktstr_test(expect_err, cores = 1, duration_s = 1, watchdog_timeout_s = 1, post_vm = end_has_the_time_limit_of_the_body)]
fn body_overruns(_: &Ctx) -> Result<AssertResult> {
    loop {
        std::thread::park();
    }
}

fn end_has_the_time_limit_of_the_body(result: &VmResult) -> Result<()> {
    let RunEnd::BodyOverran { ran, allowed } = &result.end else { bail!("{}", result.end) };
    ensure!(ran >= allowed, "{ran:?} of {allowed:?}");
    Ok(())
}

#[ktstr_test(expect_err, cores = 1, post_vm = end_has_exit_status_0)]
fn body_exits_with_success(_: &Ctx) -> Result<AssertResult> {
    std::process::exit(0);
}

fn end_has_exit_status_0(result: &VmResult) -> Result<()> {
    expect(result, exited(ExitKind::Exited(0)))
}

#[ktstr_test(expect_err, cores = 1, post_vm = end_has_sigabrt)]
fn body_aborts(_: &Ctx) -> Result<AssertResult> {
    std::process::abort();
}

fn end_has_sigabrt(result: &VmResult) -> Result<()> {
    expect(result, exited(ExitKind::Signaled(libc::SIGABRT)))
}

#[ktstr_test(expect_err, cores = 1, post_vm = end_has_sigkill)]
fn body_is_killed(_: &Ctx) -> Result<AssertResult> {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)?;
    bail!("SIGKILL was survived")
}

fn end_has_sigkill(result: &VmResult) -> Result<()> {
    expect(result, exited(ExitKind::Signaled(libc::SIGKILL)))
}

#[ktstr_test(expect_err, cores = 1, post_vm = end_has_the_power_off)]
fn guest_powers_off(_: &Ctx) -> Result<AssertResult> {
    reboot(RebootCommand::PowerOff)?;
    bail!("power-off was survived")
}

fn end_has_the_power_off(result: &VmResult) -> Result<()> {
    expect(result, gone(GuestExit::PoweredOff))
}

#[ktstr_test(expect_err, cores = 1, post_vm = end_has_the_reset)]
fn guest_resets(_: &Ctx) -> Result<AssertResult> {
    reboot(RebootCommand::Restart)?;
    bail!("a reset was survived")
}

fn end_has_the_reset(result: &VmResult) -> Result<()> {
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
