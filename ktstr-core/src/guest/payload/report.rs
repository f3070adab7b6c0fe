//! The result of a run.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};

use super::end::PayloadEnd;
use super::metric::MetricValue;
use super::output::Output;
use crate::model::verdict::AssertResult;

/// The result of a run of a payload.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "a verdict that is dropped checks nothing"]
pub struct PayloadReport {
    /// The name of the run.
    pub name: String,
    /// The cgroup it ran in, as the test names it; empty for the cgroup of the test.
    pub cgroup: String,
    /// How it ended.
    pub end: PayloadEnd,
    /// Its standard output.
    pub stdout: Output,
    /// Its standard error.
    pub stderr: Output,
    /// The metrics, in the order of the payload.
    pub metrics: Vec<(&'static str, MetricValue)>,
    /// From its start to its end.
    pub wall: Duration,
    /// The CPU time of the program and its descendants.
    pub cpu_time: Duration,
    /// The number of checks that could decide; the exit status is one.
    pub checked: usize,
    /// The verdict of the checks. The metrics are among its measurements and notes.
    pub verdict: AssertResult,
}

impl PayloadReport {
    /// Returns the number of a metric.
    ///
    /// # Errors
    ///
    /// If it could not be measured, with the reason; if the payload has no such metric, with those it has.
    pub fn metric(&self, name: &str) -> Result<f64> {
        match self.metrics.iter().find(|(metric, _)| *metric == name) {
            Some((_, MetricValue::Number(number))) => Ok(*number),
            Some((_, value)) => bail!("{name} of {} could not be measured: {value}", self.name),
            None => {
                let known: Vec<_> = self.metrics.iter().map(|(metric, _)| *metric).collect();
                bail!("unknown metric `{name}` of {}; it has {known:?}", self.name)
            }
        }
    }

    /// Describes the last lines of its standard error, or else of its standard output.
    pub(super) fn last_output(&self) -> String {
        const LINES: usize = 3;
        let texts = [&self.stderr.text, &self.stdout.text];
        let Some(text) = texts.iter().find(|text| !text.trim().is_empty()) else {
            return "no output".to_owned();
        };
        let lines = text.lines().rev().filter(|line| !line.trim().is_empty()).take(LINES);
        let mut lines: Vec<_> = lines.map(str::trim).collect();
        lines.reverse();
        format!("its last output: {}", lines.join(" | "))
    }
}

/// Writes `hackbench ended with exit status 0 after 1.2s`.
impl fmt::Display for PayloadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, end, wall, .. } = self;
        match end {
            PayloadEnd::Exited(_) => write!(f, "{name} ended with {end} after {wall:.1?}"),
            PayloadEnd::Signaled(_) => write!(f, "{name} was killed by {end} after {wall:.1?}"),
            PayloadEnd::KilledAsExpected | PayloadEnd::Stopped(_) => {
                write!(f, "{name} was {end} after {wall:.1?}")
            }
        }
    }
}
