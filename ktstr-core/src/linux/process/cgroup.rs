//! A job as a cgroup: processes cannot leave it, and are killed at once.

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

use super::containment::{Containment, EnterFn, EntryState, Usage};
use super::keeper::{Keeper, KeeperTask};
use super::name::JobName;
use super::procfs::{self, Process};
use super::{Error, Limits, place};
use crate::linux::cgroup::{self, CgroupManager, CgroupOps};
use crate::linux::sync::lock;
use crate::linux::sys;

/// How many attempts of a keeper may fail, 100 ms apart: a minute.
const MAX_FAILURES: u32 = 600;

#[derive(Debug)]
pub(super) struct JobCgroup {
    site: CgroupSite,
    cgroups: CgroupManager,
    name: String,
    limits: Mutex<Limits>,
    entry: Arc<CgroupEntry>,
    keeper: Option<Keeper>,
}

/// A cgroup in which those of jobs are created, and how it gets controllers for them.
#[derive(Debug, Clone)]
pub(super) struct CgroupSite {
    pub(super) parent: PathBuf,
    /// The cgroup from which on controllers are enabled.
    walk_root: PathBuf,
    /// The processes in `parent` may be moved to a leaf: this process is one of them.
    may_move: bool,
}

impl CgroupSite {
    /// Returns the cgroup of this process, so that limits on it and killing it affect the job too.
    pub(super) fn own() -> Result<Self, String> {
        let own = place::own_cgroup()?;
        Self::new(&own, Some(own.clone())).map_err(|error| error.to_string())
    }

    /// Returns a cgroup chosen by the caller.
    pub(super) fn below(parent: &Path) -> Result<Self, Error> {
        let fail = |reason| Error::Parent { parent: parent.to_owned(), reason };
        let parent = parent.canonicalize().map_err(|error| fail(error.to_string()))?;
        if !parent.join("cgroup.procs").exists() {
            return Err(fail("it is not a directory of a cgroup v2 file system".to_owned()));
        }
        Self::new(&parent, place::own_cgroup().ok())
    }

    fn new(parent: &Path, own: Option<PathBuf>) -> Result<Self, Error> {
        // Where an earlier job has moved the processes of a cgroup to a leaf, the cgroup of a job is
        // created as a sibling of the leaf and not in it.
        let own = own.map(|own| if cgroup::is_leaf(&own) { parent_of(&own) } else { own });
        let parent = if cgroup::is_leaf(parent) { parent_of(parent) } else { parent.to_owned() };
        let may_move = own.as_ref() == Some(&parent);
        // Root enables controllers from the root of the hierarchy on; other users only in the cgroup
        // that was delegated to them.
        let is_root = rustix::process::geteuid().is_root();
        let top = place::mount_of(&parent);
        let top = top.map_err(Error::system("read /proc/self/mountinfo"))?.filter(|_| is_root);
        let walk_root = top.unwrap_or_else(|| parent.clone());
        Ok(Self { parent, walk_root, may_move })
    }

    fn manager(&self) -> CgroupManager {
        CgroupManager::for_job(&self.parent, &self.walk_root, self.may_move)
    }

    /// Locks the directory of the parent against other jobs that move processes to its leaf or back.
    fn lock(&self) -> Result<DirLock, Error> {
        let file = File::open(&self.parent).and_then(|dir| dir.lock().map(|()| dir));
        file.map(DirLock).map_err(Error::system(format!("lock {}", self.parent.display())))
    }

    /// Moves processes back from the leaf, if there is one and this was the last job here.
    fn move_back(&self, cgroups: &CgroupManager) -> Result<(), Error> {
        if cgroups.has_leaf() {
            let _lock = self.lock()?;
            cgroups.move_back()?;
        }
        Ok(())
    }
}

/// A locked directory. It is unlocked explicitly, because a concurrent fork may have copied the
/// descriptor, and then closing it does not unlock it.
struct DirLock(File);

impl Drop for DirLock {
    fn drop(&mut self) {
        // Fails only if it is not locked.
        let _ = self.0.unlock();
    }
}

fn parent_of(cgroup: &Path) -> PathBuf {
    cgroup.parent().unwrap_or(cgroup).to_owned()
}

impl JobCgroup {
    pub(super) fn new(site: CgroupSite, limits: Limits) -> Result<Self, Error> {
        // 1. Check that processes can be moved: that needs write access to this file.
        let procs = site.parent.join("cgroup.procs");
        OpenOptions::new()
            .write(true)
            .open(&procs)
            .map_err(Error::system(format!("open {} for writing", procs.display())))?;

        // 2. Remove what dead owners have left.
        let cgroups = site.manager();
        remove_stale(&site, &cgroups);

        // 3. Start the keeper before the cgroup exists, so that it never exists without a keeper.
        let name = JobName::next()?.cgroup();
        let fail = Error::system("fork a keeper");
        let (keeper, _) =
            Keeper::start(&CgroupKeeper { site: &site, name: &name }).map_err(fail)?;

        // 4. Create it, or undo what was done so far.
        let created = Self::create(&cgroups, &site, &name, limits);
        if created.is_err() {
            let _ = cgroups.remove_empty_tree(&name);
            let _ = site.move_back(&cgroups);
        }
        let (entry, limits) = (Arc::new(created?), Mutex::new(limits));
        Ok(Self { site, cgroups, name, limits, entry, keeper: Some(keeper) })
    }

    fn create(
        cgroups: &CgroupManager,
        site: &CgroupSite,
        name: &str,
        limits: Limits,
    ) -> Result<CgroupEntry, Error> {
        {
            let controllers = limits.controllers();
            let _lock = (!controllers.is_empty()).then(|| site.lock()).transpose()?;
            cgroups.setup(&controllers)?;
            // Under the lock: a job that ends moves processes back from the leaf unless the leaf has
            // siblings.
            cgroups.create_cgroup(name)?;
        }
        let cgroup = site.parent.join(name);
        let path = cgroup.join("cgroup.type");
        let kind = std::fs::read_to_string(&path)
            .map_err(Error::system(format!("read {}", path.display())))?;
        if kind.trim() != "domain" {
            let reason = format!(
                "the type of a cgroup created there is `{}`, which cannot contain processes: it or an \
                 ancestor is part of a threaded subtree",
                kind.trim()
            );
            return Err(Error::Parent { parent: site.parent.clone(), reason });
        }
        limits.apply(&Limits::none(), cgroups, name)?;
        CgroupEntry::new(&cgroup)
    }

    pub(super) fn path(&self) -> PathBuf {
        self.site.parent.join(&self.name)
    }
}

impl Containment for JobCgroup {
    fn entry(&self, _: &mut Command) -> Result<EnterFn, Error> {
        let entry = Arc::clone(&self.entry);
        Ok(Box::new(move |state| entry.enter(state)))
    }

    fn place(&self) -> String {
        self.path().display().to_string()
    }

    fn pids(&self) -> Result<Vec<i32>, Error> {
        Ok(self.cgroups.pids_of_tree(&self.name)?)
    }

    fn holds(&self, pid: i32) -> Result<bool, Error> {
        let cgroups = procfs::read_file(pid, "cgroup");
        let cgroups = cgroups.map_err(Error::system(format!("read process {pid}")))?;
        // Bytes: descendants of the job's cgroup may have any name.
        let cgroups = cgroups.unwrap_or_default();
        let own = cgroups.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::"));
        let is_ours = |component: &[u8]| component == self.name.as_bytes();
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
            // Another process has removed the cgroup, which is only possible while it is empty.
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

impl Drop for JobCgroup {
    fn drop(&mut self) {
        let removed = self.kill().and_then(|()| {
            self.cgroups.remove_empty_tree(&self.name)?;
            self.site.move_back(&self.cgroups)
        });
        if let Err(error) = removed {
            tracing::warn!("failed to end a job, left to its keeper: {error}");
            // Not dropped, so that the keeper removes the cgroup when this process ends.
            std::mem::forget(self.keeper.take());
        }
    }
}

/// Removes the cgroups of jobs with a dead owner.
fn remove_stale(site: &CgroupSite, cgroups: &CgroupManager) {
    let listed = std::fs::read_dir(&site.parent).and_then(|entries| entries.collect());
    let entries: Vec<std::fs::DirEntry> = listed.unwrap_or_else(|error| {
        tracing::warn!("failed to list {} for stale jobs: {error}", site.parent.display());
        Vec::new()
    });
    for entry in entries {
        // Names of jobs are ASCII.
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !JobName::parse(&name).is_some_and(|name| name.is_stale()) {
            continue;
        }
        let removed = cgroups.kill_cgroup(&name).and_then(|()| cgroups.remove_empty_tree(&name));
        match removed {
            Ok(()) => tracing::info!("removed {name}: its owner is dead"),
            // Its keeper or another job has removed it meanwhile.
            Err(_) if !entry.path().exists() => {}
            Err(error) => tracing::warn!("failed to remove {name} of a dead owner: {error}"),
        }
    }
}

/// The task of the keeper of a cgroup.
struct CgroupKeeper<'a> {
    site: &'a CgroupSite,
    name: &'a str,
}

impl KeeperTask for CgroupKeeper<'_> {
    fn start(&self) -> io::Result<Option<Pid>> {
        // A new session: the owner's terminal cannot signal it.
        setsid()?;
        Ok(None)
    }

    fn clean_up(&self, _: Option<Pid>) {
        // Unbounded: this process must not start a thread.
        let cgroups = self.site.manager().unbounded();
        let mut failures = 0;
        while self.site.parent.join(self.name).is_dir() && failures < MAX_FAILURES {
            let killed = cgroups.kill_cgroup(self.name);
            match killed.and_then(|()| cgroups.remove_empty_tree(self.name)) {
                // Populated: unkillable processes. Each attempt waits ten seconds for them.
                Ok(()) | Err(cgroup::Error::Populated { .. }) => {}
                // The attempt failed at once, for example because no descriptors are left.
                Err(_) => {
                    failures += 1;
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
        let _ = self.site.move_back(&cgroups);
    }
}

/// The descriptors through which a new process enters the cgroup.
#[derive(Debug)]
struct CgroupEntry {
    dir: File,
    procs: OwnedFd,
}

impl CgroupEntry {
    fn new(cgroup: &Path) -> Result<Self, Error> {
        let open = || {
            let procs = OpenOptions::new().write(true).open(cgroup.join("cgroup.procs"))?;
            Ok::<_, io::Error>(Self { dir: File::open(cgroup)?, procs: procs.into() })
        };
        open().map_err(Error::system(format!("open {}", cgroup.display())))
    }

    /// Enters the cgroup. Runs between fork and exec, so it only makes system calls.
    ///
    /// The process forked by std is in the cgroup of its parent. It clones a sibling into that of the
    /// job and exits, so that the program was never outside the job. That is also cheaper than a
    /// move, for which the kernel suspends all forks and exits.
    fn enter(&self, state: &EntryState) -> io::Result<()> {
        if state.must_move.load(Ordering::Acquire) {
            return self.move_in();
        }
        let leadership = Leadership::current();
        // SAFETY: std forked this process to run a program; it has one thread and holds no lock that
        // its clone would wait for.
        match unsafe { sys::clone_into_cgroup(self.dir.as_fd()) } {
            Ok(None) => leadership.restore(),
            Ok(Some(sibling)) => {
                state.sibling.store(sibling.as_raw_nonzero().get(), Ordering::Release);
                sys::exit_now()
            }
            // Linux before 5.7; a seccomp filter that rejects clone3; a command that has changed
            // its user and lost the permission.
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

    /// Moves this process into the cgroup, with the credentials of the process that opened the file
    /// (Linux 5.16 and its stable kernels).
    fn move_in(&self) -> io::Result<()> {
        rustix::io::write(&self.procs, b"0")?;
        // `pids.max` rejects forks but not moves, so check it here.
        match (self.read_number(c"pids.current"), self.read_number(c"pids.max")) {
            (Some(current), Some(max)) if current > max => Err(Errno::AGAIN.into()),
            _ => Ok(()),
        }
    }

    /// Reads the number in a file of the cgroup. Does not allocate.
    fn read_number(&self, file: &CStr) -> Option<u64> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, file, flags, Mode::empty()).ok()?;
        let mut buffer = [0_u8; 32];
        let count = rustix::io::read(&file, &mut buffer).ok()?;
        std::str::from_utf8(&buffer[..count]).ok()?.trim_end().parse().ok()
    }
}

/// Whether a process leads its session and its process group. A clone does not inherit that.
#[derive(Debug, Clone, Copy)]
struct Leadership {
    session: bool,
    group: bool,
}

impl Leadership {
    fn current() -> Self {
        let (session, group) = sys::is_session_and_group_leader();
        Self { session, group }
    }

    /// Makes this process the same kind of leader.
    fn restore(self) -> io::Result<()> {
        if self.session {
            setsid()?;
        } else if self.group {
            setpgid(None, None)?;
        }
        Ok(())
    }
}
