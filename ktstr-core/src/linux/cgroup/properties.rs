//! Property tests of lists, names and values.
//!
//! 10,000 cases each; `PROPTEST_CASES` overrides it.

use std::path::{Component, Path};

use proptest::prelude::*;

use super::*;

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(10_000) }
}

/// Generates names with parts that are not allowed.
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

/// Generates numbers of every size, and many near the limits of knobs.
fn near_limits() -> impl Strategy<Value = u64> {
    let edges = [0, 1_000, 1_000_000, 4_194_304, 1 << 44, 1 << 63];
    prop_oneof![
        (prop::sample::select(edges.to_vec()), -2..=2_i64)
            .prop_map(|(edge, off): (u64, i64)| edge.wrapping_add_signed(off)),
        0..2_000_000_u64,
        any::<u64>(),
    ]
}

fn limit() -> impl Strategy<Value = Option<u64>> {
    prop::option::of(near_limits())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn list_parse_reverses_format(numbers in prop::collection::btree_set(0..300_usize, 0..40)) {
        let text = list::format(&numbers);
        prop_assert_eq!(&list::parse(&text), &Some(numbers.clone()));
        // Adjacent ranges are merged.
        let ends: Vec<usize> = text
            .split(',')
            .filter(|part| !part.is_empty())
            .flat_map(|part| part.split('-').map(|end| end.parse().unwrap()))
            .collect();
        prop_assert!(ends.windows(2).all(|pair| pair[0] < pair[1]));
        prop_assert!(text.split(',').count() <= 1 + numbers.len());
    }

    #[test]
    fn path_never_leaves_the_parent(name in name()) {
        let parent = Path::new("/sys/fs/cgroup/ktstr");
        match CgroupManager::new(parent).path(&name) {
            Ok(path) => {
                let below = path.strip_prefix(parent).unwrap();
                prop_assert!(below.components().count() > 0);
                prop_assert!(below.components().all(|part| matches!(part, Component::Normal(_))));
                prop_assert_eq!(below.to_str(), Some(&*name));
            }
            Err(error) => prop_assert!(error.to_string().contains("is not a cgroup name: ")),
        }
    }

    #[test]
    fn set_methods_write_exactly_the_values_in_range(
        quota in limit(), period in near_limits(), weight in 0..20_000_u32, bytes in limit(),
    ) {
        let cgroups = RecordingCgroups::new();
        cgroups.setup(&Controller::ALL.into()).unwrap();
        cgroups.create_cgroup("cg").unwrap();
        let fits = |value: Option<u64>, range: std::ops::RangeInclusive<u64>| {
            value.is_none_or(|value| range.contains(&value))
        };
        let weight_fits = (1..=10_000).contains(&weight);
        let word = |value: Option<u64>| value.map_or("max".to_owned(), |value| value.to_string());
        let mut expected = Vec::new();
        for (file, done, in_range, value) in [
            (
                "cpu.max",
                cgroups.set_cpu_max("cg", quota, period),
                fits(quota, 1_000..=(1 << 44) - 1) && fits(Some(period), 1_000..=1_000_000),
                format!("{} {period}", word(quota)),
            ),
            ("cpu.weight", cgroups.set_cpu_weight("cg", weight), weight_fits, weight.to_string()),
            ("io.weight", cgroups.set_io_weight("cg", weight), weight_fits, weight.to_string()),
            (
                "memory.max",
                cgroups.set_memory_max("cg", bytes),
                fits(bytes, 0..=i64::MAX as u64),
                word(bytes),
            ),
            ("pids.max", cgroups.set_pids_max("cg", bytes), fits(bytes, 0..=4_194_304), word(bytes)),
        ] {
            prop_assert_eq!(done.is_ok(), in_range, "{} {}", file, &value);
            if in_range {
                expected.push((file, value));
            }
        }
        let calls = cgroups.calls();
        let written: Vec<_> =
            calls[2..].iter().map(|call| (call.operation, call.value.clone())).collect();
        prop_assert_eq!(written, expected);
    }
}
