//! Draws where the time of a run went, and what the scenario did in it.

use std::fmt::Write;
use std::time::Duration;

use ktstr_core::result::VmResult;

use super::printable;

/// The width of the drawing in characters.
const WIDTH: usize = 48;

/// The phases as bars on one scale, then the scenario's events with their times.
pub(super) fn draw(result: &VmResult) -> String {
    let timings = &result.timings;
    let phases = [
        ("prepare", Some(timings.prepare)),
        ("queue", timings.queue),
        ("boot", timings.boot),
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
    let start = result.events.first().map_or(0, |event| event.at_ns);
    for event in &result.events {
        let at = Duration::from_nanos(event.at_ns.saturating_sub(start));
        let _ = writeln!(
            text,
            "  {:>9} {:<9} {}",
            format!("+{:.3} s", at.as_secs_f64()),
            printable(&event.phase),
            printable(&event.what)
        );
    }
    text
}

fn column(at: Duration, total: Duration) -> usize {
    if total.is_zero() {
        return 0;
    }
    (at.as_secs_f64() / total.as_secs_f64() * WIDTH as f64).round() as usize
}

/// Three digits are enough to compare by eye.
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
    fn durations_read_well() {
        for (micros, text) in [(7, "7 us"), (12_400, "12 ms"), (3_914_000, "3.91 s")] {
            assert_eq!(human(Duration::from_micros(micros)), text);
        }
    }
}
