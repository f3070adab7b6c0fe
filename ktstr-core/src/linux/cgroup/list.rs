//! The list format of the kernel: `0-3,5`.

use std::collections::BTreeSet;

/// Formats a list as the kernel does. The empty set is the empty string, which means "inherit".
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
    let texts = ranges.iter().map(|(first, last)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    });
    texts.collect::<Vec<_>>().join(",")
}

/// Reads a list such as `0-3,5`; `None` if it is malformed.
///
/// Source: Linux 6.12, admin-guide/kernel-parameters.rst ("cpu lists").
pub(crate) fn parse(text: &str) -> Option<BTreeSet<usize>> {
    let mut numbers = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        numbers.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_reads_numbers_and_ranges() {
        for (text, list) in
            [("", vec![]), ("\n", vec![]), ("0\n", vec![0]), ("0-2,5", vec![0, 1, 2, 5])]
        {
            assert_eq!(parse(text), Some(list.into_iter().collect()));
        }
        assert!(parse("0-x").is_none());
    }

    #[test]
    fn format_and_parse_use_ranges() {
        for (numbers, text) in [
            (vec![], ""),
            (vec![0], "0"),
            (vec![0, 1], "0-1"),
            (vec![5, 3, 2, 1, 0], "0-3,5"),
            (vec![0, 2, 4], "0,2,4"),
            (vec![7, usize::MAX], "7,18446744073709551615"),
        ] {
            let numbers = numbers.into_iter().collect();
            assert_eq!(format(&numbers), text);
            assert_eq!(parse(text), Some(numbers));
        }
    }
}
