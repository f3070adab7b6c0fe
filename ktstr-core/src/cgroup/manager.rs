//! The manager on cgroupfs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::{CgroupOps, Error, names};

/// How long a group may take to empty after its processes were killed or told to go.
const EMPTY_WITHIN: Duration = Duration::from_secs(2);

/// Manages the groups below one parent group.
#[derive(Debug)]
pub struct CgroupManager {
    parent: PathBuf,
}

impl CgroupManager {
    /// A manager for the groups below `parent`, a folder of cgroupfs. Touches nothing yet.
    pub fn new(parent: impl Into<PathBuf>) -> Self {
        Self { parent: parent.into() }
    }

    fn path(&self, name: &str) -> Result<PathBuf, Error> {
        names::check(name)?;
        Ok(self.parent.join(name))
    }
}

impl CgroupOps for CgroupManager {
    fn parent_path(&self) -> &Path {
        &self.parent
    }

    fn create_cgroup(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name)?;
        fs::create_dir_all(&path).map_err(Error::io("create cgroup", path))
    }

    fn remove_cgroup(&self, name: &str) -> Result<(), Error> {
        remove(&self.path(name)?)
    }

    fn move_task(&self, name: &str, pid: i32) -> Result<(), Error> {
        write(&self.path(name)?.join("cgroup.procs"), &pid.to_string())
    }

    fn read_procs(&self, name: &str) -> Result<Vec<i32>, Error> {
        read_procs(&self.path(name)?)
    }

    fn cleanup_all(&self) -> Result<(), Error> {
        if !self.parent.exists() {
            return Ok(());
        }
        write(&self.parent.join("cgroup.kill"), "1")?;
        remove_tree(&self.parent)
    }
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(path).map_err(Error::io("list", path))?;
    for entry in entries {
        let entry = entry.map_err(Error::io("list", path))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    remove(path)
}

fn remove(path: &Path) -> Result<(), Error> {
    if !path.exists() {
        return Ok(());
    }
    if !wait_until_empty(path)? {
        return Err(Error::Populated { path: path.to_owned(), pids: read_procs(path)? });
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove cgroup", path)(error))
        }
        _ => Ok(()),
    }
}

/// Waits for `populated 0`; false if that takes too long.
///
/// The kernel reports a change of `cgroup.events` by POLLPRI, but only to a descriptor that has
/// been read since the change before.
fn wait_until_empty(path: &Path) -> Result<bool, Error> {
    let events_path = path.join("cgroup.events");
    let mut events = File::open(&events_path).map_err(Error::io("open", &events_path))?;
    let deadline = Instant::now() + EMPTY_WITHIN;
    loop {
        let mut text = String::new();
        events
            .rewind()
            .and_then(|()| events.read_to_string(&mut text))
            .map_err(Error::io("read", &events_path))?;
        if text.lines().any(|line| line == "populated 0") {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = left.try_into().expect("two seconds fit a timespec");
        match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::io("wait for", &events_path)(errno.into())),
        }
    }
}

fn read_procs(path: &Path) -> Result<Vec<i32>, Error> {
    let procs = path.join("cgroup.procs");
    let text = fs::read_to_string(&procs).map_err(Error::io("read", &procs))?;
    text.lines()
        .map(|line| line.parse().map_err(io::Error::other).map_err(Error::io("parse", &procs)))
        .collect()
}

fn write(path: &Path, value: &str) -> Result<(), Error> {
    // Not `fs::write`: opened with O_CREAT, a missing file of cgroupfs answers EACCES, not ENOENT.
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(Error::io(format!("write {value} to"), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_file_and_fix() {
        let manager = CgroupManager::new("/nonexistent/ktstr");
        let error = manager.move_task("cg", 1).unwrap_err().to_string();
        assert!(error.contains("write 1 to /nonexistent/ktstr/cg/cgroup.procs"), "{error}");
        assert!(error.contains("no such group"), "{error}");
        assert!(manager.remove_cgroup("cg").is_ok(), "removing a missing group is fine");
        assert!(manager.cleanup_all().is_ok(), "a missing parent has nothing to clean");
        assert!(matches!(manager.create_cgroup("../x"), Err(Error::Name { .. })));
    }
}
