//! The terminal of this process.

use std::io;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Standard input in raw mode: every key goes to the guest, and this host echoes nothing.
///
/// Dropping it restores the mode, also after an error or a panic.
#[derive(Debug)]
pub(super) struct Terminal {
    before: Termios,
}

impl Terminal {
    pub(super) fn raw() -> Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin).context("failed to read the mode of the terminal")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)
            .context("failed to set the mode of the terminal")?;
        Ok(Self { before })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Drain: pending output is still shown in raw mode. An error means that the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Returns rows and columns; 24 x 80 for a terminal of unknown size, such as a serial line.
pub(super) fn size() -> Result<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).context("failed to read the size of the terminal")?;
    Ok(match (size.ws_row, size.ws_col) {
        (0, _) | (_, 0) => (24, 80),
        known => known,
    })
}
