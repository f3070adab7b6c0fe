//! A job as a cgroup: nothing leaves it, and it is killed as a whole.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, setpgid, setsid};

use super::containment::{Containment, EnterFn, Entered, Usage};
use super::error::Error;
use super::keeper::{Duty, Keeper};
use super::limits::Limits;
use super::name::Name;
use super::place;
use super::procfs::{self, Process};
use crate::linux::cgroup::{self, CgroupManager, CgroupOps};
use crate::linux::sync::lock;
use crate::linux::sys;

/// How many times a keeper fails before it gives up: a minute.
const MOST_FAILURES: u32 = 600;

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
}

impl Site {
    /// In the group this process is in, so that whatever ends or limits that ends or limits the job.
    pub(super) fn own() -> Result<Self, String> {
        let own = place::own_group()?;
        Self::new(&own, Some(own.clone())).map_err(|error| error.to_string())
    }

    /// In a group that was named.
    pub(super) fn below(parent: &Path) -> Result<Self, Error> {
        let fail = |reason| Error::Parent { parent: parent.to_owned(), reason };
        let parent = parent.canonicalize().map_err(|error| fail(error.to_string()))?;
        if !parent.join("cgroup.procs").exists() {
            return Err(fail("it is no folder of a cgroup v2 file system".to_owned()));
        }
        Self::new(&parent, place::own_group().ok())
    }

    fn new(parent: &Path, own: Option<PathBuf>) -> Result<Self, Error> {
        // There this process is in the way of controllers, and moves to a leaf for them. Where it
        // has done so already, its job goes beside that.
        let own = own.map(|own| if cgroup::is_leaf(&own) { parent_of(&own) } else { own });
        let parent = if cgroup::is_leaf(parent) { parent_of(parent) } else { parent.to_owned() };
        let may_move = own.as_ref() == Some(&parent);
        // Root may enable controllers all the way down; others begin with what was given to them.
        let is_root = rustix::process::geteuid().is_root();
        let top = place::mount_of(&parent);
        let top = top.map_err(Error::system("read /proc/self/mountinfo"))?.filter(|_| is_root);
        let walk_root = top.unwrap_or_else(|| parent.clone());
        Ok(Self { parent, walk_root, may_move })
    }

    fn manager(&self) -> CgroupManager {
        CgroupManager::for_job(&self.parent, &self.walk_root, self.may_move)
    }

    /// Of all who move processes to a leaf of the parent, or back, one at a time.
    fn lock(&self) -> Result<Lock, Error> {
        let file = File::open(&self.parent).and_then(|dir| dir.lock().map(|()| dir));
        file.map(Lock).map_err(Error::system(format!("lock {}", self.parent.display())))
    }

    /// Moves processes back from the leaf, if there is one and this was the last job here.
    fn hand_back(&self, cgroups: &CgroupManager) -> Result<(), Error> {
        if cgroups.has_leaf() {
            let _lock = self.lock()?;
            cgroups.hand_back()?;
        }
        Ok(())
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

fn parent_of(group: &Path) -> PathBuf {
    group.parent().unwrap_or(group).to_owned()
}

impl Cgroup {
    /// Makes a group for a job.
    pub(super) fn new(site: Site, limits: Limits) -> Result<Self, Error> {
        let procs = site.parent.join("cgroup.procs");
        // Who may not write this file cannot move processes within this group.
        OpenOptions::new()
            .write(true)
            .open(&procs)
            .map_err(Error::system(format!("open {} for writing", procs.display())))?;
        let cgroups = site.manager();
        sweep(&site, &cgroups);
        let name = Name::next()?.group();
        let fail = Error::system("fork a keeper");
        // Before there is anything to keep, so that at no time there is something without one.
        let (keeper, _) = Keeper::start(&Keep { site: &site, name: &name }).map_err(fail)?;
        let made = Self::make(&cgroups, &site, &name, limits);
        if made.is_err() {
            let _ = cgroups.remove_empty_tree(&name);
            let _ = site.hand_back(&cgroups);
        }
        let (entry, limits) = (Arc::new(made?), Mutex::new(limits));
        Ok(Self { site, cgroups, name, limits, entry, keeper: Some(keeper) })
    }

    fn make(
        cgroups: &CgroupManager,
        site: &Site,
        name: &str,
        limits: Limits,
    ) -> Result<Entry, Error> {
        {
            let controllers = limits.controllers();
            let _lock = (!controllers.is_empty()).then(|| site.lock()).transpose()?;
            cgroups.setup(&controllers)?;
            // Under the lock: a leaf is left while there is another group beside it.
            cgroups.create_cgroup(name)?;
        }
        let group = site.parent.join(name);
        let path = group.join("cgroup.type");
        let kind = std::fs::read_to_string(&path)
            .map_err(Error::system(format!("read {}", path.display())))?;
        if kind.trim() != "domain" {
            let reason = format!(
                "a group made there is `{}`, which takes no processes: threads were enabled in it, \
                 or in a group above",
                kind.trim()
            );
            return Err(Error::Parent { parent: site.parent.clone(), reason });
        }
        limits.apply(&Limits::none(), cgroups, name)?;
        Entry::new(&group)
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

    fn pids(&self) -> Result<Vec<i32>, Error> {
        Ok(self.cgroups.pids_of_tree(&self.name)?)
    }

    fn holds(&self, pid: i32) -> Result<bool, Error> {
        let groups = procfs::read_file(pid, "cgroup");
        let groups = groups.map_err(Error::system(format!("look at process {pid}")))?;
        // Bytes: a cgroup below the job's may have any name.
        let groups = groups.unwrap_or_default();
        let own = groups.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::"));
        let is_ours = |part: &[u8]| part == self.name.as_bytes();
        Ok(own.is_some_and(|own| own.split(|byte| *byte == b'/').any(is_ours)))
    }

    fn events(&self) -> Option<PathBuf> {
        Some(self.path().join("cgroup.events"))
    }

    fn kill(&self) -> Result<(), Error> {
        match self.cgroups.kill_cgroup(&self.name) {
            Err(cgroup::Error::Populated { pids, within, .. }) => {
                let read = pids.into_iter().filter_map(|pid| Process::read(pid).transpose());
                let processes = read.collect::<Result<_, _>>();
                let processes = processes.map_err(Error::system("read killed processes"))?;
                Err(Error::Unkillable { processes, within })
            }
            // Somebody has removed it, which only goes when nobody is in it.
            Err(_) if !self.path().is_dir() => Ok(()),
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
        let mut before = lock(&self.limits);
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
            self.cgroups.remove_empty_tree(&self.name)?;
            self.site.hand_back(&self.cgroups)
        });
        if let Err(error) = ended {
            tracing::warn!("left behind for the keeper: {error}");
            // It does at this process's end what could not be done now.
            std::mem::forget(self.keeper.take());
        }
    }
}

/// Removes what dead owners left in a group.
fn sweep(site: &Site, cgroups: &CgroupManager) {
    let listed = std::fs::read_dir(&site.parent).and_then(|entries| entries.collect());
    let entries: Vec<std::fs::DirEntry> = listed.unwrap_or_else(|error| {
        tracing::warn!("cannot look for dead owners' jobs in {}: {error}", site.parent.display());
        Vec::new()
    });
    for entry in entries {
        // Names of jobs are ASCII.
        let Ok(name) = entry.file_name().into_string() else { continue };
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
    fn settle(&self) -> io::Result<Option<Pid>> {
        // Away from the terminal and its signals.
        setsid()?;
        Ok(None)
    }

    fn end(&self, _: Option<Pid>) {
        let cgroups = self.site.manager().unbounded();
        let mut failures = 0;
        while self.site.parent.join(self.name).is_dir() && failures < MOST_FAILURES {
            let ended = cgroups.kill_cgroup(self.name);
            match ended.and_then(|()| cgroups.remove_empty_tree(self.name)) {
                // Processes that cannot end: each round waits for them for ten seconds.
                Ok(()) | Err(cgroup::Error::Populated { .. }) => {}
                // It could not even try, as when nothing is left to open a file with.
                Err(_) => {
                    failures += 1;
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
        let _ = self.site.hand_back(&cgroups);
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
        let leads = Leads::now();
        // SAFETY: this process was forked by std to become a program; it has one thread, and holds no
        // lock that its copy would wait for.
        match unsafe { sys::clone_into_cgroup(self.group.as_fd()) } {
            Ok(None) => leads.again(),
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
        // Who is born is counted against `pids.max`; who moves is counted only.
        match (self.number_in(c"pids.current"), self.number_in(c"pids.max")) {
            (Some(current), Some(max)) if current > max => Err(Errno::AGAIN.into()),
            _ => Ok(()),
        }
    }

    /// The number in a file of the group. Allocates nothing.
    fn number_in(&self, file: &CStr) -> Option<u64> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.group, file, flags, Mode::empty()).ok()?;
        let mut buffer = [0_u8; 32];
        let count = rustix::io::read(&file, &mut buffer).ok()?;
        std::str::from_utf8(&buffer[..count]).ok()?.trim_end().parse().ok()
    }
}

/// What a command has made the process be that std forked for it, and its sibling is not.
#[derive(Debug, Clone, Copy)]
struct Leads {
    session: bool,
    group: bool,
}

impl Leads {
    fn now() -> Self {
        let (session, group) = sys::is_session_and_group_leader();
        Self { session, group }
    }

    /// Makes the sibling it as well.
    fn again(self) -> io::Result<()> {
        if self.session {
            setsid()?;
        } else if self.group {
            setpgid(None, None)?;
        }
        Ok(())
    }
}
