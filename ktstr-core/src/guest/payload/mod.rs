//! Payloads: external programs that a test runs in its guest.
//!
//! A [`Payload`] is a constant: a program, its arguments, the numbers to be read from what it prints
//! and the bounds these are held to. The attribute's key `payloads` has its program put into the guest
//! with its shared libraries; a [`PayloadRun`] is one run of it, by an operation of a scenario or by
//! [`Ctx::payload`](crate::guest::scenario::Ctx::payload), and a [`PayloadReport`] what came of it.
//!
//! ```
//! use ktstr_core::payload::{Check, Metric, Payload};
//!
//! const HACKBENCH: Payload = Payload::new("hackbench")
//!     .package("rt-tests")
//!     .args(&["-g", "1", "-l", "20"])
//!     .metrics(&[Metric::regex("time_s", r"Time: ([0-9.]+)").time_based()])
//!     .checks(&[Check::Max("time_s", 30.0)]);
//! HACKBENCH.validate().unwrap();
//! ```

mod call;
mod check;
mod metric;
mod output;
mod report;
mod running;

use std::fmt;

use anyhow::{Context, Result, ensure};

pub use call::PayloadCall;
pub use check::Check;
pub use metric::{Metric, MetricSource, MetricValue};
pub use output::{OUTPUT_KEPT, Output};
pub use report::{PayloadEnd, PayloadReport};
pub(crate) use running::Running;

/// A program that is run in the guest, and what is expected of it.
///
/// Made in a constant by [`Payload::new`] and the methods of the other fields' names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Payload {
    /// The program: a name that the host's PATH leads to, or an absolute path there.
    pub program: &'static str,
    /// The package of Debian trixie that has the program if the host does not.
    pub package: Option<&'static str>,
    /// The arguments of every run.
    pub args: &'static [&'static str],
    /// What is read from a run. Each is a note of the verdict.
    pub metrics: &'static [Metric],
    /// What a run is held to. Without a [`Check::ExitCode`], it must end with exit status 0.
    pub checks: &'static [Check],
}

impl Payload {
    /// A program without arguments, metrics and checks.
    pub const fn new(program: &'static str) -> Self {
        Self { program, package: None, args: &[], metrics: &[], checks: &[] }
    }

    /// Sets the Debian package that has the program.
    pub const fn package(self, package: &'static str) -> Self {
        Self { package: Some(package), ..self }
    }

    /// Sets the arguments of every run.
    pub const fn args(self, args: &'static [&'static str]) -> Self {
        Self { args, ..self }
    }

    /// Sets what is read from a run.
    pub const fn metrics(self, metrics: &'static [Metric]) -> Self {
        Self { metrics, ..self }
    }

    /// Sets what a run is held to.
    pub const fn checks(self, checks: &'static [Check]) -> Self {
        Self { checks, ..self }
    }

    /// The program without its folder.
    pub fn name(&self) -> &'static str {
        self.program.rsplit('/').next().unwrap_or(self.program)
    }

    /// A run with more arguments, behind those of every run.
    pub fn with_args(&self, args: impl IntoIterator<Item = impl Into<String>>) -> PayloadRun {
        PayloadRun::from(self).with_args(args)
    }

    /// A run with a name of its own.
    pub fn named(&self, name: impl Into<String>) -> PayloadRun {
        PayloadRun::from(self).named(name)
    }

    /// Refuses what can never work. The host does so before it boots a machine for it.
    ///
    /// # Errors
    ///
    /// A program without a name, a relative path, a regular expression that cannot be read or has not exactly one
    /// group, a JSON pointer that is none, two metrics of one name, a check of a metric that there
    /// is not, a bound that is no number.
    pub fn validate(&self) -> Result<()> {
        let valid = || {
            let name = self.name();
            ensure!(!name.is_empty() && !name.starts_with('.'), "the program has no name");
            let is_found = name == self.program || self.program.starts_with('/');
            ensure!(is_found, "the program is neither a name nor an absolute path");
            for (index, metric) in self.metrics.iter().enumerate() {
                metric.validate().with_context(|| format!("metric `{}`", metric.name))?;
                let twice = self.metrics[..index].iter().any(|other| other.name == metric.name);
                ensure!(!twice, "there are two metrics called `{}`", metric.name);
            }
            check::validate(self.checks, self.metrics)
        };
        valid().with_context(|| format!("payload `{}`", self.program))
    }
}

/// One run of a payload: under which name, and with which arguments beside those of every run.
#[derive(Debug, Clone, PartialEq)]
pub struct PayloadRun {
    pub(crate) payload: Payload,
    pub(crate) name: String,
    pub(crate) args: Vec<String>,
}

impl PayloadRun {
    /// Adds arguments behind those there are.
    pub fn with_args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets the name by which operations refer to it; the program's if not set.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }
}

impl From<&Payload> for PayloadRun {
    fn from(payload: &Payload) -> Self {
        let args = payload.args.iter().map(|arg| (*arg).to_owned()).collect();
        Self { payload: *payload, name: payload.name().to_owned(), args }
    }
}

/// `hackbench -g 1 -l 20` on one line, the first of it, and behind it the name if that is another.
impl fmt::Display for PayloadRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = self.payload.name();
        let words =
            [program].into_iter().chain(self.args.iter().flat_map(|arg| arg.split_whitespace()));
        write!(f, "`{}`", short(&words.collect::<Vec<_>>().join(" ")))?;
        if self.name == program { Ok(()) } else { write!(f, " as {}", self.name) }
    }
}

/// As much of a text as a message can take.
fn short(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Payload = Payload::new("/opt/bin/load").args(&["-q"]);

    #[test]
    fn a_run_has_the_arguments_of_all_first() {
        let run = LOAD.with_args(["-t", "3"]);
        assert_eq!(run.to_string(), "`load -q -t 3`");
        assert_eq!(run.named("b").to_string(), "`load -q -t 3` as b");
        assert_eq!(PayloadRun::from(&LOAD).name, "load");
        let long = LOAD.with_args(["a\n  b".to_owned(), "\u{20ac}".repeat(1 << 20)]).to_string();
        assert!(
            long.starts_with("`load -q a b \u{20ac}") && long.ends_with("\u{20ac}...`"),
            "{long}"
        );
        assert_eq!(long.chars().count(), 85);
    }

    #[test]
    fn what_can_never_work_is_refused() {
        const TIME: Metric = Metric::regex("time", "([0-9]+)");
        fn metric(metric: Metric) -> Payload {
            LOAD.metrics(Box::leak(Box::new([metric])))
        }
        const fn check(checks: &'static [Check]) -> Payload {
            LOAD.metrics(&[TIME]).checks(checks)
        }
        for (payload, why) in [
            (Payload::new(""), "the program has no name"),
            (Payload::new("/bin/"), "the program has no name"),
            (Payload::new("bin/load"), "neither a name nor an absolute path"),
            (metric(Metric::regex("m", "(")), "metric `m`: "),
            (metric(Metric::regex("m", "a")), "has no group"),
            (metric(Metric::regex("m", "(a)(b)")), "has 2 groups"),
            (metric(Metric::json("m", "a/b")), "begins with `/`"),
            (metric(Metric::json("m", "/a~2")), "`~0` and `~1`"),
            (metric(Metric::exit_code("")), "it has no name"),
            (LOAD.metrics(&[TIME, TIME]), "two metrics called `time`"),
            (check(&[Check::Max("tiem", 1.0)]), "there are [\"time\"]"),
            (check(&[Check::Min("time", f64::NAN)]), "NaN is no bound"),
            (check(&[Check::Range("time", 2.0, 1.0)]), "2 to 1 is empty"),
            (check(&[Check::ExitCode(0), Check::ExitCode(1)]), "two exit statuses"),
            (check(&[Check::ExitCode(256)]), "0 to 255"),
        ] {
            let error = format!("{:#}", payload.validate().unwrap_err());
            assert!(error.starts_with("payload `") && error.contains(why), "{error}");
        }
        LOAD.validate().unwrap();
        check(&[Check::Range("time", 1.0, 1.0)]).validate().unwrap();
    }
}
