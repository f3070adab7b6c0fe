//! A run while it lasts.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags};

use super::output::{Collected, collect};
use super::{Output, PayloadEnd, PayloadReport, PayloadRun};
use crate::assert::{AssertResult, was_killed};
use crate::guest;
use crate::process::{Child, Job, Limits, wait_for};
use crate::workload::describe_signal;

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
    /// If the payload is not valid, the guest has no such program, or it cannot be started there.
    pub(crate) fn start(run: PayloadRun, group: Option<&Path>, cgroup: &str) -> Result<Self> {
        run.payload.validate()?;
        ensure!(!run.name.is_empty(), "a run needs a name: nobody could refer to it");
        let program = find(run.payload.name(), Path::new(guest::PAYLOADS))?;
        let job = match group {
            Some(group) => Job::below(group, Limits::none()),
            None => Job::new(Limits::none()),
        }?;
        let mut command = Command::new(&program);
        command.args(&run.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Some leave files where they are started.
        command.current_dir("/tmp");
        let libraries = program.with_file_name(guest::PAYLOAD_LIBRARIES);
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

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// If it still runs after `timeout`.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        // A time too far for the clock is none.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut fds = [PollFd::new(&self.child, PollFlags::IN)];
        if !wait_for(&mut fds, deadline).context("cannot wait for it")? {
            let (pid, since) = (self.child.pid(), self.began.elapsed());
            bail!(
                "it did not end within {:?}: process {pid}, {}, has run for {since:.1?}",
                timeout.unwrap_or_default(),
                self.run
            );
        }
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
                match describe(status) {
                    PayloadEnd::Died(how) if may_be_killed && was_killed(&how) => {
                        PayloadEnd::KilledAsExpected
                    }
                    end => end,
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

fn describe(status: ExitStatus) -> PayloadEnd {
    match (status.code(), status.signal()) {
        (Some(code), _) => PayloadEnd::Exited(code),
        (_, Some(signal)) => PayloadEnd::Died(describe_signal(signal)),
        _ => PayloadEnd::Died("an unknown status".to_owned()),
    }
}

/// The program in its folder of the guest.
fn find(name: &str, folder: &Path) -> Result<PathBuf> {
    let program = folder.join(name).join(name);
    if !program.exists() {
        let entries = folder.read_dir().into_iter().flatten().flatten();
        let mut there: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        there.sort();
        bail!(
            "this guest has no program `{name}`: add its payload to `payloads = [...]` of the \
             test's attribute; there are {there:?}"
        );
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_not_brought_along_is_named_with_those_that_were() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b", "a"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join(name), "").unwrap();
        }
        assert_eq!(find("a", folder.path()).unwrap(), folder.path().join("a/a"));
        for (folder, there) in [(folder.path(), r#"["a", "b"]"#), (Path::new("/nowhere"), "[]")] {
            let error = find("c", folder).unwrap_err().to_string();
            assert!(error.contains("no program `c`") && error.ends_with(there), "{error}");
        }
    }
}
