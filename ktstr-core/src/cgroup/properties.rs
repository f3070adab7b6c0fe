//! Properties of what is only text: lists, names, values.
//!
//! 10,000 cases each; `PROPTEST_CASES` overrides it.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use proptest::prelude::*;

use super::*;

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(10_000) }
}

/// Pieces of which names that mean harm are made.
fn name() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("..".to_owned()),
        Just(".".to_owned()),
        Just("/".to_owned()),
        Just("\0".to_owned()),
        Just("\n".to_owned()),
        Just("cgroup.procs".to_owned()),
        any::<String>(),
        "[a-z]{1,3}",
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn lists_are_read_as_they_were_written(numbers in prop::collection::btree_set(0..300_usize, 0..40)) {
        let text = list::format(&numbers);
        let read = crate::topology::parse_list(&text).unwrap();
        let read: BTreeSet<usize> = read.into_iter().map(|number| number as usize).collect();
        prop_assert_eq!(&read, &numbers);
        // As short as it can be: neighbours are never listed apart.
        let ends: Vec<usize> = text
            .split(',')
            .filter(|part| !part.is_empty())
            .flat_map(|part| part.split('-').map(|end| end.parse().unwrap()))
            .collect();
        prop_assert!(ends.windows(2).all(|pair| pair[0] < pair[1]));
        prop_assert!(text.split(',').count() <= 1 + numbers.len());
    }

    #[test]
    fn no_name_leaves_the_parent(name in name()) {
        let parent = Path::new("/sys/fs/cgroup/ktstr");
        match CgroupManager::new(parent).path(&name) {
            Ok(path) => {
                let below = path.strip_prefix(parent).unwrap();
                prop_assert!(below.components().count() > 0);
                prop_assert!(below.components().all(|part| matches!(part, Component::Normal(_))));
                prop_assert_eq!(below.to_str(), Some(&*name));
            }
            Err(error) => prop_assert!(error.to_string().contains("is no cgroup name: ")),
        }
    }

    /// Whatever is asked for, one value goes to the one knob, or none.
    #[test]
    fn no_value_is_written_out_of_range(quota: Option<u64>, period: u64, weight: u32, bytes: Option<u64>) {
        let cgroups = RecordingCgroups::new();
        cgroups.create_cgroup("cg").unwrap();
        let _ = cgroups.set_cpu_max("cg", quota, period);
        let _ = cgroups.set_cpu_weight("cg", weight);
        let _ = cgroups.set_io_weight("cg", weight);
        let _ = cgroups.set_memory_max("cg", bytes);
        let _ = cgroups.set_memory_low("cg", bytes);
        let _ = cgroups.set_pids_max("cg", bytes);
        for call in &cgroups.calls()[1..] {
            for word in call.value.split(' ') {
                let number = word.parse::<u64>();
                prop_assert!(word == "max" || number.is_ok_and(|number| number <= i64::MAX as u64));
            }
            if call.operation.ends_with("weight") {
                prop_assert!((1..=10_000).contains(&weight));
            }
        }
    }
}
