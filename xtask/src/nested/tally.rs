//! Sums the results of several test binaries.

use std::fmt;

use ktstr::runner::nested::Stream;

/// libtest's last line of a binary.
const RESULT: &str = "test result: ";

/// The script's line before each binary.
const RUNNING: &str = "     Running ";

/// Results so far, and the current binary.
#[derive(Debug, Default)]
pub(super) struct Tally {
    passed: u32,
    failed: u32,
    ignored: u32,
    running: Option<String>,
    /// The beginnings of lines on standard output and error.
    unfinished: [Vec<u8>; 2],
}

impl Tally {
    /// Adds the next piece of the output, which may end within a line.
    pub(super) fn hear(&mut self, stream: Stream, bytes: &[u8]) {
        let mut text = std::mem::take(&mut self.unfinished[stream as usize]);
        text.extend_from_slice(bytes);
        let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in String::from_utf8_lossy(&text[..end]).lines() {
            match stream {
                Stream::Stdout => self.count(line),
                Stream::Stderr => {
                    let running = line.strip_prefix(RUNNING).map(str::to_owned);
                    self.running = running.or(self.running.take());
                }
            }
        }
        self.unfinished[stream as usize] = text.split_off(end);
    }

    /// Returns the number of tests that matched the filter.
    pub(super) fn matched(&self) -> u32 {
        self.passed + self.failed + self.ignored
    }

    /// Returns the binary that ran last.
    pub(super) fn running(&self) -> Option<&str> {
        self.running.as_deref()
    }

    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; ..`.
    fn count(&mut self, line: &str) {
        let Some(result) = line.strip_prefix(RESULT) else { return };
        let counts = result.split_once(". ").map_or("", |(_, counts)| counts);
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else { continue };
            let number: u32 = number.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, ignored, .. } = self;
        write!(f, "{passed} passed, {failed} failed, {ignored} ignored")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STDOUT: &str = "running 5 tests\ntest a ... ok\n\
        test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.00s\n\
        test result: FAILED. 2 passed; 7 failed; 0 ignored; 0 measured; 0 filtered out; finished in 12.5s\n\
        the test result: ok. 100 passed; 0 failed\n";

    #[test]
    fn results_are_added_up_however_they_are_cut() {
        for size in [1, 7, STDOUT.len()] {
            let mut tally = Tally::default();
            for piece in STDOUT.as_bytes().chunks(size) {
                tally.hear(Stream::Stdout, piece);
                tally.hear(Stream::Stderr, b"     Runn");
            }
            assert_eq!(tally.to_string(), "5 passed, 7 failed, 1 ignored");
            assert_eq!(tally.matched(), 13);
        }
    }

    #[test]
    fn a_filter_that_matches_nothing_is_seen() {
        let mut tally = Tally::default();
        let line = b"test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out\n";
        tally.hear(Stream::Stdout, line);
        assert_eq!(tally.matched(), 0);
    }

    #[test]
    fn it_is_known_what_runs() {
        let mut tally = Tally::default();
        assert_eq!(tally.running(), None);
        tally.hear(Stream::Stderr, b"     Running body on debian:sid\n     Running");
        tally.hear(Stream::Stderr, b" cgroup on debian:sid\nwarning: x\n");
        assert_eq!(tally.running(), Some("cgroup on debian:sid"));
    }
}
