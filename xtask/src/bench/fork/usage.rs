//! What an engine uses: its process, this one, and the counters of KVM.
//!
//! Source: Linux 6.12, filesystems/proc.rst (`stat`, `smaps`).

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::bench::vmm::process::Process;

/// `USER_HZ` of x86.
const TICKS_PER_SECOND: f64 = 100.0;

/// The resources that a guest has used since [`Usage::begin`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    seconds: f64,
    cpu_seconds: f64,
    /// All exits, and those because of memory that was not mapped yet; of KVM only.
    exits: Option<[u64; 2]>,
}

/// A value of a usage, which not every engine has.
type Value = fn(&Usage) -> Option<f64>;

/// The values of a usage.
pub(super) const ROWS: [(&str, Value); 4] = [
    ("CPU s", |usage| Some(usage.cpu_seconds)),
    ("time s", |usage| Some(usage.seconds)),
    ("exits", |usage| Some(usage.exits?[0] as f64)),
    ("page faults", |usage| Some(usage.exits?[1] as f64)),
];

/// The state at the start of a measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Began {
    at: Instant,
    cpu_seconds: f64,
    has_exits: bool,
}

impl Usage {
    /// Begins before a guest is started. KVM counts exits from the start of the guest.
    pub(super) fn begin(has_exits: bool) -> Result<Began> {
        Ok(Began { at: Instant::now(), cpu_seconds: cpu_seconds()?, has_exits })
    }
}

impl Began {
    /// Returns what was used since then.
    pub(super) fn usage(&self) -> Result<Usage> {
        let seconds = self.at.elapsed().as_secs_f64();
        let cpu_seconds = cpu_seconds()? - self.cpu_seconds;
        let this = Process { id: std::process::id() };
        let exits = || anyhow::Ok([this.counter("exits")?, this.counter("pf_taken")?]);
        let exits = self.has_exits.then(exits).transpose()?;
        Ok(Usage { seconds, cpu_seconds, exits })
    }
}

/// Returns the CPU time of this process and of its children, those that have ended included. The
/// resolution is 10 ms.
fn cpu_seconds() -> Result<f64> {
    let this = std::process::id().to_string();
    let mut ticks = 0;
    for (_, stat) in each_process("stat")? {
        let [parent, own, children] = parse_stat(&stat).context("cannot parse a process's stat")?;
        if stat.starts_with(&format!("{this} ")) || parent.to_string() == this {
            ticks += own + children;
        }
    }
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Returns the parent of a process, its CPU time, and that of its children that have ended.
fn parse_stat(stat: &str) -> Option<[u64; 3]> {
    // The name in front of the last parenthesis may contain anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let number = |index: usize| fields.split(' ').nth(index)?.parse::<u64>().ok();
    Some([number(1)?, number(11)? + number(12)?, number(13)? + number(14)?])
}

/// Returns the MiB that a copy of the machine saved in `dir` shares with no other copy: the anonymous
/// memory of QEMU's process, or of the memory of a guest in this process.
pub(super) fn own_memory_mib(dir: &Path) -> Result<f64> {
    let prefix = dir.join("memory").into_os_string().into_string().ok().context("not UTF-8")?;
    let this = std::process::id().to_string();
    let mut kib = None;
    for (process, smaps) in each_process("smaps")? {
        if smaps.contains(&prefix) {
            let of_guest = |name: &str| process != this || name.contains(&prefix);
            *kib.get_or_insert(0) += anonymous_kib(&smaps, of_guest).context("malformed smaps")?;
        }
    }
    let kib = kib.with_context(|| format!("no process has mapped {prefix}"))?;
    ensure!(kib > 0, "no memory of a copy is its own");
    Ok(kib as f64 / 1024.0)
}

/// Sums the anonymous memory of the mappings whose line is selected.
fn anonymous_kib(smaps: &str, is_selected: impl Fn(&str) -> bool) -> Option<u64> {
    let (mut sum, mut is_counted) = (0, false);
    for line in smaps.lines() {
        let (word, rest) = line.split_once(' ')?;
        if !word.ends_with(':') {
            is_counted = is_selected(line);
        } else if word == "Anonymous:" && is_counted {
            sum += rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()?;
        }
    }
    Some(sum)
}

/// Returns the ID and a file of each process that can be read.
fn each_process(file: &str) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.bytes().all(|byte| byte.is_ascii_digit())
            && let Ok(text) = fs::read_to_string(entry.path().join(file))
        {
            all.push((name, text));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_stat_ignores_the_name() {
        let stat = "7 (a) b) S 3 7 7 0 -1 4194304 1 2 3 4 500 60 7000 800 20 0 1 0 9 1 1\n";
        assert_eq!(parse_stat(stat), Some([3, 560, 7800]));
        assert_eq!(parse_stat("7 (a) S 3"), None);
    }

    #[test]
    fn anonymous_kib_counts_selected_mappings() {
        let smaps = "7f0000000000-7f0000800000 rw-p 00000000 00:02 43      /saved/memory0\n\
                     Rss:                4000 kB\nAnonymous:            12 kB\n\
                     VmFlags: rd wr\n\
                     7f1000000000-7f1000800000 rw-p 00000000 00:00 0\n\
                     Anonymous:           300 kB\n";
        assert_eq!(anonymous_kib(smaps, |_| true), Some(312));
        assert_eq!(anonymous_kib(smaps, |name| name.contains("/saved/memory")), Some(12));
    }
}
