//! What a run is held to.

use anyhow::{Result, bail, ensure};

use super::{Metric, MetricValue, Payload, PayloadEnd, PayloadReport};
use crate::guest::assert::{AssertDetail, AssertResult, DetailKind, Outcome, shown};

/// What a run is held to. A metric is named by its [`Metric::name`].
///
/// A bound on a metric that is missing, or is no number, is inconclusive: it could not be measured.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Check {
    /// The metric is at least this.
    Min(&'static str, f64),
    /// The metric is at most this.
    Max(&'static str, f64),
    /// The metric is at least the first and at most the second.
    Range(&'static str, f64, f64),
    /// The metric was found, be it a number or not. That it is missing is a failure.
    Exists(&'static str),
    /// The program ends with this exit status, 0 to 255.
    ExitCode(i32),
}

impl Check {
    fn metric(&self) -> Option<&'static str> {
        match self {
            Self::Min(metric, _)
            | Self::Max(metric, _)
            | Self::Range(metric, _, _)
            | Self::Exists(metric) => Some(metric),
            Self::ExitCode(_) => None,
        }
    }
}

pub(super) fn validate(checks: &[Check], metrics: &[Metric]) -> Result<()> {
    for check in checks {
        if let Some(name) = check.metric()
            && !metrics.iter().any(|metric| metric.name == name)
        {
            let known: Vec<_> = metrics.iter().map(|metric| metric.name).collect();
            bail!("no metric is called `{name}`, of which there is a check; there are {known:?}");
        }
        let bounds = match *check {
            Check::Min(_, bound) | Check::Max(_, bound) => vec![bound],
            Check::Range(_, least, most) => vec![least, most],
            Check::Exists(_) => vec![],
            Check::ExitCode(code) => {
                ensure!((0..=255).contains(&code), "{code} is no exit status: those are 0 to 255");
                vec![]
            }
        };
        for bound in &bounds {
            ensure!(bound.is_finite(), "{bound} is no bound");
        }
        if let [least, most] = bounds[..] {
            ensure!(least <= most, "the range {least} to {most} is empty");
        }
    }
    let codes = checks.iter().filter(|check| matches!(check, Check::ExitCode(_)));
    ensure!(codes.count() < 2, "two exit statuses are wanted, and a program has one");
    Ok(())
}

/// Holds a run against the checks. Also says how many of them could tell.
pub(super) fn judge(payload: &Payload, report: &PayloadReport) -> (AssertResult, usize) {
    let wanted = payload.checks.iter().find_map(|check| match check {
        Check::ExitCode(code) => Some(*code),
        _ => None,
    });
    let of_end = judge_end(wanted, &report.end);
    let of_metrics = payload.checks.iter().filter_map(|check| {
        let metric = payload.metrics.iter().find(|metric| Some(metric.name) == check.metric())?;
        let (_, value) = report.metrics.iter().find(|(name, _)| *name == metric.name)?;
        Some(judge_metric(check, metric, value, &report.end))
    });
    let judged: Vec<_> = of_end.into_iter().chain(of_metrics).collect();
    let told = judged.iter().filter(|verdict| verdict.outcome != Outcome::Inconclusive).count();
    let mut verdict = judged.into_iter().fold(AssertResult::pass(), AssertResult::merge);
    for detail in &mut verdict.details {
        let named = detail.clone().worker(&report.name).cgroup(&report.cgroup);
        *detail = match detail.kind {
            DetailKind::PayloadEnd if detail.outcome == Outcome::Fail => {
                named.because(&report.last_words())
            }
            _ => named,
        };
    }
    (verdict, told)
}

/// `None` if there is nothing to be held: the test ended the program, and no status was asked for.
fn judge_end(wanted: Option<i32>, end: &PayloadEnd) -> Option<AssertResult> {
    let kind = DetailKind::PayloadEnd;
    let code = wanted.unwrap_or(0);
    match (end, wanted) {
        // Whether a kill was for want of memory, the counters of the cgroup tell.
        (PayloadEnd::Stopped(_) | PayloadEnd::KilledAsExpected, None) => None,
        (PayloadEnd::Stopped(_) | PayloadEnd::KilledAsExpected, Some(_)) => {
            let why = format!("there is no exit status: it was {end}");
            Some(AssertResult::inconclusive(AssertDetail::new(kind, why)))
        }
        (PayloadEnd::Exited(exited), _) if *exited == code => Some(AssertResult::pass()),
        (end, _) => {
            let detail = AssertDetail::measured(kind, end, format!("exit status {code}"));
            Some(AssertResult::fail(detail))
        }
    }
}

fn judge_metric(
    check: &Check,
    metric: &Metric,
    value: &MetricValue,
    end: &PayloadEnd,
) -> AssertResult {
    let (kind, name) = (DetailKind::PayloadMetric, metric.name);
    let unmeasured = || {
        let why = format!("{name} could not be measured: {value}");
        AssertResult::inconclusive(AssertDetail::new(kind, why))
    };
    let (least, most, bound) = match *check {
        Check::Min(_, least) => (least, f64::INFINITY, format!("at least {least}")),
        Check::Max(_, most) => (f64::NEG_INFINITY, most, format!("at most {most}")),
        Check::Range(_, least, most) => (least, most, format!("{least} to {most}")),
        Check::Exists(_) => {
            return match (value, end) {
                // It might still have come.
                (
                    MetricValue::Missing(_),
                    PayloadEnd::Stopped(_) | PayloadEnd::KilledAsExpected,
                ) => unmeasured(),
                (MetricValue::Missing(why), _) => {
                    let detail = AssertDetail::new(kind, format!("{name} is missing: {why}"));
                    AssertResult::fail(detail)
                }
                _ => AssertResult::pass(),
            };
        }
        Check::ExitCode(_) => unreachable!("it names no metric"),
    };
    let MetricValue::Number(number) = *value else { return unmeasured() };
    if (least..=most).contains(&number) {
        return AssertResult::pass();
    }
    let crossed = if number < least { least } else { most };
    let measured = format!("{name} {}", shown(number, crossed));
    let detail = AssertDetail::measured(kind, measured, bound);
    AssertResult::fail(if metric.time_based { detail.time_based() } else { detail })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Outcome::{Fail, Inconclusive, Pass};
    use super::*;
    use crate::guest::payload::Output;

    const P: Metric = Metric::regex("p", "p=([^;]*)");
    const TIME: Metric = Metric::regex("t", "t=([^;]*)").time_based();

    fn run(payload: &Payload, end: PayloadEnd, stdout: &str) -> (AssertResult, usize) {
        payload.validate().unwrap();
        let stdout = Output { text: stdout.to_owned(), dropped: 0 };
        let mut report = PayloadReport {
            name: "load".to_owned(),
            cgroup: "cg".to_owned(),
            end,
            stderr: Output { text: "first\nlast\n".to_owned(), dropped: 0 },
            stdout,
            metrics: Vec::new(),
            wall: Duration::ZERO,
            cpu_time: Duration::ZERO,
            checked: 0,
            verdict: AssertResult::pass(),
        };
        report.judge(payload);
        (report.verdict, report.checked)
    }

    fn is(check: Check, stdout: &str, outcome: Outcome, text: &str) {
        let checks: &'static [Check] = Box::leak(Box::new([check]));
        let payload = Payload::new("load").metrics(&[P, TIME]).checks(checks);
        let (verdict, checked) = run(&payload, PayloadEnd::Exited(0), stdout);
        assert_eq!(verdict.outcome, outcome, "{check:?} {stdout}: {verdict:?}");
        // The exit status is always one of them.
        assert_eq!(checked, 1 + usize::from(outcome != Inconclusive));
        match &verdict.details[..] {
            [] => assert_eq!(text, ""),
            [detail] => assert_eq!(detail.to_string(), text),
            more => panic!("{more:?}"),
        }
    }

    #[test]
    fn bounds_belong_to_what_they_allow() {
        let whose = "payload load, cgroup cg";
        for (check, stdout, outcome, text) in [
            (Check::Min("p", 2.5), "p=2.5;", Pass, String::new()),
            (Check::Min("p", 2.5), "p=2.4999999;", Fail, "p 2.4999999, at least 2.5".to_owned()),
            (Check::Max("p", -1.0), "p=-1;", Pass, String::new()),
            (Check::Max("p", -1.0), "p=-0.9;", Fail, "p -0.9, at most -1".to_owned()),
            (Check::Range("p", 1.0, 2.0), "p=1;", Pass, String::new()),
            (Check::Range("p", 1.0, 2.0), "p=2;", Pass, String::new()),
            (Check::Range("p", 1.0, 2.0), "p=0.99;", Fail, "p 0.99, 1 to 2".to_owned()),
            (Check::Range("p", 1.0, 2.0), "p=2.01;", Fail, "p 2.01, 1 to 2".to_owned()),
            (Check::Exists("p"), "p=0;", Pass, String::new()),
            (Check::Exists("p"), "p=none;", Pass, String::new()),
            (
                Check::Exists("p"),
                "q=1;",
                Fail,
                "p is missing: nothing matches `p=([^;]*)`".to_owned(),
            ),
        ] {
            let text =
                if text.is_empty() { text } else { format!("payload metric: {text}, {whose}") };
            is(check, stdout, outcome, &text);
        }
    }

    #[test]
    fn what_is_not_there_or_no_number_is_never_a_pass() {
        for check in
            [Check::Min("p", f64::MIN), Check::Max("p", f64::MAX), Check::Range("p", 0.0, 9.0)]
        {
            let could_not = "payload metric: p could not be measured: ";
            let whose = ", payload load, cgroup cg";
            let text = format!("{could_not}nothing matches `p=([^;]*)`{whose}");
            is(check, "", Inconclusive, &text);
            let text = format!("{could_not}\"nan\", which is no number{whose}");
            is(check, "p=nan;", Inconclusive, &text);
        }
    }

    #[test]
    fn only_a_metric_that_says_so_is_time_based() {
        let payload = Payload::new("load").metrics(&[P, TIME]);
        let payload = payload.checks(&[Check::Max("p", 1.0), Check::Max("t", 1.0)]);
        let (verdict, _) = run(&payload, PayloadEnd::Exited(0), "p=2;t=2;");
        let time_based: Vec<_> = verdict.details.iter().map(|detail| detail.time_based).collect();
        assert_eq!(time_based, [false, true]);
        let notes: Vec<_> = verdict.notes.iter().map(ToString::to_string).collect();
        assert_eq!(notes, ["load: p = 2", "load: t = 2"]);
    }

    #[test]
    fn a_program_ends_as_it_should() {
        let died = || PayloadEnd::Died("signal 11 (SIGSEGV)".to_owned());
        let stopped = || PayloadEnd::Stopped("killed by the test".to_owned());
        let whose = "payload load, cgroup cg";
        let words = ": its last words: first | last";
        let plain = Payload::new("load");
        let three = Payload::new("load").checks(&[Check::ExitCode(3)]);
        for (payload, end, outcome, checked, text) in [
            (plain, PayloadEnd::Exited(0), Pass, 1, String::new()),
            (
                plain,
                PayloadEnd::Exited(3),
                Fail,
                1,
                format!("payload end: exit status 3, exit status 0, {whose}{words}"),
            ),
            (three, PayloadEnd::Exited(3), Pass, 1, String::new()),
            (
                three,
                PayloadEnd::Exited(0),
                Fail,
                1,
                format!("payload end: exit status 0, exit status 3, {whose}{words}"),
            ),
            (
                plain,
                died(),
                Fail,
                1,
                format!("payload end: signal 11 (SIGSEGV), exit status 0, {whose}{words}"),
            ),
            (plain, stopped(), Pass, 0, String::new()),
            (plain, PayloadEnd::KilledAsExpected, Pass, 0, String::new()),
            (
                three,
                PayloadEnd::KilledAsExpected,
                Inconclusive,
                0,
                format!("payload end: there is no exit status: it was killed as expected, {whose}"),
            ),
        ] {
            let told = format!("{payload:?} {end:?}");
            let (verdict, made) = run(&payload, end, "");
            assert_eq!((verdict.outcome, made), (outcome, checked), "{told}");
            let details: Vec<_> = verdict.details.iter().map(ToString::to_string).collect();
            assert_eq!(details.join("\n"), text, "{told}");
        }
    }

    #[test]
    fn one_that_was_stopped_is_judged_by_what_it_printed() {
        const CHECKS: &[Check] = &[Check::Max("p", 1.0), Check::Exists("t"), Check::ExitCode(0)];
        let payload = Payload::new("load").metrics(&[P, TIME]).checks(CHECKS);
        let stopped = || PayloadEnd::Stopped("killed by the test".to_owned());
        let (verdict, checked) = run(&payload, stopped(), "p=2;\n");
        let outcomes: Vec<_> = verdict.details.iter().map(|detail| detail.outcome).collect();
        assert_eq!((outcomes, checked), (vec![Fail, Inconclusive, Inconclusive], 1));
        let (verdict, checked) = run(&payload, stopped(), "p=1;t=1;\n");
        assert_eq!((verdict.outcome, checked), (Inconclusive, 2));
        assert!(verdict.details[0].message.contains("no exit status: it was killed by the test"));
        // The number may have been about to go on; what is missing might still have come.
        for end in [stopped(), PayloadEnd::KilledAsExpected] {
            let (verdict, checked) = run(&payload, end.clone(), "t=1;\np=1");
            assert_eq!((verdict.outcome, checked), (Inconclusive, 1));
            let (verdict, checked) = run(&payload, end.clone(), "p=1;\n");
            assert_eq!((verdict.outcome, checked), (Inconclusive, 1));
        }
    }
}
