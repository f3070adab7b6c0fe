//! Holds what a guest sends, within bounds: a guest cannot fill the memory of the runner.

use std::io;
use std::time::Instant;

use ktstr_core::assert::Measurement;
use ktstr_core::model::text::cut;
use ktstr_core::record::BoundedMeasurements;
use ktstr_core::result::RunEnd;
use ktstr_core::snapshot::{CgroupProcsSnapshot, Snapshot};
use ktstr_core::wire::{FileKind, GuestMessage, ScenarioEvent};

use crate::runner::console;

/// The bytes of captures, snapshots and events that one run may send, in the form of `run.json`. In memory,
/// lists and maps of small numbers take up to ten times as many, all else less than four times.
const MAX_COLLECTED: usize = 24 << 20;

/// What a message is charged beyond its bytes: the size of the structure that holds it.
const PER_MESSAGE: usize = 256;

/// How many panics are kept; a body may catch any number.
const MAX_PANICS: usize = 64;

/// The most bytes of a panic's message that are kept. PID 1 sends less than twice as many.
const MAX_PANIC: usize = 4 << 10;

/// Of a console or log longer than this, the older half is dropped.
const MAX_TEXT: usize = 8 << 20;

/// Longest text that is looked for in the console; it may have begun in an earlier chunk.
const LONGEST_MARK: usize = 256;

/// A file of the guest.
#[derive(Debug)]
pub(crate) struct ReceivedFile {
    /// The length that the guest announced.
    pub(crate) length: u64,
    /// The part that arrived.
    pub(crate) bytes: Vec<u8>,
}

impl ReceivedFile {
    /// A longer file is not received.
    const MAX_LENGTH: u64 = 64 << 20;

    pub(crate) fn new(length: u64) -> Self {
        Self { length, bytes: Vec::new() }
    }

    /// Appends the next piece.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        if self.is_expected() {
            self.bytes.extend_from_slice(piece);
        }
    }

    /// Returns whether all of it arrived, and no more.
    pub(crate) fn is_complete(&self) -> bool {
        self.bytes.len() as u64 == self.length
    }

    /// Returns whether more of it is to arrive.
    fn is_expected(&self) -> bool {
        self.length <= Self::MAX_LENGTH && (self.bytes.len() as u64) < self.length
    }
}

/// Everything that has arrived from a guest.
#[derive(Debug, Default)]
pub(super) struct Collector {
    console: Vec<u8>,
    pub(super) log: Vec<u8>,
    pub(super) events: Vec<ScenarioEvent>,
    /// When the last event arrived.
    pub(super) last_event: Option<Instant>,
    pub(super) captures: Vec<CgroupProcsSnapshot>,
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) measurements: BoundedMeasurements,
    /// The panics of the body with their places, the latest first.
    panics: Vec<String>,
    /// What events, captures and snapshots were charged.
    collected: usize,
    pub(super) profile: Option<ReceivedFile>,
}

impl Collector {
    /// Appends to the console, and returns its end: the new bytes and what a text in them may have begun with.
    pub(super) fn add_console(&mut self, bytes: &[u8]) -> String {
        append_bounded(&mut self.console, bytes);
        let recent = self.console.len().saturating_sub(bytes.len() + LONGEST_MARK);
        String::from_utf8_lossy(&self.console[recent..]).into_owned()
    }

    /// Returns the console as text.
    pub(super) fn console(&self) -> String {
        String::from_utf8_lossy(&self.console).replace('\r', "")
    }

    pub(super) fn add_log(&mut self, bytes: &[u8]) {
        append_bounded(&mut self.log, bytes);
    }

    /// Charges a message for the memory that it takes until the end of the run, and for its part of the record:
    /// its bytes as JSON, and a constant for one that is short.
    ///
    /// The bytes on the wire do not measure either: a list may be 50 times as large in memory, because an empty
    /// structure is two bytes on the wire. JSON contains the names of its fields.
    ///
    /// # Errors
    ///
    /// If all messages that are kept are more than [`MAX_COLLECTED`].
    pub(super) fn charge(&mut self, message: &GuestMessage, length: usize) -> Result<(), RunEnd> {
        match message {
            GuestMessage::Event(_) | GuestMessage::Capture(_) | GuestMessage::Snapshot(_) => {}
            // Kept within a bound of their own.
            GuestMessage::Log { .. }
            | GuestMessage::Measurements(_)
            | GuestMessage::Panic { .. }
            | GuestMessage::FilePiece(_)
            // At most one of each.
            | GuestMessage::Hello(_)
            | GuestMessage::BodyStarted { .. }
            | GuestMessage::File { .. }
            | GuestMessage::End(_)
            // Not kept.
            | GuestMessage::Heartbeat { .. } => return Ok(()),
        }
        self.collected += json_length(message).max(length) + PER_MESSAGE;
        if self.collected > MAX_COLLECTED {
            let mib = MAX_COLLECTED >> 20;
            let why = format!("it sent more than {mib} MiB of captures and events");
            return Err(RunEnd::ProtocolViolation(why));
        }
        Ok(())
    }

    pub(super) fn add_event(&mut self, event: ScenarioEvent, now: Instant) {
        self.events.push(event);
        self.last_event = Some(now);
    }

    /// Adds measurements. Unlike other messages, too many of them do not fail the run.
    pub(super) fn add_measurements(&mut self, measurements: Vec<Measurement>) {
        measurements.into_iter().for_each(|measured| self.measurements.add(measured));
    }

    pub(super) fn add_panic(&mut self, mut message: String) {
        cut(&mut message, MAX_PANIC);
        self.panics.truncate(MAX_PANICS - 1);
        self.panics.insert(0, message);
    }

    /// Begins a file; its pieces follow the end of the run.
    pub(super) fn announce_file(&mut self, kind: FileKind, length: u64) {
        match kind {
            FileKind::Profile => self.profile = Some(ReceivedFile::new(length)),
        }
    }

    pub(super) fn add_file_piece(&mut self, piece: &[u8]) {
        if let Some(file) = &mut self.profile {
            file.push(piece);
        }
    }

    /// Returns whether a file was announced of which more is to arrive.
    pub(super) fn expects_file(&self) -> bool {
        self.profile.as_ref().is_some_and(ReceivedFile::is_expected)
    }

    /// Returns the panic with this message, with the place that only the panic hook knows.
    pub(super) fn panic_with_place(&self, message: String) -> String {
        let start = format!("{message}, ");
        let placed = self.panics.iter().find(|panic| panic.starts_with(&start));
        placed.cloned().unwrap_or(message)
    }

    /// Returns the message of the kernel's panic, if the console has one.
    pub(super) fn kernel_panic(&self) -> Option<String> {
        console::panic_message(&self.console())
    }
}

/// Returns the length of a message in a record.
fn json_length(message: &GuestMessage) -> usize {
    struct Length(usize);
    impl io::Write for Length {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut length = Length(0);
    match serde_json::to_writer(&mut length, message) {
        Ok(()) => length.0,
        // A message that cannot be in a record.
        Err(_) => usize::MAX / 2,
    }
}

/// Appends to a text, and drops its older half when it is too long.
fn append_bounded(text: &mut Vec<u8>, bytes: &[u8]) {
    text.extend_from_slice(bytes);
    if text.len() > MAX_TEXT {
        let mut keep = text.split_off(text.len() - MAX_TEXT / 2);
        // Do not begin within a UTF-8 character.
        let cut = keep.iter().take(3).take_while(|byte| *byte & 0xc0 == 0x80).count();
        keep.drain(..cut);
        *text = b"[... the beginning was dropped ...]\n".to_vec();
        text.extend_from_slice(&keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn append_bounded_keeps_the_end_and_whole_characters() {
        let mut text = Vec::new();
        for _ in 0..5 {
            append_bounded(&mut text, "a\u{20ac}".repeat(MAX_TEXT / 16).as_bytes());
            assert!(text.len() <= MAX_TEXT);
        }
        append_bounded(&mut text, b"the end");
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.starts_with("[... the beginning was dropped ...]\n") && text.ends_with("the end")
        );
    }

    #[test]
    fn append_bounded_copies_a_byte_twice_at_most() {
        for (piece, whole) in [(64, 5 * MAX_TEXT), (64 << 10, 20 * MAX_TEXT)] {
            let (mut text, piece) = (Vec::new(), vec![b'x'; piece]);
            let mut copied = 0;
            for _ in 0..whole / piece.len() {
                let before = text.len();
                append_bounded(&mut text, &piece);
                // The younger half is moved to another vector and back.
                if text.len() < before {
                    copied += 2 * text.len();
                }
            }
            assert!(
                (whole / 2..=2 * whole + MAX_TEXT).contains(&copied),
                "{copied} of {whole} bytes"
            );
        }
    }

    #[test]
    fn add_console_returns_marks_that_span_chunks() {
        let mut collector = Collector::default();
        collector.add_console(b"Run /init as ");
        assert_eq!(collector.add_console(b"init process\r\n"), "Run /init as init process\r\n");
        assert_eq!(collector.console(), "Run /init as init process\n");
    }

    #[test]
    fn add_measurements_drops_those_beyond_the_bound() {
        let mut collector = Collector::default();
        let measured = Measurement::new("x".repeat(96), 1.0, "ms");
        for _ in 0..100 {
            collector.add_measurements(vec![measured.clone(); 1000]);
        }
        assert!(collector.measurements.is_truncated());
        let kept = collector.measurements.into_vec().len();
        assert!((BoundedMeasurements::MAX_SIZE / 256..100_000).contains(&kept), "{kept}");
    }

    #[test]
    fn panic_with_place_finds_the_latest_of_equal_messages() {
        let mut collector = Collector::default();
        for line in 0..2 * MAX_PANICS {
            collector.add_panic(format!("why, at file.rs:{line}"));
        }
        assert_eq!(collector.panics.len(), MAX_PANICS);
        assert_eq!(collector.panic_with_place("why".to_owned()), "why, at file.rs:127");
        assert_eq!(collector.panic_with_place("wh".to_owned()), "wh");
    }
}
