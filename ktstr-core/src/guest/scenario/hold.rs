//! Holds: the time in which the workers work and the kernel's counters are taken.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::cgroup_state::CgroupState;
use super::placed::PlacedWorker;
use super::state::Scenario;
use super::step::{HoldSpec, Step};
use crate::guest::assert::{CgroupAsked, CgroupSample, is_in};
use crate::linux::cgroup::CgroupStats;
use crate::linux::sys::since_boot_ns;

/// A hold with the times of this test.
struct Hold {
    /// The time before it in which cgroups are not judged.
    settle: Option<Duration>,
    length: Duration,
    /// The interval at which the step's operations are repeated.
    interval: Option<Duration>,
}

impl Hold {
    fn new(spec: HoldSpec, duration: Duration) -> Result<Self> {
        let part = |frac: f64| {
            let part = Duration::try_from_secs_f64(duration.as_secs_f64() * frac);
            part.with_context(|| format!("invalid part of the duration: {frac} (minimum 0)"))
        };
        Ok(match spec {
            HoldSpec::Fixed(length) => Self { settle: None, length, interval: None },
            HoldSpec::Frac(frac) => Self { settle: None, length: part(frac)?, interval: None },
            HoldSpec::Settled(settle, frac) => {
                Self { settle: Some(settle), length: part(frac)?, interval: None }
            }
            HoldSpec::LoopAt(interval) => {
                ensure!(!interval.is_zero(), "operations cannot be repeated every 0 s");
                Self { settle: None, length: duration, interval: Some(interval) }
            }
        })
    }
}

/// The kernel's counters of a cgroup at one end of a hold.
struct Counters {
    at_ns: u64,
    stats: CgroupStats,
    waited: Duration,
    weighs: bool,
}

impl Scenario<'_> {
    /// Lets the workers work for the time of the step. Returns false as soon as the verdict is decided,
    /// by a worker that exited early.
    pub(super) fn hold(&mut self, step: &Step) -> Result<bool> {
        let Hold { settle, length, interval } = Hold::new(step.hold, self.ctx.duration)?;
        if let Some(settle) = settle {
            self.send_event(format!("settle for {settle:?}"));
            let settled = Instant::now().checked_add(settle).context("settle time is too long")?;
            if !self.wait_until(settled, None)? {
                return Ok(false);
            }
        }
        match interval {
            None => self.send_event(format!("hold for {length:?}")),
            Some(interval) => {
                self.send_event(format!("hold for {length:?}, operations every {interval:?}"));
            }
        }
        let end = Instant::now().checked_add(length).context("hold is too long")?;
        while let Some(interval) = interval {
            let next = Instant::now().checked_add(interval).filter(|next| *next < end);
            let Some(next) = next else { break };
            if !self.sample_until(next)? {
                return Ok(false);
            }
            step.ops.iter().try_for_each(|op| self.carry_out(op))?;
        }
        self.sample_until(end)
    }

    fn sample_until(&mut self, deadline: Instant) -> Result<bool> {
        self.sample_while(|scenario| scenario.wait_until(deadline, None))
    }

    /// Waits, and keeps what the kernel counts during that time for each cgroup that has workers or
    /// payloads in it or its descendants.
    ///
    /// `wait` cannot change anything, so the counters can be compared with the knobs; and the window is the
    /// same for all cgroups, so siblings can be compared with each other.
    pub(super) fn sample_while<T>(&mut self, wait: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let is_used = |cgroup: &&CgroupState| {
            self.layers.workers().any(|placed| placed.is_in(&cgroup.name))
                || self.layers.payloads().any(|payload| is_in(payload.cgroup(), &cgroup.name))
        };
        let began_ns = since_boot_ns();
        let began = self.layers.cgroups().filter(is_used);
        let began = began.map(|cgroup| Ok((cgroup, self.counters(cgroup)?)));
        let began = began.collect::<Result<Vec<_>>>()?;
        let waited = wait(self)?;
        let ended =
            began.into_iter().map(|(cgroup, before)| Ok((cgroup, before, self.counters(cgroup)?)));
        let samples =
            ended.collect::<Result<Vec<_>>>()?.into_iter().map(|(cgroup, before, after)| {
                let cpuset = self.cpusets.asked(&cgroup.name).into_iter().flatten().collect();
                CgroupSample {
                    name: cgroup.name.clone(),
                    made_ns: cgroup.made_ns,
                    asked: CgroupAsked { cpuset, ..cgroup.asked.clone() },
                    began_ns,
                    wall: Duration::from_nanos(after.at_ns.saturating_sub(before.at_ns)),
                    waited: after.waited.saturating_sub(before.waited),
                    before: before.stats,
                    after: after.stats,
                    weighs: after.weighs,
                }
            });
        let samples: Vec<_> = samples.collect();
        self.samples.extend(samples);
        Ok(waited)
    }

    fn counters(&self, cgroup: &CgroupState) -> Result<Counters> {
        let own = || self.layers.workers().filter(|placed| placed.is_in(&cgroup.name));
        let waited = own().map(|placed| placed.worker.run_delay()).sum();
        let weighs = own().all(|placed| !placed.is_pinned && placed.worker.is_fair_and_free());
        let stats = self.ctx.cgroups.stats(&cgroup.name)?;
        Ok(Counters { at_ns: since_boot_ns(), stats, waited, weighs })
    }

    /// Waits until the deadline or until `event` is readable. Returns false as soon as a worker has
    /// exited that was not expected to be OOM-killed: that decides the verdict.
    pub(super) fn wait_until(
        &self,
        deadline: Instant,
        event: Option<BorrowedFd<'_>>,
    ) -> Result<bool> {
        let mut running: Vec<_> = self.layers.workers().collect();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = left.try_into().context("hold is too long")?;
            // The workers' pidfds in the order of `running`, then the event.
            let pidfds = running.iter().map(|placed| placed.worker.pidfd());
            let mut fds: Vec<_> = pidfds.map(|pidfd| PollFd::new(pidfd, PollFlags::IN)).collect();
            fds.extend(event.iter().map(|event| PollFd::new(event, PollFlags::IN)));
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno).context("failed to wait for the workers"),
            }
            let mut is_ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            let is_event_ready = event.is_some() && is_ready.pop() == Some(true);
            let (exited, still): (Vec<_>, Vec<_>) =
                running.into_iter().zip(is_ready).partition(|(_, has_exited)| *has_exited);
            // A worker's exit counts even if the event happened at the same time.
            for (placed, _) in exited {
                if !self.was_expected_kill(placed)? {
                    return Ok(false);
                }
            }
            if is_event_ready {
                return Ok(true);
            }
            running = still.into_iter().map(|(placed, _)| placed).collect();
        }
    }

    /// Returns whether a worker was killed by SIGKILL in a cgroup where an OOM kill is expected.
    fn was_expected_kill(&self, placed: &PlacedWorker) -> Result<bool> {
        let end = placed.worker.ended().context("failed to read how a worker ended")?;
        Ok(placed.oom_kill_expected && end.is_some_and(|end| end.is_sigkill()))
    }
}
