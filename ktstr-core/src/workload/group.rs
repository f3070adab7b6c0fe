//! All workers of a spec: how they are forked together and stopped together.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::affinity::sibling_pairs;
use super::resources::Resources;
use super::worker::{Page, Treatment, Worker};
use super::{AffinityIntent, SchedPolicy, WorkSpec, WorkType};
use crate::sys::Shared;
use crate::topology::TestTopology;

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
        let mut workers = Vec::new();
        for group in 0..spec.count() / size {
            let pages = (0..size).map(|_| Shared::new(Page::default()));
            let pages: Arc<[_]> = pages
                .collect::<io::Result<Vec<_>>>()
                .context("cannot share memory with the workers")?
                .into();
            let resources = Resources::new(&spec.work_type);
            let resources = Arc::new(resources.context("cannot open what the workers share")?);
            for index in 0..size {
                let treatment = places.treatment(spec, group, index);
                workers.push(Worker::fork(spec, treatment, &pages, index as usize, &resources)?);
            }
        }
        workers.iter().try_for_each(Worker::wait_until_ready)?;
        Ok(workers)
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
    pub(crate) fn stop(workers: &mut [&mut Worker]) -> io::Result<()> {
        workers.iter_mut().try_for_each(|worker| worker.kill())?;
        let mut left: Vec<_> = workers.iter_mut().collect();
        while !left.is_empty() {
            let ends: Vec<_> = left.iter().map(|worker| worker.pidfd()).collect();
            let mut ends: Vec<_> = ends.iter().map(|end| PollFd::new(end, PollFlags::IN)).collect();
            match poll(&mut ends, None) {
                Ok(_) | Err(Errno::INTR) => {}
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
