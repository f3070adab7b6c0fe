//! The definition of a payload, and of one run of it.

use std::fmt;

use anyhow::{Context, Result, ensure};

use super::check::{self, Check};
use super::metric::Metric;
use super::output::short;

/// The directory of the guest with the programs of payloads: each in a directory with its own name.
pub const DIRECTORY: &str = "/ktstr/payloads";

/// The directory next to such a program with its libraries, if they are not those of the guest.
pub const LIBRARIES: &str = "lib";

/// A program that runs in the guest, and what is expected of it.
///
/// Defined as a constant, with [`Payload::new`] and the methods named after the other fields.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Payload {
    /// The program: a name in the host's PATH, or an absolute path there.
    pub program: &'static str,
    /// The package of Debian trixie that provides the program if the host does not.
    pub package: Option<&'static str>,
    /// The arguments of every run.
    pub args: &'static [&'static str],
    /// The numbers to read from a run. Each becomes a measurement and a note of the verdict.
    pub metrics: &'static [Metric],
    /// The checks of a run. Without a [`Check::ExitCode`], it must exit with status 0.
    pub checks: &'static [Check],
}

impl Payload {
    /// Creates a payload without arguments, metrics and checks.
    pub const fn new(program: &'static str) -> Self {
        Self { program, package: None, args: &[], metrics: &[], checks: &[] }
    }

    /// Sets the Debian package that provides the program.
    pub const fn package(self, package: &'static str) -> Self {
        Self { package: Some(package), ..self }
    }

    /// Sets the arguments of every run.
    pub const fn args(self, args: &'static [&'static str]) -> Self {
        Self { args, ..self }
    }

    /// Sets the numbers to read from a run.
    pub const fn metrics(self, metrics: &'static [Metric]) -> Self {
        Self { metrics, ..self }
    }

    /// Sets the checks of a run.
    pub const fn checks(self, checks: &'static [Check]) -> Self {
        Self { checks, ..self }
    }

    /// Returns the name of the program without its directory.
    pub fn name(&self) -> &'static str {
        self.program.rsplit('/').next().unwrap_or(self.program)
    }

    /// Creates a run with more arguments, after those of every run.
    pub fn with_args(&self, args: impl IntoIterator<Item = impl Into<String>>) -> PayloadRun {
        PayloadRun::from(self).with_args(args)
    }

    /// Creates a run with its own name.
    pub fn named(&self, name: impl Into<String>) -> PayloadRun {
        PayloadRun::from(self).named(name)
    }

    /// Checks the definition, as the host does before it boots a machine.
    ///
    /// # Errors
    ///
    /// If the program has no name or a relative path, a regular expression is invalid or does not have
    /// exactly one group, a JSON pointer is invalid, two metrics have the same name, a check refers to
    /// an unknown metric, or a limit is not finite.
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

/// One run of a payload: its name, and its arguments including those of every run.
#[derive(Debug, Clone, PartialEq)]
pub struct PayloadRun {
    pub(crate) payload: Payload,
    pub(crate) name: String,
    pub(crate) args: Vec<String>,
}

impl PayloadRun {
    /// Appends arguments.
    pub fn with_args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets the name by which operations refer to it; by default, that of the program.
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

/// Writes `hackbench -g 1 -l 20` on one line, cut after 80 characters, and the name if it is another.
impl fmt::Display for PayloadRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = self.payload.name();
        let words =
            [program].into_iter().chain(self.args.iter().flat_map(|arg| arg.split_whitespace()));
        write!(f, "`{}`", short(&words.collect::<Vec<_>>().join(" ")))?;
        if self.name == program { Ok(()) } else { write!(f, " as {}", self.name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Payload = Payload::new("/opt/bin/load").args(&["-q"]);

    #[test]
    fn payload_run_appends_its_arguments() {
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
    fn validate_rejects_invalid_definitions() {
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
            (metric(Metric::json("m", "a/b")), "begin with `/`"),
            (metric(Metric::json("m", "/a~2")), "`~0` and `~1`"),
            (metric(Metric::exit_code("")), "the metric has no name"),
            (LOAD.metrics(&[TIME, TIME]), "two metrics called `time`"),
            (check(&[Check::Max("tiem", 1.0)]), "this payload has [\"time\"]"),
            (check(&[Check::Min("time", f64::NAN)]), "NaN is not a limit"),
            (check(&[Check::Range("time", 2.0, 1.0)]), "2 to 1 is empty"),
            (check(&[Check::ExitCode(0), Check::ExitCode(1)]), "more than one `Check::ExitCode`"),
            (check(&[Check::ExitCode(256)]), "0 to 255"),
        ] {
            let error = format!("{:#}", payload.validate().unwrap_err());
            assert!(error.starts_with("payload `") && error.contains(why), "{error}");
        }
        LOAD.validate().unwrap();
        check(&[Check::Range("time", 1.0, 1.0)]).validate().unwrap();
    }
}
