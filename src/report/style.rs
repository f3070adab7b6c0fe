//! Colours, if the terminal and the environment allow them.

use std::io::IsTerminal;

/// Whether text is coloured.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    colour: bool,
}

impl Style {
    /// Without colours.
    pub const PLAIN: Self = Self { colour: false };

    /// Returns the style for standard output: no colours if `NO_COLOR` is set and not empty, else what
    /// `CARGO_TERM_COLOR` selects (`always`, `never`), else colours if it is a terminal.
    ///
    /// Source: no-color.org; the Cargo book, "Configuration", term.color.
    pub fn from_env() -> Self {
        let var = |name| std::env::var_os(name).unwrap_or_default().to_string_lossy().into_owned();
        Self {
            colour: is_coloured(
                &var("NO_COLOR"),
                &var("CARGO_TERM_COLOR"),
                std::io::stdout().is_terminal(),
            ),
        }
    }

    /// Formats a good result.
    pub fn good(self, text: &str) -> String {
        self.paint("1;32", text)
    }

    /// Formats a warning.
    pub fn warn(self, text: &str) -> String {
        self.paint("1;33", text)
    }

    /// Formats a bad result.
    pub fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn is_coloured(no_color: &str, cargo_term_color: &str, terminal: bool) -> bool {
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
    fn is_coloured_follows_the_usual_variables() {
        for (no_color, cargo, terminal, colour) in [
            ("", "", true, true),
            ("", "", false, false),
            ("", "always", false, true),
            ("", "never", true, false),
            ("", "auto", true, true),
            ("1", "always", true, false),
        ] {
            assert_eq!(
                is_coloured(no_color, cargo, terminal),
                colour,
                "{no_color} {cargo} {terminal}"
            );
        }
    }
}
