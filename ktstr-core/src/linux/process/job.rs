//! Jobs: start, find, signal and kill processes that are contained together.

use std::fmt;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use super::cgroup::{CgroupSite, JobCgroup};
use super::child::{Child, SpawnedProcess};
use super::containment::{Containment, EntryState};
use super::group::ProcessGroup;
use super::pinned::{self, Pinned};
use super::procfs::{self, Process, Stat};
use super::{Error, Limits};
use crate::linux::cgroup::{self, SETTLE_WITHIN};
use crate::linux::sync::lock;
use crate::linux::sys::{self, Shared};

/// How a job contains its processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mechanism {
    /// A cgroup v2 of its own. Processes cannot leave it, limits can be set, and all processes are
    /// killed at once.
    CgroupV2 {
        /// The directory of the cgroup.
        group: PathBuf,
    },
    /// A process group.
    ///
    /// A process that leaves it is found by a variable in its environment, unless it has cleared or
    /// overwritten that, or the environment cannot be read, as of a program that runs as another
    /// user: such a process is not a member of the job. (Neither are those in the process group
    /// where /proc is mounted with `hidepid`.) Limits and suspending are not supported. The programs
    /// run in the background of their terminal.
    ProcessGroup {
        /// Why it is not a cgroup: which files were tried, and what the kernel answered.
        why: String,
    },
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CgroupV2 { group } => write!(f, "cgroup {}", group.display()),
            Self::ProcessGroup { why } => write!(f, "process group ({why})"),
        }
    }
}

/// The resources that a job has used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Processes that have not ended.
    pub live: usize,
    /// CPU time of all processes. A cgroup counts all of it; in a process group, the time of orphans
    /// that have ended is lost.
    pub cpu_time: Duration,
    /// Peak memory in bytes: of all processes together if the job is a cgroup with a memory limit
    /// (Linux 5.19 and later), else the sum of the peaks of the running processes.
    pub peak_memory: u64,
}

/// Contains processes and all their descendants. Dropping it kills them, and so does the end of the
/// owner, the process that created the job, even by SIGKILL.
#[derive(Debug)]
pub struct Job {
    /// `None` only while the job is dropped.
    containment: Option<Box<dyn Containment>>,
    mechanism: Mechanism,
    /// Locked for reading while a process is started, for writing while all are killed or frozen.
    gate: RwLock<Gate>,
    children: Mutex<SpawnedChildren>,
    /// New processes move into the cgroup, because the kernel kills those that are cloned into it.
    must_move: AtomicBool,
    /// The process that created the job. Its forks do not own the job.
    owner: Pid,
}

#[derive(Debug, Default)]
struct Gate {
    is_suspended: bool,
}

/// The processes that [`Job::spawn`] has started.
#[derive(Debug, Default)]
struct SpawnedChildren {
    running: Vec<Arc<SpawnedProcess>>,
    /// The CPU time of those that were reaped.
    cpu_of_reaped: Duration,
}

impl SpawnedChildren {
    /// Drops the processes that have been reaped, because each holds a descriptor.
    fn drop_reaped(&mut self) {
        let total = &mut self.cpu_of_reaped;
        self.running.retain(|child| {
            let cpu = child.cpu_time();
            *total += cpu.unwrap_or_default();
            cpu.is_none()
        });
    }
}

impl Job {
    /// Creates an empty job: a cgroup in that of this process, or else a process group.
    ///
    /// Limits on the cgroup of this process also limit the job, and killing it kills the job.
    ///
    /// If processes in the cgroup of this process prevent controllers that the limits need from
    /// being enabled, they move to a leaf cgroup, this process included. They move back when the last
    /// job ends.
    ///
    /// Removes jobs of dead owners in the same cgroup.
    ///
    /// # Errors
    ///
    /// [`Error::NoLimits`] if there are limits and no cgroup can be created that enforces them.
    pub fn new(limits: Limits) -> Result<Self, Error> {
        pinned::check_proc()?;
        let why = match CgroupSite::own() {
            Ok(site) => {
                let parent = site.parent.display().to_string();
                match JobCgroup::new(site, limits) {
                    Ok(cgroup) => return Ok(Self::in_cgroup(cgroup)),
                    // A value out of range is wrong with any mechanism.
                    Err(error @ Error::Cgroup(cgroup::Error::Range { .. })) => return Err(error),
                    Err(error) => format!("no cgroup can be created in {parent}: {error}"),
                }
            }
            Err(why) => why,
        };
        if limits != Limits::none() {
            return Err(Error::NoLimits { limits, tried: why });
        }
        let mechanism = Mechanism::ProcessGroup { why: why.clone() };
        Ok(Self::contained_by(Box::new(ProcessGroup::new(why)?), mechanism))
    }

    /// Creates an empty job in a cgroup below `parent`. Never falls back to a process group.
    ///
    /// # Errors
    ///
    /// If the cgroup cannot be created.
    pub fn below(parent: impl AsRef<Path>, limits: Limits) -> Result<Self, Error> {
        pinned::check_proc()?;
        Ok(Self::in_cgroup(JobCgroup::new(CgroupSite::below(parent.as_ref())?, limits)?))
    }

    fn in_cgroup(cgroup: JobCgroup) -> Self {
        let mechanism = Mechanism::CgroupV2 { group: cgroup.path() };
        Self::contained_by(Box::new(cgroup), mechanism)
    }

    fn contained_by(containment: Box<dyn Containment>, mechanism: Mechanism) -> Self {
        Self {
            containment: Some(containment),
            mechanism,
            gate: RwLock::default(),
            children: Mutex::default(),
            must_move: AtomicBool::default(),
            owner: getpid(),
        }
    }

    pub(super) fn containment(&self) -> &dyn Containment {
        self.containment.as_deref().expect("only drop takes it")
    }

    fn children(&self) -> MutexGuard<'_, SpawnedChildren> {
        let mut children = lock(&self.children);
        children.drop_reaped();
        children
    }

    /// Prevents processes from being started until the guard is dropped.
    fn close_gate(&self) -> RwLockWriteGuard<'_, Gate> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how the job contains its processes.
    pub fn mechanism(&self) -> &Mechanism {
        &self.mechanism
    }

    /// Starts a program. It is in the job before its first instruction.
    ///
    /// Processes that a `pre_exec` of the command starts are not in the job, because `pre_exec` runs
    /// before the entry. With a cgroup, the process that runs it is then replaced by a clone, which
    /// has the same session and process group, but no state that a fork does not inherit: timers,
    /// locks, a tracer.
    ///
    /// The program is killed when the calling *thread* ends: spawn from a thread that lives as long
    /// as the program should.
    ///
    /// # Errors
    ///
    /// [`Error::Spawn`] if the program cannot be started, [`Error::Enter`] if its process cannot
    /// enter the job, [`Error::Suspended`] if the job is suspended. Nothing runs then.
    pub fn spawn(&self, mut command: Command) -> Result<Child, Error> {
        // 1. No process may enter while the job is killed or frozen.
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        if gate.is_suspended {
            return Err(Error::Suspended { program: command.get_program().to_owned() });
        }

        // 2. The new process enters the job between fork and exec, and reports through `state`.
        let state = Shared::new(EntryState::default());
        let state = Arc::new(state.map_err(Error::system("map a page of memory"))?);
        state.must_move.store(self.must_move.load(Ordering::Acquire), Ordering::Release);
        let enter = self.containment().entry(&mut command)?;
        let owner = pidfd_open(getpid(), PidfdFlags::empty())
            .map_err(Error::system("open a pidfd of this process"))?;
        let child_state = Arc::clone(&state);
        let pre_exec = move || {
            if let Err(error) = enter(&child_state).and_then(|()| sys::die_with_parent()) {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                child_state.errno.store(errno, Ordering::Release);
                return Err(error);
            }
            child_state.has_entered.store(true, Ordering::Release);
            // If the owner ended before `die_with_parent`, no signal is sent any more.
            if pinned::has_ended(&owner) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure only makes system calls, on descriptors it owns
        // and in shared memory; it does not allocate or take a lock.
        unsafe { command.pre_exec(pre_exec) };

        // 3. Start it. The process that std forks may have replaced itself by a sibling.
        let mut spawned = command.spawn();
        let take_sibling = || Pid::from_raw(state.sibling.swap(0, Ordering::AcqRel));
        let mut sibling = take_sibling();
        if let Some(killed) = sibling.filter(|_| !state.has_entered.load(Ordering::Acquire)) {
            // Linux 6.14 and later, and stable kernels since then, compare the kill counter of the
            // parent's cgroup with that of the child's (cgroup_css_set_fork, kill_seq): if the job's
            // cgroup or that of the parent was ever killed, a process cloned into the former is
            // killed at once. Move from now on.
            let _ = sys::reap(killed);
            let _ = spawned.map(|mut child| child.wait());
            self.must_move.store(true, Ordering::Release);
            state.must_move.store(true, Ordering::Release);
            spawned = command.spawn();
            sibling = take_sibling();
        }

        // 4. From here on the process is the owner's to reap.
        match spawned {
            Ok(child) => self.register(child, sibling),
            Err(source) => {
                if let Some(sibling) = sibling {
                    // It has reported its error and is exiting. Fails if SIGCHLD is ignored.
                    let _ = sys::reap(sibling);
                }
                Err(self.spawn_error(&command, source, state.errno.load(Ordering::Acquire)))
            }
        }
    }

    /// Takes charge of a process that was started.
    fn register(
        &self,
        mut child: std::process::Child,
        sibling: Option<Pid>,
    ) -> Result<Child, Error> {
        let pid = match sibling {
            None => Pid::from_child(&child),
            Some(sibling) => {
                // `wait` would close the sibling's standard input.
                let stdin = child.stdin.take();
                // The process that std forked has exited after it created its sibling.
                let _ = child.wait();
                child.stdin = stdin;
                sibling
            }
        };
        let process = SpawnedProcess::new(pid).map_err(|error| {
            // ESRCH: SIGCHLD is ignored, so the process was reaped when it ended and its pid is free.
            if error.raw_os_error() != Some(libc::ESRCH) {
                // It has not been waited for, so the pid is still its own.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                let _ = sys::reap(pid);
            }
            Error::system(format!("open a pidfd of process {pid}, which was started"))(error)
        })?;
        let process = Arc::new(process);
        self.children().running.push(Arc::clone(&process));
        Ok(Child::new(child, process))
    }

    /// Returns the error of a spawn; `entry_errno` is 0 unless the entry failed.
    fn spawn_error(&self, command: &Command, source: io::Error, entry_errno: i32) -> Error {
        let program = command.get_program().to_owned();
        if entry_errno == 0 {
            let advice = match source.raw_os_error() {
                Some(libc::ENOENT) => {
                    "; check the path, PATH, the interpreter of a script and the working directory"
                }
                Some(libc::EAGAIN) => {
                    "; raise RLIMIT_NPROC, or pids.max of the cgroups that contain the job"
                }
                _ => "",
            };
            return Error::Spawn { program, source, advice };
        }
        let advice = match entry_errno {
            _ if matches!(self.mechanism, Mechanism::ProcessGroup { .. }) => "see setpgid(2)",
            libc::EAGAIN => "the job has reached its limit max_processes",
            libc::ENODEV | libc::ENOENT => "the cgroup has been removed by another process",
            libc::EBUSY => "another process has enabled controllers for children of the cgroup",
            libc::EACCES | libc::EPERM => {
                "a move needs write access to cgroup.procs of the common ancestor of both cgroups"
            }
            _ => "see clone(2), CLONE_INTO_CGROUP",
        };
        Error::Enter { program, place: self.containment().place(), source, advice }
    }

    /// Moves a process that was started elsewhere into the job, with its threads but not its
    /// children.
    ///
    /// # Errors
    ///
    /// If it has ended or may not be moved; [`Error::NeedsCgroup`] in a process group.
    pub fn adopt(&self, pid: i32) -> Result<(), Error> {
        self.containment().adopt(pid)?;
        // The kernel also moves zombies.
        match self.pin(pid)? {
            Some(_) => Ok(()),
            None => Err(Error::system(format!("adopt process {pid}"))(rustix::io::Errno::SRCH)),
        }
    }

    /// Returns the processes that have not ended.
    ///
    /// # Errors
    ///
    /// If the cgroup or /proc cannot be read.
    pub fn members(&self) -> Result<Vec<Process>, Error> {
        let pids = self.containment().pids()?.into_iter();
        let pinned = pids.map(|pid| self.pin(pid));
        pinned.filter_map(|pinned| Some(pinned.transpose()?.map(|pinned| pinned.process))).collect()
    }

    /// Pins a process if it is a member of the job.
    pub(super) fn pin(&self, pid: i32) -> Result<Option<Pinned>, Error> {
        pinned::pin(pid, |pid| self.containment().holds(pid))
    }

    /// Returns the processes that have not ended and were not started by [`spawn`](Self::spawn):
    /// after [`Child::wait`], those that the child has left behind.
    ///
    /// # Errors
    ///
    /// If the cgroup or /proc cannot be read.
    pub fn leaked(&self) -> Result<Vec<Process>, Error> {
        // Before `members`: the pid of a child that ends in between may be reused by a descendant.
        let spawned: Vec<_> = self.children().running.iter().map(|child| child.pid()).collect();
        let members = self.members()?.into_iter();
        Ok(members.filter(|process| !spawned.contains(&process.pid)).collect())
    }

    /// Sends a signal to every process. Processes that are started meanwhile may miss it.
    ///
    /// # Errors
    ///
    /// If a process belongs to another user and may not be signalled. All others are signalled.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        let mut refused = Ok(());
        for pid in self.containment().pids()? {
            let Some(Pinned { process, pidfd }) = self.pin(pid)? else { continue };
            match pidfd_send_signal(pidfd, signal) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(errno) => {
                    let what = format!("send {signal:?} to process {process}");
                    refused = Err(Error::system(what)(errno));
                }
            }
        }
        refused
    }

    /// Freezes all processes without a signal that they could observe; returns when they are frozen.
    ///
    /// # Errors
    ///
    /// If they do not freeze within ten seconds; [`Error::NeedsCgroup`] in a process group.
    pub fn suspend(&self) -> Result<(), Error> {
        let mut gate = self.close_gate();
        self.containment().freeze(true)?;
        gate.is_suspended = true;
        Ok(())
    }

    /// Thaws suspended processes.
    ///
    /// # Errors
    ///
    /// As for [`suspend`](Self::suspend).
    pub fn resume(&self) -> Result<(), Error> {
        let mut gate = self.close_gate();
        self.containment().freeze(false)?;
        gate.is_suspended = false;
        Ok(())
    }

    /// Returns the resources that the job has used so far.
    ///
    /// # Errors
    ///
    /// If the cgroup or /proc cannot be read.
    pub fn stats(&self) -> Result<Stats, Error> {
        let members = self.members()?;
        let usage = self.containment().usage()?;
        let cpu_time = match usage.cpu_time {
            Some(cpu_time) => cpu_time,
            None => self.cpu_time_of(&members).map_err(Error::system("read CPU times"))?,
        };
        let peaks = members.iter().filter_map(|one| procfs::peak_memory(one.pid).transpose());
        let peak_memory = match usage.peak_memory {
            Some(peak) => peak,
            None => peaks.sum::<io::Result<_>>().map_err(Error::system("read memory peaks"))?,
        };
        Ok(Stats { live: members.len(), cpu_time, peak_memory })
    }

    /// Adds up the CPU times of all processes and of the children they have waited for.
    ///
    /// Zombies that this process did not start are skipped: their time is added to that of their
    /// parent once it has waited for them.
    fn cpu_time_of(&self, members: &[Process]) -> io::Result<Duration> {
        let children = self.children();
        let spawned: Vec<_> = children.running.iter().map(|child| child.pid()).collect();
        let others = members.iter().map(|member| member.pid).filter(|pid| !spawned.contains(pid));
        let pids = spawned.iter().copied().chain(others);
        let stats = pids.filter_map(|pid| Stat::read(pid).transpose());
        let ticks = stats.map(|stat| Ok(stat?.cpu_ticks)).sum::<io::Result<u64>>()?;
        Ok(children.cpu_of_reaped + procfs::ticks(ticks))
    }

    /// Replaces all limits, while processes run.
    ///
    /// # Errors
    ///
    /// If a controller cannot be enabled; [`Error::NeedsCgroup`] in a process group.
    pub fn update_limits(&self, limits: Limits) -> Result<(), Error> {
        self.containment().update_limits(limits)
    }

    /// Kills every process, including stopped and suspended ones; returns when none is left.
    ///
    /// # Errors
    ///
    /// [`Error::Unkillable`] with the processes that are still there after ten seconds.
    pub fn kill_all(&self) -> Result<(), Error> {
        let mut gate = self.close_gate();
        let killed = self.containment().kill();
        // A suspended cgroup is still frozen, and would freeze the next process that is started.
        let resumed = if gate.is_suspended { self.containment().freeze(false) } else { Ok(()) };
        gate.is_suspended &= resumed.is_err();
        let reaped = self.reap();
        killed.and(reaped).and(resumed)
    }

    /// Kills and reaps the processes that were spawned, including those moved out of the job.
    fn reap(&self) -> Result<(), Error> {
        let deadline = Instant::now() + SETTLE_WITHIN;
        let running = self.children().running.clone();
        for child in &running {
            // Fails for a process that has ended.
            let _ = pidfd_send_signal(child.pidfd(), Signal::KILL);
        }
        let mut left = Vec::new();
        for child in &running {
            // An error means that its exit status is lost (other code has waited for it, or SIGCHLD
            // is ignored): it has ended.
            if let Ok(None) = child.wait_until(Some(deadline)) {
                let what = format!("read process {}", child.pid());
                left.extend(Process::read(child.pid()).map_err(Error::system(what))?);
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        Err(Error::Unkillable { processes: left, within: SETTLE_WITHIN })
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // A forked copy owns neither the cgroup nor the processes.
        if getpid() != self.owner {
            std::mem::forget(self.containment.take());
            return;
        }
        drop(self.containment.take());
        if let Err(error) = self.reap() {
            tracing::warn!("failed to end a job: {error}");
        }
    }
}
