//! A job as a cgroup: nothing leaves it, and it is killed as a whole.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::setsid;

use super::containment::{Containment, EnterFn, Entered, Usage};
use super::keeper::{Duty, Keeper};
use super::members::Process;
use super::name::Name;
use super::{Error, Limits, place};
use crate::cgroup::{self, CgroupManager, CgroupOps};
use crate::sys;

/// A group that was made for one job.
#[derive(Debug)]
pub(super) struct Cgroup {
    site: Site,
    cgroups: CgroupManager,
    name: String,
    limits: Mutex<Limits>,
    entry: Arc<Entry>,
    keeper: Option<Keeper>,
}

/// A group in which a job's can be, and how it gets controllers for that.
#[derive(Debug, Clone)]
pub(super) struct Site {
    pub(super) parent: PathBuf,
    walk_root: PathBuf,
    may_move: bool,
    /// The group this process was in when this was chosen.
    own: Option<PathBuf>,
}

impl Site {
    /// The groups to try, in this order: beside the one this process is in, and in that one.
    pub(super) fn candidates() -> Result<Vec<Self>, String> {
        let own = place::own_group()?;
        let beside = own.parent().filter(|beside| is_group(beside));
        let groups = beside.into_iter().chain([&*own]);
        Ok(groups.map(|group| Self::in_group(group, Some(own.clone()))).collect())
    }

    /// In a group that was named.
    pub(super) fn below(parent: &Path) -> Result<Self, Error> {
        let fail = |reason| Error::Parent { parent: parent.to_owned(), reason };
        let parent = parent.canonicalize().map_err(|error| fail(error.to_string()))?;
        if !is_group(&parent) {
            return Err(fail("it is no folder of a cgroup v2 file system".to_owned()));
        }
        Ok(Self::in_group(&parent, place::own_group().ok()))
    }

    fn in_group(parent: &Path, own: Option<PathBuf>) -> Self {
        // There this process is in the way of controllers, and moves to a leaf for them.
        let may_move = own.as_deref() == Some(parent);
        // Root may enable controllers all the way down; others begin with what was given to them.
        let is_root = rustix::process::geteuid().is_root();
        let top = place::mount_of(parent).filter(|_| is_root && !may_move);
        let walk_root = top.unwrap_or_else(|| parent.to_owned());
        Self { parent: parent.to_owned(), walk_root, may_move, own }
    }

    /// Whether somebody has moved this process meanwhile. Who does that holds the lock.
    fn is_outdated(&self) -> bool {
        self.own != place::own_group().ok()
    }

    fn manager(&self) -> CgroupManager {
        CgroupManager::for_job(self.parent.clone(), self.walk_root.clone(), self.may_move)
    }

    /// Of all who make and remove jobs here, one at a time: who moves processes to a leaf must not
    /// meet who moves them back. The root of the hierarchy has no such leaf.
    fn lock(&self) -> Result<Option<Lock>, Error> {
        if cgroup::is_hierarchy_root(&self.parent) {
            return Ok(None);
        }
        let file = File::open(&self.parent).and_then(|folder| folder.lock().map(|()| folder));
        let fail = Error::system(format!("lock {}", self.parent.display()));
        Ok(Some(Lock(file.map_err(fail)?)))
    }

    /// For moving processes back from the leaf, which is directly in the parent whoever made it.
    fn leaf_manager(&self) -> CgroupManager {
        CgroupManager::for_job(self.parent.clone(), self.parent.clone(), true)
    }
}

/// A locked folder. Closing it would not do: another thread's fork may have a copy.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // It fails only for what is not locked.
        let _ = self.0.unlock();
    }
}

fn is_group(folder: &Path) -> bool {
    folder.join("cgroup.procs").exists()
}

impl Cgroup {
    /// Makes a group for a job; `None` if this process has moved since the site was chosen.
    pub(super) fn new(site: Site, limits: Limits) -> Result<Option<Self>, Error> {
        let procs = site.parent.join("cgroup.procs");
        // Who may not write this file cannot move processes within this group.
        OpenOptions::new()
            .write(true)
            .open(&procs)
            .map_err(Error::system(format!("open {} for writing", procs.display())))?;
        let lock = site.lock()?;
        if site.is_outdated() {
            return Ok(None);
        }
        sweep(&site);
        let cgroups = site.manager();
        let name = Name::next().group();
        let fail = Error::system("fork a keeper");
        // Before there is anything to keep, so that at no time there is something without one.
        let keeper = Keeper::start(&Keep { site: &site, name: &name }).map_err(fail)?;
        let made = Self::make(&cgroups, &site, &name, limits);
        if made.is_err() {
            let _ = cgroups.remove_empty_tree(&name);
            let _ = site.leaf_manager().hand_back();
        }
        drop(lock);
        let entry = Arc::new(made?);
        let limits = Mutex::new(limits);
        Ok(Some(Self { site, cgroups, name, limits, entry, keeper: Some(keeper) }))
    }

    fn make(
        cgroups: &CgroupManager,
        site: &Site,
        name: &str,
        limits: Limits,
    ) -> Result<Entry, Error> {
        cgroups.setup(&limits.controllers())?;
        cgroups.create_cgroup(name)?;
        limits.apply(&Limits::none(), cgroups, name)?;
        Entry::new(&site.parent.join(name))
    }

    /// The group's folder.
    pub(super) fn path(&self) -> PathBuf {
        self.site.parent.join(&self.name)
    }
}

impl Containment for Cgroup {
    fn entry(&self, _: &mut Command) -> Result<EnterFn, Error> {
        let entry = Arc::clone(&self.entry);
        Ok(Box::new(move |entered| entry.enter(entered)))
    }

    fn place(&self) -> String {
        self.path().display().to_string()
    }

    fn members(&self) -> Result<Vec<Process>, Error> {
        let pids = self.cgroups.pids_of_tree(&self.name);
        // One that ends is listed for a moment although it has ended.
        Ok(pids.into_iter().filter_map(Process::read).filter(Process::is_alive).collect())
    }

    fn holds(&self, pid: i32) -> bool {
        self.cgroups.pids_of_tree(&self.name).contains(&pid)
    }

    fn events(&self) -> Option<PathBuf> {
        Some(self.path().join("cgroup.events"))
    }

    fn kill(&self) -> Result<(), Error> {
        match self.cgroups.kill_cgroup(&self.name) {
            Err(cgroup::Error::Populated { within, .. }) => {
                Err(Error::Unkillable { processes: self.members()?, within })
            }
            other => Ok(other?),
        }
    }

    fn freeze(&self, frozen: bool) -> Result<(), Error> {
        Ok(self.cgroups.set_freeze(&self.name, frozen)?)
    }

    fn adopt(&self, pid: i32) -> Result<(), Error> {
        Ok(self.cgroups.move_task(&self.name, pid)?)
    }

    fn update_limits(&self, limits: Limits) -> Result<(), Error> {
        let mut before = self.limits.lock().unwrap_or_else(|poison| poison.into_inner());
        let enabled = before.controllers();
        let missing: BTreeSet<_> = limits.controllers().difference(&enabled).copied().collect();
        if !missing.is_empty() {
            let _lock = self.site.lock()?;
            self.cgroups.setup(&missing)?;
        }
        limits.apply(&before, &self.cgroups, &self.name)?;
        *before = limits;
        Ok(())
    }

    fn usage(&self) -> Result<Usage, Error> {
        let stats = self.cgroups.stats(&self.name)?;
        let peak_memory = stats.memory.and_then(|memory| memory.peak);
        let cpu_time = Duration::from_micros(stats.cpu.usage_usec);
        Ok(Usage { cpu_time: Some(cpu_time), peak_memory })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let ended = self.kill().and_then(|()| {
            let _lock = self.site.lock()?;
            self.cgroups.remove_empty_tree(&self.name)?;
            Ok(self.site.leaf_manager().hand_back()?)
        });
        if let Err(error) = ended {
            tracing::warn!("left behind for the keeper: {error}");
            // It does at this process's end what could not be done now.
            std::mem::forget(self.keeper.take());
        }
    }
}

/// Removes what dead owners left in a group.
fn sweep(site: &Site) {
    let cgroups = site.manager();
    let entries = std::fs::read_dir(&site.parent).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !Name::parse(&name).is_some_and(|name| name.is_stale()) {
            continue;
        }
        let swept = cgroups.kill_cgroup(&name).and_then(|()| cgroups.remove_empty_tree(&name));
        match swept {
            Ok(()) => tracing::info!("removed {name}, whose owner is dead"),
            // Its keeper may have been faster.
            Err(_) if !entry.path().exists() => {}
            Err(error) => tracing::warn!("cannot remove {name}, whose owner is dead: {error}"),
        }
    }
}

/// What the keeper of a group does.
struct Keep<'a> {
    site: &'a Site,
    name: &'a str,
}

impl Duty for Keep<'_> {
    fn settle(&self) -> io::Result<()> {
        // Away from the terminal and its signals.
        setsid()?;
        Ok(())
    }

    fn end(&self) {
        let cgroups = self.site.manager().unbounded();
        while let Err(cgroup::Error::Populated { .. }) = cgroups.kill_cgroup(self.name) {}
        let _lock = self.site.lock();
        let _ = cgroups.remove_empty_tree(self.name);
        let _ = self.site.leaf_manager().unbounded().hand_back();
    }
}

/// How a new process enters the group.
#[derive(Debug)]
struct Entry {
    group: File,
    procs: OwnedFd,
}

impl Entry {
    fn new(group: &Path) -> Result<Self, Error> {
        let open = || {
            let procs = OpenOptions::new().write(true).open(group.join("cgroup.procs"))?;
            Ok::<_, io::Error>(Self { group: File::open(group)?, procs: procs.into() })
        };
        open().map_err(Error::system(format!("open {}", group.display())))
    }

    /// Runs between fork and exec: makes system calls only.
    ///
    /// The process that std has forked is in its parent's group. Its place is taken by a sibling
    /// that is born in the job's, so that nothing of it was ever elsewhere, and that costs less than
    /// a move, for which the kernel stops all forks and exits for a moment.
    fn enter(&self, entered: &Entered) -> io::Result<()> {
        if entered.in_person.load(Ordering::Acquire) {
            return self.move_in();
        }
        match sys::clone_into_cgroup(self.group.as_fd()) {
            Ok(None) => Ok(()),
            Ok(Some(sibling)) => {
                entered.sibling.store(sibling.as_raw_nonzero().get(), Ordering::Release);
                sys::exit_now()
            }
            // Linux before 5.7; a seccomp filter that knows no clone3; a command that has changed
            // its user, who may not do this.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOSYS | libc::EINVAL | libc::E2BIG | libc::EACCES | libc::EPERM)
                ) =>
            {
                self.move_in()
            }
            Err(error) => Err(error),
        }
    }

    /// With the rights of who opened the file (Linux 5.16 and its stable kernels).
    fn move_in(&self) -> io::Result<()> {
        rustix::io::write(&self.procs, b"0")?;
        Ok(())
    }
}
