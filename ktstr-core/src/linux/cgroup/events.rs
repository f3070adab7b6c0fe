//! Waits for changes of `cgroup.events`.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::error::Error;
use super::operation::Operation;

/// Waits until `cgroup.events` of a cgroup contains `line`; returns false after the timeout.
///
/// Returns true at once if the file does not exist: the cgroup was removed, or is the root.
pub(super) fn wait_for(cgroup: &Path, line: &str, within: Duration) -> Result<bool, Error> {
    let path = cgroup.join("cgroup.events");
    let fail = |cause: io::Error| Error::io(Operation::WaitFor, &path, None, cause);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if is_gone(&error) => return Ok(true),
        Err(error) => return Err(fail(error)),
    };
    let deadline = Instant::now() + within;
    loop {
        // Poll reports changes since the last read, so none in between is missed.
        if contains(&mut file, line).map_err(fail)? {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = left.try_into().expect("seconds fit a timespec");
        match poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(fail(errno.into())),
        }
    }
}

/// Returns whether an open `cgroup.events` contains a line; true if its cgroup was removed.
pub(crate) fn contains(file: &mut File, wanted: &str) -> io::Result<bool> {
    let mut text = String::new();
    match file.rewind().and_then(|()| file.read_to_string(&mut text)) {
        Ok(_) => Ok(text.lines().any(|line| line == wanted)),
        Err(error) if is_gone(&error) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Returns whether the cgroup does not exist. ENODEV: it was removed while the file was open.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn wait_for_times_out_and_skips_missing_files() {
        let cgroup = tempfile::tempdir().unwrap();
        assert!(wait_for(cgroup.path(), "populated 0", Duration::from_secs(60)).unwrap());
        fs::write(cgroup.path().join("cgroup.events"), "populated 1\n").unwrap();
        assert!(!wait_for(cgroup.path(), "populated 0", Duration::from_millis(20)).unwrap());
    }
}
