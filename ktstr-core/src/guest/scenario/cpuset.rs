//! Cpusets by their place in the topology, so that a scenario fits any machine.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Result, bail, ensure};

use crate::guest::topology::TestTopology;

/// CPUs of the machine, resolved when the scenario runs.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the constructor of its name documents each variant")]
pub enum CpusetSpec {
    Llc(usize),
    Numa(usize),
    Range(usize, usize),
    Disjoint(usize, usize),
    Overlap(usize, usize, f64),
    Exact(BTreeSet<usize>),
}

impl CpusetSpec {
    /// Selects the CPUs of the last-level cache `index`, in the order of their first CPU.
    pub fn llc(index: usize) -> Self {
        Self::Llc(index)
    }

    /// Selects the CPUs of the NUMA node `index`, in the order of their first CPU.
    pub fn numa(index: usize) -> Self {
        Self::Numa(index)
    }

    /// Selects the CPUs from `first` to `last`, both included, as the kernel writes `first-last`.
    pub fn range(first: usize, last: usize) -> Self {
        Self::Range(first, last)
    }

    /// Selects part `index` of all CPUs divided, in order, into `of` parts. The first parts have one CPU
    /// more if they cannot be equal.
    pub fn disjoint(index: usize, of: usize) -> Self {
        Self::Disjoint(index, of)
    }

    /// Selects the CPUs of [`disjoint`](Self::disjoint) and the first `frac` (0.0 to 1.0, rounded up) of
    /// the next part; the first part follows the last one.
    pub fn overlap(index: usize, of: usize, frac: f64) -> Self {
        Self::Overlap(index, of, frac)
    }

    /// Selects these CPUs.
    pub fn exact(cpus: impl IntoIterator<Item = usize>) -> Self {
        Self::Exact(cpus.into_iter().collect())
    }

    /// Returns the CPUs on this machine; at least one.
    ///
    /// # Errors
    ///
    /// If the machine does not have these CPUs; the error names those that it has.
    pub fn resolve(&self, topo: &TestTopology) -> Result<BTreeSet<usize>> {
        let wide = |cpus: &[u32]| cpus.iter().map(|cpu| *cpu as usize).collect::<Vec<_>>();
        let nth = |sets: &[Vec<u32>], index: usize| sets.get(index).map(|cpus| wide(cpus));
        let found = match self {
            Self::Llc(index) => nth(&topo.llcs, *index),
            Self::Numa(index) => nth(&topo.nodes, *index),
            Self::Range(first, last) => {
                ensure!(
                    first <= last,
                    "cpuset {self}: first CPU {first} is greater than last CPU {last}"
                );
                // Checked before it is collected: the range may be huge.
                let highest = topo.cpus.last().map_or(0, |cpu| *cpu as usize);
                (*last <= highest).then(|| (*first..=*last).collect())
            }
            Self::Disjoint(index, of) => self.part(topo, *index, *of).map(wide),
            Self::Overlap(index, of, frac) => {
                ensure!(
                    (0.0..=1.0).contains(frac),
                    "cpuset {self}: invalid overlap {frac} (0 to 1)"
                );
                let own = self.part(topo, *index, *of);
                let next = index.checked_add(1).and_then(|next| next.checked_rem(*of));
                let next = next.and_then(|next| self.part(topo, next, *of));
                own.zip(next).map(|(own, next)| {
                    let shared = (next.len() as f64 * frac).ceil() as usize;
                    wide(&[own, &next[..shared]].concat())
                })
            }
            Self::Exact(cpus) => Some(cpus.iter().copied().collect()),
        };
        match found {
            Some(cpus) if cpus.is_empty() => bail!("cpuset {self} is empty"),
            Some(cpus) if cpus.iter().all(|cpu| wide(&topo.cpus).contains(cpu)) => {
                Ok(cpus.into_iter().collect())
            }
            _ => bail!("cpuset {self} is out of range: the machine has {topo}"),
        }
    }

    fn part<'t>(&self, topo: &'t TestTopology, index: usize, of: usize) -> Option<&'t [u32]> {
        let count = topo.cpus.len();
        // With more parts than CPUs, some would be empty.
        if index >= of || of > count {
            return None;
        }
        let begin = |index: usize| index * (count / of) + index.min(count % of);
        Some(&topo.cpus[begin(index)..begin(index + 1)])
    }
}

/// `llc 1`, `part 0 of 2`, `0-3`.
impl fmt::Display for CpusetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Llc(index) => write!(f, "llc {index}"),
            Self::Numa(index) => write!(f, "node {index}"),
            Self::Range(first, last) => write!(f, "{first}-{last}"),
            Self::Disjoint(index, of) => write!(f, "part {index} of {of}"),
            Self::Overlap(index, of, frac) => {
                write!(f, "part {index} of {of} and {frac} of the next")
            }
            Self::Exact(cpus) => f.write_str(&crate::linux::cgroup::format_list(cpus)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a machine with two nodes of two last-level caches each, with 3, 1, 1 and 2 CPUs.
    fn machine() -> TestTopology {
        TestTopology {
            cpus: (0..7).collect(),
            nodes: vec![vec![0, 1, 2, 3], vec![4, 5, 6]],
            llcs: vec![vec![0, 1, 2], vec![3], vec![4], vec![5, 6]],
            cores: (0..7).map(|cpu| vec![cpu]).collect(),
        }
    }

    #[test]
    fn resolve_returns_the_cpus_of_each_kind() {
        for (spec, text, cpus) in [
            (CpusetSpec::llc(3), "llc 3", vec![5, 6]),
            (CpusetSpec::numa(0), "node 0", vec![0, 1, 2, 3]),
            (CpusetSpec::range(2, 4), "2-4", vec![2, 3, 4]),
            (CpusetSpec::range(6, 6), "6-6", vec![6]),
            (CpusetSpec::disjoint(0, 2), "part 0 of 2", vec![0, 1, 2, 3]),
            (CpusetSpec::disjoint(1, 2), "part 1 of 2", vec![4, 5, 6]),
            (CpusetSpec::disjoint(0, 1), "part 0 of 1", (0..7).collect()),
            (CpusetSpec::disjoint(6, 7), "part 6 of 7", vec![6]),
            (CpusetSpec::overlap(0, 2, 0.5), "part 0 of 2 and 0.5 of the next", (0..6).collect()),
            (CpusetSpec::overlap(1, 2, 0.25), "part 1 of 2 and 0.25 of the next", vec![0, 4, 5, 6]),
            (CpusetSpec::overlap(1, 2, 0.0), "part 1 of 2 and 0 of the next", vec![4, 5, 6]),
            (CpusetSpec::exact([6, 0, 1]), "0-1,6", vec![0, 1, 6]),
        ] {
            assert_eq!(spec.to_string(), text);
            assert_eq!(spec.resolve(&machine()).unwrap(), cpus.into_iter().collect(), "{text}");
        }
    }

    #[test]
    fn resolve_rejects_cpus_that_the_machine_does_not_have() {
        for (spec, why) in [
            (CpusetSpec::llc(4), "cpuset llc 4 is out of range: the machine has 7 CPUs (0-6)"),
            (CpusetSpec::numa(2), "is out of range"),
            (CpusetSpec::range(5, 7), "is out of range"),
            (CpusetSpec::range(4, 2), "first CPU 4 is greater than last CPU 2"),
            (CpusetSpec::disjoint(2, 2), "is out of range"),
            (CpusetSpec::disjoint(0, 8), "is out of range"),
            (CpusetSpec::disjoint(0, 0), "is out of range"),
            (CpusetSpec::overlap(0, 0, 0.5), "is out of range"),
            (CpusetSpec::overlap(usize::MAX, 2, 0.5), "is out of range"),
            (CpusetSpec::overlap(0, 2, 1.5), "invalid overlap 1.5 (0 to 1)"),
            (CpusetSpec::overlap(0, 2, f64::NAN), "invalid overlap NaN (0 to 1)"),
            (CpusetSpec::exact([]), "is empty"),
            (CpusetSpec::exact([7]), "is out of range"),
        ] {
            let error = spec.resolve(&machine()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
