//! All workers of a spec: how they are forked together and stopped together.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::affinity::sibling_pairs;
use super::burst::Bursts;
use super::page::Page;
use super::resources::Resources;
use super::worker::{Treatment, Worker};
use super::{AffinityIntent, SchedPolicy, WorkSpec, WorkType};
use crate::guest::topology::TestTopology;
use crate::linux::sys::Shared;

/// Even on a machine that is busy, one of many workers ends within this.
const END_WITHIN: Duration = Duration::from_secs(10);

/// The workers of one spec.
#[derive(Debug)]
pub(crate) struct Workers;

impl Workers {
    /// Forks the workers of a spec; all wait to be placed and released. `allowed` are the CPUs of
    /// their cgroup, in which their affinity is looked for.
    ///
    /// # Errors
    ///
    /// If the spec is impossible, here or anywhere, or a worker cannot be given its user or memory
    /// policy. Nothing is left then.
    pub(crate) fn fork(
        spec: &WorkSpec,
        topology: &TestTopology,
        allowed: &BTreeSet<u32>,
    ) -> Result<Vec<Worker>> {
        spec.check().map_err(anyhow::Error::msg)?;
        let size = spec.work_type.group_size(spec.count()).map_err(anyhow::Error::msg)?;
        let places = Places::new(spec, topology, allowed).map_err(anyhow::Error::msg)?;
        // Found before there are workers to disturb it.
        let _ = Bursts::get();
        let mut workers = Vec::new();
        for group in 0..spec.count() / size {
            let pages = (0..size).map(|_| Shared::new(Page::default()));
            let pages: Arc<[_]> = pages
                .collect::<io::Result<Vec<_>>>()
                .context("cannot share memory with the workers")?
                .into();
            let resources = match spec.work_type {
                WorkType::PipeIo => Resources::pipes(),
                WorkType::EpollStorm => Resources::events(),
                _ => Ok(Resources::None),
            };
            let resources = Arc::new(resources.context("cannot open what the workers share")?);
            for index in 0..size {
                let treatment = places.treatment(spec, group, index);
                workers.push(Worker::fork(spec, treatment, &pages, index as usize, &resources)?);
            }
        }
        match workers.iter().try_for_each(Worker::wait_until_ready) {
            Ok(()) => Ok(workers),
            Err(error) => {
                Self::discard(workers);
                Err(error)
            }
        }
    }

    /// Ends workers of which nobody wants to know any more. Dropped one by one, each would be
    /// waited for.
    pub(crate) fn discard(mut workers: Vec<Worker>) {
        if let Err(error) = Self::stop(&mut workers.iter_mut().collect::<Vec<_>>()) {
            tracing::warn!("{error}");
        }
    }

    /// Gives workers that run another affinity, looked for in the CPUs of their cgroup.
    ///
    /// # Errors
    ///
    /// If it is impossible there, or for a worker: Deadline has none of its own.
    pub(crate) fn set_affinity<'w>(
        workers: impl Iterator<Item = &'w Worker>,
        affinity: &AffinityIntent,
        topology: &TestTopology,
        allowed: &BTreeSet<u32>,
    ) -> Result<()> {
        let cpus = affinity.resolve(topology, allowed).map_err(anyhow::Error::msg)?;
        let cpus = cpus.unwrap_or_else(|| allowed.clone());
        workers.into_iter().try_for_each(|worker| worker.set_affinity(&cpus))
    }

    /// Kills all of them, then waits until they have ended: one by one, each of a thousand workers
    /// would have to wait for its turn among all others. What they report from then on is what they
    /// did until their end, with the kernel's final counts.
    ///
    /// # Errors
    ///
    /// If none of those left ends for 10 s: a task that gets no CPU cannot die. They are left to
    /// the kernel then, which reaps them at the latest with this process.
    pub(crate) fn stop(workers: &mut [&mut Worker]) -> io::Result<()> {
        workers.iter_mut().try_for_each(|worker| worker.kill())?;
        Self::wait_for_ends(workers, END_WITHIN)
    }

    fn wait_for_ends(workers: &mut [&mut Worker], within: Duration) -> io::Result<()> {
        let mut left: Vec<_> = workers.iter_mut().collect();
        let mut deadline = Instant::now() + within;
        while !left.is_empty() {
            let ends: Vec<_> = left.iter().map(|worker| worker.pidfd()).collect();
            let mut ends: Vec<_> = ends.iter().map(|end| PollFd::new(end, PollFlags::IN)).collect();
            let timeout = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(timeout).expect("it is seconds");
            match poll(&mut ends, Some(&timeout)) {
                Ok(0) => {
                    left.iter_mut().for_each(|worker| worker.give_up());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, undying(&left, within)));
                }
                Ok(_) => deadline = Instant::now() + within,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let ended: Vec<_> = ends.iter().map(|end| !end.revents().is_empty()).collect();
            let mut ended = ended.into_iter();
            left.retain_mut(|worker| {
                let ended = ended.next() == Some(true);
                if ended {
                    worker.note_end();
                }
                !ended
            });
        }
        Ok(())
    }
}

/// Who has not ended.
fn undying(left: &[&mut &mut Worker], within: Duration) -> String {
    const NAMED: usize = 5;
    let named: Vec<_> = left.iter().take(NAMED).map(|worker| worker.who()).collect();
    let more = match left.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let who = named.join(", ");
    let (have, why) = match left {
        [_] => ("has", "it gets no CPU"),
        _ => ("have", "they get no CPU"),
    };
    format!("{who}{more} {have} not ended {within:?} after SIGKILL: {why}")
}

/// Where the workers of a spec may run.
struct Places {
    /// For all; `None` for no pinning.
    cpus: Option<BTreeSet<u32>>,
    /// For the groups of the types that place their workers themselves: one set per worker of a
    /// group, or one for all.
    groups: Vec<Vec<BTreeSet<u32>>>,
}

impl Places {
    fn new(
        spec: &WorkSpec,
        topology: &TestTopology,
        allowed: &BTreeSet<u32>,
    ) -> Result<Self, String> {
        let cpus = spec.affinity.resolve(topology, allowed)?;
        let within = cpus.as_ref().unwrap_or(allowed);
        let usable = topology.cpus.iter().copied().filter(|cpu| within.contains(cpu));
        let groups: Vec<_> = match spec.work_type {
            WorkType::SmtSiblingSpin => sibling_pairs(topology, &usable.collect())
                .map(|(first, second)| vec![BTreeSet::from([first]), BTreeSet::from([second])])
                .collect(),
            WorkType::PriorityInversion | WorkType::RtStarvation => {
                usable.map(|cpu| vec![BTreeSet::from([cpu])]).collect()
            }
            _ => return Ok(Self { cpus, groups: Vec::new() }),
        };
        if groups.is_empty() {
            return Err(format!(
                "{:?} needs a core with two SMT threads, which CPUs {within:?} have not",
                spec.work_type
            ));
        }
        Ok(Self { cpus, groups })
    }

    fn treatment(&self, spec: &WorkSpec, group: u32, index: u32) -> Treatment {
        let place = self.groups.iter().cycle().nth(group as usize);
        let own = place.map(|place| &place[index as usize % place.len()]);
        let (policy, nice) = match (&spec.work_type, index) {
            (WorkType::PriorityInversion, 0) => (SchedPolicy::Normal, 19),
            (WorkType::PriorityInversion, 2) => (SchedPolicy::Normal, -10),
            (WorkType::RtStarvation, 0) => (SchedPolicy::Fifo(1), 0),
            _ => (spec.policy, spec.nice),
        };
        Treatment { cpus: own.or(self.cpus.as_ref()).cloned(), policy, nice }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::workload::testing::Running;

    #[test]
    fn who_does_not_end_is_named_and_not_waited_for() {
        let mut running = Running::of(WorkType::SpinWait, 7);
        let who = running.0[0].who();
        let mut workers: Vec<_> = running.0.iter_mut().collect();
        // Nobody has killed them.
        let wait = |workers: &mut [&mut Worker]| {
            Workers::wait_for_ends(workers, Duration::from_millis(20)).unwrap_err().to_string()
        };
        let all = wait(&mut workers);
        assert!(all.starts_with(&who) && all.contains(" and 2 more have"), "{all}");
        assert!(all.ends_with(" not ended 20ms after SIGKILL: they get no CPU"), "{all}");
        let one = wait(&mut workers[..1]);
        assert_eq!(one, format!("{who} has not ended 20ms after SIGKILL: it gets no CPU"));
        // What they did is known all the same.
        assert!(workers.iter().all(|worker| worker.report("").ended.is_none()));
        Workers::stop(&mut workers).unwrap();
    }
}
