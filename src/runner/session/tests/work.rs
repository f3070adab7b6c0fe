//! The work on bytes of the guest grows as their number does.

use ktstr_core::record::RunRecord;
use ktstr_core::registry::TestEntry;
use ktstr_core::wire::Decoder;
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::*;
use crate::report::{self, Style, Untrusted};
use crate::runner::echo::Echo;
use crate::runner::record;

/// How many times longer the second input is.
const FACTOR: usize = 16;

/// The most times more work that it may be. Linear work is about `FACTOR` times more, quadratic work
/// `FACTOR * FACTOR` times.
const LIMIT: u32 = 4 * FACTOR as u32;

/// The length of the first input in most tests.
const LENGTH: usize = 2 << 10;

/// What is repeated in an input: what parsers look for, its beginnings, and its ends.
const PATTERNS: &[&[u8]] = &[
    b"[",
    b"[ ",
    b"] ",
    b"[]",
    b"[1.",
    b"[    1.000000] ",
    b"[    1.000000] BUG: x\n",
    b"[    1.000000] Kernel panic - not syncing",
    b"BUG: ",
    b"WARNING: ",
    b"ktstr-init: PID 1 failed:",
    b"error while loading shared libraries",
    b"Run /init as init proces",
    b"\n",
    b"\r",
    b"\r\n",
    b"x",
    b" ",
    b"\x1b",
    b"\x1b[",
    b"\x1b[1;",
    b"\x1b[1;1",
    b"\x1b[1m",
    b"1;",
    b"\0",
    b"::",
    b"  ::x\n",
    b"#",
    b"##[",
    b"\xe2\x80\xae",
    b"\xe2\x80",
    b"\xff",
    b"\xf0\x9f\x98\x80",
];

fn cpu_time() -> Duration {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(tv_sec.unsigned_abs(), tv_nsec.unsigned_abs() as u32)
}

/// Fails if `work` on a repeated pattern takes more than `LIMIT` times as much CPU time for `FACTOR` times as many
/// bytes.
///
/// Not wall time: another load of the host does not count for a thread. Of several attempts the best one
/// counts, because caches and interrupts only add work.
fn assert_linear_on(patterns: &[&[u8]], length: usize, name: &str, work: impl Fn(&[u8])) {
    let measure = |input: &[u8]| {
        let before = cpu_time();
        work(input);
        cpu_time() - before
    };
    for pattern in patterns {
        let input = |length| pattern.iter().copied().cycle().take(length).collect::<Vec<u8>>();
        let (short, long) = (input(length), input(FACTOR * length));
        let (mut least_short, mut least_long) = (Duration::MAX, Duration::MAX);
        let is_linear = (0..4).any(|_| {
            least_short = least_short.min(measure(&short));
            least_long = least_long.min(measure(&long));
            // A clock does not resolve a few microseconds.
            least_long <= least_short.max(Duration::from_micros(10)) * LIMIT
        });
        assert!(
            is_linear,
            "{name} of {:?}: {least_short:?} for {length} bytes, {least_long:?} for {FACTOR} times as many",
            String::from_utf8_lossy(pattern),
        );
    }
}

fn assert_linear(name: &str, work: impl Fn(&[u8])) {
    assert_linear_on(PATTERNS, LENGTH, name, work);
}

/// Runs `work` on the text of an input.
fn on_text(work: impl Fn(&str)) -> impl Fn(&[u8]) {
    move |input| work(&String::from_utf8_lossy(input))
}

#[test]
fn assert_linear_detects_quadratic_work() {
    let quadratic = |input: &[u8]| {
        let mut sum = 0_u64;
        for end in (0..input.len()).step_by(64) {
            sum += input[..end].iter().map(|byte| u64::from(*byte)).sum::<u64>();
        }
        std::hint::black_box(sum);
    };
    assert!(std::panic::catch_unwind(|| assert_linear("a quadratic function", quadratic)).is_err());
}

#[test]
fn console_is_searched_in_linear_work() {
    assert_linear("kernel_events", on_text(|text| drop(console::kernel_events(text))));
    assert_linear("panic_message", on_text(|text| drop(console::panic_message(text))));
    assert_linear("init_failure", on_text(|text| drop(console::init_failure(text))));
    assert_linear("init_succeeded", on_text(|text| _ = console::init_succeeded(text)));
}

/// The console arrives in pieces of any size, and each is looked at when it arrives.
#[test]
fn handle_console_does_linear_work() {
    for piece in [64, 4 << 10, usize::MAX] {
        assert_linear("handle_console", |input| {
            let request = Request::Kill;
            let limits = RunLimits { duration: None, watchdog: Duration::from_secs(1) };
            let mut session = Session::new(request, limits, Instant::now());
            input.chunks(piece.min(input.len())).for_each(|piece| session.handle_console(piece));
            drop(session.collector.console());
            drop(session.explain_exit(&ExitReason::Reset));
        });
    }
}

/// Each frame has a few bytes of the input, or all of it.
#[test]
fn decoder_does_linear_work() {
    for (size, piece) in [(1, 1), (100, 7), (1 << 20, 1), (1 << 20, 4 << 10), (1, usize::MAX)] {
        assert_linear_on(&[b"x"], LENGTH, "Decoder", |input| {
            let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
            let frames = input.chunks(size).flat_map(|bytes| {
                let log = GuestMessage::Log { stream: Stream::Stdout, bytes: bytes.to_vec() };
                encoder.encode(&log).unwrap()
            });
            let stream: Vec<u8> = frames.collect();
            let mut count = 0;
            for piece in stream.chunks(piece.min(stream.len())) {
                decoder.push(piece);
                while decoder.next_with_length::<GuestMessage>().unwrap().is_some() {
                    count += 1;
                }
            }
            assert_eq!(count, input.len().div_ceil(size));
        });
    }
}

#[test]
fn output_is_shown_in_linear_work() {
    assert_linear("Untrusted::output", on_text(|text| drop(Untrusted::output(text).to_string())));
    let whole = |text: &str| drop(Untrusted::new(text).limit(usize::MAX).to_string());
    assert_linear("Untrusted", on_text(whole));
    // Inputs within one line, and of many lines that are cut.
    for longest_line in [Echo::LONGEST_LINE, LENGTH / 2] {
        for piece in [64, usize::MAX] {
            assert_linear("Echo", |input| {
                let mut echo = Echo::with_longest_line(longest_line);
                input.chunks(piece.min(input.len())).for_each(|piece| drop(echo.take(piece)));
            });
        }
    }
}

#[test]
fn report_takes_linear_work() {
    assert_linear(
        "render",
        on_text(|text| {
            let entry = TestEntry::DEFAULT;
            let (kernel_events, kernel_events_dropped) = console::kernel_events(text);
            let record = RunRecord {
                end: end_of_body(End::Verdict(AssertResult::fail_msg(text))),
                kernel_events,
                kernel_events_dropped,
                console: text.to_owned(),
                ..record::begin(&entry)
            };
            drop(report::render(&record, Style::PLAIN));
        }),
    );
}
