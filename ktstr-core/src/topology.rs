//! The CPU topology a test asks for, and the one a machine has.

use std::collections::BTreeSet;
use std::path::Path;
use std::{fmt, fs, io};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// CPUs, caches and memory nodes of a guest.
///
/// All dimensions are at least 1; `llcs` is the total over all nodes and a multiple of
/// `numa_nodes`. CPUs are numbered thread first, then core, then LLC, then node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// NUMA nodes.
    pub numa_nodes: u32,
    /// Last-level caches, in total.
    pub llcs: u32,
    /// Cores that share one last-level cache.
    pub cores_per_llc: u32,
    /// SMT threads of one core.
    pub threads_per_core: u32,
}

impl Topology {
    /// One node, one LLC, two cores, no SMT.
    pub const DEFAULT: Self =
        Self { numa_nodes: 1, llcs: 1, cores_per_llc: 2, threads_per_core: 1 };

    /// The number of CPUs.
    pub const fn nr_cpus(&self) -> u32 {
        self.llcs * self.cpus_per_llc()
    }

    /// The number of CPUs below one last-level cache.
    pub const fn cpus_per_llc(&self) -> u32 {
        self.cores_per_llc * self.threads_per_core
    }

    /// The number of last-level caches of one node.
    pub const fn llcs_per_node(&self) -> u32 {
        self.llcs / self.numa_nodes
    }
}

/// The short form of reports and error messages: `1n2l4c2t`.
impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { numa_nodes, llcs, cores_per_llc, threads_per_core } = self;
        write!(f, "{numa_nodes}n{llcs}l{cores_per_llc}c{threads_per_core}t")
    }
}

/// CPUs, caches and nodes of the running machine, as its sysfs shows them.
///
/// Groups are sorted by their first CPU.
///
/// Source: Linux 6.12, Documentation/ABI/stable/sysfs-devices-system-cpu and -node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestTopology {
    /// The online CPUs.
    pub cpus: Vec<u32>,
    /// The CPUs of each NUMA node that has any.
    pub nodes: Vec<Vec<u32>>,
    /// The CPUs below each last-level cache.
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
            let folder = root.join(format!("cpu/cpu{cpu}"));
            cores.insert(read_list(&folder.join("topology/thread_siblings_list"))?);
            llcs.insert(last_level_cache(&folder.join("cache"))?);
        }
        match fs::read_to_string(root.join("node/online")) {
            Ok(online) => {
                for node in parse_list(&online)? {
                    nodes.insert(read_list(&root.join(format!("node/node{node}/cpulist")))?);
                }
            }
            // A kernel without NUMA has no such folder: all its CPUs are one node.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                nodes.insert(cpus.clone());
            }
            Err(error) => return Err(error).context("cannot read the online NUMA nodes"),
        }
        nodes.remove(&Vec::new());
        let sorted = |groups: BTreeSet<Vec<u32>>| groups.into_iter().collect();
        Ok(Self { cpus, nodes: sorted(nodes), llcs: sorted(llcs), cores: sorted(cores) })
    }

    /// Where this machine differs from `asked`, one line each; empty if nowhere.
    pub fn differences(&self, asked: &Topology) -> Vec<String> {
        let all: Vec<_> = (0..asked.nr_cpus()).collect();
        let groups = |of: u32| all.chunks(of as usize).map(<[u32]>::to_vec).collect::<Vec<_>>();
        let cpus_per_node = asked.llcs_per_node() * asked.cpus_per_llc();
        let mut differences = Vec::new();
        let mut compare = |what: &str, seen: &[Vec<u32>], wanted: &[Vec<u32>]| {
            if seen != wanted {
                differences.push(format!("{what}: asked for {wanted:?}, the guest sees {seen:?}"));
            }
        };
        compare("online CPUs", std::slice::from_ref(&self.cpus), std::slice::from_ref(&all));
        compare("NUMA nodes", &self.nodes, &groups(cpus_per_node));
        compare("last-level caches", &self.llcs, &groups(asked.cpus_per_llc()));
        compare("cores", &self.cores, &groups(asked.threads_per_core));
        differences
    }
}

/// The CPUs that share the cache of the highest level in `caches`.
fn last_level_cache(caches: &Path) -> anyhow::Result<Vec<u32>> {
    let mut last = None;
    let entries =
        fs::read_dir(caches).with_context(|| format!("no caches in {}", caches.display()))?;
    for entry in entries {
        let folder = entry?.path();
        let Ok(level) = fs::read_to_string(folder.join("level")) else { continue };
        let level: u32 = level.trim().parse().context("a cache level is no number")?;
        if last.as_ref().is_none_or(|(highest, _)| level > *highest) {
            last = Some((level, folder));
        }
    }
    let (_, folder) = last.with_context(|| format!("no caches in {}", caches.display()))?;
    read_list(&folder.join("shared_cpu_list"))
}

fn read_list(path: &Path) -> anyhow::Result<Vec<u32>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse_list(&text).with_context(|| format!("malformed {}", path.display()))
}

/// Parses the kernel's list format: `0-3,5`, or nothing.
///
/// Source: Linux 6.12, admin-guide/kernel-parameters.rst ("cpu lists").
fn parse_list(text: &str) -> anyhow::Result<Vec<u32>> {
    let mut list = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        list.extend(first.parse::<u32>()?..=last.parse::<u32>()?);
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_format_is_read() {
        for (text, list) in
            [("", vec![]), ("\n", vec![]), ("0\n", vec![0]), ("0-2,5", vec![0, 1, 2, 5])]
        {
            assert_eq!(parse_list(text).unwrap(), list);
        }
        assert!(parse_list("0-x").is_err());
    }

    #[test]
    fn each_kind_of_difference_is_named() {
        let asked = Topology { numa_nodes: 2, llcs: 4, cores_per_llc: 1, threads_per_core: 2 };
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
            ["last-level caches: asked for [[0, 1], [2, 3], [4, 5], [6, 7]], \
              the guest sees [[0, 1, 2, 3, 4, 5, 6, 7]]"]
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
    fn this_machine_has_a_topology() {
        let topology = TestTopology::read().unwrap();
        assert!(!topology.cpus.is_empty());
        assert_eq!(topology.nodes.concat().len(), topology.cpus.len());
    }
}
