//! A run while it lasts.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags};

use super::output::{Collected, collect};
use super::{Output, Payload, PayloadEnd, PayloadReport, PayloadRun};
use crate::guest::agent;
use crate::guest::assert::AssertResult;
use crate::linux::process::{Child, Job, Limits, wait_for};
use crate::model::exit::ExitKind;

/// A program that was started. Dropping it kills the program and all that this started.
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
    /// Starts a program in `group`, the folder of a cgroup that the test calls `cgroup`; without one,
    /// in the group of the test itself. It is in a group of its own below that from its first
    /// instruction on.
    ///
    /// # Errors
    ///
    /// If the payload is not valid or none of those that the test has `brought` along, the group is
    /// frozen, or the program cannot be started there.
    pub(crate) fn start(
        run: PayloadRun,
        brought: &[&Payload],
        group: Option<&Path>,
        cgroup: &str,
    ) -> Result<Self> {
        run.payload.validate()?;
        ensure!(!run.name.is_empty(), "a run needs a name: nobody could refer to it");
        let program = find(run.payload, brought)?;
        if let Some(group) = group {
            // Whoever starts it would wait until the group is thawed.
            let path = group.join("cgroup.events");
            let events = std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let is_frozen = events.lines().any(|line| line == "frozen 1");
            ensure!(!is_frozen, "`{cgroup}` is frozen, and nothing can start in it");
        }
        let job = match group {
            Some(group) => Job::below(group, Limits::none()),
            None => Job::new(Limits::none()),
        }?;
        let mut command = Command::new(&program);
        command.args(&run.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Some leave files where they are started.
        command.current_dir("/tmp");
        let libraries = program.with_file_name(agent::PAYLOAD_LIBRARIES);
        if libraries.is_dir() {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        let began = Instant::now();
        let mut child = job.spawn(command)?;
        let pipes = (child.stdout.take(), child.stderr.take());
        let (Some(stdout), Some(stderr)) = pipes else { unreachable!("both are piped") };
        let pidfd = child.as_fd().try_clone_to_owned().context("cannot copy a pidfd")?;
        let collected = collect([OwnedFd::from(stdout), OwnedFd::from(stderr)], pidfd)
            .context("cannot read what the program prints")?;
        Ok(Self { run, cgroup: cgroup.to_owned(), child, job, collected, began })
    }

    pub(crate) fn name(&self) -> &str {
        &self.run.name
    }

    pub(crate) fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// The numbers of the processes that there are of it.
    pub(crate) fn pids(&self) -> Result<Vec<i32>> {
        Ok(self.job.members()?.into_iter().map(|process| process.pid).collect())
    }

    /// Readable once the program has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.as_fd()
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// If it still runs after `timeout`.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        // A time too far for the clock is none.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.wait_until(deadline)?;
        self.ensure_ended(timeout.unwrap_or_default())
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Result<bool> {
        let mut fds = [PollFd::new(&self.child, PollFlags::IN)];
        wait_for(&mut fds, deadline).context("cannot wait for it")
    }

    /// Refuses one that still runs after `timeout`.
    pub(crate) fn ensure_ended(&self, timeout: Duration) -> Result<()> {
        let (pid, since) = (self.child.pid(), self.began.elapsed());
        ensure!(
            self.wait_until(Some(Instant::now()))?,
            "it did not end within {timeout:?}: process {pid}, {}, has run for {since:.1?}",
            self.run
        );
        Ok(())
    }

    /// Ends it if it still runs, of which the report then says `how`, and judges it. Where
    /// `may_be_killed`, SIGKILL is how it is expected to end.
    ///
    /// # Errors
    ///
    /// If it cannot be ended.
    pub(crate) fn finish(mut self, how: &str, may_be_killed: bool) -> Result<PayloadReport> {
        let ended = self.child.wait_timeout(Duration::ZERO).context("cannot ask for its status")?;
        let mut verdict = AssertResult::pass();
        let end = match ended {
            Some(status) => {
                let leaked = self.job.leaked()?;
                if let Some(first) = leaked.first() {
                    let count = leaked.len();
                    verdict.note(format!("{} left {count} processes: {first}", self.name()));
                }
                match ExitKind::from(status) {
                    ExitKind::Exited(status) => PayloadEnd::Exited(status),
                    killed if may_be_killed && killed.is_sigkill() => PayloadEnd::KilledAsExpected,
                    killed => PayloadEnd::Died(killed.to_string()),
                }
            }
            None => PayloadEnd::Stopped(how.to_owned()),
        };
        self.job.kill_all().context("cannot end it")?;
        self.child.wait().context("cannot wait for its end")?;
        let cpu_time = self.job.stats()?.cpu_time;
        let collected = self.collected.join().ok().context("the reader of its output panicked")?;
        let Collected { outputs: [stdout, stderr], ended } =
            collected.context("cannot read what it printed")?;
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
        report.judge(&self.run.payload);
        print(&report.name, [&report.stdout, &report.stderr]);
        Ok(report)
    }
}

/// Prints what the program did, so that it is with what the body printed.
fn print(name: &str, outputs: [&Output; 2]) {
    for Output { text, dropped } in outputs {
        if *dropped > 0 {
            println!("[{name}] ({dropped} bytes before this were not kept)");
        }
        for line in text.lines() {
            println!("[{name}] {line}");
        }
    }
}

/// Where a program is in the guest, if it was brought along: this one, and not another of its name.
fn find(payload: Payload, brought: &[&Payload]) -> Result<PathBuf> {
    let is_it =
        |other: &&&Payload| (other.program, other.package) == (payload.program, payload.package);
    if brought.iter().find(is_it).is_none() {
        let program = payload.program;
        let there: Vec<_> = brought.iter().map(|payload| payload.program).collect();
        bail!(
            "this guest has no program `{program}`: add its payload to `payloads = [...]` of the \
             test's attribute; there are {there:?}"
        );
    }
    Ok(Path::new(agent::PAYLOADS).join(payload.name()).join(payload.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_not_brought_along_is_named_with_those_that_were() {
        let (a, b) = (Payload::new("/opt/a"), Payload::new("b").package("pack"));
        let at = |name: &str| Path::new(agent::PAYLOADS).join(name).join(name);
        assert_eq!(find(a, &[&b, &a]).unwrap(), at("a"));
        for (payload, brought, there) in [
            (Payload::new("a"), &[&a, &b][..], r#"["/opt/a", "b"]"#),
            (Payload::new("b"), &[&b], r#"["b"]"#),
            (b, &[], "[]"),
        ] {
            let error = find(payload, brought).unwrap_err().to_string();
            let named = error.contains(&format!("no program `{}`", payload.program));
            assert!(named && error.ends_with(there), "{error}");
        }
    }
}
