//! Judges a run of a payload: its end, and its metrics by the checks.

use super::check::Check;
use super::definition::Payload;
use super::end::PayloadEnd;
use super::metric::{Metric, MetricValue};
use super::report::PayloadReport;
use crate::model::detail::{AssertDetail, DetailKind, Outcome};
use crate::model::measurement::{Better, Limit, Measurement, Scope};
use crate::model::verdict::AssertResult;

/// Reads the metrics of a run that has ended, and adds what the checks conclude to its verdict.
pub(super) fn judge(payload: &Payload, report: &mut PayloadReport) {
    let read = |metric: &Metric| metric.read(&report.end, &report.stdout, &report.stderr);
    report.metrics = payload.metrics.iter().map(|metric| (metric.name, read(metric))).collect();
    let metrics = payload.metrics.iter().zip(&report.metrics);
    let of_end = judge_end(payload, report);
    let of_metrics = payload.checks.iter().filter_map(|check| {
        let (metric, (_, value)) =
            metrics.clone().find(|(metric, _)| Some(metric.name) == check.metric())?;
        Some(judge_metric(check, metric, value, &report.end))
    });
    let judged: Vec<_> = of_end.into_iter().chain(of_metrics).collect();
    let is_decided = |verdict: &&AssertResult| verdict.outcome != Outcome::Inconclusive;
    report.checked = judged.iter().filter(is_decided).count();

    let scope = Scope::Payload { name: report.name.clone(), cgroup: report.cgroup.clone() };
    let mut verdict = std::mem::replace(&mut report.verdict, AssertResult::pass());
    judged.into_iter().for_each(|judged| verdict.absorb(judged));
    let mut verdict = verdict.map_details(|detail| detail.scope(scope.clone()));
    for (metric, value) in &report.metrics {
        verdict.note_value(format!("{}: {metric}", report.name), value);
        if let MetricValue::Number(number) = value {
            let limits = payload.checks.iter().filter(|check| check.metric() == Some(metric));
            let limit = limits.filter_map(Check::limit).next();
            let better = limit.map_or(Better::Neither, Limit::better);
            let measured = Measurement::new(*metric, *number, "").scope(scope.clone());
            verdict.measurements.push(measured.better(better).limit(limit));
        }
    }
    if matches!(report.end, PayloadEnd::KilledAsExpected | PayloadEnd::Stopped(_)) {
        verdict.note(report.to_string());
    }
    report.verdict = verdict;
}

/// Judges how the program ended; `None` if it was stopped and no exit status is expected. The counters
/// of the cgroup show whether a kill was an OOM kill.
fn judge_end(payload: &Payload, report: &PayloadReport) -> Option<AssertResult> {
    let expected = payload.checks.iter().find_map(|check| match check {
        Check::ExitCode(code) => Some(*code),
        _ => None,
    });
    let (kind, end) = (DetailKind::PayloadEnd, &report.end);
    let code = expected.unwrap_or(0);
    match (end, expected) {
        (PayloadEnd::Stopped(_) | PayloadEnd::KilledAsExpected, None) => None,
        (PayloadEnd::Stopped(_) | PayloadEnd::KilledAsExpected, Some(_)) => {
            let why = format!("no exit status, because it was {end}");
            Some(AssertResult::inconclusive(AssertDetail::new(kind, why)))
        }
        (PayloadEnd::Exited(exited), _) if *exited == code => Some(AssertResult::pass()),
        (end, _) => {
            let text = format!("{end} (expected exit status {code})");
            let detail = AssertDetail::new(kind, text).because(&report.last_output());
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
    let is_cut_off = matches!(end, PayloadEnd::Stopped(_) | PayloadEnd::KilledAsExpected);
    let detail = match (check.limit(), value) {
        (None, MetricValue::Missing(why)) if !is_cut_off => {
            let missing = format!("{name} is missing: {why}");
            return AssertResult::fail(AssertDetail::new(kind, missing));
        }
        (None, MetricValue::Number(_) | MetricValue::Text(_)) => return AssertResult::pass(),
        (Some(_), MetricValue::Number(number)) => {
            let measured = Measurement::new(name, *number, "");
            let detail = AssertDetail::measured(kind, measured);
            AssertDetail { time_based: metric.time_based, ..detail }
        }
        // The program might have printed it later.
        _ => {
            let unmeasured = format!("{name} could not be measured: {value}");
            return AssertResult::inconclusive(AssertDetail::new(kind, unmeasured));
        }
    };
    // Every metric is recorded as a measurement once, whatever the number of its checks.
    AssertResult { measurements: Vec::new(), ..AssertResult::judge(detail, check.limit()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::output::Output;
    use super::*;
    use crate::model::detail::Outcome::{Fail, Inconclusive, Pass};

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
        judge(payload, &mut report);
        (report.verdict, report.checked)
    }

    fn is(check: Check, stdout: &str, outcome: Outcome, text: &str) {
        let checks: &'static [Check] = Box::leak(Box::new([check]));
        let payload = Payload::new("load").metrics(&[P, TIME]).checks(checks);
        let (verdict, checked) = run(&payload, PayloadEnd::Exited(0), stdout);
        assert_eq!(verdict.outcome, outcome, "{check:?} {stdout}: {verdict:?}");
        // The exit status is always judged.
        assert_eq!(checked, 1 + usize::from(outcome != Inconclusive));
        match &verdict.details[..] {
            [] => assert_eq!(text, ""),
            [detail] => assert_eq!(detail.to_string(), text),
            more => panic!("{more:?}"),
        }
    }

    #[test]
    fn judge_includes_the_limits() {
        let scope = "payload load, cgroup cg";
        for (check, stdout, outcome, text) in [
            (Check::Min("p", 2.5), "p=2.5;", Pass, String::new()),
            (Check::Min("p", 2.5), "p=2.4999999;", Fail, "p = 2.4999999 (minimum 2.5)".to_owned()),
            (Check::Max("p", -1.0), "p=-1;", Pass, String::new()),
            (Check::Max("p", -1.0), "p=-0.9;", Fail, "p = -0.9 (limit -1)".to_owned()),
            (Check::Range("p", 1.0, 2.0), "p=1;", Pass, String::new()),
            (Check::Range("p", 1.0, 2.0), "p=2;", Pass, String::new()),
            (Check::Range("p", 1.0, 2.0), "p=0.99;", Fail, "p = 0.99 (expected 1 to 2)".to_owned()),
            (Check::Range("p", 1.0, 2.0), "p=2.01;", Fail, "p = 2.01 (expected 1 to 2)".to_owned()),
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
                if text.is_empty() { text } else { format!("payload metric: {text}, {scope}") };
            is(check, stdout, outcome, &text);
        }
    }

    #[test]
    fn judge_is_inconclusive_without_a_number() {
        for check in
            [Check::Min("p", f64::MIN), Check::Max("p", f64::MAX), Check::Range("p", 0.0, 9.0)]
        {
            let could_not = "payload metric: p could not be measured: ";
            let scope = ", payload load, cgroup cg";
            let text = format!("{could_not}nothing matches `p=([^;]*)`{scope}");
            is(check, "", Inconclusive, &text);
            let text = format!("{could_not}not a number: \"nan\"{scope}");
            is(check, "p=nan;", Inconclusive, &text);
        }
    }

    #[test]
    fn judge_marks_time_based_metrics() {
        let payload = Payload::new("load").metrics(&[P, TIME]);
        let payload = payload.checks(&[Check::Max("p", 1.0), Check::Max("t", 1.0)]);
        let (verdict, _) = run(&payload, PayloadEnd::Exited(0), "p=2;t=2;");
        let time_based: Vec<_> = verdict.details.iter().map(|detail| detail.time_based).collect();
        assert_eq!(time_based, [false, true]);
        let notes: Vec<_> = verdict.notes.iter().map(ToString::to_string).collect();
        assert_eq!(notes, ["load: p = 2", "load: t = 2"]);
    }

    #[test]
    fn judge_measures_every_metric() {
        let payload = Payload::new("load").metrics(&[P, TIME]).checks(&[Check::Min("p", 1.0)]);
        let (verdict, _) = run(&payload, PayloadEnd::Exited(0), "p=2;t=3;");
        let scope = Scope::Payload { name: "load".to_owned(), cgroup: "cg".to_owned() };
        let p = Measurement::new("p", 2.0, "").scope(scope.clone()).better(Better::Higher);
        let p = p.limit(Some(Limit::AtLeast(1.0)));
        assert_eq!(verdict.measurements, [p, Measurement::new("t", 3.0, "").scope(scope)]);
    }

    #[test]
    fn judge_compares_the_exit_status() {
        let died = || PayloadEnd::Signaled(libc::SIGSEGV);
        let stopped = || PayloadEnd::Stopped("killed by the test".to_owned());
        let scope = "payload load, cgroup cg";
        let words = "; its last output: first | last";
        let plain = Payload::new("load");
        let three = Payload::new("load").checks(&[Check::ExitCode(3)]);
        for (payload, end, outcome, checked, text) in [
            (plain, PayloadEnd::Exited(0), Pass, 1, String::new()),
            (
                plain,
                PayloadEnd::Exited(3),
                Fail,
                1,
                format!("payload end: exit status 3 (expected exit status 0){words}, {scope}"),
            ),
            (three, PayloadEnd::Exited(3), Pass, 1, String::new()),
            (
                three,
                PayloadEnd::Exited(0),
                Fail,
                1,
                format!("payload end: exit status 0 (expected exit status 3){words}, {scope}"),
            ),
            (
                plain,
                died(),
                Fail,
                1,
                format!(
                    "payload end: signal 11 (SIGSEGV) (expected exit status 0){words}, {scope}"
                ),
            ),
            (plain, stopped(), Pass, 0, String::new()),
            (plain, PayloadEnd::KilledAsExpected, Pass, 0, String::new()),
            (
                three,
                PayloadEnd::KilledAsExpected,
                Inconclusive,
                0,
                format!("payload end: no exit status, because it was killed as expected, {scope}"),
            ),
        ] {
            let context = format!("{payload:?} {end:?}");
            let (verdict, made) = run(&payload, end, "");
            assert_eq!((verdict.outcome, made), (outcome, checked), "{context}");
            let details: Vec<_> = verdict.details.iter().map(ToString::to_string).collect();
            assert_eq!(details.join("\n"), text, "{context}");
        }
    }

    #[test]
    fn judge_uses_the_output_of_a_stopped_program() {
        const CHECKS: &[Check] = &[Check::Max("p", 1.0), Check::Exists("t"), Check::ExitCode(0)];
        let payload = Payload::new("load").metrics(&[P, TIME]).checks(CHECKS);
        let stopped = || PayloadEnd::Stopped("killed by the test".to_owned());
        let (verdict, checked) = run(&payload, stopped(), "p=2;\n");
        let outcomes: Vec<_> = verdict.details.iter().map(|detail| detail.outcome).collect();
        assert_eq!((outcomes, checked), (vec![Fail, Inconclusive, Inconclusive], 1));
        let (verdict, checked) = run(&payload, stopped(), "p=1;t=1;\n");
        assert_eq!((verdict.outcome, checked), (Inconclusive, 2));
        assert!(
            verdict.details[0]
                .message
                .contains("no exit status, because it was killed by the test")
        );
        // The last number may be incomplete, and a missing one may have been printed later.
        for end in [stopped(), PayloadEnd::KilledAsExpected] {
            let (verdict, checked) = run(&payload, end.clone(), "t=1;\np=1");
            assert_eq!((verdict.outcome, checked), (Inconclusive, 1));
            let (verdict, checked) = run(&payload, end.clone(), "p=1;\n");
            assert_eq!((verdict.outcome, checked), (Inconclusive, 1));
        }
    }
}
