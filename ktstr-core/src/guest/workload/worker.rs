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

/// The steps of a worker's preparation that may fail. A worker reports the index of the one that did.
const STEPS: [&str; 4] = [
    "failed to set the command name",
    "failed to set the memory policy",
    "failed to set the user",
    "failed to set the parent-death signal",
];

/// The affinity, policy and nice value of one worker.
#[derive(Debug, Clone)]
pub(super) struct SchedParams {
    pub(super) cpus: Option<BTreeSet<u32>>,
    pub(super) policy: SchedPolicy,
    pub(super) nice: i8,
}

impl SchedParams {
    /// Applies all three. The parent does it, because a worker would not run if its cgroup has no runtime for
    /// its policy.
    fn apply(&self, pid: Pid) -> anyhow::Result<()> {
        // The affinity goes first: the admission of SCHED_DEADLINE depends on it.
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
        .with_context(|| format!("failed to set the affinity to CPUs {cpus:?}"))
}

/// A worker process. Dropping it kills and reaps it; one that was given up is killed only.
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
    sched: SchedParams,
    /// The last cpusets that were in effect, each with its epoch.
    cpusets: VecDeque<(u32, Vec<u32>)>,
    cpusets_dropped: u32,
    released: Option<Released>,
    stopped: Option<Stopped>,
    given_up: bool,
}

#[derive(Debug, Clone, Copy)]
struct Released {
    at_ns: u64,
    schedstat: Schedstat,
}

/// What cannot be read from a worker any more once it is dead.
#[derive(Debug, Clone)]
struct Stopped {
    /// The time at which it was found to have ended; before that, the time of SIGKILL. A killed worker
    /// needs CPU time to exit. On a busy CPU it waits for that, which the kernel counts in `schedstat`.
    at_ns: u64,
    /// The time at which all workers that were stopped together began to be killed.
    killed_ns: u64,
    /// The end of a worker that had ended before SIGKILL.
    ended: Option<WorkerEnd>,
    allowed_cpus: Vec<u32>,
}

impl Worker {
    /// Forks a worker, which prepares itself and then waits for its release.
    pub(super) fn fork(
        spec: &WorkSpec,
        sched: SchedParams,
        pages: &Arc<[Shared<Page>]>,
        index: usize,
        resources: &Arc<Resources>,
    ) -> anyhow::Result<Self> {
        let comm = CString::new(spec.comm.as_str())?;
        let parent = rustix::process::getpid();
        let child = || {
            let page = &pages[index];
            match prepare(spec, &comm, parent) {
                Ok(()) => wait_and_work(spec, pages, index, resources),
                Err((step, error)) => {
                    page.failed_step.store(step, Ordering::Relaxed);
                    let status = page.fail(&error);
                    page.change_state(UNFIT);
                    status
                }
            }
        };
        // Before the fork: at the first call, rustix reads /proc/self/auxv to find both in the vDSO, and
        // a worker with another user may not read that file.
        let _ = (since_boot_ns(), rustix::thread::sched_getcpu());
        // SAFETY: the child makes system calls, counts in atomics and allocates, which glibc allows
        // after a fork; it waits only for the kernel and for its group.
        let pid = unsafe { sys::fork(child) }.context("failed to fork a worker")?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).inspect_err(|_| {
            // It has not been reaped, so the pid is still its own.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = sys::reap(pid);
        });
        let pidfd = pidfd.context(
            "failed to open the pidfd of a worker; raise the limit of descriptors (`ulimit -n`)",
        )?;
        Ok(Self {
            pid,
            pidfd,
            comm: spec.comm.clone(),
            pages: Arc::clone(pages),
            index,
            role: spec.work_type.role(index),
            is_fair_and_free: sched.cpus.is_none()
                && sched.policy.is_fair()
                && !spec.work_type.places_itself()
                && !spec.work_type.ranks_itself(),
            measures_wakeups: spec.work_type.measures_wakeups(),
            needs_others: spec.work_type.needs_others(),
            weights: sched.policy.weight(sched.nice).map(|weight| {
                spec.work_type.least_weight().map_or(weight, |least| least.min(weight))..=weight
            }),
            sched,
            cpusets: VecDeque::new(),
            cpusets_dropped: 0,
            released: None,
            stopped: None,
            given_up: false,
        })
    }

    /// Waits until the worker is ready to be released.
    ///
    /// # Errors
    ///
    /// If its preparation fails, it ends before, or it is not ready after 30 s.
    pub(super) fn wait_until_ready(&self) -> anyhow::Result<()> {
        const RECHECK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        const READY_WITHIN: Duration = Duration::from_secs(30);
        let deadline = Instant::now() + READY_WITHIN;
        let state = &self.page().state;
        while state.load(Ordering::Acquire) == PREPARING {
            if Instant::now() > deadline {
                bail!("{} was not ready after {READY_WITHIN:?}: it gets no CPU time", self.label());
            }
            if let Some(end) = self.ended()? {
                bail!("{} ended before it was ready: {end}", self.label());
            }
            // With a timeout, because a worker that was killed does not wake its parent.
            match futex::wait(state, futex::Flags::empty(), PREPARING, Some(&RECHECK)) {
                Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => {}
                Err(errno) => return Err(errno).context("failed to wait for a worker"),
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

    /// Returns `worker 77 (spin)`.
    pub(super) fn label(&self) -> String {
        format!("worker {} ({})", self.pid(), self.comm)
    }

    /// Returns the pidfd, which is readable once the worker has ended.
    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Sets the worker's affinity, policy and nice value, and starts its work loop. The worker has to be
    /// in its cgroup before, because the cpuset and the runtime of that limit what can be set.
    pub(crate) fn release(&mut self) -> anyhow::Result<()> {
        if self.released.is_some() {
            return Ok(());
        }
        self.sched.apply(self.pid).with_context(|| self.label())?;
        let schedstat = Schedstat::read(self.pid).with_context(|| self.label())?;
        self.released = Some(Released { at_ns: since_boot_ns(), schedstat });
        self.page().change_state(RELEASED);
        Ok(())
    }

    /// Pins the worker, which has been released, to other CPUs.
    pub(super) fn set_affinity(&self, cpus: &BTreeSet<u32>) -> anyhow::Result<()> {
        set_affinity(self.pid, cpus).with_context(|| self.label())
    }

    /// Returns the cpuset that is in effect; `None` while there is none or it changes.
    pub(crate) fn cpuset(&self) -> Option<&[u32]> {
        let (epoch, cpuset) = self.cpusets.back()?;
        (*epoch == self.page().telemetry.epoch()).then_some(cpuset)
    }

    /// Ends the current cpuset's epoch, before another cpuset is written: until the kernel has applied it,
    /// the worker may be on the CPUs of either.
    pub(crate) fn unconfine(&self) {
        self.page().telemetry.end_epoch();
    }

    /// Begins the epoch of a cpuset that the kernel has applied.
    pub(crate) fn confine(&mut self, cpuset: &BTreeSet<u32>) {
        let epoch = self.page().telemetry.begin_epoch();
        self.cpusets.push_back((epoch, cpuset.iter().copied().collect()));
        if self.cpusets.len() > MAX_EPOCHS {
            self.cpusets.pop_front();
            self.cpusets_dropped += 1;
        }
    }

    fn cpuset_periods(&self) -> Vec<CpusetPeriod> {
        let of = |(epoch, cpuset): &(u32, Vec<u32>)| CpusetPeriod {
            cpuset: cpuset.clone(),
            cpus_used: self.page().telemetry.cpus_used_in(*epoch),
        };
        self.cpusets.iter().map(of).collect()
    }

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

    /// Returns what the worker has done until now, or until its stop or end.
    ///
    /// CPU time and run delay are the kernel's: up to a tick old while the worker runs, final once it
    /// has ended, because it is not reaped before it is dropped.
    pub(crate) fn report(&self, cgroup: &str) -> WorkerReport {
        let telemetry = &self.page().telemetry;
        // The end is read before the counters: those of a worker that has ended are final.
        let ended = self.ended_unstopped();
        let kernel = self.schedstat();
        let now_ns = since_boot_ns();
        let released_ns = self.released.map_or(now_ns, |released| released.at_ns);
        // Step 1: the end of its wall time. No clock records when a process dies, so the last iteration
        // stands for the end of a worker that was not stopped.
        let until_ns = match (&self.stopped, &ended) {
            (_, Some(_)) => telemetry.last_iteration_ns().max(released_ns),
            (Some(stopped), None) => stopped.at_ns,
            (None, None) => now_ns,
        };
        // Step 2: the end of its active time. A worker that is killed on a busy CPU waits for it before it
        // can exit; that time belongs to the wall time only.
        let worked_until_ns = self.stopped.as_ref().map_or(until_ns, |stopped| stopped.killed_ns);
        let worked_until_ns = worked_until_ns.min(until_ns);
        let wall = Duration::from_nanos(until_ns.saturating_sub(released_ns));
        let active_ns = worked_until_ns.saturating_sub(released_ns);
        // Step 3: the iterations, unless the first one ended after the active time, because the kill of
        // another worker freed a CPU.
        let is_late = self.stopped.is_some() && telemetry.first_iteration_ns() > worked_until_ns;
        let iterations = if is_late { 0 } else { self.iterations() };
        let longest_gap = telemetry.longest_gap_within(released_ns, worked_until_ns);
        WorkerReport {
            pid: self.pid(),
            comm: self.comm().to_owned(),
            cgroup: cgroup.to_owned(),
            role: self.role,
            measures_wakeups: self.measures_wakeups,
            needs_others: self.needs_others,
            cpuset_periods: self.cpuset_periods(),
            cpuset_periods_dropped: self.cpusets_dropped,
            allowed_cpus: self.allowed_cpus(),
            ended,
            active: Duration::from_nanos(active_ns),
            active_until_ns: worked_until_ns,
            // Invariant: CPU time and run delay fit into the wall time. It is not given for the stand-in of
            // step 1.
            wall: wall.max(kernel.cpu + kernel.run_delay),
            until_ns,
            cpu: kernel.cpu,
            run_delay: kernel.run_delay,
            timeslices: kernel.timeslices,
            iterations,
            work_units: telemetry.work_units(),
            longest_gap: longest_gap.filter(|_| !is_late),
            migrations: telemetry.migrations(),
            cpus_used: telemetry.cpus_used(),
            last_cpu: telemetry.last_cpu(),
            wake_latency_ns: telemetry.wake_latency.read(),
            numa_pages: telemetry.numa_pages(),
            ..WorkerReport::default()
        }
    }

    /// Returns whether it was started as a fair task that may use all CPUs of its cgroup, and its type does
    /// not change that.
    pub(crate) fn is_fair_and_free(&self) -> bool {
        self.is_fair_and_free
    }

    /// Returns the least and the greatest weight with which it competes for CPU time; `None` if it is
    /// not a fair task.
    pub(crate) fn weights(&self) -> Option<RangeInclusive<u32>> {
        self.weights.clone()
    }

    /// Returns the time since its release in which it was runnable and waited for a CPU.
    pub(crate) fn run_delay(&self) -> Duration {
        self.schedstat().run_delay
    }

    /// Returns the end of a worker that has ended without a stop.
    fn ended_unstopped(&self) -> Option<WorkerEnd> {
        match &self.stopped {
            Some(stopped) => stopped.ended,
            None => self.ended().unwrap_or_else(|error| {
                Some(WorkerEnd { kind: None, errno: error.raw_os_error() })
            }),
        }
    }

    /// Returns what the kernel has counted since the release; zeroes if the worker was reaped by another
    /// part of this process.
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

    /// Kills the worker without waiting for its end. Its active time ends at `now_ns`.
    pub(super) fn kill(&mut self, now_ns: u64) -> io::Result<()> {
        if self.stopped.is_none() {
            let (ended, allowed_cpus) = (self.ended()?, self.allowed_cpus());
            self.stopped = Some(Stopped { at_ns: now_ns, killed_ns: now_ns, ended, allowed_cpus });
        }
        match rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL) {
            // Another part of this process has reaped it.
            Err(Errno::SRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }

    /// Records that the worker, which was killed, has ended now.
    pub(super) fn record_end(&mut self) {
        if let Some(stopped) = &mut self.stopped {
            stopped.at_ns = since_boot_ns();
        }
    }

    /// Makes the drop not wait for the worker, which was killed and does not end.
    pub(super) fn give_up(&mut self) {
        self.given_up = true;
    }

    fn page(&self) -> &Page {
        &self.pages[self.index]
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only if another part of this process has reaped it.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let id = WaitId::PidFd(std::os::fd::AsFd::as_fd(&self.pidfd));
        let mut end = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let within = Timespec { tv_sec: 10, tv_nsec: 0 };
        // A worker that gets no CPU time does not end. It is reaped when this process ends.
        while !self.given_up && poll(&mut end, Some(&within)) == Err(Errno::INTR) {}
        let _ = rustix::process::waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}

/// Sets, in the worker, what a process can set only for itself.
fn prepare(spec: &WorkSpec, comm: &CString, parent: Pid) -> Result<(), (u32, io::Error)> {
    rustix::thread::set_name(comm).map_err(|errno| (0, errno.into()))?;
    spec.memory_policy.apply().map_err(|error| (1, error))?;
    become_user(spec).map_err(|errno| (2, errno.into()))?;
    // After the change of user, which clears the signal.
    sys::die_with_parent().map_err(|error| (3, error))?;
    // The end of the parent before that call sends no signal.
    if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err((3, Errno::SRCH.into())) }
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

/// Waits, in the worker, for its release and runs its work loop. Returns the exit status.
fn wait_and_work(
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
    fn worker_does_nothing_before_its_release() {
        let mut workers = forked(&WorkSpec::default().comm("spin").workers(2));
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", workers[0].pid())).unwrap();
        assert_eq!(comm, "spin\n");
        assert_eq!(workers[0].report("cg").wall, Duration::ZERO);
        workers[0].release().unwrap();
        while workers[0].iterations() < 100 {
            std::thread::yield_now();
        }
        // The other worker was not released.
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
    fn report_does_not_count_a_first_iteration_after_the_stop() {
        let mut workers = forked(&WorkSpec::default().workers(2));
        let record =
            |worker: &Worker| worker.page().telemetry.record_iteration(since_boot_ns(), 0, 1);
        record(&workers[0]);
        Workers::stop(&mut workers.iter_mut().collect::<Vec<_>>()).unwrap();
        workers.iter().for_each(record);
        let reports = [&workers[0], &workers[1]].map(|worker| worker.report(""));
        assert_eq!(reports.each_ref().map(|report| report.iterations), [2, 0]);
        assert!(reports[0].longest_gap.is_some() && reports[1].longest_gap.is_none());
        assert_eq!(reports[0].active_until_ns, reports[1].active_until_ns);
    }

    #[test]
    fn report_of_stopped_workers_is_final_and_adds_up() {
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
            assert_eq!(&worker.report(""), report, "final until the process is reaped");
        }
        // The CPU time of three workers on one CPU is at most the time from the first release to the last end.
        let longest = reports.iter().map(|report| report.wall).max().unwrap();
        let cpu: Duration = reports.iter().map(|report| report.cpu).sum();
        let waited: Duration = reports.iter().map(|report| report.run_delay).sum();
        assert!(cpu <= longest + begun.elapsed() + Duration::from_millis(100), "{reports:#?}");
        assert!(waited > Duration::ZERO, "{reports:#?}");
    }

    #[test]
    fn report_has_the_iterations_of_a_worker_that_crashed() {
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
    fn worker_has_the_user_and_group_of_its_spec_and_is_killed_by_drop() {
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
    fn worker_of_another_user_dies_with_its_parent() {
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
    fn fork_reports_a_worker_that_fails_to_prepare() {
        let spec =
            WorkSpec::default().memory_policy(crate::guest::workload::MemoryPolicy::Preferred(63));
        let error = Workers::fork(&spec, &TestTopology::read().unwrap(), &own_cpus()).unwrap_err();
        let error = format!("{error:#}");
        assert_eq!(
            error,
            "a worker failed to set the memory policy: Invalid argument (os error 22)"
        );
    }
}
