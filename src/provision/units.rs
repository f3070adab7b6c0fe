//! Formats sizes and durations for messages.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Formats a size in decimal megabytes, as download pages do.
pub fn megabytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1000)),
        _ => format!("{} MB", (bytes + 500_000) / 1_000_000),
    }
}

/// Formats a duration to the second, or to a tenth below ten seconds.
pub(super) fn seconds(duration: Duration) -> String {
    match duration.as_secs_f64() {
        short if short < 9.95 => format!("{short:.1} s"),
        long => format!("{long:.0} s"),
    }
}

/// Counts the bytes that the regular files below `path` take on disk, without holes. Files that cannot be read
/// count as empty.
pub fn disk_usage(path: &Path) -> u64 {
    let Ok(entries) = path.read_dir() else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => disk_usage(&entry.path()),
            // Source: stat(2), `st_blocks`.
            Ok(meta) if meta.is_file() => meta.blocks() * 512,
            _ => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_sizes_and_times() {
        for (bytes, want) in [(0, "0 kB"), (1_496, "2 kB"), (34_400_000, "34 MB")] {
            assert_eq!(megabytes(bytes), want);
        }
        for (ms, want) in [(1_449, "1.4 s"), (9_990, "10 s"), (61_000, "61 s")] {
            assert_eq!(seconds(Duration::from_millis(ms)), want);
        }
    }
}
