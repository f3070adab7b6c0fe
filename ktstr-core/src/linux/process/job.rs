//! Jobs.

use std::fmt;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};

use super::cgroup::{Cgroup, Site};
use super::child::{Child, Leader};
use super::containment::{Containment, Entered};
use super::error::Error;
use super::group::Group;
use super::limits::Limits;
use super::pinned::{self, Pinned};
use super::procfs::{self, Process, Stat};
use crate::linux::cgroup::SETTLE_WITHIN;
use crate::linux::sys::{self, Shared};

/// What holds the processes of a job, and why it is that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mechanism {
    /// A cgroup v2 of its own: nothing leaves it, limits can be set, and it is killed as a whole.
    CgroupV2 {
        /// The group's folder.
        group: PathBuf,
    },
    /// A process group. Who leaves it is still found by a variable in its environment, unless that is
    /// cleared, written over or cannot be read, as that of programs with the rights of another user:
    /// such a process is not known to the job. (Nor is one in the group, where /proc is mounted with
    /// `hidepid`.) There are no limits, and no suspending. Its programs
    /// are in the background of their terminal.
    ProcessGroup {
        /// Why it is not a cgroup: which files were tried, and what they answered.
        why: String,
    },
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CgroupV2 { group } => write!(f, "cgroup {}", group.display()),
            Self::ProcessGroup { why } => write!(f, "process group, for {why}"),
        }
    }
}

/// What a job has used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Processes that have not ended.
    pub live: usize,
    /// CPU time of all processes. A cgroup counts it all; in a process group, what orphans used
    /// that have ended is lost.
    pub cpu_time: Duration,
    /// The most memory, in bytes: of all at once if the job is a cgroup with a memory limit (Linux
    /// 5.19 and later), else the sum of what each of those alive has had at most.
    pub peak_memory: u64,
}

/// Holds processes and all that they start. Dropping it kills them; so does the end of this
/// process, however it comes.
#[derive(Debug)]
pub struct Job {
    containment: Option<Box<dyn Containment>>,
    mechanism: Mechanism,
    /// Held by all who start processes, and alone by who kills or suspends them.
    gate: RwLock<Gate>,
    leaders: Mutex<Leaders>,
    /// Nobody can be born in the cgroup any more.
    in_person: AtomicBool,
    /// The process that made the job: what it forks is not its owner.
    owner: Pid,
}

#[derive(Debug, Default)]
struct Gate {
    is_suspended: bool,
}

/// The processes that were spawned.
#[derive(Debug, Default)]
struct Leaders {
    running: Vec<Arc<Leader>>,
    /// The CPU time of the others.
    cpu_of_reaped: Duration,
}

impl Leaders {
    /// Lets go of those that have been reaped: each costs a descriptor.
    fn forget_reaped(&mut self) {
        let reaped = &mut self.cpu_of_reaped;
        self.running.retain(|leader| {
            let cpu = leader.cpu();
            *reaped += cpu.unwrap_or_default();
            cpu.is_none()
        });
    }
}

impl Job {
    /// Makes an empty job: a cgroup in the one this process is in, or else a process group.
    ///
    /// What ends or limits this process's cgroup ends and limits the job's with it.
    ///
    /// If this process is in the way of controllers that limits need, it moves to a leaf of its
    /// group, with all others that are there, and they move back with the last job.
    ///
    /// What dead owners have left behind where the group is made is removed.
    ///
    /// # Errors
    ///
    /// [`Error::NoLimits`] if limits are asked for and no cgroup can be made that keeps them.
    pub fn new(limits: Limits) -> Result<Self, Error> {
        pinned::check_proc()?;
        let tried = match Site::own() {
            Ok(site) => {
                let parent = site.parent.display().to_string();
                match Cgroup::new(site, limits) {
                    Ok(cgroup) => return Ok(Self::in_cgroup(cgroup)),
                    // The value is wrong, wherever it is written.
                    Err(error @ Error::Cgroup(crate::linux::cgroup::Error::Range { .. })) => {
                        return Err(error);
                    }
                    Err(error) => format!("no cgroup can be made below {parent}: {error}"),
                }
            }
            Err(why) => why,
        };
        if limits != Limits::none() {
            return Err(Error::NoLimits { limits, tried });
        }
        let mechanism = Mechanism::ProcessGroup { why: tried.clone() };
        Ok(Self::held_by(Box::new(Group::new(tried)?), mechanism))
    }

    /// Makes an empty job in a cgroup below `parent`, or none at all.
    ///
    /// # Errors
    ///
    /// If the cgroup cannot be made.
    pub fn below(parent: impl AsRef<Path>, limits: Limits) -> Result<Self, Error> {
        pinned::check_proc()?;
        Ok(Self::in_cgroup(Cgroup::new(Site::below(parent.as_ref())?, limits)?))
    }

    fn in_cgroup(cgroup: Cgroup) -> Self {
        let mechanism = Mechanism::CgroupV2 { group: cgroup.path() };
        Self::held_by(Box::new(cgroup), mechanism)
    }

    fn held_by(containment: Box<dyn Containment>, mechanism: Mechanism) -> Self {
        Self {
            containment: Some(containment),
            mechanism,
            gate: RwLock::default(),
            leaders: Mutex::default(),
            in_person: AtomicBool::default(),
            owner: getpid(),
        }
    }

    pub(super) fn containment(&self) -> &dyn Containment {
        self.containment.as_deref().expect("taken by drop only")
    }

    fn leaders(&self) -> MutexGuard<'_, Leaders> {
        let mut leaders = self.leaders.lock().unwrap_or_else(|poison| poison.into_inner());
        leaders.forget_reaped();
        leaders
    }

    /// Keeps processes from being started.
    fn close(&self) -> RwLockWriteGuard<'_, Gate> {
        self.gate.write().unwrap_or_else(|poison| poison.into_inner())
    }

    /// What holds the processes, and why it is that.
    pub fn mechanism(&self) -> &Mechanism {
        &self.mechanism
    }

    /// Starts a program. It is in the job before its first instruction.
    ///
    /// What a `pre_exec` of the command starts is not: those run before. With a cgroup they run in a
    /// process that then leaves its place to another, which has its session and process group, but
    /// not what a fork does not inherit: timers, locks, a tracer.
    ///
    /// It is killed at the end of the calling *thread* already: spawn from one that lives as long
    /// as the program should.
    ///
    /// # Errors
    ///
    /// [`Error::Spawn`] if the program cannot be started, [`Error::Enter`] if the job does not take
    /// its process, [`Error::Suspended`] if that could not go on. Nothing runs then.
    pub fn spawn(&self, mut command: Command) -> Result<Child, Error> {
        let gate = self.gate.read().unwrap_or_else(|poison| poison.into_inner());
        if gate.is_suspended {
            return Err(Error::Suspended { program: command.get_program().to_owned() });
        }
        let entered = Arc::new(
            Shared::new(Entered::default()).map_err(Error::system("map a page of memory"))?,
        );
        entered.in_person.store(self.in_person.load(Ordering::Acquire), Ordering::Release);
        let enter = self.containment().entry(&mut command)?;
        let owner = pidfd_open(getpid(), PidfdFlags::empty())
            .map_err(Error::system("open a pidfd of this process"))?;
        let says = Arc::clone(&entered);
        let get_in = move || {
            let got_in = enter(&says).and_then(|()| sys::die_with_parent());
            if let Err(error) = got_in {
                says.refused.store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::Release);
                return Err(error);
            }
            says.got_in.store(true, Ordering::Release);
            // A parent that was gone by then will never be told of by a signal.
            match pinned::has_ended(&owner) {
                false => Ok(()),
                true => Err(std::io::Error::from_raw_os_error(libc::ESRCH)),
            }
        };
        // SAFETY: between fork and exec the closure makes system calls only, on descriptors it owns
        // and in shared memory; it allocates nothing and takes no lock.
        unsafe { command.pre_exec(get_in) };
        let mut spawned = command.spawn();
        let sibling = || Pid::from_raw(entered.sibling.swap(0, Ordering::AcqRel));
        let mut born = sibling();
        if let Some(stillborn) = born.filter(|_| !entered.got_in.load(Ordering::Acquire)) {
            // Linux from 6.14 on, and stable kernels of its time, take the number of kills of the
            // parent's group for that of the child's: whoever is born in a group that has been
            // killed, or of one that has, is killed at once (cgroup_css_set_fork, kill_seq).
            let _ = sys::reap(stillborn);
            let _ = spawned.map(|mut child| child.wait());
            self.in_person.store(true, Ordering::Release);
            entered.in_person.store(true, Ordering::Release);
            spawned = command.spawn();
            born = sibling();
        }
        match spawned {
            Ok(child) => self.take_charge(child, born),
            Err(source) => {
                if let Some(born) = born {
                    // It has said why it ends, so this takes no time; it fails if SIGCHLD is ignored.
                    let _ = sys::reap(born);
                }
                let refused = entered.refused.load(Ordering::Acquire);
                Err(self.spawn_error(&command, source, refused))
            }
        }
    }

    fn take_charge(
        &self,
        mut child: std::process::Child,
        sibling: Option<Pid>,
    ) -> Result<Child, Error> {
        let pid = match sibling {
            None => Pid::from_child(&child),
            Some(sibling) => {
                let stdin = child.stdin.take();
                // What std has forked left its place to its sibling, and has ended.
                let _ = child.wait();
                child.stdin = stdin;
                sibling
            }
        };
        let leader = Leader::new(pid).map_err(|error| {
            // With SIGCHLD ignored it is reaped as soon as it ends, and its number is free.
            if error.raw_os_error() != Some(libc::ESRCH) {
                // Nobody has waited for it, so the number is its own.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                let _ = sys::reap(pid);
            }
            Error::system(format!("open a pidfd of process {pid}, which was started"))(error)
        })?;
        let leader = Arc::new(leader);
        self.leaders().running.push(Arc::clone(&leader));
        Ok(Child::new(child, leader))
    }

    fn spawn_error(&self, command: &Command, source: std::io::Error, refused: i32) -> Error {
        let program = command.get_program().to_owned();
        if refused == 0 {
            let advice = match source.raw_os_error() {
                Some(libc::ENOENT) => {
                    "; there is no such file, or PATH does not lead to it, or its interpreter or its working directory is missing"
                }
                Some(libc::EAGAIN) => {
                    "; a limit was met: RLIMIT_NPROC, or pids.max of a group above"
                }
                _ => "",
            };
            return Error::Spawn { program, source, advice };
        }
        let advice = match refused {
            _ if matches!(self.mechanism, Mechanism::ProcessGroup { .. }) => "see setpgid(2)",
            libc::EAGAIN => "the job has as many processes as it may (max_processes)",
            libc::ENODEV | libc::ENOENT => "somebody has removed the group",
            libc::EBUSY => "somebody has enabled controllers for groups in it",
            libc::EACCES | libc::EPERM => {
                "moves need write access to cgroup.procs of the first group above both ends"
            }
            _ => "see clone(2), CLONE_INTO_CGROUP",
        };
        Error::Enter { program, place: self.containment().place(), source, advice }
    }

    /// Takes in a process that was started elsewhere, with its threads but not its children.
    ///
    /// # Errors
    ///
    /// If it has ended or may not be moved; [`Error::NeedsCgroup`] in a process group.
    pub fn adopt(&self, pid: i32) -> Result<(), Error> {
        self.containment().adopt(pid)?;
        // The kernel takes a zombie as well.
        match pinned::pin(pid, |pid| self.containment().holds(pid))? {
            Some(_) => Ok(()),
            None => Err(Error::system(format!("adopt process {pid}"))(rustix::io::Errno::SRCH)),
        }
    }

    /// The processes that have not ended.
    ///
    /// # Errors
    ///
    /// If the group cannot be read.
    pub fn members(&self) -> Result<Vec<Process>, Error> {
        let pids = self.containment().pids()?.into_iter();
        let pinned = pids.map(|pid| self.pin(pid));
        pinned.filter_map(|pinned| Some(pinned.transpose()?.map(|pinned| pinned.process))).collect()
    }

    /// Takes hold of a process if it is in here.
    pub(super) fn pin(&self, pid: i32) -> Result<Option<Pinned>, Error> {
        pinned::pin(pid, |pid| self.containment().holds(pid))
    }

    /// The processes that have not ended and were not started by [`spawn`](Self::spawn): after
    /// [`Child::wait`], what the child has left behind.
    ///
    /// # Errors
    ///
    /// If the group cannot be read.
    pub fn leaked(&self) -> Result<Vec<Process>, Error> {
        // Before the others are looked at: one that ends now may leave its number to another.
        let spawned: Vec<_> = self.leaders().running.iter().map(|leader| leader.pid()).collect();
        let members = self.members()?.into_iter();
        Ok(members.filter(|process| !spawned.contains(&process.pid)).collect())
    }

    /// Sends a signal to every process. One that is started meanwhile may miss it.
    ///
    /// # Errors
    ///
    /// If a process may not be signalled, as it belongs to another user.
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

    /// Stops all processes without a signal that they could see; returns when they have stopped.
    ///
    /// # Errors
    ///
    /// If they do not stop within ten seconds; [`Error::NeedsCgroup`] in a process group.
    pub fn suspend(&self) -> Result<(), Error> {
        let mut gate = self.close();
        self.containment().freeze(true)?;
        gate.is_suspended = true;
        Ok(())
    }

    /// Lets suspended processes go on.
    ///
    /// # Errors
    ///
    /// As for [`suspend`](Self::suspend).
    pub fn resume(&self) -> Result<(), Error> {
        let mut gate = self.close();
        self.containment().freeze(false)?;
        gate.is_suspended = false;
        Ok(())
    }

    /// What the job has used so far.
    ///
    /// # Errors
    ///
    /// If the group cannot be read.
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

    /// Of each process the time of its own and of the children it has waited for. A zombie that is no
    /// leader is left to its parent, whose time it is once that has waited.
    fn cpu_time_of(&self, members: &[Process]) -> io::Result<Duration> {
        let leaders = self.leaders();
        let spawned: Vec<_> = leaders.running.iter().map(|leader| leader.pid()).collect();
        let others = members.iter().map(|member| member.pid).filter(|pid| !spawned.contains(pid));
        let pids = spawned.iter().copied().chain(others);
        let stats = pids.filter_map(|pid| Stat::read(pid).transpose());
        let ticks = stats.map(|stat| Ok(stat?.cpu_ticks)).sum::<io::Result<u64>>()?;
        Ok(leaders.cpu_of_reaped + procfs::ticks(ticks))
    }

    /// Puts other limits in the place of those there are, while processes run.
    ///
    /// # Errors
    ///
    /// If a controller cannot be enabled; [`Error::NeedsCgroup`] in a process group.
    pub fn update_limits(&self, limits: Limits) -> Result<(), Error> {
        self.containment().update_limits(limits)
    }

    /// Kills every process, stopped and suspended ones too; returns when none is left.
    ///
    /// # Errors
    ///
    /// [`Error::Unkillable`] names those that are still there after ten seconds.
    pub fn kill_all(&self) -> Result<(), Error> {
        let mut gate = self.close();
        let killed = self.containment().kill();
        // What was suspended is so still, and what is started next would be.
        let resumed = if gate.is_suspended { self.containment().freeze(false) } else { Ok(()) };
        gate.is_suspended &= resumed.is_err();
        killed.and(self.reap()).and(resumed)
    }

    /// Reaps what this process has started. One that has left the job by force is killed, too.
    fn reap(&self) -> Result<(), Error> {
        let deadline = Instant::now() + SETTLE_WITHIN;
        let running = self.leaders().running.clone();
        for leader in &running {
            // It fails for one that has ended.
            let _ = pidfd_send_signal(leader.pidfd(), Signal::KILL);
        }
        let mut left = Vec::new();
        for leader in &running {
            // An error is somebody else who has waited for it, or SIGCHLD is ignored: it has ended.
            if let Ok(None) = leader.wait_until(Some(deadline)) {
                let what = format!("look at process {}", leader.pid());
                left.extend(Process::read(leader.pid()).map_err(Error::system(what))?);
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
        // Of a forked copy, nothing is its own.
        if getpid() != self.owner {
            std::mem::forget(self.containment.take());
            return;
        }
        drop(self.containment.take());
        if let Err(error) = self.reap() {
            tracing::warn!("left behind: {error}");
        }
    }
}
