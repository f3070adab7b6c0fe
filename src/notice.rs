//! Messages to the user that libtest does not capture.

use std::io::Write as _;

use crate::report::Untrusted;

/// Writes a line to standard error.
///
/// Not `eprintln!`: libtest captures that, and a fetch of a minute would look like a hang.
pub(crate) fn notice(line: &str) {
    let line = format!("ktstr: {}\n", Untrusted::new(line));
    // One write, so that lines of parallel test processes do not mix. A closed stderr is not an error.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}
