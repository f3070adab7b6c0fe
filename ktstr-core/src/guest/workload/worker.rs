//! One worker process: forked, prepared, released, measured, stopped.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::CString;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Gid, Pid, PidfdFlags, Signal, Uid, WaitId, WaitIdOptions};
use rustix::thread::{CpuSet, futex};
use rustix::time::Timespec;

use super::affinity::cpu_list;
use super::page::{PREPARING, Page, RELEASED, UNFIT, WAITING};
use super::resources::Resources;
use super::schedstat::Schedstat;
use super::telemetry::MAX_EPOCHS;
use super::{CpusetPeriod, SchedPolicy, WorkSpec, WorkerCtx, WorkerEnd, WorkerReport, types};
use crate::linux::sys::{self, Shared, since_boot_ns};

/// The steps of a worker that may fail. They are told by number, through shared memory.
const STEPS: [&str; 4] = [
    "cannot set the command name",
    "cannot set the memory policy",
    "cannot set the user",
    "cannot be bound to its parent",
];

/// How the kernel is to treat one worker.
#[derive(Debug, Clone)]
pub(super) struct Treatment {
    pub(super) cpus: Option<BTreeSet<u32>>,
    pub(super) policy: SchedPolicy,
    pub(super) nice: i8,
}

impl Treatment {
    /// By the parent: a worker that may use none of its group's time cannot do it.
    fn apply(&self, pid: Pid) -> anyhow::Result<()> {
        // The affinity goes first: Deadline is admitted by it.
        if let Some(cpus) = &self.cpus {
            set_affinity(pid, cpus)?;
        }
        self.policy.apply(Some(pid), self.nice)
    }
}

fn set_affinity(pid: Pid, cpus: &BTreeSet<u32>) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu as usize));
    rustix::thread::sched_setaffinity(Some(pid), &set)
        .with_context(|| format!("cannot set the affinity to CPUs {cpus:?}"))
}

/// A worker process. Dropping it kills and reaps it, unless it was given up.
#[derive(Debug)]
pub(crate) struct Worker {
    pid: Pid,
    pidfd: OwnedFd,
    comm: String,
    pages: Arc<[Shared<Page>]>,
    index: usize,
    role: u32,
    is_fair_and_free: bool,
    measures_wakeups: bool,
    needs_others: bool,
    weights: Option<RangeInclusive<u32>>,
    treatment: Treatment,
    /// The last cpusets that were known to hold, each with its epoch.
    cpusets: VecDeque<(u32, Vec<u32>)>,
    cpusets_forgotten: u32,
    released: Option<Released>,
    stopped: Option<Stopped>,
    given_up: bool,
}

#[derive(Debug, Clone, Copy)]
struct Released {
    at_ns: u64,
    schedstat: Schedstat,
}

/// What a dead worker does not tell any more.
#[derive(Debug, Clone)]
struct Stopped {
    /// When it was found to have ended; before that, when it was killed. On a busy CPU it is long
    /// until it gets to run and to die, which the kernel counts as any other waiting.
    at_ns: u64,
    /// When it was killed.
    killed_ns: u64,
    /// How it had ended before it was killed.
    ended: Option<WorkerEnd>,
    allowed_cpus: Vec<u32>,
}

impl Worker {
    /// Forks a worker, which prepares itself and then waits to be released.
    pub(super) fn fork(
        spec: &WorkSpec,
        treatment: Treatment,
        pages: &Arc<[Shared<Page>]>,
        index: usize,
        resources: &Arc<Resources>,
    ) -> anyhow::Result<Self> {
        let comm = CString::new(spec.comm.as_str())?;
        let parent = rustix::process::getpid();
        let child = || {
            let page = &pages[index];
            match prepare(spec, &comm, parent) {
                Ok(()) => live(spec, pages, index, resources),
                Err((step, error)) => {
                    page.failed_step.store(step, Ordering::Relaxed);
                    let status = page.fail(&error);
                    page.change_state(UNFIT);
                    status
                }
            }
        };
        // rustix finds both in the vDSO at the first call, and would have to read a file for it that a
        // worker with another user may not read.
        let _ = (since_boot_ns(), rustix::thread::sched_getcpu());
        // SAFETY: the child makes system calls, counts in atomics and allocates, which glibc keeps
        // possible; it waits for nothing but the kernel and its group.
        let pid = unsafe { sys::fork(child) }.context("cannot fork a worker")?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).inspect_err(|_| {
            // Nobody has waited for it, so the number is its own.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = sys::reap(pid);
        });
        let pidfd = pidfd.context(
            "cannot open a worker's pidfd; each takes a descriptor (RLIMIT_NOFILE, `ulimit -n`)",
        )?;
        Ok(Self {
            pid,
            pidfd,
            comm: spec.comm.clone(),
            pages: Arc::clone(pages),
            index,
            role: spec.work_type.role(index),
            is_fair_and_free: treatment.cpus.is_none()
                && treatment.policy.is_fair()
                && !spec.work_type.places_itself()
                && !spec.work_type.ranks_itself(),
            measures_wakeups: spec.work_type.measures_wakeups(),
            needs_others: spec.work_type.needs_others(),
            weights: treatment.policy.weight(treatment.nice).map(|weight| {
                spec.work_type.least_weight().map_or(weight, |least| least.min(weight))..=weight
            }),
            treatment,
            cpusets: VecDeque::new(),
            cpusets_forgotten: 0,
            released: None,
            stopped: None,
            given_up: false,
        })
    }

    /// Waits until the worker is ready to be released, for 30 s at most.
    pub(super) fn wait_until_ready(&self) -> anyhow::Result<()> {
        const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        const READY_WITHIN: Duration = Duration::from_secs(30);
        let deadline = Instant::now() + READY_WITHIN;
        let state = &self.page().state;
        while state.load(Ordering::Acquire) == PREPARING {
            if Instant::now() > deadline {
                bail!("{} was not ready after {READY_WITHIN:?}: it gets no CPU", self.who());
            }
            if let Some(end) = self.ended()? {
                bail!("{} ended before it was ready: {end}", self.who());
            }
            // The timeout is for a worker that was killed, which wakes nobody.
            match futex::wait(state, futex::Flags::empty(), PREPARING, Some(&LOOK_AGAIN)) {
                Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => {}
                Err(errno) => return Err(errno).context("cannot wait for a worker"),
            }
        }
        if state.load(Ordering::Acquire) == UNFIT {
            let error = io::Error::from_raw_os_error(self.page().errno.load(Ordering::Acquire));
            let step = self.page().failed_step.load(Ordering::Relaxed) as usize;
            return Err(error).with_context(|| format!("a worker {}", STEPS[step]));
        }
        Ok(())
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    pub(crate) fn comm(&self) -> &str {
        &self.comm
    }

    /// `worker 77 (spin)`.
    pub(super) fn who(&self) -> String {
        format!("worker {} ({})", self.pid(), self.comm)
    }

    /// Readable once the worker has ended.
    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Gives the worker its affinity, policy and nice value, and lets it begin. By now it should be in
    /// its cgroup, which has a say in all three.
    pub(crate) fn release(&mut self) -> anyhow::Result<()> {
        if self.released.is_some() {
            return Ok(());
        }
        self.treatment.apply(self.pid).with_context(|| self.who())?;
        let schedstat = Schedstat::read(self.pid).with_context(|| self.who())?;
        self.released = Some(Released { at_ns: since_boot_ns(), schedstat });
        self.page().change_state(RELEASED);
        Ok(())
    }

    /// Pins the worker, which has been released, to other CPUs.
    pub(super) fn set_affinity(&self, cpus: &BTreeSet<u32>) -> anyhow::Result<()> {
        set_affinity(self.pid, cpus).with_context(|| self.who())
    }

    /// The CPUs to which it is confined, as far as is known.
    pub(crate) fn cpuset(&self) -> Option<&[u32]> {
        let (epoch, cpuset) = self.cpusets.back()?;
        (*epoch == self.page().telemetry.epoch()).then_some(cpuset)
    }

    /// Before the kernel is told of another cpuset: until it has taken it, any CPU may be right.
    pub(crate) fn unconfine(&self) {
        self.page().telemetry.end_epoch();
    }

    /// The kernel has taken a cpuset; from now on the worker has to be on these CPUs.
    pub(crate) fn confine(&mut self, cpuset: &BTreeSet<u32>) {
        let epoch = self.page().telemetry.begin_epoch();
        self.cpusets.push_back((epoch, cpuset.iter().copied().collect()));
        if self.cpusets.len() > MAX_EPOCHS {
            self.cpusets.pop_front();
            self.cpusets_forgotten += 1;
        }
    }

    fn cpuset_periods(&self) -> Vec<CpusetPeriod> {
        let of = |(epoch, cpuset): &(u32, Vec<u32>)| CpusetPeriod {
            cpuset: cpuset.clone(),
            cpus_used: self.page().telemetry.cpus_used_in(*epoch),
        };
        self.cpusets.iter().map(of).collect()
    }

    /// Turns of the work loop so far.
    pub(crate) fn iterations(&self) -> u64 {
        self.page().telemetry.iterations()
    }

    /// Returns how the worker ended; `None` while it runs.
    pub(crate) fn ended(&self) -> io::Result<Option<WorkerEnd>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let id = WaitId::PidFd(std::os::fd::AsFd::as_fd(&self.pidfd));
        let Some(status) = rustix::process::waitid(id, options)? else { return Ok(None) };
        let errno = Some(self.page().errno.load(Ordering::Acquire)).filter(|errno| *errno != 0);
        Ok(Some(WorkerEnd { kind: Some(status.into()), errno }))
    }

    /// What the worker has done so far, or had when it was stopped or ended.
    ///
    /// Times on and waiting for the CPU are the kernel's. They are final when the worker has ended, as
    /// nobody waits for it before it is dropped, and up to a tick old while it runs; so is what goes
    /// with them. The wall time of a worker that ended by itself is that of its last turn, or what its
    /// CPU and waiting time add up to if that is more: nobody notes when a process dies.
    pub(crate) fn report(&self, cgroup: &str) -> WorkerReport {
        let telemetry = &self.page().telemetry;
        let ended = self.ended_unstopped();
        let kernel = self.schedstat();
        let now_ns = since_boot_ns();
        let released_ns = self.released.map_or(now_ns, |released| released.at_ns);
        let until_ns = match (&self.stopped, &ended) {
            (_, Some(_)) => telemetry.last_iteration_ns().max(released_ns),
            (Some(stopped), None) => stopped.at_ns,
            (None, None) => now_ns,
        };
        // Until it was killed: dying takes time that is not the load's.
        let worked_until_ns = self.stopped.as_ref().map_or(until_ns, |stopped| stopped.killed_ns);
        let worked_until_ns = worked_until_ns.min(until_ns);
        let wall = Duration::from_nanos(until_ns.saturating_sub(released_ns));
        let active_ns = worked_until_ns.saturating_sub(released_ns);
        WorkerReport {
            pid: self.pid(),
            comm: self.comm().to_owned(),
            cgroup: cgroup.to_owned(),
            role: self.role,
            measures_wakeups: self.measures_wakeups,
            needs_others: self.needs_others,
            cpuset_periods: self.cpuset_periods(),
            cpuset_periods_dropped: self.cpusets_forgotten,
            allowed_cpus: self.allowed_cpus(),
            ended,
            active: Duration::from_nanos(active_ns),
            active_until_ns: worked_until_ns,
            wall: wall.max(kernel.cpu + kernel.run_delay),
            until_ns,
            cpu: kernel.cpu,
            run_delay: kernel.run_delay,
            timeslices: kernel.timeslices,
            iterations: self.iterations(),
            work_units: telemetry.work_units(),
            longest_gap: telemetry.longest_gap_within(released_ns, worked_until_ns),
            migrations: telemetry.migrations(),
            cpus_used: telemetry.cpus_used(),
            last_cpu: telemetry.last_cpu(),
            wake_latency_ns: telemetry.wake_latency.read(),
            numa_pages: telemetry.numa_pages(),
            ..WorkerReport::default()
        }
    }

    /// Whether it was begun as a fair task that may use all CPUs of its cgroup, and its type leaves it at
    /// that.
    pub(crate) fn is_fair_and_free(&self) -> bool {
        self.is_fair_and_free
    }

    /// Returns the least and the greatest weight with which it competes for CPU time; `None` if it is
    /// not a fair task.
    pub(crate) fn weights(&self) -> Option<RangeInclusive<u32>> {
        self.weights.clone()
    }

    /// How long it was runnable and waited for a CPU since its release.
    pub(crate) fn run_delay(&self) -> Duration {
        self.schedstat().run_delay
    }

    fn ended_unstopped(&self) -> Option<WorkerEnd> {
        match &self.stopped {
            Some(stopped) => stopped.ended,
            None => self.ended().unwrap_or_else(|error| {
                Some(WorkerEnd { kind: None, errno: error.raw_os_error() })
            }),
        }
    }

    /// What the kernel has counted since the release. Nothing if the process is not there any more,
    /// which only happens if somebody else reaps this process's children.
    fn schedstat(&self) -> Schedstat {
        let Some(released) = self.released else { return Schedstat::default() };
        Schedstat::read(self.pid)
            .map_or_else(|_| Schedstat::default(), |now| now.since(released.schedstat))
    }

    fn allowed_cpus(&self) -> Vec<u32> {
        match &self.stopped {
            Some(stopped) => stopped.allowed_cpus.clone(),
            None => {
                rustix::thread::sched_getaffinity(Some(self.pid)).map(cpu_list).unwrap_or_default()
            }
        }
    }

    /// Kills the worker, without waiting for its end.
    pub(super) fn kill(&mut self) -> io::Result<()> {
        if self.stopped.is_none() {
            let (ended, allowed_cpus) = (self.ended()?, self.allowed_cpus());
            let now_ns = since_boot_ns();
            self.stopped = Some(Stopped { at_ns: now_ns, killed_ns: now_ns, ended, allowed_cpus });
        }
        match rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL) {
            // It has been reaped, which nobody else should have done.
            Err(Errno::SRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }

    /// Notes that the worker, which was killed, has ended now.
    pub(super) fn note_end(&mut self) {
        if let Some(stopped) = &mut self.stopped {
            stopped.at_ns = since_boot_ns();
        }
    }

    /// Nobody is to wait any more for the worker, which was killed and does not end.
    pub(super) fn give_up(&mut self) {
        self.given_up = true;
    }

    fn page(&self) -> &Page {
        &self.pages[self.index]
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both can only fail if the worker is gone and reaped, which nobody else does.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let id = WaitId::PidFd(std::os::fd::AsFd::as_fd(&self.pidfd));
        let mut end = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let within = Timespec { tv_sec: 10, tv_nsec: 0 };
        // One that gets no CPU does not end, and is left to the kernel.
        while !self.given_up && poll(&mut end, Some(&within)) == Err(Errno::INTR) {}
        let _ = rustix::process::waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}

/// In the worker: all that only it can do for itself.
fn prepare(spec: &WorkSpec, comm: &CString, parent: Pid) -> Result<(), (u32, io::Error)> {
    rustix::thread::set_name(comm).map_err(|errno| (0, errno.into()))?;
    spec.memory_policy.apply().map_err(|error| (1, error))?;
    become_user(spec).map_err(|errno| (2, errno.into()))?;
    // After the change of user, which makes the kernel forget it.
    sys::die_with_parent().map_err(|error| (3, error))?;
    // A parent that is gone by now will never be told of by a signal.
    match rustix::process::getppid() == Some(parent) {
        true => Ok(()),
        false => Err((3, Errno::SRCH.into())),
    }
}

fn become_user(spec: &WorkSpec) -> rustix::io::Result<()> {
    if let Some(gid) = spec.gid {
        let gid = Gid::from_raw(gid);
        rustix::thread::set_thread_groups(&[gid])?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    }
    if let Some(uid) = spec.uid {
        let uid = Uid::from_raw(uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    }
    Ok(())
}

/// In the worker: waits for its release and works. Returns its exit status.
fn live(
    spec: &WorkSpec,
    pages: &Arc<[Shared<Page>]>,
    index: usize,
    resources: &Arc<Resources>,
) -> i32 {
    let page = &pages[index];
    page.pid.store(rustix::process::getpid().as_raw_nonzero().get(), Ordering::Relaxed);
    page.change_state(WAITING);
    while page.state.load(Ordering::Acquire) != RELEASED {
        let _ = futex::wait(&page.state, futex::Flags::empty(), WAITING, None);
    }
    let ctx = WorkerCtx::new(Arc::clone(pages), index, Arc::clone(resources));
    match types::run(&spec.work_type, &ctx) {
        Ok(()) => 0,
        Err(error) => page.fail(&error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicI32;

    use super::*;
    use crate::guest::topology::TestTopology;
    use crate::guest::workload::testing::{Running, own_cpus, proc_number, wait_for_end};
    use crate::guest::workload::{AffinityIntent, WorkType, Workers};
    use crate::model::exit::ExitKind;

    fn forked(spec: &WorkSpec) -> Vec<Worker> {
        Workers::fork(spec, &TestTopology::read().unwrap(), &own_cpus()).unwrap()
    }

    #[test]
    fn a_worker_does_nothing_before_its_release_and_something_after() {
        let mut workers = forked(&WorkSpec::default().comm("spin").workers(2));
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", workers[0].pid())).unwrap();
        assert_eq!(comm, "spin\n");
        assert_eq!(workers[0].report("cg").wall, Duration::ZERO);
        workers[0].release().unwrap();
        while workers[0].iterations() < 100 {
            std::thread::yield_now();
        }
        // The other one has slept all the time.
        assert_eq!(workers[1].iterations(), 0);
        assert_eq!(workers[0].ended().unwrap(), None);
        let report = workers[0].report("cg");
        assert_eq!((report.comm.as_str(), report.cgroup.as_str()), ("spin", "cg"));
        assert_eq!(report.allowed_cpus, own_cpus().into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn report_has_the_end_of_a_killed_worker_and_none_of_a_stopped_one() {
        let mut workers = forked(&WorkSpec::default().workers(2));
        rustix::process::pidfd_send_signal(workers[0].pidfd(), Signal::KILL).unwrap();
        let killed = WorkerEnd { kind: Some(ExitKind::Signaled(libc::SIGKILL)), errno: None };
        assert_eq!(wait_for_end(&workers[0]), killed);
        Workers::stop(&mut workers.iter_mut().collect::<Vec<_>>()).unwrap();
        let ended: Vec<_> = workers.iter().map(|worker| worker.report("").ended).collect();
        assert_eq!(ended, [Some(killed), None], "one was stopped");
    }

    #[test]
    fn ended_keeps_an_errno_apart_from_sigkill() {
        let workers = forked(&WorkSpec::default());
        // As by a work loop that fails and is killed before it exits.
        workers[0].page().fail(&io::Error::from_raw_os_error(libc::ENOMEM));
        rustix::process::pidfd_send_signal(workers[0].pidfd(), Signal::KILL).unwrap();
        let end = wait_for_end(&workers[0]);
        assert!(end.is_sigkill(), "{end:?}");
        let text = "signal 9 (SIGKILL): Cannot allocate memory (os error 12)";
        assert_eq!((end.errno, end.to_string().as_str()), (Some(libc::ENOMEM), text));
    }

    #[test]
    fn report_of_a_worker_that_another_reaped_has_no_exit_kind() {
        let workers = forked(&WorkSpec::default());
        rustix::process::pidfd_send_signal(workers[0].pidfd(), Signal::KILL).unwrap();
        sys::reap(workers[0].pid).unwrap();
        let end = workers[0].report("").ended.unwrap();
        assert_eq!(end, WorkerEnd { kind: None, errno: Some(libc::ECHILD) });
        assert!(!end.is_sigkill());
    }

    #[test]
    fn the_times_of_a_stopped_worker_are_final_and_add_up() {
        let spec = WorkSpec::default().workers(3).affinity(AffinityIntent::SingleCpu);
        let running = Running::start(spec);
        running.wait_for_units(2000);
        let begun = std::time::Instant::now();
        let mut workers = running.0;
        Workers::stop(&mut workers.iter_mut().collect::<Vec<_>>()).unwrap();
        let reports: Vec<_> = workers.iter().map(|worker| worker.report("")).collect();
        for (report, worker) in reports.iter().zip(&workers) {
            assert!(report.cpu > Duration::ZERO && report.timeslices > 0, "{report:?}");
            assert!(report.wall >= report.cpu + report.run_delay, "{report:?}");
            assert_eq!(&worker.report(""), report, "as long as the process is not reaped");
        }
        // Three cannot have more of a CPU than there was, from the first's release to the last's end.
        let longest = reports.iter().map(|report| report.wall).max().unwrap();
        let cpu: Duration = reports.iter().map(|report| report.cpu).sum();
        let waited: Duration = reports.iter().map(|report| report.run_delay).sum();
        assert!(cpu <= longest + begun.elapsed() + Duration::from_millis(100), "{reports:#?}");
        assert!(waited > Duration::ZERO, "{reports:#?}");
    }

    #[test]
    fn what_a_worker_did_can_be_read_after_its_death() {
        let running = Running::start(WorkSpec::default());
        running.wait_for_units(100);
        rustix::process::pidfd_send_signal(running.0[0].pidfd(), Signal::ABORT).unwrap();
        let kind = wait_for_end(&running.0[0]).kind;
        assert_eq!(kind, Some(ExitKind::Signaled(libc::SIGABRT)));
        let report = running.report(0);
        assert!(report.work_units >= 100 && report.longest_gap.is_some(), "{report:?}");
        assert!(report.cpu > Duration::ZERO && report.wall >= report.cpu, "{report:?}");
    }

    #[test]
    fn a_worker_has_the_user_and_the_group_it_was_given_and_dies_all_the_same() {
        let running = Running::start(WorkSpec::default().uid(1234).gid(567));
        running.wait_for_units(10);
        let pid = running.pid(0);
        assert_eq!(proc_number(pid, "status", "Uid"), 1234);
        assert_eq!(proc_number(pid, "status", "Gid"), 567);
        assert_eq!(proc_number(pid, "status", "Groups"), 567);
        assert!(running.report(0).cpu < running.report(0).wall);
        drop(running);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_worker_dies_with_the_process_that_forked_it_whoever_it_became() {
        let pid = Shared::new(AtomicI32::new(0)).unwrap();
        let spec = WorkSpec::default().uid(1234).work_type(WorkType::TimerLatency);
        let (topology, cpus) = (TestTopology::read().unwrap(), own_cpus());
        let owner = || {
            let mut workers = Workers::fork(&spec, &topology, &cpus).unwrap();
            workers[0].release().unwrap();
            pid.store(workers[0].pid(), Ordering::Relaxed);
            std::mem::forget(workers);
            0
        };
        // SAFETY: the child forks, allocates and ends.
        let owner = unsafe { sys::fork(owner) }.unwrap();
        assert!(sys::reap(owner).unwrap().0.success());
        let worker = Pid::from_raw(pid.load(Ordering::Relaxed)).unwrap();
        match rustix::process::pidfd_open(worker, PidfdFlags::empty()) {
            Ok(pidfd) => {
                let mut ended = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
                let bound = Timespec { tv_sec: 30, tv_nsec: 0 };
                assert_eq!(rustix::event::poll(&mut ended, Some(&bound)).unwrap(), 1);
            }
            Err(errno) => assert_eq!(errno, Errno::SRCH),
        }
    }

    #[test]
    fn a_killed_worker_that_was_not_ready_is_an_error() {
        let spec =
            WorkSpec::default().memory_policy(crate::guest::workload::MemoryPolicy::Preferred(63));
        let error = Workers::fork(&spec, &TestTopology::read().unwrap(), &own_cpus()).unwrap_err();
        let error = format!("{error:#}");
        assert_eq!(error, "a worker cannot set the memory policy: Invalid argument (os error 22)");
    }
}
