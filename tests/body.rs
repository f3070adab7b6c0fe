//! What a body finds in its guest, and what its verdicts mean.

use std::fs;

use ktstr::prelude::*;

#[ktstr_test(cores = 1)]
fn everything_a_test_expects_is_mounted(_: &Ctx) -> Result<AssertResult> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    for (target, kind) in [
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/dev", "devtmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/tmp", "tmpfs"),
        ("/run", "tmpfs"),
        ("/sys/fs/cgroup", "cgroup2"),
        ("/sys/kernel/debug", "debugfs"),
        ("/sys/kernel/tracing", "tracefs"),
        ("/sys/fs/bpf", "bpf"),
    ] {
        let found = mounts.lines().any(|line| {
            let mut words = line.split(' ').skip(1);
            words.next() == Some(target) && words.next() == Some(kind)
        });
        ensure!(found, "no {kind} at {target}:\n{mounts}");
    }
    ensure!(rustix::process::geteuid().is_root(), "the body is root");
    ensure!(std::process::id() != 1, "the body is not PID 1");
    Ok(AssertResult::pass())
}

/// A zombie keeps its folder in /proc until it is reaped; the test overruns if that never happens.
#[ktstr_test(cores = 1)]
fn orphans_are_reaped(_: &Ctx) -> Result<AssertResult> {
    let (reader, writer) = rustix::pipe::pipe()?;
    let child = fork(|| {
        let orphan = fork(|| {
            while rustix::process::getppid() != Some(rustix::process::Pid::INIT) {
                rustix::thread::sched_yield();
            }
        });
        let _ = rustix::io::write(&writer, &orphan.to_le_bytes());
    });
    let child = rustix::process::Pid::from_raw(child).context("the fork failed")?;
    rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())?;
    let mut orphan = [0; 4];
    ensure!(rustix::io::read(&reader, &mut orphan)? == 4);
    let folder = format!("/proc/{}", i32::from_le_bytes(orphan));
    while std::path::Path::new(&folder).exists() {
        rustix::thread::sched_yield();
    }
    Ok(AssertResult::pass())
}

/// Runs `child` in a process that ends with it, and returns its pid.
fn fork(child: impl FnOnce()) -> i32 {
    // SAFETY: the child only makes system calls before it ends.
    match unsafe { libc::fork() } {
        0 => {
            child();
            // SAFETY: ends the child without running anything of its parent's.
            unsafe { libc::_exit(0) }
        }
        pid => pid,
    }
}

#[ktstr_test(cores = 1, post_vm = output_is_in_the_log)]
fn output_reaches_the_host(_: &Ctx) -> Result<AssertResult> {
    println!("to standard output");
    eprintln!("to standard error");
    print!("and without a line break");
    Ok(AssertResult::pass())
}

fn output_is_in_the_log(result: &VmResult) -> Result<()> {
    for text in ["to standard output\n", "to standard error\n", "and without a line break"] {
        ensure!(result.log.contains(text), "{text:?} is missing in {:?}", result.log);
    }
    Ok(())
}

/// More than any buffer on the way holds.
#[ktstr_test(cores = 1, duration_s = 60, post_vm = all_output_arrived)]
fn much_output_arrives_whole(_: &Ctx) -> Result<AssertResult> {
    for number in 0..LINES {
        println!("line {number:>90}");
    }
    Ok(AssertResult::pass())
}

const LINES: usize = 20_000;

fn all_output_arrived(result: &VmResult) -> Result<()> {
    let mut lines = result.log.lines();
    for number in 0..LINES {
        let line = lines.next().with_context(|| format!("the log ends at line {number}"))?;
        ensure!(line == format!("line {number:>90}"), "line {number} is {line:?}");
    }
    ensure!(lines.next().is_none());
    Ok(())
}

#[ktstr_test(cores = 1, expect_err, post_vm = backtrace_is_in_the_log)]
fn rust_backtrace_is_honoured(_: &Ctx) -> Result<AssertResult> {
    deep_down();
    Ok(AssertResult::pass())
}

#[inline(never)]
fn deep_down() {
    panic!("far from the top");
}

fn backtrace_is_in_the_log(result: &VmResult) -> Result<()> {
    let wanted = std::env::var("RUST_BACKTRACE").is_ok_and(|value| value != "0");
    let found = result.log.contains("stack backtrace:") && result.log.contains("deep_down");
    ensure!(found == wanted, "RUST_BACKTRACE wants one: {wanted}; found: {found}\n{}", result.log);
    Ok(())
}

#[ktstr_test(cores = 1, kaslr = false, post_vm = kaslr_was_off)]
fn kaslr_can_be_switched_off(_: &Ctx) -> Result<AssertResult> {
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    ensure!(cmdline.split(' ').any(|word| word == "nokaslr"), "{cmdline}");
    Ok(AssertResult::pass())
}

fn kaslr_was_off(result: &VmResult) -> Result<()> {
    ensure!(result.machine.cmdline.contains(" nokaslr "), "{}", result.machine.cmdline);
    Ok(())
}

#[ktstr_test(cores = 1)]
fn a_skip_says_why(_: &Ctx) -> Result<AssertResult> {
    Ok(AssertResult::skip("this test only shows what a skip looks like"))
}

#[ktstr_test(host_only)]
fn a_host_only_body_runs_here(ctx: &Ctx) -> Result<AssertResult> {
    ensure!(std::env::var_os("CARGO_MANIFEST_DIR").is_some() || !ctx.topo.cpus.is_empty());
    ensure!(std::process::id() != 1);
    ensure!(std::path::Path::new("/etc").exists(), "the host has files that no guest has");
    Ok(AssertResult::pass())
}
