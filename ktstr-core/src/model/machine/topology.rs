//! The CPU topology of a guest and its short form: `1n2l4c2t`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// CPUs, caches and memory nodes of a guest.
///
/// All dimensions are at least 1; the number of LLCs is a multiple of `numa_nodes`. CPUs are
/// numbered thread first, then core, then LLC, then node. Serialized in its short form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// NUMA nodes. All have the same number of LLCs; those of a node are numbered consecutively.
    pub numa_nodes: u32,
    /// Last-level caches over all nodes.
    pub llcs: Llcs,
    /// SMT threads of one core.
    pub threads_per_core: u32,
}

impl Topology {
    /// One node, one LLC, two cores, no SMT.
    pub const DEFAULT: Self = Self { numa_nodes: 1, llcs: Llcs::even(1, 2), threads_per_core: 1 };

    /// The most CPUs of a guest: APIC IDs have eight bits, and one ID addresses all CPUs.
    pub const MAX_CPUS: u32 = 255;

    /// Checks the invariants.
    ///
    /// # Errors
    ///
    /// If a dimension is 0, there are more than [`Topology::MAX_CPUS`] CPUs, or the LLCs cannot be
    /// spread evenly over the nodes.
    pub fn check(&self) -> Result<(), TopologyError> {
        let Self { numa_nodes, llcs, threads_per_core } = *self;
        if numa_nodes == 0 || threads_per_core == 0 {
            return Err(TopologyError::ZeroDimension);
        }
        let cpus = u64::from(llcs.nr_cores()) * u64::from(threads_per_core);
        if cpus > u64::from(Self::MAX_CPUS) {
            return Err(TopologyError::TooManyCpus { cpus });
        }
        if !llcs.count().is_multiple_of(numa_nodes) {
            return Err(TopologyError::UnevenNodes { llcs: llcs.count(), numa_nodes });
        }
        Ok(())
    }

    /// Returns the number of CPUs.
    pub const fn nr_cpus(&self) -> u32 {
        self.llcs.nr_cores() * self.threads_per_core
    }

    /// Returns the number of last-level caches of each node.
    pub const fn llcs_per_node(&self) -> u32 {
        self.llcs.count() / self.numa_nodes
    }

    /// Returns the number of CPUs that share each last-level cache.
    pub fn llc_cpus(&self) -> impl Iterator<Item = u32> {
        self.llcs.cores().map(|cores| cores * self.threads_per_core)
    }

    /// Returns the number of CPUs of each node.
    pub fn node_cpus(&self) -> impl Iterator<Item = u32> {
        let llcs: Vec<_> = self.llc_cpus().collect();
        let per_node = self.llcs_per_node() as usize;
        (0..self.numa_nodes as usize)
            .map(move |node| llcs[node * per_node..][..per_node].iter().sum())
    }
}

/// Writes the short form: `1n2l4c2t`, or `1n2l4+2c2t` if the LLCs differ.
impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { numa_nodes, llcs, threads_per_core } = self;
        write!(f, "{numa_nodes}n{}l{llcs}c{threads_per_core}t", llcs.count())
    }
}

/// Parses the short form.
impl FromStr for Topology {
    type Err = TopologyError;

    fn from_str(text: &str) -> Result<Self, TopologyError> {
        let syntax = || TopologyError::Syntax(text.to_owned());
        let number = |digits: &str| digits.parse::<u32>().map_err(|_| syntax());
        let (numa_nodes, rest) = text.split_once('n').ok_or_else(syntax)?;
        let (llcs, rest) = rest.split_once('l').ok_or_else(syntax)?;
        let (cores, rest) = rest.split_once('c').ok_or_else(syntax)?;
        let threads = rest.strip_suffix('t').ok_or_else(syntax)?;
        let (numa_nodes, count, threads_per_core) =
            (number(numa_nodes)?, number(llcs)?, number(threads)?);
        let mut cores = cores.split('+').map(number).collect::<Result<Vec<_>, _>>()?;
        if count == 0 || cores.contains(&0) {
            return Err(TopologyError::ZeroDimension);
        }
        let total = match cores[..] {
            [each] => u64::from(count) * u64::from(each),
            _ => cores.iter().map(|cores| u64::from(*cores)).sum(),
        };
        if total > u64::from(Llcs::MAX_CORES) {
            let cpus = total.saturating_mul(threads_per_core.max(1).into());
            return Err(TopologyError::TooManyCpus { cpus });
        }
        // One number applies to all caches.
        if cores.len() == 1 {
            cores.resize(count as usize, cores[0]);
        }
        if cores.len() != count as usize {
            return Err(TopologyError::ListLength { llcs: count, listed: cores.len() });
        }
        let topology = Self { numa_nodes, llcs: Llcs::of(&cores), threads_per_core };
        topology.check()?;
        Ok(topology)
    }
}

impl Serialize for Topology {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Topology {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a topology is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages show what the fields are")]
pub enum TopologyError {
    /// The text is not a short form.
    #[error(
        "expected nodes, last-level caches, cores of each cache and threads of each core, as in \
         `1n2l4c2t` or `1n2l4+2c1t`, found `{0}`"
    )]
    Syntax(String),
    /// A number is 0.
    #[error("every dimension of the topology must be at least 1")]
    ZeroDimension,
    /// There are more than [`Topology::MAX_CPUS`] CPUs.
    #[error("the topology has too many CPUs: {cpus} (limit {max})", max = Topology::MAX_CPUS)]
    TooManyCpus { cpus: u64 },
    /// The number of caches is not a multiple of the number of nodes.
    #[error("{llcs} last-level caches cannot be divided evenly over {numa_nodes} nodes")]
    UnevenNodes { llcs: u32, numa_nodes: u32 },
    /// The list of cores does not have one number for each cache.
    #[error("the cores of {listed} last-level caches are listed, but there are {llcs}")]
    ListLength { llcs: u32, listed: usize },
}

/// The last-level caches of a machine, and the number of cores that share each.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Llcs {
    /// One bit per core, set for the last core of each cache. In this form a list of any length
    /// is `Copy`, can be made in a `static`, and has one representation only.
    last_cores: [u64; 4],
}

impl Llcs {
    /// The most cores over all caches.
    pub const MAX_CORES: u32 = 255;

    /// Creates `count` caches of `cores` cores each.
    ///
    /// # Panics
    ///
    /// If either number is 0, or there are more than [`Llcs::MAX_CORES`] cores in total.
    pub const fn even(count: u32, cores: u32) -> Self {
        let mut llcs = Self { last_cores: [0; 4] };
        let mut index = 0;
        while index < count {
            llcs.push(cores);
            index += 1;
        }
        assert!(count > 0, "the list of last-level caches is empty");
        llcs
    }

    /// Creates one cache for each number of cores.
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
        assert!(!cores.is_empty(), "the list of last-level caches is empty");
        llcs
    }

    const fn push(&mut self, cores: u32) {
        let before = self.nr_cores();
        assert!(cores > 0, "a last-level cache has no cores");
        assert!(cores <= Self::MAX_CORES - before, "there are too many cores");
        let last = before + cores - 1;
        self.last_cores[(last / 64) as usize] |= 1 << (last % 64);
    }

    /// Returns the number of caches.
    pub const fn count(&self) -> u32 {
        let [a, b, c, d] = self.last_cores;
        a.count_ones() + b.count_ones() + c.count_ones() + d.count_ones()
    }

    /// Returns the number of cores over all caches.
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

    /// Returns the number of cores of each cache.
    pub fn cores(&self) -> impl Iterator<Item = u32> {
        let is_last = |core: &u32| self.last_cores[(core / 64) as usize] >> (core % 64) & 1 == 1;
        (0..self.nr_cores()).filter(is_last).scan(0, |first, last| {
            let cores = last + 1 - *first;
            *first = last + 1;
            Some(cores)
        })
    }

    /// Returns the number of cores of the largest cache.
    pub fn max_cores(&self) -> u32 {
        self.cores().max().unwrap_or(0)
    }

    /// Returns the number of cores of each cache, if it is the same for all.
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

/// Writes the cores of all caches, or of each if they differ: `4`, or `4+2`.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn llcs_return_the_cores_they_were_made_of() {
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
        }
    }

    #[test]
    fn llcs_compare_by_their_cores() {
        assert_eq!(Llcs::even(3, 5), Llcs::of(&[5, 5, 5]));
        assert_ne!(Llcs::of(&[4, 2]), Llcs::of(&[2, 4]));
        assert_ne!(Llcs::even(1, 6), Llcs::even(2, 3));
    }

    #[test]
    fn llcs_refuse_zero_and_too_many_cores() {
        for cores in [&[][..], &[2, 0], &[256], &[128, 128], &[255, u32::MAX]] {
            assert!(std::panic::catch_unwind(|| Llcs::of(cores)).is_err(), "{cores:?}");
        }
        for (count, cores) in [(0, 2), (2, 0), (256, 1), (16, 16)] {
            assert!(std::panic::catch_unwind(|| Llcs::even(count, cores)).is_err());
        }
    }

    fn topology(numa_nodes: u32, cores: &[u32], threads_per_core: u32) -> Topology {
        Topology { numa_nodes, llcs: Llcs::of(cores), threads_per_core }
    }

    #[test]
    fn topology_counts_cpus_by_llc_and_node() {
        for (topology, text, llc_cpus, node_cpus) in [
            (Topology::DEFAULT, "1n1l2c1t", vec![2], vec![2]),
            (topology(1, &[4, 4], 2), "1n2l4c2t", vec![8, 8], vec![16]),
            (topology(1, &[4, 2], 2), "1n2l4+2c2t", vec![8, 4], vec![12]),
            (topology(2, &[3, 1, 1, 2], 1), "2n4l3+1+1+2c1t", vec![3, 1, 1, 2], vec![4, 3]),
            (topology(2, &[1, 3], 2), "2n2l1+3c2t", vec![2, 6], vec![2, 6]),
        ] {
            assert_eq!(topology.to_string(), text);
            assert_eq!(text.parse(), Ok(topology));
            assert_eq!(topology.nr_cpus(), node_cpus.iter().sum::<u32>());
            assert_eq!(topology.llc_cpus().collect::<Vec<_>>(), llc_cpus, "{text}");
            assert_eq!(topology.node_cpus().collect::<Vec<_>>(), node_cpus, "{text}");
        }
    }

    #[test]
    fn from_str_refuses_what_is_not_a_topology() {
        let syntax = |text: &str| TopologyError::Syntax(text.to_owned());
        for text in ["", "1n2l4c", "2l4c2t", "1n2l4c2t ", "1n2l4c-2t", "1n2l4+c2t", "1l2n4c2t"] {
            assert_eq!(text.parse::<Topology>(), Err(syntax(text)));
        }
        for (text, error) in [
            ("0n1l1c1t", TopologyError::ZeroDimension),
            ("1n0l1c1t", TopologyError::ZeroDimension),
            ("1n2l1+0c1t", TopologyError::ZeroDimension),
            ("1n1l1c0t", TopologyError::ZeroDimension),
            ("2n3l1c1t", TopologyError::UnevenNodes { llcs: 3, numa_nodes: 2 }),
            ("1n3l4+2c1t", TopologyError::ListLength { llcs: 3, listed: 2 }),
            ("1n2l64c2t", TopologyError::TooManyCpus { cpus: 256 }),
            ("1n4294967295l1c2t", TopologyError::TooManyCpus { cpus: 8_589_934_590 }),
            ("1n2l4294967295+1c1t", TopologyError::TooManyCpus { cpus: 1 << 32 }),
        ] {
            assert_eq!(text.parse::<Topology>(), Err(error), "{text}");
        }
        let text = syntax("4 CPUs").to_string();
        assert!(text.ends_with("as in `1n2l4c2t` or `1n2l4+2c1t`, found `4 CPUs`"), "{text}");
    }

    proptest! {
        #[test]
        fn short_form_round_trips(
            numa_nodes in 1_u32..4,
            cores in prop::collection::vec(1_u32..20, 1..5),
            threads_per_core in 1_u32..4,
        ) {
            // As many caches again for each node.
            let topology = topology(numa_nodes, &cores.repeat(numa_nodes as usize), threads_per_core);
            let text = topology.to_string();
            match topology.check() {
                Ok(()) => {
                    prop_assert_eq!(text.parse(), Ok(topology));
                    let wire = postcard::to_allocvec(&topology).unwrap();
                    prop_assert_eq!(postcard::from_bytes(&wire), Ok(topology));
                }
                Err(error) => prop_assert_eq!(text.parse::<Topology>(), Err(error)),
            }
        }
    }
}
