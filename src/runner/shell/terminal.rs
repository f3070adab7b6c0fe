//! The terminal we were started on.

use std::io;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Standard input in raw mode: every key goes to the guest, and nothing is echoed here.
///
/// Dropping it restores the mode, on the way out of an error or a panic, too.
#[derive(Debug)]
pub(super) struct Terminal {
    before: Termios,
}

impl Terminal {
    pub(super) fn raw() -> Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin).context("cannot read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("cannot set the terminal's mode")?;
        Ok(Self { before })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // After what was written was shown. If the terminal is gone, so is its mode.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Rows and columns. A terminal that does not know its size, such as a serial line, has 24 x 80.
pub(super) fn size() -> Result<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).context("cannot read the terminal's size")?;
    Ok(match (size.ws_row, size.ws_col) {
        (0, _) | (_, 0) => (24, 80),
        known => known,
    })
}
