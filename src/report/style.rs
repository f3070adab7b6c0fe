//! Colours, where they are wanted.

use std::io::IsTerminal;

/// Whether to colour.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// No colours.
    pub const PLAIN: Self = Self { colour: false };

    /// `NO_COLOR` (any value but an empty one) forbids; `CARGO_TERM_COLOR` decides between
    /// `always` and `never`; else a terminal gets colours.
    ///
    /// Source: no-color.org; the Cargo book, "Configuration", term.color.
    pub fn from_env() -> Self {
        let var = |name| std::env::var_os(name).unwrap_or_default().to_string_lossy().into_owned();
        Self {
            colour: wanted(
                &var("NO_COLOR"),
                &var("CARGO_TERM_COLOR"),
                std::io::stdout().is_terminal(),
            ),
        }
    }

    /// What is well.
    pub fn good(self, text: &str) -> String {
        self.paint("1;32", text)
    }

    /// What is to be minded.
    pub fn warn(self, text: &str) -> String {
        self.paint("1;33", text)
    }

    /// What is wrong.
    pub fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn wanted(no_color: &str, cargo_term_color: &str, terminal: bool) -> bool {
    match (no_color, cargo_term_color) {
        ("", "always") => true,
        ("", "never") => false,
        ("", _) => terminal,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_variables_decide() {
        for (no_color, cargo, terminal, colour) in [
            ("", "", true, true),
            ("", "", false, false),
            ("", "always", false, true),
            ("", "never", true, false),
            ("", "auto", true, true),
            ("1", "always", true, false),
        ] {
            assert_eq!(wanted(no_color, cargo, terminal), colour, "{no_color} {cargo} {terminal}");
        }
    }
}
