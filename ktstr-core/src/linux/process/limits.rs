//! Resource limits of a job.

use std::collections::BTreeSet;
use std::fmt;

use crate::linux::cgroup::{self, CgroupOps, Controller};

/// The period of `cpu.max`, the kernel's default.
const PERIOD_US: u64 = 100_000;

/// Limits on all processes of a job together. They require a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Limits {
    memory_max: Option<u64>,
    max_processes: Option<u64>,
    cpu_quota: Option<f64>,
}

impl Limits {
    /// Returns no limits.
    pub fn none() -> Self {
        Self::default()
    }

    /// Limits memory, in bytes: `memory.max`. Swap is not included.
    pub fn memory_max(mut self, bytes: u64) -> Self {
        self.memory_max = Some(bytes);
        self
    }

    /// Limits the number of processes and threads: `pids.max`.
    pub fn max_processes(mut self, count: u64) -> Self {
        self.max_processes = Some(count);
        self
    }

    /// Limits CPU time, in CPUs (0.5 is half of one; at least 0.01): `cpu.max`.
    pub fn cpu_quota(mut self, cpus: f64) -> Self {
        self.cpu_quota = Some(cpus);
        self
    }

    pub(super) fn controllers(&self) -> BTreeSet<Controller> {
        let needed = [
            (self.memory_max.is_some(), Controller::Memory),
            (self.max_processes.is_some(), Controller::Pids),
            (self.cpu_quota.is_some(), Controller::Cpu),
        ];
        needed.into_iter().filter(|(set, _)| *set).map(|(_, controller)| controller).collect()
    }

    /// Writes the limits that differ from `before`, including those that are removed.
    pub(super) fn apply(
        &self,
        before: &Self,
        cgroups: &dyn CgroupOps,
        cgroup: &str,
    ) -> Result<(), cgroup::Error> {
        if self.memory_max != before.memory_max {
            cgroups.set_memory_max(cgroup, self.memory_max)?;
        }
        if self.max_processes != before.max_processes {
            cgroups.set_pids_max(cgroup, self.max_processes)?;
        }
        if self.cpu_quota != before.cpu_quota {
            let quota_us = self.cpu_quota.map(|cpus| (cpus * PERIOD_US as f64).round() as u64);
            cgroups.set_cpu_max(cgroup, quota_us, PERIOD_US)?;
        }
        Ok(())
    }
}

/// `memory_max 1048576, cpu_quota 0.5`.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [
            self.memory_max.map(|bytes| format!("memory_max {bytes}")),
            self.max_processes.map(|count| format!("max_processes {count}")),
            self.cpu_quota.map(|cpus| format!("cpu_quota {cpus}")),
        ];
        f.write_str(&words.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::cgroup::RecordingCgroups;

    #[test]
    fn apply_writes_only_changes() {
        let cgroups = RecordingCgroups::new();
        cgroups.setup(&Controller::ALL.into()).unwrap();
        cgroups.create_cgroup("job").unwrap();
        let first = Limits::none().memory_max(4096).cpu_quota(0.25);
        first.apply(&Limits::none(), &cgroups, "job").unwrap();
        let second = first.max_processes(7).cpu_quota(2.0);
        second.apply(&first, &cgroups, "job").unwrap();
        Limits::none().apply(&second, &cgroups, "job").unwrap();
        let calls = cgroups.calls();
        let written: Vec<_> =
            calls.iter().skip(2).map(|call| (call.operation, &*call.value)).collect();
        let want = [
            ("memory.max", "4096"),
            ("cpu.max", "25000 100000"),
            ("pids.max", "7"),
            ("cpu.max", "200000 100000"),
            ("memory.max", "max"),
            ("pids.max", "max"),
            ("cpu.max", "max 100000"),
        ];
        assert_eq!(written, want);
    }

    #[test]
    fn controllers_follow_from_the_limits() {
        let limits = Limits::none().memory_max(1).max_processes(2).cpu_quota(0.5);
        assert_eq!(
            limits.controllers(),
            [Controller::Memory, Controller::Pids, Controller::Cpu].into()
        );
        assert_eq!(limits.to_string(), "memory_max 1, max_processes 2, cpu_quota 0.5");
        assert!(Limits::none().controllers().is_empty());
    }

    #[test]
    fn apply_refuses_quotas_out_of_range() {
        let cgroups = RecordingCgroups::new();
        cgroups.create_cgroup("job").unwrap();
        for cpus in [0.0, -1.0, f64::NAN, 0.001] {
            let limits = Limits::none().cpu_quota(cpus);
            let error = limits.apply(&Limits::none(), &cgroups, "job").unwrap_err().to_string();
            assert!(error.contains("refused to write"), "{cpus}: {error}");
        }
    }
}
