//! Prints the output of a body as it arrives.

use crate::report::printable;

/// Prints the output of a body where libtest can capture it: in whole lines, except for very long ones.
#[derive(Debug, Default)]
pub(super) struct Echo {
    unfinished: Vec<u8>,
}

impl Echo {
    const LONGEST_LINE: usize = 64 << 10;

    pub(super) fn print(&mut self, bytes: &[u8]) {
        let text = self.take(bytes);
        if !text.is_empty() {
            print!("{text}");
        }
    }

    /// Prints the last line if it has no line break.
    pub(super) fn finish(self) {
        if !self.unfinished.is_empty() {
            println!("{}", printable(&String::from_utf8_lossy(&self.unfinished)));
        }
    }

    /// Appends the next bytes, and returns the text that can be printed now.
    fn take(&mut self, bytes: &[u8]) -> String {
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let (whole, rest) = bytes.split_at(end);
        let mut text = String::new();
        if !whole.is_empty() {
            self.unfinished.extend_from_slice(whole);
            text = printable(&String::from_utf8_lossy(&self.unfinished)).into_owned();
            self.unfinished.clear();
        }
        self.unfinished.extend_from_slice(rest);
        if self.unfinished.len() > Self::LONGEST_LINE {
            let cut = self.unfinished.split_off(whole_characters(&self.unfinished));
            text += &printable(&String::from_utf8_lossy(&self.unfinished));
            self.unfinished = cut;
        }
        text
    }
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
    fn whole_characters_passes_invalid_bytes() {
        for (bytes, whole) in
            [(&b""[..], 0), (b"\xff\xff", 2), (b"\x80\x80\x80\x80\x80", 5), (b"a\xe2\x82", 1)]
        {
            assert_eq!(whole_characters(bytes), whole, "{bytes:?}");
        }
    }
}
