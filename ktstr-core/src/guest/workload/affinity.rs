//! The CPUs on which workers may run.

use std::collections::BTreeSet;

use rustix::thread::CpuSet;

use crate::guest::topology::TestTopology;

/// The CPUs of all workers of a spec, by intent.
///
/// It is resolved when the workers are spawned: to CPUs that are online and that their cgroup
/// allows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AffinityIntent {
    /// What their cgroup allows.
    #[default]
    Inherit,
    /// All on one CPU, the first.
    SingleCpu,
    /// Those that share one last-level cache: the one with most allowed CPUs, the first of equals.
    LlcAligned,
    /// On the two first SMT threads of one core, the first core that has two.
    SmtSiblingPair,
    /// Some of the CPUs, at least one, chosen by the seed.
    RandomSubset(u64),
    /// Exactly these.
    Exact(BTreeSet<u32>),
}

impl AffinityIntent {
    /// Returns the CPUs to pin to; `None` for no pinning.
    pub(super) fn resolve(
        &self,
        topology: &TestTopology,
        allowed: &BTreeSet<u32>,
    ) -> Result<Option<BTreeSet<u32>>, String> {
        let usable: BTreeSet<_> =
            topology.cpus.iter().copied().filter(|cpu| allowed.contains(cpu)).collect();
        let within = |group: &Vec<u32>| -> BTreeSet<u32> {
            group.iter().copied().filter(|cpu| usable.contains(cpu)).collect()
        };
        if usable.is_empty() {
            return Err(format!("no CPU is allowed and online: {allowed:?} are allowed"));
        }
        let cpus = match self {
            Self::Inherit => return Ok(None),
            Self::SingleCpu => usable.first().into_iter().copied().collect(),
            Self::LlcAligned => {
                let llcs = topology.llcs.iter().map(within);
                // `max_by_key` takes the last of equals.
                llcs.rev().max_by_key(BTreeSet::len).unwrap_or_default()
            }
            Self::SmtSiblingPair => {
                let (first, second) = sibling_pairs(topology, &usable)
                    .next()
                    .ok_or_else(|| format!("no core has two SMT threads within {usable:?}"))?;
                BTreeSet::from([first, second])
            }
            Self::RandomSubset(seed) => random_subset(*seed, &usable),
            Self::Exact(cpus) => {
                let bad: Vec<_> = cpus.difference(&usable).collect();
                if !bad.is_empty() {
                    return Err(format!("CPUs {bad:?} are not within {usable:?}"));
                }
                cpus.clone()
            }
        };
        if cpus.is_empty() { Err(format!("{self:?} has no CPU")) } else { Ok(Some(cpus)) }
    }
}

/// Returns the CPUs of a set, sorted.
pub(super) fn cpu_list(set: CpuSet) -> Vec<u32> {
    (0..CpuSet::MAX_CPU as u32).filter(|cpu| set.is_set(*cpu as usize)).collect()
}

/// Returns the first two SMT threads of each core that has two among `usable`.
pub(super) fn sibling_pairs(
    topology: &TestTopology,
    usable: &BTreeSet<u32>,
) -> impl Iterator<Item = (u32, u32)> {
    topology.cores.iter().filter_map(|core| {
        let mut threads = core.iter().copied().filter(|cpu| usable.contains(cpu));
        Some((threads.next()?, threads.next()?))
    })
}

/// Returns each CPU with a probability of one half; one CPU if that leaves none.
fn random_subset(seed: u64, usable: &BTreeSet<u32>) -> BTreeSet<u32> {
    let mut random = SplitMix(seed);
    let subset: BTreeSet<_> = usable.iter().copied().filter(|_| random.next() >> 63 == 1).collect();
    if !subset.is_empty() {
        return subset;
    }
    let index = random.next() as usize % usable.len();
    usable.iter().copied().nth(index).into_iter().collect()
}

/// Sebastiano Vigna's SplitMix64, which accepts any seed.
pub(super) struct SplitMix(pub(super) u64);

impl SplitMix {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two caches with two cores of two threads each.
    fn topology() -> TestTopology {
        TestTopology {
            cpus: (0..8).collect(),
            nodes: vec![(0..8).collect()],
            llcs: vec![(0..4).collect(), (4..8).collect()],
            cores: vec![vec![0, 1], vec![2, 3], vec![4, 5], vec![6, 7]],
        }
    }

    fn resolve(intent: &AffinityIntent, allowed: &[u32]) -> Result<Option<Vec<u32>>, String> {
        let allowed = allowed.iter().copied().collect();
        let cpus = intent.resolve(&topology(), &allowed)?;
        Ok(cpus.map(|cpus| cpus.into_iter().collect()))
    }

    #[test]
    fn intents_resolve_within_what_is_allowed() {
        use AffinityIntent as Intent;
        let all = [0, 1, 2, 3, 4, 5, 6, 7];
        for (intent, allowed, cpus) in [
            (Intent::Inherit, &all[..], None),
            (Intent::SingleCpu, &all[3..], Some(vec![3])),
            (Intent::LlcAligned, &all[..], Some(vec![0, 1, 2, 3])),
            (Intent::LlcAligned, &all[3..7], Some(vec![4, 5, 6])),
            (Intent::SmtSiblingPair, &all[1..], Some(vec![2, 3])),
            (Intent::Exact(BTreeSet::from([2, 5])), &all[..], Some(vec![2, 5])),
        ] {
            assert_eq!(resolve(&intent, allowed), Ok(cpus), "{intent:?}");
        }
    }

    #[test]
    fn impossible_intents_say_why() {
        use AffinityIntent as Intent;
        for (intent, allowed, why) in [
            (Intent::SmtSiblingPair, &[1, 2, 5][..], "no core has two SMT threads"),
            (Intent::Exact(BTreeSet::from([2, 5])), &[1, 2], "CPUs [5] are not within {1, 2}"),
            (Intent::Exact(BTreeSet::new()), &[1, 2], "has no CPU"),
            (Intent::SingleCpu, &[77], "no CPU is allowed and online"),
            (Intent::Inherit, &[], "no CPU is allowed and online"),
        ] {
            let error = resolve(&intent, allowed).unwrap_err();
            assert!(error.contains(why), "{intent:?}: {error}");
        }
    }

    #[test]
    fn a_seed_always_gives_the_same_subset_and_others_give_others() {
        let of = |seed| resolve(&AffinityIntent::RandomSubset(seed), &[1, 2, 3, 6]).unwrap();
        let subsets: BTreeSet<_> = (0..200).map(of).collect();
        assert_eq!(subsets.len(), 15, "every subset but the empty one: {subsets:?}");
        assert!((0..200).all(|seed| of(seed) == of(seed)));
    }
}
