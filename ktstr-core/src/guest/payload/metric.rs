//! Numbers that are read from the output of a program.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use regex_lite::Regex;
use serde_json::Value;

use super::end::PayloadEnd;
use super::output::{Output, short};

/// A number to read from a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    /// The name by which checks refer to it.
    pub name: &'static str,
    /// Where it is found.
    pub source: MetricSource,
    /// Whether steal time could explain a bad value.
    pub time_based: bool,
}

/// Where a metric is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricSource {
    /// The exit status.
    ExitCode,
    /// A place in a JSON document on standard output.
    Json(&'static str),
    /// The group of a regular expression.
    Regex(&'static str),
}

impl Metric {
    /// Creates a metric that is the exit status; a program that was killed has none.
    pub const fn exit_code(name: &'static str) -> Self {
        Self { name, source: MetricSource::ExitCode, time_based: false }
    }

    /// Creates a metric from the number at `pointer` (`/thread/0/max`) in the JSON document on standard
    /// output.
    ///
    /// If there are other lines on standard output, the document is the first complete object or array
    /// that begins at the start of a line, ignoring spaces.
    ///
    /// Source: RFC 6901, JSON Pointer.
    pub const fn json(name: &'static str, pointer: &'static str) -> Self {
        Self { name, source: MetricSource::Json(pointer), time_based: false }
    }

    /// Creates a metric from the only group of the regular expression `pattern`, at its first match in
    /// standard output, or else in standard error.
    ///
    /// `^` and `$` match the ends of the whole text, with `(?m)` those of lines. The syntax is that of
    /// the crate `regex-lite`.
    pub const fn regex(name: &'static str, pattern: &'static str) -> Self {
        Self { name, source: MetricSource::Regex(pattern), time_based: false }
    }

    /// Marks the metric as something that steal time could worsen. On emulated CPUs, a failed check of
    /// it is a note, unless the test sets `judge_emulated_time`.
    pub const fn time_based(self) -> Self {
        Self { time_based: true, ..self }
    }

    pub(super) fn validate(&self) -> Result<()> {
        ensure!(!self.name.is_empty(), "the metric has no name");
        match self.source {
            MetricSource::ExitCode => {}
            MetricSource::Json(pointer) => {
                ensure!(
                    pointer.is_empty() || pointer.starts_with('/'),
                    "invalid JSON pointer `{pointer}`: it must begin with `/`"
                );
                let mut escapes = pointer.split('~').skip(1);
                let known = escapes.all(|rest| rest.starts_with(['0', '1']));
                ensure!(known, "invalid JSON pointer `{pointer}`: the escapes are `~0` and `~1`");
            }
            MetricSource::Regex(pattern) => drop(compile(pattern)?),
        }
        Ok(())
    }

    /// Reads the metric from a run that has ended.
    pub(super) fn read(&self, end: &PayloadEnd, stdout: &Output, stderr: &Output) -> MetricValue {
        let read = match self.source {
            MetricSource::ExitCode => match end {
                PayloadEnd::Exited(code) => Ok(MetricValue::Number(f64::from(*code))),
                end => Err(format!("no exit status: {end}")),
            },
            MetricSource::Json(pointer) => from_json(pointer, stdout),
            MetricSource::Regex(pattern) => {
                let is_whole = matches!(end, PayloadEnd::Exited(_));
                from_text(pattern, [stdout, stderr].map(|output| output.lines(is_whole)))
            }
        };
        read.unwrap_or_else(|mut why| {
            let dropped = stdout.dropped + stderr.dropped;
            if dropped > 0 && self.source != MetricSource::ExitCode {
                why += &format!("; the first {dropped} bytes of its output were not kept");
            }
            MetricValue::Missing(why)
        })
    }
}

/// The value of a metric, as far as it was found.
#[derive(Debug, Clone, PartialEq)]
pub enum MetricValue {
    /// Its value, which is finite.
    Number(f64),
    /// A text in its place that is not a number.
    Text(String),
    /// Nothing: why.
    Missing(String),
}

/// Writes `0.123`, `not a number: "n/a"`, or why it is missing.
impl fmt::Display for MetricValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => write!(f, "not a number: {text:?}"),
            Self::Missing(why) => f.write_str(why),
        }
    }
}

fn compile(pattern: &str) -> Result<Regex> {
    let regex =
        Regex::new(pattern).with_context(|| format!("invalid regular expression `{pattern}`"))?;
    match regex.captures_len() - 1 {
        1 => Ok(regex),
        0 => bail!("`{pattern}` has no group: put parentheses around the number"),
        groups => bail!("`{pattern}` has {groups} groups: write all but one as `(?:…)`"),
    }
}

fn from_text(pattern: &str, outputs: [&str; 2]) -> Result<MetricValue, String> {
    let regex = compile(pattern).map_err(|error| format!("{error:#}"))?;
    let found = outputs.into_iter().find_map(|text| regex.captures(text));
    let found = found.ok_or_else(|| format!("nothing matches `{pattern}`"))?;
    // The group may be part of an alternative that did not match.
    let group = found.get(1).ok_or_else(|| format!("the group of `{pattern}` matches nothing"))?;
    let number = group.as_str().trim().parse::<f64>().ok().filter(|number| number.is_finite());
    Ok(number.map_or_else(|| MetricValue::Text(short(group.as_str())), MetricValue::Number))
}

fn from_json(pointer: &str, output: &Output) -> Result<MetricValue, String> {
    let document = document(output)?;
    let value = document
        .pointer(pointer)
        .ok_or_else(|| format!("the JSON document has nothing at `{pointer}`"))?;
    let number = value.as_f64().filter(|number| number.is_finite());
    Ok(number.map_or_else(|| MetricValue::Text(short(&value.to_string())), MetricValue::Number))
}

/// Returns the first JSON object or array that begins and ends on its own lines, or else all of the
/// text, which may be a bare number. An incomplete document is an error: its inner objects are not the
/// document.
fn document(output: &Output) -> Result<Value, String> {
    let text = &*output.text;
    if output.dropped > 0 {
        return Err("the beginning of standard output was not kept".to_owned());
    }
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.trim_start().starts_with(['{', '[']) {
            let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter();
            let value = values.next();
            let behind = text[at + values.byte_offset()..].lines().next().unwrap_or_default();
            match value {
                Some(Ok(value)) if behind.trim().is_empty() => return Ok(value),
                Some(Err(error)) if error.is_eof() => {
                    return Err("the JSON document is cut off".to_owned());
                }
                // Not JSON: `[info] ...`, `[1] ...`.
                _ => {}
            }
        }
        at += line.len();
    }
    let missing = |_| "no JSON document on standard output".to_owned();
    serde_json::from_str(text).map_err(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(metric: Metric, stdout: &str, stderr: &str) -> MetricValue {
        let output = |text: &str| Output { text: text.to_owned(), dropped: 0 };
        metric.read(&PayloadEnd::Exited(3), &output(stdout), &output(stderr))
    }

    fn is(metric: Metric, stdout: &str, want: Result<f64, &str>) {
        match (read(metric, stdout, ""), want) {
            (MetricValue::Number(number), Ok(want)) => assert_eq!(number, want, "{stdout}"),
            (value @ (MetricValue::Text(_) | MetricValue::Missing(_)), Err(want)) => {
                assert_eq!(value.to_string(), want, "{stdout}");
            }
            (value, want) => panic!("{value:?}, not {want:?}: {stdout}"),
        }
    }

    #[test]
    fn regex_reads_its_group() {
        let time = Metric::regex("m", r"Time: (\S*)");
        for (stdout, want) in [
            ("Running\nTime: 0.125\n", Ok(0.125)),
            ("Time: -3e2\nTime: 4", Ok(-300.0)),
            ("Time: n/a", Err("not a number: \"n/a\"")),
            ("Time: inf", Err("not a number: \"inf\"")),
            ("Time: NaN", Err("not a number: \"NaN\"")),
            ("Time: ", Err("not a number: \"\"")),
            ("", Err(r"nothing matches `Time: (\S*)`")),
        ] {
            is(time, stdout, want);
        }
        is(Metric::regex("m", "a|b(.)"), "a", Err("the group of `a|b(.)` matches nothing"));
    }

    #[test]
    fn read_prefers_standard_output() {
        let metric = Metric::regex("m", "n=([0-9]+)");
        assert_eq!(read(metric, "n=1", "n=2"), MetricValue::Number(1.0));
        assert_eq!(read(metric, "", "n=2"), MetricValue::Number(2.0));
        assert_eq!(
            read(Metric::json("m", "/a"), "", "{\"a\":1}").to_string(),
            "no JSON document on standard output"
        );
    }

    #[test]
    fn json_reads_the_number_at_the_pointer() {
        let text = "# Policy: fifo\n[info] starts\n  {\"thread\": {\"0\": {\"max\": 17, \"a/b~\": 2}},\n\
                    \"list\": [1, 2.5], \"name\": \"x\", \"none\": null}\ntrailing {\n";
        for (pointer, want) in [
            ("/thread/0/max", Ok(17.0)),
            ("/thread/0/a~1b~0", Ok(2.0)),
            ("/list/1", Ok(2.5)),
            ("/list/2", Err("the JSON document has nothing at `/list/2`")),
            ("/name", Err("not a number: \"\\\"x\\\"\"")),
            ("/none", Err("not a number: \"null\"")),
            ("/thread", Err("not a number: \"{\\\"0\\\":{\\\"a/b~\\\":2,\\\"max\\\":17}}\"")),
        ] {
            is(Metric::json("m", pointer), text, want);
        }
        is(Metric::json("m", ""), " 12.5 \n", Ok(12.5));
        is(Metric::json("m", ""), "{ broken", Err("no JSON document on standard output"));
        is(Metric::json("m", "/max"), "[1] worker started\n{} {}\n{\"max\": 99}", Ok(99.0));
    }

    #[test]
    fn json_ignores_incomplete_documents() {
        let document = "{\"runs\": [\n  {\"max\": 1},\n  {\"max\": 2}\n], \"max\": 99}";
        is(Metric::json("m", "/max"), document, Ok(99.0));
        let cut = document.trim_end_matches('}');
        is(Metric::json("m", "/max"), cut, Err("the JSON document is cut off"));
        let tail = Output { text: document[10..].to_owned(), dropped: 10 };
        let read = Metric::json("m", "/max").read(&PayloadEnd::Exited(0), &tail, &tail);
        assert_eq!(
            read.to_string(),
            "the beginning of standard output was not kept; \
             the first 20 bytes of its output were not kept"
        );
    }

    #[test]
    fn regex_reads_complete_lines_only() {
        let metric = Metric::regex("m", "([0-9]+) us");
        let cut = Output { text: "500 us\n7 us\n80 u".to_owned(), dropped: 1 };
        let none = Output::default();
        let read = |end: PayloadEnd, output: &Output| metric.read(&end, output, &none);
        assert_eq!(read(PayloadEnd::Exited(0), &cut), MetricValue::Number(7.0));
        let begun = Output { text: "9 us".to_owned(), dropped: 0 };
        let stopped = || PayloadEnd::Stopped("stopped".to_owned());
        assert_eq!(read(PayloadEnd::Exited(0), &begun), MetricValue::Number(9.0));
        assert!(matches!(read(stopped(), &begun), MetricValue::Missing(_)));
    }

    #[test]
    fn exit_code_is_missing_after_a_signal() {
        let metric = Metric::exit_code("m");
        is(metric, "", Ok(3.0));
        let output = Output { text: String::new(), dropped: 9 };
        let killed = PayloadEnd::Signaled(libc::SIGKILL);
        let value = metric.read(&killed, &output, &output).to_string();
        assert_eq!(value, "no exit status: signal 9 (SIGKILL)");
    }

    #[test]
    fn read_reports_dropped_output() {
        let output = |dropped| Output { text: String::new(), dropped };
        let metric = Metric::regex("m", "(a)");
        let value = metric.read(&PayloadEnd::Exited(0), &output(5), &output(2)).to_string();
        assert!(value.ends_with("; the first 7 bytes of its output were not kept"), "{value}");
    }
}
