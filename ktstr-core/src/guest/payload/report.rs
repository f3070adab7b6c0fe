//! What came of a run.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};

use super::{MetricValue, Output, Payload, check};
use crate::guest::assert::AssertResult;

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PayloadEnd {
    /// By itself, with this exit status.
    Exited(i32),
    /// By a signal that the test did not send: `signal 11 (SIGSEGV)`.
    Died(String),
    /// By SIGKILL, in a cgroup of which a kill for want of memory is expected.
    KilledAsExpected,
    /// By the test: how. There is no exit status to be judged.
    Stopped(String),
}

/// `exit status 0`, `signal 11 (SIGSEGV)`, `killed by the test`.
impl fmt::Display for PayloadEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit status {code}"),
            Self::KilledAsExpected => f.write_str("killed as expected"),
            Self::Died(how) | Self::Stopped(how) => f.write_str(how),
        }
    }
}

/// What came of a run of a payload.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "a verdict that is dropped checks nothing"]
pub struct PayloadReport {
    /// The name of the run.
    pub name: String,
    /// The cgroup it ran in, as the test names it; empty if none was named.
    pub cgroup: String,
    /// How it ended.
    pub end: PayloadEnd,
    /// What it printed on standard output.
    pub stdout: Output,
    /// What it printed on standard error.
    pub stderr: Output,
    /// The metrics, in the order of the payload.
    pub metrics: Vec<(&'static str, MetricValue)>,
    /// From its start to its end.
    pub wall: Duration,
    /// The CPU time of the program and of all that it started.
    pub cpu_time: Duration,
    /// How many checks could tell something; the exit status is one.
    pub checked: usize,
    /// What the checks concluded. The metrics are its notes.
    pub verdict: AssertResult,
}

impl PayloadReport {
    /// The number that a metric has.
    ///
    /// # Errors
    ///
    /// If it could not be measured: why. If the payload has no such metric: those it has.
    pub fn metric(&self, name: &str) -> Result<f64> {
        match self.metrics.iter().find(|(metric, _)| *metric == name) {
            Some((_, MetricValue::Number(number))) => Ok(*number),
            Some((_, value)) => bail!("{name} of {} could not be measured: {value}", self.name),
            None => {
                let known: Vec<_> = self.metrics.iter().map(|(metric, _)| *metric).collect();
                bail!("{} has no metric `{name}`; there are {known:?}", self.name)
            }
        }
    }

    /// Reads the metrics and holds them against the checks.
    pub(super) fn judge(&mut self, payload: &Payload) {
        let read = payload.metrics.iter();
        let read = read.map(|one| (one.name, one.read(&self.end, &self.stdout, &self.stderr)));
        self.metrics = read.collect();
        let (mut verdict, checked) = check::judge(payload, self);
        for (metric, value) in &self.metrics {
            verdict.note_value(format!("{}: {metric}", self.name), value);
        }
        if matches!(self.end, PayloadEnd::KilledAsExpected | PayloadEnd::Stopped(_)) {
            verdict.note(self.to_string());
        }
        // What the run had noted before.
        verdict.notes.splice(0..0, std::mem::take(&mut self.verdict.notes));
        (self.verdict, self.checked) = (verdict, checked);
    }

    /// The last lines it printed, of its complaints if there are any.
    pub(super) fn last_words(&self) -> String {
        const LINES: usize = 3;
        let texts = [&self.stderr.text, &self.stdout.text];
        let Some(text) = texts.iter().find(|text| !text.trim().is_empty()) else {
            return "it printed nothing".to_owned();
        };
        let lines = text.lines().rev().filter(|line| !line.trim().is_empty()).take(LINES);
        let mut lines: Vec<_> = lines.map(str::trim).collect();
        lines.reverse();
        format!("its last words: {}", lines.join(" | "))
    }
}

/// `hackbench ended with exit status 0 after 1.2s`.
impl fmt::Display for PayloadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, end, wall, .. } = self;
        match end {
            PayloadEnd::Exited(_) => write!(f, "{name} ended with {end} after {wall:.1?}"),
            PayloadEnd::Died(_) => write!(f, "{name} died of {end} after {wall:.1?}"),
            PayloadEnd::KilledAsExpected | PayloadEnd::Stopped(_) => {
                write!(f, "{name} was {end} after {wall:.1?}")
            }
        }
    }
}
