//! Terminals.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes `terminal` the controlling terminal of this process, which must lead its session.
pub(crate) fn take_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer and accesses no memory; the descriptor is borrowed.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
