//! Processes: finding, moving, freezing, killing.

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::error::Error;
use super::events;
use super::files::{is_hierarchy_root, read};
use super::manager::CgroupManager;
use super::procs::{Unit, caller_is_in, check_pid, is_threaded, read_ids, read_pids};

/// How long a group may take to freeze, to thaw or to get empty.
pub(crate) const SETTLE_WITHIN: Duration = Duration::from_secs(10);

/// How long one round of killing has before the next one looks for whom it has missed.
const KILLED_WITHIN: Duration = Duration::from_millis(200);

/// What a destination answers while a sched_ext scheduler's `cgroup_prep_move` says no.
const EBUSY_RETRIES: u32 = 3;
const EBUSY_PAUSE: Duration = Duration::from_millis(100);

/// Where processes go that have to leave a group of a delegated tree. No caller can name it: names
/// do not start with a dot.
pub(super) const REFUGE: &str = ".ktstr-refuge";

/// Whether a group is such a leaf.
pub(crate) fn is_leaf(group: &Path) -> bool {
    group.file_name().is_some_and(|name| name == REFUGE)
}

/// Tries again what was answered by EBUSY. Nothing tells when the scheduler would say yes.
fn while_busy(mut attempt: impl FnMut() -> Result<(), Error>) -> Result<(), Error> {
    for _ in 0..EBUSY_RETRIES {
        match attempt() {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(EBUSY_PAUSE);
            }
            other => return other,
        }
    }
    attempt()
}

impl CgroupManager {
    /// The processes in a group and all groups below it; none if it is gone.
    pub(crate) fn pids_of_tree(&self, name: &str) -> Result<Vec<i32>, Error> {
        self.read_tree(&self.path(name)?)
    }

    /// As [`pids_of_tree`](Self::pids_of_tree). Cgroups that are removed meanwhile are empty.
    pub(super) fn read_tree(&self, group: &Path) -> Result<Vec<i32>, Error> {
        let mut pids = self.read_subtree(group)?;
        // A process may have threads in several cgroups.
        let mut seen = HashSet::new();
        pids.retain(|pid| seen.insert(*pid));
        Ok(pids)
    }

    fn read_subtree(&self, group: &Path) -> Result<Vec<i32>, Error> {
        // ENODEV: removed while it was open.
        let gone =
            |error: &Error| matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV));
        let mut pids = match read_pids(group) {
            Ok((pids, _)) => pids,
            Err(error) if gone(&error) => Vec::new(),
            Err(error) => return Err(error),
        };
        let children = match self.children(group) {
            Ok(children) => children,
            Err(error) if gone(&error) => Vec::new(),
            Err(error) => return Err(error),
        };
        for child in children {
            pids.extend(self.read_subtree(&child)?);
        }
        Ok(pids)
    }

    pub(super) fn move_all(&self, group: &Path, pids: &[i32]) -> Result<(), Error> {
        if pids.is_empty() {
            return Ok(());
        }
        self.check_read(&group.join("cpuset.cpus"))?;
        check_mems(group)?;
        let mut gone = 0;
        for &pid in pids {
            match self.move_one(group, pid) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                    tracing::warn!("process {pid} ended before it could move: {error}");
                    gone += 1;
                }
                other => other?,
            }
        }
        if gone == pids.len() {
            return Err(Error::AllGone { path: group.to_owned(), pids: pids.to_vec() });
        }
        Ok(())
    }

    pub(super) fn move_one(&self, group: &Path, pid: i32) -> Result<(), Error> {
        self.move_unit(group, Unit::Process, pid)
    }

    fn move_unit(&self, group: &Path, unit: Unit, id: i32) -> Result<(), Error> {
        check_pid(group, id)?;
        let (path, value) = (group.join(unit.file()), id.to_string());
        while_busy(|| self.write(&path, &value))
    }

    /// Moves all processes of `group` out of it until there are none. Of a threaded cgroup, moves
    /// the threads to its parent: their processes stay in the threaded domain.
    pub(super) fn drain(&self, group: &Path, operation: &'static str) -> Result<(), Error> {
        if is_threaded(group)? {
            let parent = group.parent().unwrap_or(group);
            return self.drain_to(group, operation, Unit::Thread, || Ok(parent.to_owned()));
        }
        self.drain_to(group, operation, Unit::Process, || self.refuge())
    }

    /// As [`drain`](Self::drain), to a cgroup that is only made if there is something to move.
    pub(super) fn drain_to(
        &self,
        group: &Path,
        operation: &'static str,
        unit: Unit,
        destination: impl Fn() -> Result<PathBuf, Error>,
    ) -> Result<(), Error> {
        self.check_read(&group.join(unit.file()))?;
        let deadline = Instant::now() + SETTLE_WITHIN;
        let mut before = Vec::new();
        loop {
            let (pids, _) = read_ids(group, unit)?;
            if pids.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let (path, within) = (group.to_owned(), SETTLE_WITHIN);
                return Err(Error::Populated { operation, path, pids, within });
            }
            // They are dying: moving them does nothing, and they are listed until they have. One
            // whose first thread has ended stays listed though its other threads have moved.
            let pause = Duration::from_millis(50);
            if pids == before && events::wait_for(group, "populated 0", pause)? {
                return Ok(());
            }
            let destination = destination()?;
            for &pid in &pids {
                match self.move_unit(&destination, unit, pid) {
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    other => other?,
                }
            }
            before = pids;
        }
    }

    /// A group that may hold processes, whatever controllers are enabled: the root of the
    /// hierarchy, or else a leaf made for the purpose.
    fn refuge(&self) -> Result<PathBuf, Error> {
        let root = self.refuge_root();
        if is_hierarchy_root(root)? {
            return Ok(root.to_owned());
        }
        let leaf = root.join(REFUGE);
        self.make_group(&leaf)?;
        Ok(leaf)
    }

    /// A parent elsewhere than below the walk root is a root of its own.
    fn refuge_root(&self) -> &Path {
        match &self.ours {
            Some(ours) => ours,
            None if self.parent.starts_with(&self.walk_root) => &self.walk_root,
            None => &self.parent,
        }
    }

    /// The leaf that `drain` may have made.
    pub(super) fn refuge_leaf(&self) -> PathBuf {
        self.refuge_root().join(REFUGE)
    }

    pub(super) fn freeze(&self, group: &Path, frozen: bool) -> Result<(), Error> {
        let (operation, value, wanted) =
            if frozen { ("freeze", "1", "frozen 1") } else { ("thaw", "0", "frozen 0") };
        if frozen {
            self.refuse_with_caller(group, "freeze")?;
        }
        self.write(&group.join("cgroup.freeze"), value)?;
        let is_frozen = |above: &Path| {
            read(&above.join("cgroup.freeze")).is_ok_and(|value| value.trim() == "1")
        };
        // It thaws when the group above does.
        if !frozen && group.ancestors().skip(1).any(is_frozen) {
            return Ok(());
        }
        match events::wait_for(group, wanted, SETTLE_WITHIN)? {
            true => Ok(()),
            false => Err(Error::NotSettled {
                operation,
                path: group.to_owned(),
                wanted,
                within: SETTLE_WITHIN,
            }),
        }
    }

    pub(super) fn kill(&self, group: &Path) -> Result<(), Error> {
        self.refuse_with_caller(group, "kill the processes of")?;
        let deadline = Instant::now() + SETTLE_WITHIN;
        loop {
            match self.write(&group.join("cgroup.kill"), "1") {
                // Linux before 5.14. Without a group there is nothing to fall back to.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) && group.is_dir() => {
                    self.kill_frozen(group)?;
                }
                // A threaded cgroup: the kernel kills all processes of a threaded domain only.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    self.kill_frozen(group)?;
                }
                other => other?,
            }
            if events::wait_for(group, "populated 0", KILLED_WITHIN)? {
                return Ok(());
            }
            // The kernel passes over processes whose first thread has ended, and somebody may have
            // come in since, as processes do that are being born or moved.
            self.kill_one_by_one(group)?;
            if events::wait_for(group, "populated 0", KILLED_WITHIN)? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::Populated {
                    operation: "kill the processes of",
                    path: group.to_owned(),
                    pids: self.read_tree(group)?,
                    within: SETTLE_WITHIN,
                });
            }
        }
    }

    /// Nobody could thaw a frozen caller, or tell what a dead one did.
    fn refuse_with_caller(&self, group: &Path, operation: &str) -> Result<(), Error> {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        if !self.read_tree(group)?.contains(&own) {
            return Ok(());
        }
        Err(caller_is_in(group, operation))
    }

    /// Frozen processes cannot fork, and SIGKILL reaches them all the same. One that does not
    /// freeze keeps neither the others alive nor the group frozen.
    fn kill_frozen(&self, group: &Path) -> Result<(), Error> {
        let freeze = group.join("cgroup.freeze");
        self.write(&freeze, "1")?;
        let frozen = events::wait_for(group, "frozen 1", SETTLE_WITHIN);
        let killed = self.kill_one_by_one(group);
        // Nothing waits for the thaw: below a frozen group it would not come.
        self.write(&freeze, "0")?;
        frozen.and(killed)
    }

    fn kill_one_by_one(&self, group: &Path) -> Result<(), Error> {
        // Few at a time, for each takes a descriptor.
        for pids in self.read_tree(group)?.chunks(64) {
            let open = |pid: &i32| pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok();
            let pinned: Vec<_> = pids.iter().filter_map(|pid| Some((*pid, open(pid)?))).collect();
            // Who is still in the group is who was meant, and not a new process of that number.
            let members = self.read_tree(group)?;
            for (_, pidfd) in pinned.iter().filter(|(pid, _)| members.contains(pid)) {
                // One that has ended by itself is as dead as it should be.
                let _ = pidfd_send_signal(pidfd, Signal::KILL);
            }
        }
        Ok(())
    }
}

/// Refuses a group whose CPUs are chosen while it has no memory nodes.
fn check_mems(group: &Path) -> Result<(), Error> {
    let content = |file: &str| {
        let mut text = String::new();
        let opened = std::fs::File::open(group.join(file));
        opened.and_then(|mut file| file.read_to_string(&mut text)).ok()?;
        Some(text.trim().to_owned())
    };
    match (content("cpuset.cpus"), content("cpuset.mems.effective")) {
        (Some(cpus), Some(mems)) if !cpus.is_empty() && mems.is_empty() => {
            Err(Error::EmptyMems { path: group.to_owned(), cpus })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often an attempt is made that fails `failures` times, and what comes of it.
    fn attempts(failures: usize, errno: i32) -> (usize, bool) {
        let mut made = 0;
        let done = while_busy(|| {
            made += 1;
            let cause = std::io::Error::from_raw_os_error(errno);
            let path = Path::new("/cg/cgroup.procs");
            if made > failures { Ok(()) } else { Err(Error::io("write", path, Some("7"), cause)) }
        });
        (made, done.is_ok())
    }

    #[test]
    fn busy_is_tried_three_times_more_and_nothing_else_is() {
        assert_eq!(attempts(0, libc::EBUSY), (1, true));
        assert_eq!(attempts(2, libc::EBUSY), (3, true));
        assert_eq!(attempts(4, libc::EBUSY), (4, false));
        assert_eq!(attempts(1, libc::EACCES), (1, false));
    }
}
