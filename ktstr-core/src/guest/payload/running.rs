//! A program that is running.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags};

use super::definition::{DIRECTORY, LIBRARIES, Payload, PayloadRun};
use super::end::PayloadEnd;
use super::judge::judge;
use super::output::{Collected, Output, collect};
use super::report::PayloadReport;
use crate::guest::measured;
use crate::linux::process::{Child, Job, Limits, wait_for};
use crate::model::exit::ExitKind;
use crate::model::verdict::AssertResult;

/// A program that was started. Dropping it kills the program and its descendants.
#[derive(Debug)]
pub(crate) struct Running {
    run: PayloadRun,
    cgroup: String,
    child: Child,
    job: Job,
    collected: JoinHandle<io::Result<Collected>>,
    began: Instant,
}

impl Running {
    /// Starts a program in a child cgroup of `directory`, which is that of the cgroup that the test calls
    /// `cgroup`; without one, of the cgroup of the test itself. The program is there from its first
    /// instruction on.
    ///
    /// # Errors
    ///
    /// If the payload is invalid or not among those `available` in the guest, the cgroup is frozen, or
    /// the program cannot be started there.
    pub(crate) fn start(
        run: PayloadRun,
        available: &[&Payload],
        directory: Option<&Path>,
        cgroup: &str,
    ) -> Result<Self> {
        run.payload.validate()?;
        ensure!(!run.name.is_empty(), "the run has an empty name");
        let program = find(run.payload, available)?;
        if let Some(directory) = directory {
            // Starting it would block until the cgroup is thawed.
            let path = directory.join("cgroup.events");
            let events = std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let is_frozen = events.lines().any(|line| line == "frozen 1");
            ensure!(
                !is_frozen,
                "cgroup `{cgroup}` is frozen: thaw it before starting a payload in it"
            );
        }
        let job = match directory {
            Some(directory) => Job::below(directory, Limits::none()),
            None => Job::new(Limits::none()),
        }?;
        let mut command = Command::new(&program);
        command.args(&run.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Some programs leave files in their working directory.
        command.current_dir("/tmp");
        let libraries = program.with_file_name(LIBRARIES);
        if libraries.is_dir() {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        let began = Instant::now();
        let mut child = job.spawn(command)?;
        let pipes = (child.stdout.take(), child.stderr.take());
        let (Some(stdout), Some(stderr)) = pipes else { unreachable!("both are piped") };
        let pidfd = child.as_fd().try_clone_to_owned().context("cannot copy a pidfd")?;
        let collected = collect([OwnedFd::from(stdout), OwnedFd::from(stderr)], pidfd)
            .context("cannot read the output of the program")?;
        Ok(Self { run, cgroup: cgroup.to_owned(), child, job, collected, began })
    }

    pub(crate) fn name(&self) -> &str {
        &self.run.name
    }

    pub(crate) fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// Returns the pids of the program and its descendants.
    pub(crate) fn pids(&self) -> Result<Vec<i32>> {
        Ok(self.job.members()?.into_iter().map(|process| process.pid).collect())
    }

    /// Returns a pidfd, which is readable when the program has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.as_fd()
    }

    /// Waits until the program ends.
    ///
    /// # Errors
    ///
    /// If it is still running after `timeout`.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        // A deadline beyond the range of the clock means no deadline.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.wait_until(deadline)?;
        self.ensure_ended(timeout.unwrap_or_default())
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Result<bool> {
        let mut fds = [PollFd::new(&self.child, PollFlags::IN)];
        wait_for(&mut fds, deadline).context("cannot wait for the program")
    }

    /// Fails if the program, which had `timeout` to end, is still running.
    pub(crate) fn ensure_ended(&self, timeout: Duration) -> Result<()> {
        let (pid, since) = (self.child.pid(), self.began.elapsed());
        ensure!(
            self.wait_until(Some(Instant::now()))?,
            "{} (pid {pid}) timed out: it has been running for {since:.1?} (limit {timeout:?})",
            self.run
        );
        Ok(())
    }

    /// Kills the program and its descendants if they are still running, and judges the run.
    ///
    /// The report then describes a program that was running as stopped: `how`. With `may_be_killed`,
    /// SIGKILL is an expected end.
    ///
    /// # Errors
    ///
    /// If it cannot be killed.
    pub(crate) fn finish(mut self, how: &str, may_be_killed: bool) -> Result<PayloadReport> {
        let ended =
            self.child.wait_timeout(Duration::ZERO).context("cannot read the exit status")?;
        let mut verdict = AssertResult::pass();
        let end = match ended {
            Some(status) => {
                let leaked = self.job.leaked()?;
                if let Some(first) = leaked.first() {
                    let count = leaked.len();
                    verdict
                        .note(format!("{} left {count} processes running: {first}", self.name()));
                }
                match ExitKind::from(status) {
                    ExitKind::Exited(status) => PayloadEnd::Exited(status),
                    killed if may_be_killed && killed.is_sigkill() => PayloadEnd::KilledAsExpected,
                    ExitKind::Signaled(signal) => PayloadEnd::Signaled(signal),
                }
            }
            None => PayloadEnd::Stopped(how.to_owned()),
        };
        self.job.kill_all().context("cannot kill the program")?;
        self.child.wait().context("cannot wait for the end of the program")?;
        let cpu_time = self.job.stats()?.cpu_time;
        let collected =
            self.collected.join().ok().context("the thread that reads the output panicked")?;
        let Collected { outputs: [stdout, stderr], ended } =
            collected.context("cannot read the output")?;
        let mut report = PayloadReport {
            name: self.run.name,
            cgroup: self.cgroup,
            end,
            stdout,
            stderr,
            metrics: Vec::new(),
            wall: ended.saturating_duration_since(self.began),
            cpu_time,
            checked: 0,
            verdict,
        };
        judge(&self.run.payload, &mut report);
        measured::send(&report.verdict.measurements);
        print(&report.name, [&report.stdout, &report.stderr]);
        Ok(report)
    }
}

/// Prints the output of the program, so that it is part of the output of the body.
fn print(name: &str, outputs: [&Output; 2]) {
    for Output { text, dropped } in outputs {
        if *dropped > 0 {
            println!("[{name}] (the first {dropped} bytes were not kept)");
        }
        for line in text.lines() {
            println!("[{name}] {line}");
        }
    }
}

/// Returns the path of a program in the guest, if exactly this payload is available there.
fn find(payload: Payload, available: &[&Payload]) -> Result<PathBuf> {
    let is_it =
        |other: &&&Payload| (other.program, other.package) == (payload.program, payload.package);
    if available.iter().find(is_it).is_none() {
        let program = payload.program;
        let there: Vec<_> = available.iter().map(|payload| payload.program).collect();
        bail!(
            "unknown program `{program}` in this guest: add its payload to `payloads = [...]` of the \
             test's attribute; this test has {there:?}"
        );
    }
    Ok(Path::new(DIRECTORY).join(payload.name()).join(payload.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_lists_the_available_programs() {
        let (a, b) = (Payload::new("/opt/a"), Payload::new("b").package("pack"));
        let at = |name: &str| Path::new(DIRECTORY).join(name).join(name);
        assert_eq!(find(a, &[&b, &a]).unwrap(), at("a"));
        for (payload, available, there) in [
            (Payload::new("a"), &[&a, &b][..], r#"["/opt/a", "b"]"#),
            (Payload::new("b"), &[&b], r#"["b"]"#),
            (b, &[], "[]"),
        ] {
            let error = find(payload, available).unwrap_err().to_string();
            let named = error.contains(&format!("unknown program `{}`", payload.program));
            assert!(named && error.ends_with(there), "{error}");
        }
    }
}
