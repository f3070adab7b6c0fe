//! Records which CPUs cpusets leave to each worker, and during which times.
//!
//! When the kernel has accepted a cpuset or a move, it has migrated all tasks (Linux 6.12,
//! admin-guide/cgroup-v2.rst, "Cpuset"). While it does so, a task may be on an old or a new CPU, so workers
//! are not confined during a change.

use std::collections::BTreeSet;

use anyhow::Result;

use super::hotplug;
use super::placed::PlacedWorker;
use super::state::Scenario;

impl Scenario<'_> {
    /// Changes the cpuset of a cgroup by `set`, which writes it.
    pub(super) fn set_cpuset(
        &mut self,
        cgroup: &str,
        cpus: Option<&BTreeSet<usize>>,
        set: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.reconfine(
            |placed| placed.is_in(cgroup),
            |scenario| {
                set()?;
                scenario.cpusets.set(cgroup, cpus);
                Ok(())
            },
        )
    }

    /// Onlines or offlines a CPU; returns whether it was online before.
    pub(super) fn set_cpu_online(&mut self, cpu: u32, online: bool) -> Result<bool> {
        self.reconfine(
            |placed| placed.worker.cpuset().is_some_and(|cpuset| cpuset.contains(&cpu)),
            |scenario| {
                let was_online = hotplug::set_online(&scenario.cpu_directory, cpu, online)?;
                scenario.cpusets.set_online(cpu, online);
                Ok(was_online)
            },
        )
    }

    /// Makes a change to the CPUs that cpusets leave to some workers. If it fails, these workers stay
    /// unconfined, because it is not known which part of it the kernel has done.
    pub(super) fn reconfine<T>(
        &mut self,
        concerns: impl Fn(&PlacedWorker) -> bool,
        change: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        // The pids: whether a worker is concerned is not visible any more after the change.
        let mut concerned = BTreeSet::new();
        for placed in self.layers.workers().filter(|placed| concerns(placed)) {
            placed.worker.unconfine();
            concerned.insert(placed.worker.pid());
        }
        let changed = change(self)?;
        let workers = self.layers.workers_mut();
        for placed in workers.filter(|placed| concerned.contains(&placed.worker.pid())) {
            let cpuset = self.cpusets.confinement(&placed.cgroup);
            placed.confine(cpuset.as_ref());
        }
        Ok(changed)
    }
}
