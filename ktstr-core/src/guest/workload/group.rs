//! Forks and stops all workers of a spec together.

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
use super::worker::{SchedParams, Worker};
use super::{AffinityIntent, SchedPolicy, WorkSpec, WorkType};
use crate::guest::topology::TestTopology;
use crate::linux::sys::{Shared, since_boot_ns};

/// The longest time between the ends of two killed workers, even on a busy machine.
const END_WITHIN: Duration = Duration::from_secs(10);

/// The workers of one spec.
#[derive(Debug)]
pub(crate) struct Workers;

impl Workers {
    /// Forks the workers of a spec, which wait for their release. Their affinity is resolved within
    /// `allowed`, the CPUs of their cgroup.
    ///
    /// # Errors
    ///
    /// If the spec is invalid, or impossible on this machine, or a worker's preparation fails. No worker is
    /// left then.
    pub(crate) fn fork(
        spec: &WorkSpec,
        topology: &TestTopology,
        allowed: &BTreeSet<u32>,
    ) -> Result<Vec<Worker>> {
        spec.check().map_err(anyhow::Error::msg)?;
        let size = spec.work_type.group_size(spec.count()).map_err(anyhow::Error::msg)?;
        let places = Places::new(spec, topology, allowed).map_err(anyhow::Error::msg)?;
        // Calibrated before there are workers that compete for the CPU.
        let _ = Bursts::get();
        let mut workers = Vec::new();
        for group in 0..spec.count() / size {
            let pages = (0..size).map(|_| Shared::new(Page::default()));
            let pages: Arc<[_]> = pages
                .collect::<io::Result<Vec<_>>>()
                .context("failed to map memory shared with the workers")?
                .into();
            let resources = match spec.work_type {
                WorkType::PipeIo => Resources::pipes(),
                WorkType::EpollStorm => Resources::events(),
                _ => Ok(Resources::None),
            };
            let resources = Arc::new(
                resources.context("failed to open the descriptors that the workers share")?,
            );
            for index in 0..size {
                let sched = places.sched_params(spec, group, index);
                workers.push(Worker::fork(spec, sched, &pages, index as usize, &resources)?);
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

    /// Stops workers without reading their reports. Together: dropped one by one, each would be waited for
    /// on its own.
    pub(crate) fn discard(mut workers: Vec<Worker>) {
        if let Err(error) = Self::stop(&mut workers.iter_mut().collect::<Vec<_>>()) {
            tracing::warn!("{error}");
        }
    }

    /// Changes the affinity of running workers, resolved within the CPUs of their cgroup.
    ///
    /// # Errors
    ///
    /// If it is impossible there, or for a worker: the kernel refuses it for SCHED_DEADLINE.
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

    /// Kills all workers, then waits until they have ended. Not one by one: each of a thousand workers would
    /// compete with all others for the CPU time to exit. From then on their reports are final. Their active
    /// time ends at the same moment, so that the end of one does not give another its first iterations.
    ///
    /// # Errors
    ///
    /// If none of the rest ends within 10 s: a task that gets no CPU time cannot exit. They are given up
    /// and reaped when this process ends.
    pub(crate) fn stop(workers: &mut [&mut Worker]) -> io::Result<()> {
        let now_ns = since_boot_ns();
        workers.iter_mut().try_for_each(|worker| worker.kill(now_ns))?;
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
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        describe_unended(&left, within),
                    ));
                }
                Ok(_) => deadline = Instant::now() + within,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let ended: Vec<_> = ends.iter().map(|end| !end.revents().is_empty()).collect();
            let (ended, running): (Vec<_>, Vec<_>) =
                left.into_iter().zip(ended).partition(|(_, ended)| *ended);
            ended.into_iter().for_each(|(worker, _)| worker.record_end());
            left = running.into_iter().map(|(worker, _)| worker).collect();
        }
        Ok(())
    }
}

/// Names the workers that have not ended.
fn describe_unended(left: &[&mut &mut Worker], within: Duration) -> String {
    const NAMED: usize = 5;
    let named: Vec<_> = left.iter().take(NAMED).map(|worker| worker.label()).collect();
    let more = match left.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named = named.join(", ");
    let (have, they) = if left.len() == 1 { ("has", "it gets") } else { ("have", "they get") };
    format!("{named}{more} {have} not ended {within:?} after SIGKILL: {they} no CPU time")
}

/// The CPUs on which the workers of a spec may run.
struct Places {
    /// Those of all workers; `None` for no pinning.
    cpus: Option<BTreeSet<u32>>,
    /// Those of each group, for types that place their workers: one set per worker of a group, or one for
    /// all.
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
                "{:?} needs a core with two SMT threads; CPUs {within:?} have none",
                spec.work_type
            ));
        }
        Ok(Self { cpus, groups })
    }

    fn sched_params(&self, spec: &WorkSpec, group: u32, index: u32) -> SchedParams {
        let place = self.groups.iter().cycle().nth(group as usize);
        let own = place.map(|place| &place[index as usize % place.len()]);
        let (policy, nice) = match (&spec.work_type, index) {
            (WorkType::PriorityInversion, 0) => (SchedPolicy::Normal, 19),
            (WorkType::PriorityInversion, 2) => (SchedPolicy::Normal, -10),
            (WorkType::RtStarvation, 0) => (SchedPolicy::Fifo(1), 0),
            _ => (spec.policy, spec.nice),
        };
        SchedParams { cpus: own.or(self.cpus.as_ref()).cloned(), policy, nice }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::workload::testing::Running;

    #[test]
    fn wait_for_ends_names_workers_that_do_not_end() {
        let mut running = Running::of(WorkType::SpinWait, 7);
        let first = running.0[0].label();
        let mut workers: Vec<_> = running.0.iter_mut().collect();
        // They have not been killed.
        let wait = |workers: &mut [&mut Worker]| {
            Workers::wait_for_ends(workers, Duration::from_millis(20)).unwrap_err().to_string()
        };
        let all = wait(&mut workers);
        assert!(all.starts_with(&first) && all.contains(" and 2 more have"), "{all}");
        assert!(all.ends_with(" not ended 20ms after SIGKILL: they get no CPU time"), "{all}");
        let one = wait(&mut workers[..1]);
        assert_eq!(one, format!("{first} has not ended 20ms after SIGKILL: it gets no CPU time"));
        // Their reports are available all the same.
        assert!(workers.iter().all(|worker| worker.report("").ended.is_none()));
        Workers::stop(&mut workers).unwrap();
    }
}
