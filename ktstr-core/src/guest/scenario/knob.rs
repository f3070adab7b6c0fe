//! Knobs of cgroups.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::Result;

use super::cpuset::CpusetSpec;
use crate::guest::topology::TestTopology;
use crate::linux::cgroup::{CgroupOps, Controller, format_list};

/// One knob of a cgroup and its value; `None` removes the limit.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum CgroupKnob {
    /// `cpuset.cpus`; `None` inherits the CPUs of the parent.
    Cpuset(Option<CpusetSpec>),
    /// `cpuset.mems`; the empty set inherits the nodes of the parent.
    CpusetMems(BTreeSet<usize>),
    /// `cpu.max`: the quota and the period, in microseconds.
    CpuMax(Option<u64>, u64),
    /// `cpu.weight`, 1 to 10,000.
    CpuWeight(u32),
    /// `memory.max`, in bytes.
    MemoryMax(Option<u64>),
    /// `memory.high`, in bytes.
    MemoryHigh(Option<u64>),
    /// `memory.low`, in bytes; `None` removes the protection.
    MemoryLow(Option<u64>),
    /// `memory.swap.max`, in bytes.
    MemorySwapMax(Option<u64>),
    /// `io.weight`, 1 to 10,000.
    IoWeight(u32),
    /// `pids.max`.
    PidsMax(Option<u64>),
}

impl CgroupKnob {
    pub(crate) fn controller(&self) -> Controller {
        match self {
            Self::Cpuset(_) | Self::CpusetMems(_) => Controller::Cpuset,
            Self::CpuMax(..) | Self::CpuWeight(_) => Controller::Cpu,
            Self::MemoryMax(_)
            | Self::MemoryHigh(_)
            | Self::MemoryLow(_)
            | Self::MemorySwapMax(_) => Controller::Memory,
            Self::IoWeight(_) => Controller::Io,
            Self::PidsMax(_) => Controller::Pids,
        }
    }

    pub(crate) fn apply(
        &self,
        cgroups: &dyn CgroupOps,
        cgroup: &str,
        topo: &TestTopology,
    ) -> Result<()> {
        match self {
            Self::Cpuset(Some(cpus)) => cgroups.set_cpuset(cgroup, &cpus.resolve(topo)?),
            Self::Cpuset(None) => cgroups.clear_cpuset(cgroup),
            Self::CpusetMems(nodes) => cgroups.set_cpuset_mems(cgroup, nodes),
            Self::CpuMax(quota_us, period_us) => cgroups.set_cpu_max(cgroup, *quota_us, *period_us),
            Self::CpuWeight(weight) => cgroups.set_cpu_weight(cgroup, *weight),
            Self::MemoryMax(bytes) => cgroups.set_memory_max(cgroup, *bytes),
            Self::MemoryHigh(bytes) => cgroups.set_memory_high(cgroup, *bytes),
            Self::MemoryLow(bytes) => cgroups.set_memory_low(cgroup, *bytes),
            Self::MemorySwapMax(bytes) => cgroups.set_memory_swap_max(cgroup, *bytes),
            Self::IoWeight(weight) => cgroups.set_io_weight(cgroup, *weight),
            Self::PidsMax(max) => cgroups.set_pids_max(cgroup, *max),
        }?;
        Ok(())
    }
}

/// `cpu.max 20000 100000`: the file and its value.
impl fmt::Display for CgroupKnob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = |value: &Option<u64>| value.map_or("max".to_owned(), |value| value.to_string());
        match self {
            Self::Cpuset(Some(cpus)) => write!(f, "cpuset.cpus {cpus}"),
            Self::Cpuset(None) => write!(f, "cpuset.cpus of the parent"),
            Self::CpusetMems(nodes) if nodes.is_empty() => {
                write!(f, "cpuset.mems of the parent")
            }
            Self::CpusetMems(nodes) => write!(f, "cpuset.mems {}", format_list(nodes)),
            Self::CpuMax(quota_us, period_us) => {
                write!(f, "cpu.max {} {period_us}", limit(quota_us))
            }
            Self::CpuWeight(weight) => write!(f, "cpu.weight {weight}"),
            Self::MemoryMax(bytes) => write!(f, "memory.max {}", limit(bytes)),
            Self::MemoryHigh(bytes) => write!(f, "memory.high {}", limit(bytes)),
            Self::MemoryLow(bytes) => write!(f, "memory.low {}", bytes.unwrap_or(0)),
            Self::MemorySwapMax(bytes) => write!(f, "memory.swap.max {}", limit(bytes)),
            Self::IoWeight(weight) => write!(f, "io.weight {weight}"),
            Self::PidsMax(max) => write!(f, "pids.max {}", limit(max)),
        }
    }
}
