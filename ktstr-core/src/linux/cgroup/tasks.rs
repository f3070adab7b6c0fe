//! Moves, freezes and kills processes.

use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::files::{is_hierarchy_root, read};
use super::procs::{ProcsUnit, caller_is_in, check_pid, is_threaded, read_ids, read_pids};
use super::{CgroupManager, Error, events};

/// Timeout for a cgroup to freeze, to thaw or to become empty.
pub(crate) const SETTLE_WITHIN: Duration = Duration::from_secs(10);

/// How long to wait for killed processes before looking for processes that were missed.
const KILL_ROUND: Duration = Duration::from_millis(200);

/// A move fails with EBUSY while `cgroup_prep_move` of a sched_ext scheduler rejects it.
const EBUSY_RETRIES: u32 = 3;
const EBUSY_PAUSE: Duration = Duration::from_millis(100);

/// The leaf to which processes of a delegated cgroup are moved. It cannot collide with the cgroup of a
/// caller, because their names do not start with a dot.
pub(super) const REFUGE: &str = ".ktstr-refuge";

/// Returns whether a cgroup is such a leaf.
pub(crate) fn is_leaf(cgroup: &Path) -> bool {
    cgroup.file_name().is_some_and(|name| name == REFUGE)
}

/// Retries an operation that fails with EBUSY. The kernel provides no event to wait for.
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

/// Retries an operation that fails with EBUSY until the processes that are exiting have left the cgroup.
///
/// Since Linux 7.0, `cgroup.procs` does not list a process that is exiting, but the cgroup counts it until it
/// has left its CPU, possibly after it was reaped. Until then the kernel refuses to enable controllers.
/// `cgroup.events` reports this moment only if no descendant contains processes.
///
/// Source: Linux 7.2, kernel/cgroup/cgroup.c, `css_task_iter_advance`, `cgroup_task_dead`,
/// `cgroup_vet_subtree_control_enable`.
pub(super) fn until_settled(mut attempt: impl FnMut() -> Result<(), Error>) -> Result<(), Error> {
    let deadline = Instant::now() + SETTLE_WITHIN;
    let mut pause = Duration::from_millis(1);
    loop {
        match attempt() {
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
            {
                std::thread::sleep(pause);
                pause = EBUSY_PAUSE.min(pause * 2);
            }
            other => return other,
        }
    }
}

impl CgroupManager {
    /// Returns the processes in a cgroup and its descendants; none if it does not exist.
    pub(crate) fn pids_of_tree(&self, name: &str) -> Result<Vec<i32>, Error> {
        self.read_tree(&self.path(name)?)
    }

    /// Returns the processes like [`pids_of_tree`](Self::pids_of_tree). Cgroups that are removed
    /// meanwhile count as empty.
    pub(super) fn read_tree(&self, cgroup: &Path) -> Result<Vec<i32>, Error> {
        let mut pids = self.read_subtree(cgroup)?;
        // A process may have threads in several cgroups.
        let mut seen = HashSet::new();
        pids.retain(|pid| seen.insert(*pid));
        Ok(pids)
    }

    fn read_subtree(&self, cgroup: &Path) -> Result<Vec<i32>, Error> {
        let mut pids = or_empty(read_pids(cgroup))?.0;
        let children = or_empty(self.children(cgroup))?;
        for child in children {
            pids.extend(self.read_subtree(&child)?);
        }
        Ok(pids)
    }

    pub(super) fn move_all(&self, cgroup: &Path, pids: &[i32]) -> Result<(), Error> {
        if pids.is_empty() {
            return Ok(());
        }
        self.writer.check_read(&cgroup.join("cpuset.cpus"))?;
        check_mems(cgroup)?;
        let mut gone = 0;
        for &pid in pids {
            match self.move_one(cgroup, pid) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                    tracing::warn!("process {pid} ended before it could move: {error}");
                    gone += 1;
                }
                other => other?,
            }
        }
        if gone == pids.len() {
            return Err(Error::AllGone { path: cgroup.to_owned(), pids: pids.to_vec() });
        }
        Ok(())
    }

    pub(super) fn move_one(&self, cgroup: &Path, pid: i32) -> Result<(), Error> {
        self.move_unit(cgroup, ProcsUnit::Process, pid)
    }

    fn move_unit(&self, cgroup: &Path, unit: ProcsUnit, id: i32) -> Result<(), Error> {
        check_pid(cgroup, id)?;
        let (path, value) = (cgroup.join(unit.file()), id.to_string());
        while_busy(|| self.write(&path, &value))
    }

    /// Moves processes out of a cgroup until it is empty. Moves the threads of a threaded cgroup to its
    /// parent, so that their processes stay in the threaded domain.
    pub(super) fn drain(&self, cgroup: &Path, operation: &'static str) -> Result<(), Error> {
        if is_threaded(cgroup)? {
            let parent = cgroup.parent().unwrap_or(cgroup);
            return self.drain_to(cgroup, operation, ProcsUnit::Thread, || Ok(parent.to_owned()));
        }
        self.drain_to(cgroup, operation, ProcsUnit::Process, || self.refuge())
    }

    /// Drains like [`drain`](Self::drain). `destination` is only called if there is a process to move.
    pub(super) fn drain_to(
        &self,
        cgroup: &Path,
        operation: &'static str,
        unit: ProcsUnit,
        destination: impl Fn() -> Result<PathBuf, Error>,
    ) -> Result<(), Error> {
        self.writer.check_read(&cgroup.join(unit.file()))?;
        let deadline = Instant::now() + SETTLE_WITHIN;
        let mut before = Vec::new();
        loop {
            let (pids, _) = read_ids(cgroup, unit)?;
            if pids.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let (path, within) = (cgroup.to_owned(), SETTLE_WITHIN);
                return Err(Error::Populated { operation, path, pids, within });
            }
            // The same processes again: they are exiting, or their first thread has ended and the
            // others were moved. Both stay listed for a while, and moving them has no effect.
            let pause = Duration::from_millis(50);
            if pids == before && events::wait_for(cgroup, "populated 0", pause)? {
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

    /// Returns a cgroup that may contain processes regardless of enabled controllers: the root of the
    /// hierarchy, or else a leaf, which is created.
    fn refuge(&self) -> Result<PathBuf, Error> {
        let root = self.refuge_root();
        if is_hierarchy_root(root)? {
            return Ok(root.to_owned());
        }
        let leaf = root.join(REFUGE);
        self.create_one(&leaf)?;
        Ok(leaf)
    }

    /// Returns the cgroup in which the leaf is. A parent outside of the walk root is its own root.
    fn refuge_root(&self) -> &Path {
        match &self.ours {
            Some(ours) => ours,
            None if self.parent.starts_with(&self.walk_root) => &self.walk_root,
            None => &self.parent,
        }
    }

    pub(super) fn refuge_leaf(&self) -> PathBuf {
        self.refuge_root().join(REFUGE)
    }

    pub(super) fn freeze(&self, cgroup: &Path, frozen: bool) -> Result<(), Error> {
        let (operation, value, wanted) =
            if frozen { ("freeze", "1", "frozen 1") } else { ("thaw", "0", "frozen 0") };
        if frozen {
            self.refuse_with_caller(cgroup, "freeze")?;
        }
        self.write(&cgroup.join("cgroup.freeze"), value)?;
        let is_frozen = |ancestor: &Path| {
            read(&ancestor.join("cgroup.freeze")).is_ok_and(|value| value.trim() == "1")
        };
        // It stays frozen until that ancestor thaws.
        if !frozen && cgroup.ancestors().skip(1).any(is_frozen) {
            return Ok(());
        }
        if events::wait_for(cgroup, wanted, SETTLE_WITHIN)? {
            return Ok(());
        }
        let (path, within) = (cgroup.to_owned(), SETTLE_WITHIN);
        Err(Error::NotSettled { operation, path, wanted, within })
    }

    pub(super) fn kill(&self, cgroup: &Path) -> Result<(), Error> {
        self.refuse_with_caller(cgroup, "kill the processes of")?;
        let deadline = Instant::now() + SETTLE_WITHIN;
        // Each round kills everything at once, then one by one what that missed.
        loop {
            match self.write(&cgroup.join("cgroup.kill"), "1") {
                // ENOENT: Linux before 5.14, unless the cgroup does not exist.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) && cgroup.is_dir() => {
                    self.kill_frozen(cgroup)?;
                }
                // EOPNOTSUPP: a threaded cgroup. The kernel only kills whole threaded domains.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    self.kill_frozen(cgroup)?;
                }
                other => other?,
            }
            if events::wait_for(cgroup, "populated 0", KILL_ROUND)? {
                return Ok(());
            }
            // `cgroup.kill` skips processes without their first thread, and processes may have
            // been forked or moved into the cgroup since.
            self.kill_one_by_one(cgroup)?;
            if events::wait_for(cgroup, "populated 0", KILL_ROUND)? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::Populated {
                    operation: "kill the processes of",
                    path: cgroup.to_owned(),
                    pids: self.read_tree(cgroup)?,
                    within: SETTLE_WITHIN,
                });
            }
        }
    }

    /// Fails if this process is in the cgroup: it could not thaw itself, or report after its own death.
    fn refuse_with_caller(&self, cgroup: &Path, operation: &str) -> Result<(), Error> {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        if !self.read_tree(cgroup)?.contains(&own) {
            return Ok(());
        }
        Err(caller_is_in(cgroup, operation))
    }

    /// Kills the processes one by one while the cgroup is frozen, so that they cannot fork. SIGKILL
    /// also ends frozen processes.
    fn kill_frozen(&self, cgroup: &Path) -> Result<(), Error> {
        let freeze = cgroup.join("cgroup.freeze");
        self.write(&freeze, "1")?;
        // Kill and thaw even if it does not freeze.
        let frozen = events::wait_for(cgroup, "frozen 1", SETTLE_WITHIN);
        let killed = self.kill_one_by_one(cgroup);
        // Not waited for: it does not thaw while an ancestor is frozen.
        self.write(&freeze, "0")?;
        frozen.and(killed)
    }

    fn kill_one_by_one(&self, cgroup: &Path) -> Result<(), Error> {
        // In chunks, because each process takes a descriptor.
        for pids in self.read_tree(cgroup)?.chunks(64) {
            let open = |pid: &i32| pidfd_open(Pid::from_raw(*pid)?, PidfdFlags::empty()).ok();
            let pinned: Vec<_> = pids.iter().filter_map(|pid| Some((*pid, open(pid)?))).collect();
            // Read again: a pid that is still listed was not reused before its pidfd was opened.
            let members = self.read_tree(cgroup)?;
            for (_, pidfd) in pinned.iter().filter(|(pid, _)| members.contains(pid)) {
                // Fails for a process that has ended.
                let _ = pidfd_send_signal(pidfd, Signal::KILL);
            }
        }
        Ok(())
    }
}

/// Returns an empty value for a cgroup that does not exist. ENODEV: it was removed while the file was open.
fn or_empty<T: Default>(read: Result<T, Error>) -> Result<T, Error> {
    match read {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
            Ok(T::default())
        }
        read => read,
    }
}

/// Fails for a cgroup with `cpuset.cpus` but without memory nodes.
fn check_mems(cgroup: &Path) -> Result<(), Error> {
    let content = |file: &str| {
        let mut text = String::new();
        let opened = std::fs::File::open(cgroup.join(file));
        opened.and_then(|mut file| file.read_to_string(&mut text)).ok()?;
        Some(text.trim().to_owned())
    };
    match (content("cpuset.cpus"), content("cpuset.mems.effective")) {
        (Some(cpus), Some(mems)) if !cpus.is_empty() && mems.is_empty() => {
            Err(Error::EmptyMems { path: cgroup.to_owned(), cpus })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Operation;
    use super::*;

    /// Returns how many attempts are made at an operation that fails `failures` times, and the result.
    fn attempts(failures: usize, errno: i32) -> (usize, bool) {
        let mut made = 0;
        let done = while_busy(|| {
            made += 1;
            let cause = std::io::Error::from_raw_os_error(errno);
            let path = Path::new("/cg/cgroup.procs");
            if made > failures {
                Ok(())
            } else {
                Err(Error::io(Operation::Write, path, Some("7"), cause))
            }
        });
        (made, done.is_ok())
    }

    #[test]
    fn while_busy_retries_ebusy_three_times() {
        assert_eq!(attempts(0, libc::EBUSY), (1, true));
        assert_eq!(attempts(2, libc::EBUSY), (3, true));
        assert_eq!(attempts(4, libc::EBUSY), (4, false));
        assert_eq!(attempts(1, libc::EACCES), (1, false));
    }
}
