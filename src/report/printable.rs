//! Makes the output of a guest safe for a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Returns `text` without control characters, except line breaks and tabs: colour sequences are
/// removed, other control characters are escaped as in Rust, `\u{1b}`.
///
/// Otherwise the output of a body could move the cursor, hide the lines after it, or set the window's
/// title.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    let Some(mut at) = suspicious(text.as_bytes(), 0) else { return Cow::Borrowed(text) };
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    loop {
        out.push_str(&text[copied..at]);
        let rest = &text[at..];
        let next = rest.chars().next().unwrap_or_default();
        copied = at + next.len_utf8();
        if let Some(len) = colour(rest) {
            copied = at + len;
        } else if rest.starts_with("\r\n") {
            // The line break of terminals.
        } else if next.is_control() {
            let _ = write!(out, "{}", next.escape_default());
        } else {
            out.push(next);
        }
        match suspicious(text.as_bytes(), copied) {
            Some(found) => at = found,
            None => break,
        }
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// The bytes that may begin a control character in UTF-8: C0, DEL, and the first byte of C1.
const SUSPICIOUS: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = byte != b'\n' as usize && byte != b'\t' as usize;
        byte += 1;
    }
    table[0x7f] = true;
    table[0xc2] = true;
    table
};

/// Returns the position of the next byte that may begin a control character.
fn suspicious(bytes: &[u8], from: usize) -> Option<usize> {
    // An index instead of an iterator: all output is scanned here, in builds without optimization.
    let (mut at, len) = (from, bytes.len());
    while at < len {
        if SUSPICIOUS[bytes[at] as usize] {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// Returns the length of a colour sequence at the beginning: `ESC [ 1 ; 31 m`.
///
/// Source: ECMA-48, 8.3.117 ("SGR").
fn colour(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\x1b[")?;
    let len = parameters.find(|c: char| !(c.is_ascii_digit() || c == ';' || c == ':'))?;
    parameters[len..].starts_with('m').then_some("\x1b[".len() + len + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_keeps_text_and_escapes_control_characters() {
        for (text, want) in [
            ("plain, tab\t and lines\n", "plain, tab\t and lines\n"),
            ("\x1b[1;31mred\x1b[0m and \x1b[38:5:9mmore\x1b[m", "red and more"),
            ("\x1b[2J\x1b[H", "\\u{1b}[2J\\u{1b}[H"),
            ("\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}"),
            ("10 %\r20 %\r\n", "10 %\\r20 %\n"),
            ("é £ \u{9b}31m ü", "é £ \\u{9b}31m ü"),
            ("cut \x1b[31", "cut \\u{1b}[31"),
            ("\x7f\0", "\\u{7f}\\u{0}"),
            ("", ""),
        ] {
            assert_eq!(printable(text), want);
        }
    }
}
