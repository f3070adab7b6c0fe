//! Waiting for what `cgroup.events` says.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::io::Errno;

use super::Error;

/// Waits until `cgroup.events` of `group` has `line`; false if that takes longer than `within`.
///
/// True at once if there is no such file: the group is gone, or is no real one.
pub(super) fn wait_for(group: &Path, line: &str, within: Duration) -> Result<bool, Error> {
    let path = group.join("cgroup.events");
    let fail = |cause: io::Error| Error::io("wait for", &path, None, cause);
    // Most of the time it is so already, and an inotify instance is dear to close.
    if says(&path, line).map_err(fail)? {
        return Ok(true);
    }
    let deadline = Instant::now() + within;
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let watch = inotify::init(flags).map_err(|errno| fail(errno.into()))?;
    match inotify::add_watch(&watch, &path, inotify::WatchFlags::MODIFY) {
        Ok(_) => {}
        Err(Errno::NOENT) => return Ok(true),
        Err(errno) => return Err(fail(errno.into())),
    }
    loop {
        // The file is read after the watch began, so no change in between is missed.
        if says(&path, line).map_err(fail)? {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = left.try_into().expect("seconds fit a timespec");
        match poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(fail(errno.into())),
        }
        while rustix::io::read(&watch, &mut [0_u8; 1024]).is_ok() {}
    }
}

fn says(path: &Path, wanted: &str) -> io::Result<bool> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().any(|line| line == wanted)),
        // ENODEV: the group was removed while the file was open.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_change_wakes_the_waiter_long_before_its_time() {
        let group = tempfile::tempdir().unwrap();
        let events = group.path().join("cgroup.events");
        fs::write(&events, "populated 1\nfrozen 0\n").unwrap();
        let began = Instant::now();
        std::thread::scope(|scope| {
            let waiter =
                scope.spawn(|| wait_for(group.path(), "populated 0", Duration::from_secs(60)));
            while !waiter.is_finished() && began.elapsed() < Duration::from_secs(30) {
                fs::write(&events, "populated 0\nfrozen 0\n").unwrap();
            }
            assert!(waiter.join().unwrap().unwrap());
        });
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn time_runs_out_and_a_missing_file_is_no_wait() {
        let group = tempfile::tempdir().unwrap();
        assert!(wait_for(group.path(), "populated 0", Duration::from_secs(60)).unwrap());
        fs::write(group.path().join("cgroup.events"), "populated 1\n").unwrap();
        assert!(!wait_for(group.path(), "populated 0", Duration::from_millis(20)).unwrap());
    }
}
