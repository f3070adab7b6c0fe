//! `cargo xtask bench process`: compares a job with std and a crate that groups processes.
//!
//! They run on this host and alternate, so that a drifting speed of the machine affects all alike.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ktstr::process::{Job, Limits};
use process_wrap::std::{CommandWrap, ProcessGroup};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Arguments of the benchmark.
#[derive(Debug, clap::Args)]
pub(crate) struct Process {
    /// Number of programs that each way starts
    #[arg(long, default_value_t = 300)]
    spawns: usize,
    /// Number of processes that are killed at once
    #[arg(long, default_value_t = 1000)]
    killed: usize,
    /// Number of times that they are killed
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

impl Process {
    pub(crate) fn run(&self) -> Result<()> {
        let job = Job::new(Limits::none())?;
        println!("a job here is: {}", job.mechanism());
        self.measure_spawns(&job)?;
        self.measure_kills()
    }

    /// Measures the time until `spawn` returns, which is after the program's exec.
    fn measure_spawns(&self, job: &Job) -> Result<()> {
        let mut ways = Ways::new(["std", "std, fork", "process-wrap, group", "a job"]);
        let mut jobs = Vec::new();
        for _ in 0..self.spawns {
            let mut child = ways.time(0, || Ok(Command::new("/bin/true").spawn()?))?;
            child.wait()?;
            // With anything to do between fork and exec, std forks instead of using vfork.
            let mut forking = Command::new("/bin/true");
            forking.uid(rustix::process::geteuid().as_raw());
            let mut child = ways.time(1, || Ok(forking.spawn()?))?;
            child.wait()?;
            let mut wrap = CommandWrap::with_new("/bin/true", |_| {});
            wrap.wrap(ProcessGroup::leader());
            let mut child = ways.time(2, || Ok(wrap.spawn()?))?;
            child.wait()?;
            let mut child = ways.time(3, || Ok(job.spawn(Command::new("/bin/true"))?))?;
            child.wait()?;
            let began = Instant::now();
            drop(Job::new(Limits::none())?);
            jobs.push(began.elapsed());
        }
        ways.print("spawn", "us", 1e6);
        println!("{:<34} {:>10.1} us", "making and dropping an empty job", median(&mut jobs) * 1e6);
        Ok(())
    }

    /// Measures the time until all processes have ended.
    fn measure_kills(&self) -> Result<()> {
        let mut ways = Ways::new(["std, one by one", "process-wrap, group", "a job"]);
        for _ in 0..self.rounds {
            let count = self.killed;
            let sleepers =
                (0..count).map(|_| Ok(sleeper().spawn()?)).collect::<Result<Vec<_>>>()?;
            let watched = sleepers.iter().map(|child| watch(child.id())).collect::<Result<_>>()?;
            let mut sleepers = sleepers;
            ways.time(0, || {
                sleepers.iter_mut().try_for_each(std::process::Child::kill)?;
                wait_for_all(watched)
            })?;
            sleepers.iter_mut().try_for_each(|child| child.wait().map(drop))?;

            let mut wrap = CommandWrap::from(family(count));
            wrap.wrap(ProcessGroup::leader());
            let mut child = wrap.spawn()?;
            let stdout = child.stdout().take().context("it was piped")?;
            let watched = watch_family(stdout, count)?;
            ways.time(1, || {
                child.start_kill()?;
                wait_for_all(watched)
            })?;
            child.wait()?;

            let job = Job::new(Limits::none())?;
            let mut child = job.spawn(family(count))?;
            let stdout = child.stdout.take().context("it was piped")?;
            let watched = watch_family(stdout, count)?;
            ways.time(2, || {
                job.kill_all()?;
                wait_for_all(watched)
            })?;
        }
        ways.print(&format!("kill {} processes", self.killed), "ms", 1e3);
        Ok(())
    }
}

fn sleeper() -> Command {
    let mut command = Command::new("/bin/sleep");
    command.arg("1000");
    command
}

/// Returns a shell that starts this many children and prints their pids.
fn family(children: usize) -> Command {
    let script = "i=0; while [ $i -lt $1 ]; do sleep 1000 & echo $!; i=$((i+1)); done; wait";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).arg(children.to_string()).stdout(Stdio::piped());
    command
}

fn watch_family(stdout: impl std::io::Read, children: usize) -> Result<Vec<OwnedFd>> {
    let lines = BufReader::new(stdout).lines().take(children);
    let watched = lines.map(|line| watch(line?.parse()?)).collect::<Result<Vec<_>>>()?;
    ensure!(watched.len() == children, "{} of {children} were started", watched.len());
    Ok(watched)
}

fn watch(pid: u32) -> Result<OwnedFd> {
    let number = Pid::from_raw(i32::try_from(pid)?).context("pids are positive")?;
    // A child of the shell may not have reached its exec yet.
    ensure!(fs::exists(format!("/proc/{pid}"))?, "process {pid} has already ended");
    Ok(pidfd_open(number, PidfdFlags::empty())?)
}

/// Waits until all processes have ended.
fn wait_for_all(watched: Vec<OwnedFd>) -> Result<()> {
    for pidfd in &watched {
        poll(&mut [PollFd::new(pidfd, PollFlags::IN)], None)?;
    }
    Ok(())
}

/// Times of several ways to do the same thing.
struct Ways(Vec<(&'static str, Vec<Duration>)>);

impl Ways {
    fn new<const N: usize>(names: [&'static str; N]) -> Self {
        Self(names.map(|name| (name, Vec::new())).into())
    }

    fn time<T>(&mut self, way: usize, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let began = Instant::now();
        let result = run()?;
        self.0[way].1.push(began.elapsed());
        Ok(result)
    }

    /// Prints one line for each way, with its ratio to the first one's time.
    fn print(&mut self, what: &str, unit: &str, per_second: f64) {
        println!("\n{what:<34} {:>13} {:>12}", "median", "of the first");
        let first = median(&mut self.0[0].1);
        for (name, times) in &mut self.0 {
            let median = median(times);
            println!("{name:<34} {:>10.1} {unit} {:>12.2}", median * per_second, median / first);
        }
    }
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}
