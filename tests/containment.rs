//! What is left when one of the processes of a run is killed: nothing. This is about QEMU, which is a
//! process of its own; a machine on KVM is a part of the test's.
//!
//! Each test runs this binary again for one long test, and kills a part of it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use ktstr::prelude::*;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

const MARK: &str = "the body is up";

#[ktstr_test(cores = 1, duration_s = 60, ignore = "only for the tests below, which kill it")]
fn long_run(_: &Ctx) -> Result<AssertResult> {
    println!("{MARK}");
    loop {
        std::thread::park();
    }
}

/// A process that is killed when the test is done with it, however that ends.
struct Runner(Child);

impl Drop for Runner {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This binary running `long_run`, its body up, and the QEMU process that runs it.
fn start() -> Result<(Runner, BufReader<impl Read>, Pid)> {
    let mut runner = Command::new(std::env::current_exe()?)
        .args(["--exact", "long_run", "--include-ignored", "--nocapture"])
        .env("KTSTR_ENGINE", "qemu")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stdout = runner.stdout.take();
    let runner = Runner(runner);
    let mut output = BufReader::new(stdout.context("it was piped")?);
    let mut line = String::new();
    while !line.contains(MARK) {
        line.clear();
        ensure!(output.read_line(&mut line)? > 0, "long_run ended before its body was up");
    }
    let engine = child_of(runner.0.id())?;
    Ok((runner, output, engine))
}

/// The one child of a process.
fn child_of(parent: u32) -> Result<Pid> {
    let mut children = Vec::<i32>::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let after_comm = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        if after_comm.split(' ').nth(1) == Some(&parent.to_string()) {
            children.extend(entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
        }
    }
    let [child] = children[..] else { bail!("process {parent} has children {children:?}") };
    Pid::from_raw(child).context("pids are positive")
}

#[test]
fn nothing_is_left_of_a_killed_runner() -> Result<()> {
    let (mut runner, _output, engine) = start()?;
    let engine_fd = pidfd_open(engine, PidfdFlags::empty())?;
    runner.0.kill()?;
    ensure!(runner.0.wait()?.signal() == Some(9));
    // The engine's end makes its pidfd readable.
    let mut fds = [rustix::event::PollFd::new(&engine_fd, rustix::event::PollFlags::IN)];
    let minute = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };
    ensure!(rustix::event::poll(&mut fds, Some(&minute))? == 1, "the engine lives on");
    Ok(())
}

#[test]
fn a_killed_engine_is_no_verdict_on_the_test() -> Result<()> {
    let (mut runner, mut output, engine) = start()?;
    kill_process(engine, Signal::KILL)?;
    let mut text = String::new();
    output.read_to_string(&mut text)?;
    if let Some(mut stderr) = runner.0.stderr.take() {
        stderr.read_to_string(&mut text)?;
    }
    ensure!(!runner.0.wait()?.success(), "the run passed without its engine");
    ensure!(text.contains("infrastructure: the engine failed"), "{text}");
    ensure!(text.contains("signal: 9"), "{text}");
    Ok(())
}

#[test]
fn an_engine_that_cannot_start_is_named() -> Result<()> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--exact", "long_run", "--include-ignored"])
        .env("KTSTR_ENGINE", "qemu")
        .env("KTSTR_QEMU", "/nonexistent/qemu-system-x86_64")
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!output.status.success());
    ensure!(text.contains("/nonexistent/qemu-system-x86_64"), "{text}");
    Ok(())
}

#[test]
fn an_unknown_kernel_is_answered_with_the_known_ones() -> Result<()> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--exact", "long_run", "--include-ignored"])
        .env("KTSTR_KERNEL", "debian:woody")
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!output.status.success());
    ensure!(text.contains("debian:woody") && text.contains("debian:trixie"), "{text}");
    Ok(())
}
