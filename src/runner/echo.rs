//! Prints the output of a body as it arrives.

use crate::report::{CI_COMMANDS, Untrusted};

/// Prints the output of a body where libtest can capture it: in whole lines, except for very long ones, up to a
/// budget. libtest keeps what it captures in memory until the test has ended.
#[derive(Debug)]
pub(super) struct Echo {
    unfinished: Vec<u8>,
    longest_line: usize,
    /// How many bytes may still be printed.
    budget: usize,
}

impl Default for Echo {
    fn default() -> Self {
        Self::with_longest_line(Self::LONGEST_LINE)
    }
}

impl Echo {
    /// A longer line is printed in pieces.
    pub(super) const LONGEST_LINE: usize = 64 << 10;

    /// The most bytes that are printed, as many as `body.log` has.
    const BUDGET: usize = 8 << 20;

    /// What follows the last line that is printed.
    const REST: &str =
        "[ktstr: more output is not shown; if the test fails, the last of it is in body.log]\n";

    pub(super) fn with_longest_line(longest_line: usize) -> Self {
        Self { unfinished: Vec::new(), longest_line, budget: Self::BUDGET }
    }

    pub(super) fn print(&mut self, bytes: &[u8]) {
        let text = self.take(bytes);
        if !text.is_empty() {
            print!("{text}");
        }
    }

    /// Prints the last line if it has no line break.
    pub(super) fn finish(mut self) {
        if !self.unfinished.is_empty() {
            print!("{}", self.take(b"\n"));
        }
    }

    /// Appends the next bytes, and returns the text that can be printed now.
    pub(super) fn take(&mut self, bytes: &[u8]) -> String {
        if self.budget == 0 {
            return String::new();
        }
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let (whole, rest) = bytes.split_at(end);
        let mut text = String::new();
        if !whole.is_empty() {
            self.unfinished.extend_from_slice(whole);
            text = shown(&self.unfinished);
            self.unfinished.clear();
        }
        self.unfinished.extend_from_slice(rest);
        if self.unfinished.len() > self.longest_line {
            let cut = self.unfinished.split_off(cut_position(&self.unfinished));
            text += &shown(&self.unfinished);
            self.unfinished = cut;
        }
        self.spend(text)
    }

    /// Returns the part of `text` that the budget allows, and what stands for the rest.
    fn spend(&mut self, mut text: String) -> String {
        let Some(left) = self.budget.checked_sub(text.len()).filter(|left| *left > 0) else {
            text.truncate(text.floor_char_boundary(self.budget));
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            (self.unfinished, self.budget) = (Vec::new(), 0);
            return text + Self::REST;
        };
        self.budget = left;
        text
    }
}

fn shown(bytes: &[u8]) -> String {
    Untrusted::output(&String::from_utf8_lossy(bytes)).to_string()
}

/// Returns where to cut a long line: neither in a UTF-8 character nor in what may become a command of a CI
/// system, which would be whole again on the terminal.
fn cut_position(line: &[u8]) -> usize {
    let whole = whole_characters(line);
    let longest = CI_COMMANDS.iter().map(|command| command.len()).max().unwrap_or(0);
    let mut last = whole.saturating_sub(longest)..whole;
    let is_begun = |from: &usize| {
        let end = &line[*from..whole];
        CI_COMMANDS.iter().any(|command| command.as_bytes().starts_with(end))
    };
    last.find(is_begun).unwrap_or(whole)
}

/// Returns the length of `bytes` without a UTF-8 character that is cut at the end.
///
/// Source: Unicode 16.0, 3.9 ("UTF-8"): the upper bits of the first byte of a character give its length.
fn whole_characters(bytes: &[u8]) -> usize {
    let is_first = |byte: &u8| *byte & 0xc0 != 0x80;
    let Some(back) = bytes.iter().rev().take(4).position(is_first) else { return bytes.len() };
    let first = bytes.len() - 1 - back;
    let length = match bytes[first].leading_ones() {
        0 => 1,
        length => length as usize,
    };
    if length > back + 1 && length <= 4 { first } else { bytes.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo_prints_whole_lines() {
        let mut echo = Echo::default();
        assert_eq!(echo.take(b"one\ntw"), "one\n");
        assert_eq!(echo.take(b"o"), "");
        assert_eq!(echo.take("\x1b[2J\nthré".as_bytes()), "two\\u{1b}[2J\n");
        assert_eq!(echo.unfinished, "thré".as_bytes());
    }

    #[test]
    fn echo_never_cuts_a_character() {
        let line = "a\u{e9}\u{20ac}\u{1f600}".repeat(Echo::LONGEST_LINE / 8);
        for size in [1, 7, 1000, Echo::LONGEST_LINE + 1] {
            let mut echo = Echo::default();
            let mut text: String =
                line.as_bytes().chunks(size).map(|piece| echo.take(piece)).collect();
            assert!(!text.is_empty(), "a line without a break is printed in pieces");
            text += &String::from_utf8_lossy(&echo.unfinished);
            assert!(text == line, "in pieces of {size}");
        }
    }

    #[test]
    fn echo_has_a_budget() {
        let mut echo = Echo::default();
        let line = [&[b'x'; 65_535][..], b"\n"].concat();
        let printed: Vec<_> = (0..4096).map(|_| echo.take(&line)).collect();
        let total: usize = printed.iter().map(String::len).sum();
        assert!((Echo::BUDGET..Echo::BUDGET + 200).contains(&total), "{total} bytes");
        let text = printed.concat();
        assert_eq!(text.matches(Echo::REST).count(), 1);
        assert!(text.ends_with(Echo::REST));
        // Escapes count too, and no bytes are kept beyond the budget.
        let mut echo = Echo::default();
        let total: usize = (0..4096).map(|_| echo.take(&[0; 65_536]).len()).sum();
        assert!((Echo::BUDGET..Echo::BUDGET + 200).contains(&total), "{total} bytes");
        assert!(echo.unfinished.is_empty());
    }

    #[test]
    fn echo_breaks_ci_commands_wherever_a_line_is_cut() {
        let command = b"##[error]##vso[a]##teamcity[b]";
        for padding in Echo::LONGEST_LINE - 40..Echo::LONGEST_LINE + 2 {
            let mut echo = Echo::default();
            let line = [&vec![b'x'; padding], &command[..]].concat();
            // The piece that makes the line too long ends anywhere in the command.
            let (first, second) = line.split_at(line.len().min(Echo::LONGEST_LINE + 1));
            let text = echo.take(first) + &echo.take(second) + &echo.take(b"\n::warning::x\n");
            for command in ["##[", "##vso[", "##teamcity[", "\n::"] {
                assert!(!text.contains(command), "{padding}: {}", &text[padding..]);
            }
        }
    }

    #[test]
    fn whole_characters_passes_invalid_bytes() {
        for (bytes, whole) in
            [(&b""[..], 0), (b"\xff\xff", 2), (b"\x80\x80\x80\x80\x80", 5), (b"a\xe2\x82", 1)]
        {
            assert_eq!(whole_characters(bytes), whole, "{bytes:?}");
        }
    }
}
