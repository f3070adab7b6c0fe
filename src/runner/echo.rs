//! Shows what a body writes as it arrives.

use crate::report::printable;

/// Prints what a body writes where libtest can capture it: in whole lines, unless one is longer than
/// any reader wants.
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

    /// Prints what was left without a line break.
    pub(super) fn finish(self) {
        if !self.unfinished.is_empty() {
            println!("{}", printable(&String::from_utf8_lossy(&self.unfinished)));
        }
    }

    /// Takes the next bytes, and returns what can be printed now.
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
            let cut = self.unfinished.split_off(whole_letters(&self.unfinished));
            text += &printable(&String::from_utf8_lossy(&self.unfinished));
            self.unfinished = cut;
        }
        text
    }
}

/// Returns how many of the bytes are left when a letter that is cut at the end is taken off.
///
/// Source: Unicode 16.0, 3.9 ("UTF-8"): the first byte of a letter has its length in its upper bits.
fn whole_letters(bytes: &[u8]) -> usize {
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
    fn echo_never_cuts_a_letter() {
        let line = "a\u{e9}\u{20ac}\u{1f600}".repeat(Echo::LONGEST_LINE / 8);
        for size in [1, 7, 1000, Echo::LONGEST_LINE + 1] {
            let mut echo = Echo::default();
            let mut text: String =
                line.as_bytes().chunks(size).map(|piece| echo.take(piece)).collect();
            assert!(!text.is_empty(), "a line without end is printed in pieces");
            text += &String::from_utf8_lossy(&echo.unfinished);
            assert!(text == line, "in pieces of {size}");
        }
    }

    #[test]
    fn bytes_that_are_not_text_are_passed_on() {
        for (bytes, whole) in
            [(&b""[..], 0), (b"\xff\xff", 2), (b"\x80\x80\x80\x80\x80", 5), (b"a\xe2\x82", 1)]
        {
            assert_eq!(whole_letters(bytes), whole, "{bytes:?}");
        }
    }
}
