//! Which CPUs cpusets leave workers, and from when until when.
//!
//! The kernel has moved all tasks when it has taken a cpuset or a move (Linux 6.12,
//! admin-guide/cgroup-v2.rst, "Cpuset"); while it is at it, nobody can say where one has to be.

use std::collections::BTreeSet;

use anyhow::Result;

use super::execute::Scenario;
use super::hotplug;
use super::layer::PlacedWorker;
use crate::guest::assert::is_in;

impl Scenario<'_> {
    /// Gives a cgroup the cpuset that `set` tells the kernel of.
    pub(super) fn set_cpuset(
        &mut self,
        cgroup: &str,
        cpus: Option<BTreeSet<usize>>,
        set: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.reconfine(
            |placed| placed.is_in(cgroup),
            |scenario| {
                set()?;
                scenario.made_mut(cgroup).for_each(|made| made.cpuset.clone_from(&cpus));
                let made = scenario.layers.iter_mut().flat_map(|layer| &mut layer.cgroups);
                let below = made.filter(|made| is_in(&made.name, cgroup));
                below.for_each(|made| made.has_fallen_back = false);
                scenario.note_fallen_back();
                Ok(())
            },
        )
    }

    /// Switches a CPU on or off; returns whether it was on before.
    pub(super) fn switch_cpu(&mut self, cpu: u32, online: bool) -> Result<bool> {
        self.reconfine(
            |placed| placed.worker.cpuset().is_some_and(|cpuset| cpuset.contains(&cpu)),
            |scenario| {
                let before = hotplug::switch(cpu, online)?;
                match online {
                    true => scenario.offline.remove(&cpu),
                    false => scenario.offline.insert(cpu),
                };
                scenario.note_fallen_back();
                Ok(before)
            },
        )
    }

    /// Makes a change to what cpusets leave some workers. If it fails, nothing is known of that any
    /// more.
    pub(super) fn reconfine<T>(
        &mut self,
        concerns: impl Fn(&PlacedWorker) -> bool,
        change: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let mut concerned = Vec::new();
        for (layer, of_layer) in self.layers.iter().enumerate() {
            for (index, placed) in of_layer.workers.iter().enumerate() {
                if concerns(placed) {
                    placed.worker.unconfine();
                    concerned.push((layer, index));
                }
            }
        }
        let changed = change(self)?;
        for (layer, index) in concerned {
            let cpuset = self.period(&self.layers[layer].workers[index].cgroup);
            self.layers[layer].workers[index].confine(cpuset.as_ref());
        }
        Ok(changed)
    }

    /// The CPUs on which the tasks of a group have to be; `None` if it has no cpuset, or if that is
    /// not known.
    pub(super) fn period(&self, cgroup: &str) -> Option<BTreeSet<u32>> {
        let has_fallen_back =
            self.made().any(|made| made.has_fallen_back && is_in(cgroup, &made.name));
        self.cpuset_asked(cgroup).filter(|_| !has_fallen_back)
    }

    /// The CPUs that the cpusets of a group and of those above leave; `None` if there is none. One
    /// that leaves none of those above counts as none.
    pub(super) fn cpuset_asked(&self, cgroup: &str) -> Option<BTreeSet<u32>> {
        let mut above: Vec<_> = self.made().filter(|made| is_in(cgroup, &made.name)).collect();
        above.sort_by_key(|made| made.name.len());
        let cpusets = above.into_iter().filter_map(|made| made.cpuset.as_ref());
        let cpusets = cpusets.map(|cpus| cpus.iter().map(|cpu| *cpu as u32).collect());
        cpusets.reduce(|above: BTreeSet<u32>, own| {
            let left = &above & &own;
            if left.is_empty() { above } else { left }
        })
    }

    /// With no CPU of a cpuset on, its tasks run elsewhere, and nobody says until when: some
    /// kernels put it right later if one comes back.
    fn note_fallen_back(&mut self) {
        let is_off =
            |name: &str| self.cpuset_asked(name).is_some_and(|cpus| cpus.is_subset(&self.offline));
        let fallen: Vec<_> =
            self.made().map(|made| made.name.clone()).filter(|name| is_off(name)).collect();
        for name in fallen {
            self.made_mut(&name).for_each(|made| made.has_fallen_back = true);
        }
    }
}
