//! The CPU topology a test asks for, and the one a machine has.

use std::collections::BTreeSet;
use std::path::Path;
use std::{fmt, fs, io};

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// CPUs, caches and memory nodes of a guest.
///
/// All dimensions are at least 1; the number of LLCs is a multiple of `numa_nodes`. CPUs are
/// numbered thread first, then core, then LLC, then node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// NUMA nodes. Each has as many LLCs as the others, one behind the other.
    pub numa_nodes: u32,
    /// Last-level caches over all nodes.
    pub llcs: Llcs,
    /// SMT threads of one core.
    pub threads_per_core: u32,
}

impl Topology {
    /// One node, one LLC, two cores, no SMT.
    pub const DEFAULT: Self = Self { numa_nodes: 1, llcs: Llcs::even(1, 2), threads_per_core: 1 };

    /// The number of CPUs.
    pub const fn nr_cpus(&self) -> u32 {
        self.llcs.nr_cores() * self.threads_per_core
    }

    /// The number of CPUs below each last-level cache.
    pub fn llc_cpus(&self) -> impl Iterator<Item = u32> {
        self.llcs.cores().map(|cores| cores * self.threads_per_core)
    }

    /// The number of CPUs of each node.
    pub fn node_cpus(&self) -> impl Iterator<Item = u32> {
        let llcs: Vec<_> = self.llc_cpus().collect();
        let per_node = llcs.len() / self.numa_nodes as usize;
        (0..self.numa_nodes as usize)
            .map(move |node| llcs[node * per_node..][..per_node].iter().sum())
    }
}

/// The short form of reports and error messages: `1n2l4c2t`, or `1n2l4+2c2t` if LLCs differ.
impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { numa_nodes, llcs, threads_per_core } = self;
        write!(f, "{numa_nodes}n{}l{llcs}c{threads_per_core}t", llcs.count())
    }
}

/// Last-level caches: how many, and how many cores share each.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Llcs {
    /// One bit per core, set for the last one below each cache. In this form a list of any length
    /// is `Copy`, can be made in a `static`, and is written in one way only.
    last_cores: [u64; 4],
}

impl Llcs {
    /// The most cores over all caches.
    pub const MAX_CORES: u32 = 255;

    /// `count` caches of `cores` cores each.
    ///
    /// # Panics
    ///
    /// If there are none of either, or more than [`Llcs::MAX_CORES`] cores in total.
    pub const fn even(count: u32, cores: u32) -> Self {
        let mut llcs = Self { last_cores: [0; 4] };
        let mut index = 0;
        while index < count {
            llcs.push(cores);
            index += 1;
        }
        assert!(count > 0, "there is no last-level cache");
        llcs
    }

    /// Caches with each its own number of cores.
    ///
    /// # Panics
    ///
    /// If there are no caches, one has no cores, or there are more than [`Llcs::MAX_CORES`] cores
    /// in total.
    pub const fn of(cores: &[u32]) -> Self {
        let mut llcs = Self { last_cores: [0; 4] };
        let mut index = 0;
        while index < cores.len() {
            llcs.push(cores[index]);
            index += 1;
        }
        assert!(!cores.is_empty(), "there is no last-level cache");
        llcs
    }

    const fn push(&mut self, cores: u32) {
        let before = self.nr_cores();
        assert!(cores > 0, "a last-level cache has no cores");
        assert!(cores <= Self::MAX_CORES - before, "there are too many cores");
        let last = before + cores - 1;
        self.last_cores[(last / 64) as usize] |= 1 << (last % 64);
    }

    /// The number of caches.
    pub const fn count(&self) -> u32 {
        let [a, b, c, d] = self.last_cores;
        a.count_ones() + b.count_ones() + c.count_ones() + d.count_ones()
    }

    /// The number of cores over all caches.
    pub const fn nr_cores(&self) -> u32 {
        let mut word = self.last_cores.len();
        while word > 0 {
            word -= 1;
            if self.last_cores[word] != 0 {
                return word as u32 * 64 + u64::BITS - self.last_cores[word].leading_zeros();
            }
        }
        0
    }

    /// The number of cores below each cache.
    pub fn cores(&self) -> impl Iterator<Item = u32> {
        let is_last = |core: &u32| self.last_cores[(core / 64) as usize] >> (core % 64) & 1 == 1;
        (0..self.nr_cores()).filter(is_last).scan(0, |first, last| {
            let cores = last + 1 - *first;
            *first = last + 1;
            Some(cores)
        })
    }

    /// The number of cores below each cache, if it is the same for all.
    fn even_cores(&self) -> Option<u32> {
        let cores = self.nr_cores() / self.count();
        self.cores().all(|other| other == cores).then_some(cores)
    }
}

impl fmt::Debug for Llcs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.cores()).finish()
    }
}

/// The cores of all, or of each if they differ: `4`, or `4+2`.
impl fmt::Display for Llcs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.even_cores() {
            Some(cores) => write!(f, "{cores}"),
            None => {
                let cores: Vec<_> = self.cores().map(|cores| cores.to_string()).collect();
                f.write_str(&cores.join("+"))
            }
        }
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

    /// Where this machine differs from `asked`, one line each; empty if nowhere.
    pub fn differences(&self, asked: &Topology) -> Vec<String> {
        let cores = (0..asked.llcs.nr_cores()).map(|_| asked.threads_per_core);
        let mut differences = Vec::new();
        let mut compare = |what: &str, seen: &[Vec<u32>], wanted: &[Vec<u32>]| {
            if seen != wanted {
                differences.push(format!("{what}: asked for {wanted:?}, the guest sees {seen:?}"));
            }
        };
        compare("online CPUs", std::slice::from_ref(&self.cpus), &groups([asked.nr_cpus()]));
        compare("NUMA nodes", &self.nodes, &groups(asked.node_cpus()));
        compare("last-level caches", &self.llcs, &groups(asked.llc_cpus()));
        compare("cores", &self.cores, &groups(cores));
        differences
    }
}

/// `4 CPUs (0-3), 1 node (0-3), 2 LLCs (0-1, 2-3)`.
impl fmt::Display for TestTopology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |cpus: &Vec<u32>| {
            crate::linux::cgroup::format_list(&cpus.iter().map(|cpu| *cpu as usize).collect())
        };
        let count = |groups: &[Vec<u32>], what: &str| {
            let plural = if groups.len() == 1 { "" } else { "s" };
            let lists: Vec<_> = groups.iter().map(list).collect();
            format!("{} {what}{plural} ({})", groups.len(), lists.join(", "))
        };
        let plural = if self.cpus.len() == 1 { "" } else { "s" };
        write!(f, "{} CPU{plural} ({}), ", self.cpus.len(), list(&self.cpus))?;
        write!(f, "{}, {}", count(&self.nodes, "node"), count(&self.llcs, "LLC"))
    }
}

/// Deals CPUs out, from the first on, in groups of these sizes.
fn groups(sizes: impl IntoIterator<Item = u32>) -> Vec<Vec<u32>> {
    let mut cpus = 0_u32..;
    sizes.into_iter().map(|size| cpus.by_ref().take(size as usize).collect()).collect()
}

/// The CPUs that share the cache of the highest level in `caches`.
fn last_level_cache(caches: &Path) -> anyhow::Result<Vec<u32>> {
    let mut last = None;
    let entries =
        fs::read_dir(caches).with_context(|| format!("no caches in {}", caches.display()))?;
    for entry in entries {
        let folder = entry?.path();
        let level = match fs::read_to_string(folder.join("level")) {
            Ok(level) => level,
            // Not a cache, but a file or a directory of another kind.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                continue;
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot read {}/level", folder.display()));
            }
        };
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
pub(crate) fn parse_list(text: &str) -> anyhow::Result<Vec<u32>> {
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
    fn llcs_are_what_they_were_made_of() {
        for (cores, text) in [
            (vec![1], "1"),
            (vec![2, 2], "2"),
            (vec![4, 2], "4+2"),
            (vec![1, 1, 2], "1+1+2"),
            (vec![63, 1, 64, 2], "63+1+64+2"),
            (vec![255], "255"),
            (vec![1; 255], "1"),
            (vec![128, 127], "128+127"),
        ] {
            let llcs = Llcs::of(&cores);
            assert_eq!(llcs.cores().collect::<Vec<_>>(), cores);
            assert_eq!(llcs.count() as usize, cores.len(), "{llcs:?}");
            assert_eq!(llcs.nr_cores(), cores.iter().sum::<u32>(), "{llcs:?}");
            assert_eq!(llcs.to_string(), text);
            assert_eq!(format!("{llcs:?}"), format!("{cores:?}"));
            let wire = postcard::to_allocvec(&llcs).unwrap();
            assert_eq!(postcard::from_bytes::<Llcs>(&wire).unwrap(), llcs);
        }
    }

    #[test]
    fn llcs_that_are_the_same_are_equal() {
        assert_eq!(Llcs::even(3, 5), Llcs::of(&[5, 5, 5]));
        assert_ne!(Llcs::of(&[4, 2]), Llcs::of(&[2, 4]));
        assert_ne!(Llcs::even(1, 6), Llcs::even(2, 3));
    }

    #[test]
    fn llcs_that_cannot_be_are_refused() {
        for cores in [&[][..], &[2, 0], &[256], &[128, 128], &[255, u32::MAX]] {
            assert!(std::panic::catch_unwind(|| Llcs::of(cores)).is_err(), "{cores:?}");
        }
        for (count, cores) in [(0, 2), (2, 0), (256, 1), (16, 16)] {
            assert!(std::panic::catch_unwind(|| Llcs::even(count, cores)).is_err());
        }
    }

    #[test]
    fn cpus_are_counted_by_llc_and_node() {
        for (topology, text, llc_cpus, node_cpus) in [
            (Topology::DEFAULT, "1n1l2c1t", vec![2], vec![2]),
            (topology(1, &[4, 4], 2), "1n2l4c2t", vec![8, 8], vec![16]),
            (topology(1, &[4, 2], 2), "1n2l4+2c2t", vec![8, 4], vec![12]),
            (topology(2, &[3, 1, 1, 2], 1), "2n4l3+1+1+2c1t", vec![3, 1, 1, 2], vec![4, 3]),
            (topology(2, &[1, 3], 2), "2n2l1+3c2t", vec![2, 6], vec![2, 6]),
        ] {
            assert_eq!(topology.to_string(), text);
            assert_eq!(topology.nr_cpus(), node_cpus.iter().sum::<u32>());
            assert_eq!(topology.llc_cpus().collect::<Vec<_>>(), llc_cpus, "{text}");
            assert_eq!(topology.node_cpus().collect::<Vec<_>>(), node_cpus, "{text}");
        }
    }

    fn topology(numa_nodes: u32, cores: &[u32], threads_per_core: u32) -> Topology {
        Topology { numa_nodes, llcs: Llcs::of(cores), threads_per_core }
    }

    #[test]
    fn uneven_caches_and_nodes_are_compared() {
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
                "NUMA nodes: asked for [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9]], \
                 the guest sees [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]]",
                "last-level caches: asked for [[0, 1, 2, 3, 4, 5], [6], [7, 8], [9]], \
                 the guest sees [[0, 1, 2, 3, 4, 5], [6, 7], [8], [9]]",
            ]
        );
    }

    #[test]
    fn each_kind_of_difference_is_named() {
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
    fn a_machine_is_told_in_a_line() {
        let machine = TestTopology {
            cpus: (0..3).collect(),
            nodes: vec![(0..3).collect()],
            llcs: vec![vec![0, 1], vec![2]],
            cores: Vec::new(),
        };
        assert_eq!(machine.to_string(), "3 CPUs (0-2), 1 node (0-2), 2 LLCs (0-1, 2)");
    }

    #[test]
    fn counts_are_those_of_the_lists() {
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
    fn this_machine_has_a_topology() {
        let topology = TestTopology::read().unwrap();
        assert!(!topology.cpus.is_empty());
        assert_eq!(topology.nodes.concat().len(), topology.cpus.len());
    }
}
