//! The definition of a cgroup: its name, knobs, workers and programs.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};

use super::cpuset::CpusetSpec;
use super::knob::CgroupKnob;
use crate::guest::payload::PayloadRun;
use crate::guest::topology::TestTopology;
use crate::guest::workload::{AffinityIntent, MemoryPolicy, SchedPolicy, WorkSpec, WorkType};

/// The period of `cpu.max` for [`CgroupDef::cpu_quota_pct`]: the kernel's default.
const PERIOD_US: u64 = 100_000;

/// A cgroup, its knobs, workers and programs. One without workers can be used by operations.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "a definition does nothing until a step or an operation uses it"]
pub struct CgroupDef {
    pub(crate) name: String,
    pub(crate) knobs: Vec<CgroupKnob>,
    workers: Option<u32>,
    workers_pct: Option<f64>,
    /// The number of workers if neither of the two is set; `None` for none.
    default_workers: Option<u32>,
    /// The workers of the definition's own methods, once one has been called.
    own: Option<WorkSpec>,
    works: Vec<WorkSpec>,
    pub(crate) payloads: Vec<PayloadRun>,
    pub(crate) oom_kill_expected: bool,
}

impl CgroupDef {
    /// Defines a cgroup without knobs and workers. `name` may be nested: `a/b`.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            knobs: Vec::new(),
            workers: None,
            workers_pct: None,
            default_workers: None,
            own: None,
            works: Vec::new(),
            payloads: Vec::new(),
            oom_kill_expected: false,
        }
    }

    /// Sets the number of workers for a definition without [`workers`](Self::workers) and
    /// [`workers_pct`](Self::workers_pct).
    pub(super) fn default_workers(mut self, workers: u32) -> Self {
        self.default_workers = Some(workers);
        self
    }

    /// Sets the number of workers of each kind that does not set its own. The default is 1, or
    /// `workers_per_cgroup` in a cgroup of [`Ctx::cgroup_def`](crate::guest::scenario::Ctx::cgroup_def).
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Sets the number of workers as a multiple of the cgroup's CPUs, rounded up: 0.5 is one for two
    /// CPUs, 2.0 is two for each. Without a cpuset all CPUs of the machine count.
    pub fn workers_pct(mut self, part: f64) -> Self {
        self.workers_pct = Some(part);
        self
    }

    /// Adds workers of another kind. Can be called several times.
    pub fn work(mut self, work: WorkSpec) -> Self {
        self.works.push(work);
        self
    }

    /// Adds a program that is started in the cgroup after its workers. Can be called several times; runs of
    /// the same program need names ([`Payload::named`](crate::guest::payload::Payload::named)).
    pub fn workload(mut self, payload: impl Into<PayloadRun>) -> Self {
        self.payloads.push(payload.into());
        self
    }

    /// Sets the work type of the cgroup's workers.
    pub fn work_type(self, work_type: WorkType) -> Self {
        self.with_own(|work| work.work_type(work_type))
    }

    /// Sets the workers' command name, at most 15 bytes.
    pub fn comm(self, comm: impl Into<String>) -> Self {
        let comm = comm.into();
        self.with_own(|work| work.comm(comm))
    }

    /// Sets the workers' scheduling policy.
    pub fn sched_policy(self, policy: SchedPolicy) -> Self {
        self.with_own(|work| work.policy(policy))
    }

    /// Sets the CPUs of the cgroup on which the workers may run.
    pub fn affinity(self, affinity: AffinityIntent) -> Self {
        self.with_own(|work| work.affinity(affinity))
    }

    /// Sets the workers' nice value, -20 to 19.
    pub fn nice(self, nice: i8) -> Self {
        self.with_own(|work| work.nice(nice))
    }

    /// Sets the workers' user.
    pub fn uid(self, uid: u32) -> Self {
        self.with_own(|work| work.uid(uid))
    }

    /// Sets the workers' group id; they have no supplementary groups then.
    pub fn gid(self, gid: u32) -> Self {
        self.with_own(|work| work.gid(gid))
    }

    /// Sets the NUMA memory policy of the workers.
    pub fn mem_policy(self, policy: MemoryPolicy) -> Self {
        self.with_own(|work| work.memory_policy(policy))
    }

    /// Expects that the OOM killer kills a process of the cgroup: the test fails if it kills none. If the
    /// process is a worker, the scenario continues without it.
    pub fn expect_oom_kill(mut self) -> Self {
        self.oom_kill_expected = true;
        self
    }

    fn with_own(mut self, change: impl FnOnce(WorkSpec) -> WorkSpec) -> Self {
        self.own = Some(change(self.own.take().unwrap_or_default()));
        self
    }

    /// Sets a knob. If it is set twice, the last value counts.
    pub fn knob(mut self, knob: CgroupKnob) -> Self {
        self.knobs.push(knob);
        self
    }

    /// Sets the cgroup's CPUs.
    pub fn cpuset(self, cpus: CpusetSpec) -> Self {
        self.knob(CgroupKnob::Cpuset(Some(cpus)))
    }

    /// Sets the cgroup's memory nodes.
    pub fn cpuset_mems(self, nodes: impl IntoIterator<Item = usize>) -> Self {
        self.knob(CgroupKnob::CpusetMems(nodes.into_iter().collect()))
    }

    /// Confines the cgroup to the CPUs and the memory of a NUMA node.
    pub fn numa_node(self, node: usize) -> Self {
        self.cpuset(CpusetSpec::numa(node)).cpuset_mems([node])
    }

    /// Limits the cgroup to `quota_us` microseconds of CPU time in each period of `period_us`.
    pub fn cpu_quota(self, quota_us: u64, period_us: u64) -> Self {
        self.knob(CgroupKnob::CpuMax(Some(quota_us), period_us))
    }

    /// Limits the cgroup to a percentage of one CPU: 50 is half a CPU, 200 is two CPUs.
    pub fn cpu_quota_pct(self, percent: u32) -> Self {
        self.cpu_quota(u64::from(percent) * PERIOD_US / 100, PERIOD_US)
    }

    /// Removes the limit of CPU time.
    pub fn cpu_quota_unlimited(self) -> Self {
        self.knob(CgroupKnob::CpuMax(None, PERIOD_US))
    }

    /// Sets the cgroup's weight for CPU time, 1 to 10,000; the kernel's default is 100.
    pub fn cpu_weight(self, weight: u32) -> Self {
        self.knob(CgroupKnob::CpuWeight(weight))
    }

    /// Limits the cgroup's memory, in bytes. Above the limit, the OOM killer kills processes.
    pub fn memory_max(self, bytes: u64) -> Self {
        self.knob(CgroupKnob::MemoryMax(Some(bytes)))
    }

    /// Removes the limit of memory.
    pub fn memory_max_unlimited(self) -> Self {
        self.knob(CgroupKnob::MemoryMax(None))
    }

    /// Limits the cgroup's memory, in bytes. Above the limit, processes are throttled and reclaim memory.
    pub fn memory_high(self, bytes: u64) -> Self {
        self.knob(CgroupKnob::MemoryHigh(Some(bytes)))
    }

    /// Removes the limit above which processes are throttled.
    pub fn memory_high_unlimited(self) -> Self {
        self.knob(CgroupKnob::MemoryHigh(None))
    }

    /// Protects this much of the cgroup's memory, in bytes, from being reclaimed for other cgroups.
    pub fn memory_low(self, bytes: u64) -> Self {
        self.knob(CgroupKnob::MemoryLow(Some(bytes)))
    }

    /// Removes the protection of memory.
    pub fn memory_low_unlimited(self) -> Self {
        self.knob(CgroupKnob::MemoryLow(None))
    }

    /// Limits the cgroup's swap, in bytes.
    pub fn memory_swap_max(self, bytes: u64) -> Self {
        self.knob(CgroupKnob::MemorySwapMax(Some(bytes)))
    }

    /// Removes the limit of swap.
    pub fn memory_swap_max_unlimited(self) -> Self {
        self.knob(CgroupKnob::MemorySwapMax(None))
    }

    /// Sets the cgroup's weight for I/O, 1 to 10,000; the kernel's default is 100.
    pub fn io_weight(self, weight: u32) -> Self {
        self.knob(CgroupKnob::IoWeight(weight))
    }

    /// Limits the number of processes and threads in the cgroup.
    pub fn pids_max(self, max: u64) -> Self {
        self.knob(CgroupKnob::PidsMax(Some(max)))
    }

    /// Removes the limit of processes.
    pub fn pids_max_unlimited(self) -> Self {
        self.knob(CgroupKnob::PidsMax(None))
    }

    /// Returns the workers for this machine, each kind with its count.
    pub(crate) fn works(&self, topo: &TestTopology) -> Result<Vec<WorkSpec>> {
        let count = self.count(topo)?;
        let default = count.is_some().then(WorkSpec::default);
        let own = self.own.clone().or(default.filter(|_| self.works.is_empty()));
        let works = own.into_iter().chain(self.works.iter().cloned());
        Ok(works.map(|work| work.or_workers(count.unwrap_or(1))).collect())
    }

    fn count(&self, topo: &TestTopology) -> Result<Option<u32>> {
        match (self.workers, self.workers_pct) {
            (Some(_), Some(_)) => {
                bail!("cgroup {}: workers and workers_pct are both set", self.name)
            }
            (None, Some(part)) => {
                ensure!(
                    part > 0.0 && part.is_finite(),
                    "cgroup {}: invalid workers_pct {part} (greater than 0 and finite)",
                    self.name
                );
                Ok(Some((self.cpus(topo)?.len() as f64 * part).ceil() as u32))
            }
            (count, None) => Ok(count.or(self.default_workers)),
        }
    }

    pub(crate) fn cpus(&self, topo: &TestTopology) -> Result<BTreeSet<usize>> {
        let cpuset = self.knobs.iter().rev().find_map(|knob| match knob {
            CgroupKnob::Cpuset(cpus) => Some(cpus.as_ref()),
            _ => None,
        });
        match cpuset.flatten() {
            Some(cpus) => cpus.resolve(topo).with_context(|| format!("cgroup {}", self.name)),
            None => Ok(topo.all_cpus().into_iter().collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> TestTopology {
        TestTopology {
            cpus: (0..6).collect(),
            nodes: vec![(0..6).collect()],
            llcs: vec![(0..4).collect(), vec![4, 5]],
            cores: (0..6).map(|cpu| vec![cpu]).collect(),
        }
    }

    fn counts(def: CgroupDef) -> Vec<u32> {
        def.works(&machine()).unwrap().iter().map(WorkSpec::count).collect()
    }

    #[test]
    fn works_counts_the_workers_of_each_kind() {
        let def = || CgroupDef::named("cg");
        let spec = WorkSpec::default;
        for (def, want) in [
            (def(), vec![]),
            (def().workers(3), vec![3]),
            (def().comm("a"), vec![1]),
            (def().workers(2).comm("a"), vec![2]),
            (def().work(spec()), vec![1]),
            (def().work(spec()).workers(2), vec![2]),
            (def().work(spec().workers(5)).work(spec()).workers(2), vec![5, 2]),
            (def().comm("a").work(spec().workers(5)).workers(2), vec![2, 5]),
            (def().workers_pct(0.5), vec![3]),
            (def().workers_pct(2.0).cpuset(CpusetSpec::llc(1)), vec![4]),
            (def().workers_pct(0.1).cpuset(CpusetSpec::llc(0)), vec![1]),
            (def().default_workers(3), vec![3]),
            (def().default_workers(3).comm("a"), vec![3]),
            (def().default_workers(3).workers(1), vec![1]),
            (def().default_workers(3).workers(0), vec![0]),
            (def().default_workers(3).workers_pct(0.5), vec![3]),
            (def().default_workers(9).workers_pct(0.5), vec![3]),
            (def().default_workers(3).work(spec().workers(5)).work(spec()), vec![5, 3]),
        ] {
            let shown = format!("{def:?}");
            assert_eq!(counts(def), want, "{shown}");
        }
    }

    #[test]
    fn works_rejects_contradictions() {
        let def = || CgroupDef::named("cg");
        for (def, why) in [
            (def().workers(1).workers_pct(0.5), "workers and workers_pct are both set"),
            (def().workers_pct(0.0), "invalid workers_pct 0 "),
            (def().workers_pct(f64::NAN), "invalid workers_pct NaN "),
            (def().workers_pct(1.0).cpuset(CpusetSpec::llc(2)), "llc 2 is out of range"),
        ] {
            let error = format!("{:#}", def.works(&machine()).unwrap_err());
            assert!(error.contains("cgroup cg") && error.contains(why), "{error}");
        }
    }

    #[test]
    fn numa_node_sets_cpus_and_memory_nodes() {
        let machine = TestTopology { nodes: vec![vec![0, 1], vec![2, 3, 4, 5]], ..machine() };
        let def = CgroupDef::named("cg").numa_node(1);
        assert_eq!(def.cpus(&machine).unwrap(), [2, 3, 4, 5].into());
        assert_eq!(def.knobs[1], CgroupKnob::CpusetMems([1].into()));
    }

    #[test]
    fn cpus_are_those_of_the_last_cpuset() {
        let def = CgroupDef::named("cg").cpuset(CpusetSpec::llc(0)).cpuset(CpusetSpec::llc(1));
        assert_eq!(def.cpus(&machine()).unwrap(), [4, 5].into());
        assert_eq!(def.knob(CgroupKnob::Cpuset(None)).cpus(&machine()).unwrap().len(), 6);
    }
}
