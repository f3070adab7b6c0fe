//! Draws how long the phases of a run took, and the operations of its scenario.

use std::fmt::Write;
use std::time::Duration;

use ktstr_core::record::RunRecord;

use super::Untrusted;

/// The width of the drawing in characters.
const WIDTH: usize = 48;

/// The number of events that are listed.
const MAX_EVENTS: usize = 200;

/// The most bytes of an event's phase, and of its operation.
const EVENT: usize = 1 << 10;

/// Draws the phases as bars on one scale, then lists the scenario's events with their times.
pub(super) fn draw(record: &RunRecord) -> String {
    let timings = &record.timings;
    let phases = [
        ("prepare", Some(timings.prepare)),
        ("template", timings.template),
        ("queue", timings.queue),
        ("boot", timings.boot),
        ("restore", timings.restore),
        ("ready", timings.ready),
        ("body", timings.body),
        ("teardown", Some(timings.teardown)),
    ];
    let total: Duration = phases.iter().filter_map(|(_, took)| *took).sum();
    let mut text = String::new();
    let mut passed = Duration::ZERO;
    for (name, took) in phases {
        let Some(took) = took else { continue };
        let (from, to) = (column(passed, total), column(passed + took, total));
        passed += took;
        let bar = "█".repeat((to - from).max(1));
        let gap = " ".repeat(from.min(WIDTH - 1));
        let rest = " ".repeat((WIDTH + 1).saturating_sub(from.min(WIDTH - 1) + (to - from).max(1)));
        let _ = writeln!(text, "  {name:<9} {gap}{bar}{rest} {}", human(took));
    }
    let start = record.events.first().map_or(0, |event| event.at_ns);
    for event in record.events.iter().take(MAX_EVENTS) {
        let at = Duration::from_nanos(event.at_ns.saturating_sub(start));
        let _ = writeln!(
            text,
            "  {:>9} {:<9} {}",
            format!("+{:.3} s", at.as_secs_f64()),
            Untrusted::new(&event.phase).limit(EVENT).to_string(),
            Untrusted::new(&event.what).limit(EVENT)
        );
    }
    let rest = record.events.len().saturating_sub(MAX_EVENTS);
    if rest > 0 {
        let _ = writeln!(text, "  {:<9} {rest} more in run.json", "");
    }
    text
}

fn column(at: Duration, total: Duration) -> usize {
    if total.is_zero() {
        return 0;
    }
    (at.as_secs_f64() / total.as_secs_f64() * WIDTH as f64).round() as usize
}

/// Formats a duration with at most three digits.
fn human(took: Duration) -> String {
    match took.as_secs_f64() {
        seconds if seconds >= 1.0 => format!("{seconds:.2} s"),
        seconds if seconds >= 0.001 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{:.0} us", seconds * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn human_formats_durations_with_units() {
        for (micros, text) in [(7, "7 us"), (12_400, "12 ms"), (3_914_000, "3.91 s")] {
            assert_eq!(human(Duration::from_micros(micros)), text);
        }
    }
}
