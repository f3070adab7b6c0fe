//! Waiting for what `cgroup.events` says.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::error::Error;

/// Waits until `cgroup.events` of `group` has `line`; false if that takes longer than `within`.
///
/// True at once if there is no such file: the group is gone, or is no real one.
pub(super) fn wait_for(group: &Path, line: &str, within: Duration) -> Result<bool, Error> {
    let path = group.join("cgroup.events");
    let fail = |cause: io::Error| Error::io("wait for", &path, None, cause);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if is_gone(&error) => return Ok(true),
        Err(error) => return Err(fail(error)),
    };
    let deadline = Instant::now() + within;
    loop {
        // The kernel tells of what has changed since it was read, so nothing in between is missed.
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

/// Whether an open `cgroup.events` has a line; as if it had, if its group is gone.
pub(crate) fn contains(file: &mut File, wanted: &str) -> io::Result<bool> {
    let mut text = String::new();
    match file.rewind().and_then(|()| file.read_to_string(&mut text)) {
        Ok(_) => Ok(text.lines().any(|line| line == wanted)),
        Err(error) if is_gone(&error) => Ok(true),
        Err(error) => Err(error),
    }
}

/// ENODEV: the group was removed while the file was open.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn time_runs_out_and_a_missing_file_is_no_wait() {
        let group = tempfile::tempdir().unwrap();
        assert!(wait_for(group.path(), "populated 0", Duration::from_secs(60)).unwrap());
        fs::write(group.path().join("cgroup.events"), "populated 1\n").unwrap();
        assert!(!wait_for(group.path(), "populated 0", Duration::from_millis(20)).unwrap());
    }
}
