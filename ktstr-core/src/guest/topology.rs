//! The topology of the machine that this process runs on, read from sysfs.

use std::collections::BTreeSet;
use std::path::Path;
use std::{fmt, fs, io};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::linux::cgroup::{format_list, parse_list};
use crate::model::machine::Topology;

/// CPUs, caches and nodes of the running machine, as its sysfs shows them.
///
/// Each list of lists is sorted by the first CPU.
///
/// Source: Linux 6.12, Documentation/ABI/stable/sysfs-devices-system-cpu and -node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestTopology {
    /// The online CPUs.
    pub cpus: Vec<u32>,
    /// The CPUs of each NUMA node that has CPUs.
    pub nodes: Vec<Vec<u32>>,
    /// The CPUs that share each last-level cache.
    pub llcs: Vec<Vec<u32>>,
    /// The CPUs of each core: SMT siblings.
    pub cores: Vec<Vec<u32>>,
}

impl TestTopology {
    /// Reads `/sys/devices/system`.
    ///
    /// # Errors
    ///
    /// If a file is missing or malformed; the error names it.
    pub fn read() -> anyhow::Result<Self> {
        Self::read_at(Path::new("/sys/devices/system"))
    }

    fn read_at(root: &Path) -> anyhow::Result<Self> {
        let cpus = read_list(&root.join("cpu/online"))?;
        let (mut nodes, mut llcs, mut cores) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for cpu in &cpus {
            let directory = root.join(format!("cpu/cpu{cpu}"));
            cores.insert(read_list(&directory.join("topology/thread_siblings_list"))?);
            llcs.insert(last_level_cache(&directory.join("cache"))?);
        }
        match fs::read_to_string(root.join("node/online")) {
            Ok(online) => {
                for node in parse_list(&online).context("malformed node/online")? {
                    nodes.insert(read_list(&root.join(format!("node/node{node}/cpulist")))?);
                }
            }
            // A kernel without NUMA lacks this directory: all its CPUs are one node.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                nodes.insert(cpus.clone());
            }
            Err(error) => return Err(error).context("cannot read the online NUMA nodes"),
        }
        nodes.remove(&Vec::new());
        let sorted = |lists: BTreeSet<Vec<u32>>| lists.into_iter().collect();
        Ok(Self { cpus, nodes: sorted(nodes), llcs: sorted(llcs), cores: sorted(cores) })
    }

    /// Returns the number of online CPUs.
    pub fn total_cpus(&self) -> usize {
        self.cpus.len()
    }

    /// Returns the number of last-level caches.
    pub fn num_llcs(&self) -> usize {
        self.llcs.len()
    }

    /// Returns the number of NUMA nodes that have CPUs.
    pub fn num_numa_nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the online CPUs in ascending order, as cpusets take them.
    pub fn all_cpus(&self) -> Vec<usize> {
        self.cpus.iter().map(|cpu| *cpu as usize).collect()
    }

    /// Returns the differences between this machine and `asked`, one line each.
    pub fn differences(&self, asked: &Topology) -> Vec<String> {
        let cores = (0..asked.llcs.nr_cores()).map(|_| asked.threads_per_core);
        let mut differences = Vec::new();
        let mut compare = |what: &str, seen: &[Vec<u32>], wanted: &[Vec<u32>]| {
            if seen != wanted {
                differences.push(format!("{what}: requested {wanted:?}, the guest has {seen:?}"));
            }
        };
        compare("online CPUs", std::slice::from_ref(&self.cpus), &consecutive([asked.nr_cpus()]));
        compare("NUMA nodes", &self.nodes, &consecutive(asked.node_cpus()));
        compare("last-level caches", &self.llcs, &consecutive(asked.llc_cpus()));
        compare("cores", &self.cores, &consecutive(cores));
        differences
    }
}

/// Writes `4 CPUs (0-3), 1 node (0-3), 2 LLCs (0-1, 2-3)`.
impl fmt::Display for TestTopology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |cpus: &Vec<u32>| format_list(&cpus.iter().map(|cpu| *cpu as usize).collect());
        let count = |lists: &[Vec<u32>], what: &str| {
            let plural = if lists.len() == 1 { "" } else { "s" };
            let texts: Vec<_> = lists.iter().map(list).collect();
            format!("{} {what}{plural} ({})", lists.len(), texts.join(", "))
        };
        let plural = if self.cpus.len() == 1 { "" } else { "s" };
        write!(f, "{} CPU{plural} ({}), ", self.cpus.len(), list(&self.cpus))?;
        write!(f, "{}, {}", count(&self.nodes, "node"), count(&self.llcs, "LLC"))
    }
}

/// Splits the CPUs, from CPU 0 on, into consecutive lists of these sizes.
fn consecutive(sizes: impl IntoIterator<Item = u32>) -> Vec<Vec<u32>> {
    let mut cpus = 0_u32..;
    sizes.into_iter().map(|size| cpus.by_ref().take(size as usize).collect()).collect()
}

/// Returns the CPUs that share the cache of the highest level in `caches`.
fn last_level_cache(caches: &Path) -> anyhow::Result<Vec<u32>> {
    let mut last = None;
    let entries =
        fs::read_dir(caches).with_context(|| format!("no caches in {}", caches.display()))?;
    for entry in entries {
        let directory = entry?.path();
        let level = match fs::read_to_string(directory.join("level")) {
            Ok(level) => level,
            // Not the directory of a cache.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                continue;
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot read {}/level", directory.display()));
            }
        };
        let level: u32 = level.trim().parse().context("a cache level is not a number")?;
        if last.as_ref().is_none_or(|(highest, _)| level > *highest) {
            last = Some((level, directory));
        }
    }
    let (_, directory) = last.with_context(|| format!("no caches in {}", caches.display()))?;
    read_list(&directory.join("shared_cpu_list"))
}

fn read_list(path: &Path) -> anyhow::Result<Vec<u32>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let numbers = parse_list(&text).with_context(|| format!("malformed {}", path.display()))?;
    Ok(numbers.into_iter().map(|number| number as u32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::machine::Llcs;

    fn topology(numa_nodes: u32, cores: &[u32], threads_per_core: u32) -> Topology {
        Topology { numa_nodes, llcs: Llcs::of(cores), threads_per_core }
    }

    #[test]
    fn differences_compare_uneven_caches_and_nodes() {
        let truth = TestTopology {
            cpus: (0..10).collect(),
            nodes: vec![(0..8).collect(), vec![8, 9]],
            llcs: vec![(0..6).collect(), vec![6, 7], vec![8], vec![9]],
            cores: (0..10).map(|cpu| vec![cpu]).collect(),
        };
        assert_eq!(truth.differences(&topology(2, &[6, 2, 1, 1], 1)), [""; 0]);
        assert_eq!(
            truth.differences(&topology(2, &[6, 1, 2, 1], 1)),
            [
                "NUMA nodes: requested [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9]], \
                 the guest has [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]]",
                "last-level caches: requested [[0, 1, 2, 3, 4, 5], [6], [7, 8], [9]], \
                 the guest has [[0, 1, 2, 3, 4, 5], [6, 7], [8], [9]]",
            ]
        );
    }

    #[test]
    fn differences_name_each_dimension() {
        let asked = topology(2, &[1, 1, 1, 1], 2);
        let truth = TestTopology {
            cpus: (0..8).collect(),
            nodes: vec![vec![0, 1, 2, 3], vec![4, 5, 6, 7]],
            llcs: vec![vec![0, 1], vec![2, 3], vec![4, 5], vec![6, 7]],
            cores: vec![vec![0, 1], vec![2, 3], vec![4, 5], vec![6, 7]],
        };
        assert_eq!(truth.differences(&asked), [""; 0]);
        let one_llc = TestTopology { llcs: vec![(0..8).collect()], ..truth.clone() };
        assert_eq!(
            one_llc.differences(&asked),
            ["last-level caches: requested [[0, 1], [2, 3], [4, 5], [6, 7]], \
              the guest has [[0, 1, 2, 3, 4, 5, 6, 7]]"]
        );
        let one_cpu = TestTopology {
            cpus: vec![0],
            nodes: vec![vec![0]],
            llcs: vec![vec![0]],
            cores: vec![vec![0]],
        };
        assert_eq!(one_cpu.differences(&asked).len(), 4);
    }

    #[test]
    fn display_writes_one_line() {
        let machine = TestTopology {
            cpus: (0..3).collect(),
            nodes: vec![(0..3).collect()],
            llcs: vec![vec![0, 1], vec![2]],
            cores: Vec::new(),
        };
        assert_eq!(machine.to_string(), "3 CPUs (0-2), 1 node (0-2), 2 LLCs (0-1, 2)");
    }

    #[test]
    fn counts_are_the_lengths_of_the_lists() {
        let machine = TestTopology {
            cpus: vec![0, 1, 3],
            nodes: vec![vec![0, 1, 3]],
            llcs: vec![vec![0, 1], vec![3]],
            cores: vec![vec![0], vec![1], vec![3]],
        };
        let counts = (machine.total_cpus(), machine.num_llcs(), machine.num_numa_nodes());
        assert_eq!(counts, (3, 2, 1));
        assert_eq!(machine.all_cpus(), [0, 1, 3]);
    }

    #[test]
    fn read_succeeds_on_this_machine() {
        let topology = TestTopology::read().unwrap();
        assert!(!topology.cpus.is_empty());
        assert_eq!(topology.nodes.concat().len(), topology.cpus.len());
    }
}
