//! The checks of a run.

use anyhow::{Result, bail, ensure};

use super::metric::Metric;
use crate::model::measurement::Limit;

/// A check of a run. It refers to a metric by its [`Metric::name`].
///
/// A limit of a metric that is missing or not a number is inconclusive, because nothing was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Check {
    /// The metric is at least this.
    Min(&'static str, f64),
    /// The metric is at most this.
    Max(&'static str, f64),
    /// The metric is at least the first and at most the second.
    Range(&'static str, f64, f64),
    /// The metric was found, whether or not it is a number. A missing metric is a failure.
    Exists(&'static str),
    /// The program exits with this status, 0 to 255.
    ExitCode(i32),
}

impl Check {
    pub(super) fn metric(&self) -> Option<&'static str> {
        match self {
            Self::Min(metric, _)
            | Self::Max(metric, _)
            | Self::Range(metric, _, _)
            | Self::Exists(metric) => Some(metric),
            Self::ExitCode(_) => None,
        }
    }

    pub(super) fn limit(&self) -> Option<Limit> {
        match *self {
            Self::Min(_, least) => Some(Limit::AtLeast(least)),
            Self::Max(_, most) => Some(Limit::AtMost(most)),
            Self::Range(_, least, most) => Some(Limit::Between(least, most)),
            Self::Exists(_) | Self::ExitCode(_) => None,
        }
    }
}

pub(super) fn validate(checks: &[Check], metrics: &[Metric]) -> Result<()> {
    for check in checks {
        if let Some(name) = check.metric()
            && !metrics.iter().any(|metric| metric.name == name)
        {
            let known: Vec<_> = metrics.iter().map(|metric| metric.name).collect();
            bail!("unknown metric `{name}` in a check; this payload has {known:?}");
        }
        match *check {
            Check::Min(_, bound) | Check::Max(_, bound) => ensure_finite(&[bound])?,
            Check::Range(_, least, most) => {
                ensure_finite(&[least, most])?;
                ensure!(least <= most, "the range {least} to {most} is empty");
            }
            Check::Exists(_) => {}
            Check::ExitCode(code) => {
                ensure!((0..=255).contains(&code), "invalid exit status {code} (0 to 255)");
            }
        }
    }
    let codes = checks.iter().filter(|check| matches!(check, Check::ExitCode(_)));
    ensure!(codes.count() < 2, "more than one `Check::ExitCode`");
    Ok(())
}

fn ensure_finite(bounds: &[f64]) -> Result<()> {
    for bound in bounds {
        ensure!(bound.is_finite(), "{bound} is not a limit");
    }
    Ok(())
}
