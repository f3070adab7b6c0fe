//! The kernel's list format: `0-3,5`.

use std::collections::BTreeSet;

/// Writes `numbers` as the kernel does; the empty set is the empty list, which means "inherit".
///
/// Source: Linux 6.12, admin-guide/cgroup-v2.rst ("cpuset.cpus"), lib/bitmap-str.c.
pub(crate) fn format(numbers: &BTreeSet<usize>) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            // `last` is below `number`, so the sum cannot overflow.
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let texts = ranges.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_become_ranges() {
        for (numbers, text) in [
            (vec![], ""),
            (vec![0], "0"),
            (vec![0, 1], "0-1"),
            (vec![5, 3, 2, 1, 0], "0-3,5"),
            (vec![0, 2, 4], "0,2,4"),
            (vec![7, usize::MAX], "7,18446744073709551615"),
        ] {
            assert_eq!(format(&numbers.into_iter().collect()), text);
        }
    }
}
