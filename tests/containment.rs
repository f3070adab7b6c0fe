//! Nothing is left of a run when one of its processes is killed. These tests use QEMU, which is a process of
//! its own; a machine on KVM is part of the test's process.
//!
//! Each test runs this binary again with one long test, and kills one of its processes.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use ktstr::prelude::*;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

const MARK: &str = "the body is up";

#[ktstr_test(cores = 1, fresh, duration_s = 60, ignore = "only for the tests below, which kill it")]
fn long_run(_: &Ctx) -> Result<AssertResult> {
    println!("{MARK}");
    loop {
        std::thread::park();
    }
}

/// A process that is killed when it is dropped.
struct Runner(Child);

impl Drop for Runner {
    fn drop(&mut self) {
        // Both fail only if it has ended and was reaped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts this binary with `long_run` and waits for its body. Returns the process, its output, and the pid
/// of its QEMU. If `launcher`, a shell, is given, that starts the binary.
fn start(launcher: Option<&Path>, temporary: &Path) -> Result<(Runner, BufReader<impl Read>, Pid)> {
    let test = std::env::current_exe()?;
    let mut command = Command::new(launcher.unwrap_or(&test));
    if launcher.is_some() {
        // With a second command, the shell does not replace itself with the first.
        command.args(["-c", "\"$0\" \"$@\"; exit $?"]).arg(&test);
    }
    // SAFETY: the closure makes one system call.
    unsafe {
        command.pre_exec(|| {
            // A background job of a script ignores SIGINT, and so do its descendants.
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            Ok(())
        });
    }
    let mut runner = command
        .args(["--exact", "long_run", "--include-ignored", "--nocapture"])
        .env("KTSTR_ENGINE", "qemu")
        .env("TMPDIR", temporary)
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
    let test = match launcher {
        None => i32::try_from(runner.0.id())?,
        Some(_) => child_of(i32::try_from(runner.0.id())?)?,
    };
    let engine = child_of(test)?;
    Ok((runner, output, Pid::from_raw(engine).context("pids are positive")?))
}

/// Returns the only child of a process apart from the keeper of its job.
fn child_of(parent: i32) -> Result<i32> {
    let mut children = Vec::<i32>::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((before, after)) = stat.rsplit_once(") ") else { continue };
        let is_keeper = before.ends_with("(ktstr-keeper");
        if !is_keeper && after.split(' ').nth(1) == Some(&parent.to_string()) {
            children.extend(entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
        }
    }
    let [child] = children[..] else { bail!("process {parent} has children {children:?}") };
    Ok(child)
}

/// Returns the cgroup of the job of a process, if jobs are cgroups on this host.
fn job_of(pid: Pid) -> Result<Option<PathBuf>> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let Some(group) = group.filter(|group| group.contains("ktstr-job.")) else { return Ok(None) };
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let mount = mount.and_then(|line| line.split(' ').nth(1)).context("cgroup2 is mounted")?;
    Ok(Some(Path::new(mount).join(group.trim_start_matches('/'))))
}

fn ensure_nothing_is_left(launcher: Option<&Path>, signal: Signal) -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let (mut runner, _output, engine) = start(launcher, temporary.path())?;
    let engine_fd = pidfd_open(engine, PidfdFlags::empty())?;
    let job = job_of(engine)?;
    if rustix::process::geteuid().is_root() {
        ensure!(job.as_ref().is_some_and(|job| job.exists()), "the engine of root is not in a job");
    }
    let pid = Pid::from_raw(i32::try_from(runner.0.id())?).context("pids are positive")?;
    kill_process(pid, signal)?;
    ensure!(runner.0.wait()?.signal() == Some(signal.as_raw()));
    // A pidfd is readable once its process has ended.
    let mut fds = [rustix::event::PollFd::new(&engine_fd, rustix::event::PollFlags::IN)];
    let minute = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };
    ensure!(rustix::event::poll(&mut fds, Some(&minute))? == 1, "the engine still runs");
    let began = Instant::now();
    while job.as_ref().is_some_and(|job| job.exists()) {
        ensure!(began.elapsed().as_secs() < 60, "{job:?} still exists");
        std::thread::yield_now();
    }
    let left: Vec<_> = fs::read_dir(temporary.path())?.flatten().map(|file| file.path()).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn nothing_is_left_of_a_killed_runner() -> Result<()> {
    ensure_nothing_is_left(None, Signal::KILL)
}

#[test]
fn nothing_is_left_after_ctrl_c() -> Result<()> {
    ensure_nothing_is_left(None, Signal::INT)
}

/// A shell with cargo's name, which starts the runner and waits for it, as cargo does.
#[test]
fn nothing_is_left_of_a_killed_cargo() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cargo = dir.path().join("cargo");
    fs::copy("/bin/sh", &cargo)?;
    ensure_nothing_is_left(Some(&cargo), Signal::KILL)
}

#[test]
fn killed_engine_is_an_infrastructure_failure() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let (mut runner, mut output, engine) = start(None, temporary.path())?;
    kill_process(engine, Signal::KILL)?;
    let mut text = String::new();
    output.read_to_string(&mut text)?;
    if let Some(mut stderr) = runner.0.stderr.take() {
        stderr.read_to_string(&mut text)?;
    }
    ensure!(!runner.0.wait()?.success(), "the run passed without its engine");
    ensure!(text.contains("infrastructure: engine failed"), "{text}");
    ensure!(text.contains("signal: 9"), "{text}");
    ensure!(!text.contains("warning"), "QEMU warns of its arguments: {text}");
    Ok(())
}

/// A terminal sends these signals to all processes of a job, also to those of a script that ignores them.
#[test]
fn engine_blocks_the_signals_of_a_terminal() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let (_runner, _output, engine) = start(None, temporary.path())?;
    for thread in fs::read_dir(format!("/proc/{engine}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t"));
        let blocked = u64::from_str_radix(blocked.context("no SigBlk")?, 16)?;
        for signal in [Signal::INT, Signal::HUP, Signal::TERM] {
            ensure!(
                blocked >> (signal.as_raw() - 1) & 1 == 1,
                "{signal:?} has an effect: {status}"
            );
        }
    }
    Ok(())
}

#[test]
fn runner_names_an_engine_that_cannot_start() -> Result<()> {
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
fn runner_lists_the_known_kernels_for_an_unknown_one() -> Result<()> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--exact", "long_run", "--include-ignored"])
        .env("KTSTR_KERNEL", "debian:woody")
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!output.status.success());
    ensure!(text.contains("debian:woody") && text.contains("debian:trixie"), "{text}");
    Ok(())
}
