//! Measures a VMM from outside: procfs, and the counters of KVM.
//!
//! Source: Linux 6.12, filesystems/proc.rst (`stat`, `smaps`), virt/kvm/kvm_main.c (debugfs).

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// KVM's counters: one directory per machine, `<process>-<descriptor>`.
const KVM: &str = "/sys/kernel/debug/kvm";
/// `USER_HZ` of x86.
const TICKS_PER_SECOND: u64 = 100;

#[derive(Debug, Clone, Copy)]
pub(in crate::bench) struct Process {
    pub(in crate::bench) id: u32,
}

impl Process {
    /// Returns the CPU time of all its threads, its guest's included, with a resolution of 10 ms.
    pub(super) fn cpu_time(self) -> Result<Duration> {
        let stat = self.read("stat")?;
        // The name in front of the last parenthesis may contain anything.
        let (_, fields) = stat.rsplit_once(") ").context("no name")?;
        let times = fields.split(' ').skip(11).take(2);
        let ticks: Vec<u64> = times.map(str::parse).collect::<Result<_, _>>()?;
        Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 1000 / TICKS_PER_SECOND))
    }

    /// Returns a counter of its machine, summed over all CPUs.
    pub(in crate::bench) fn counter(self, name: &str) -> Result<u64> {
        let prefix = format!("{}-", self.id);
        let mut sum = 0;
        for entry in fs::read_dir(KVM).with_context(|| format!("cannot read {KVM}"))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                sum += fs::read_to_string(entry.path().join(name))?.trim().parse::<u64>()?;
            }
        }
        Ok(sum)
    }

    /// Returns the resident KiB that are not memory of its guest, which has `guest_kib`.
    pub(super) fn rss_beside(self, guest_kib: u64) -> Result<u64> {
        let mappings = parse(&self.read("smaps")?).context("cannot parse a line of smaps")?;
        without_guest(&mappings, guest_kib)
            .context("no mappings are as large as the guest's memory")
    }

    fn read(self, name: &str) -> Result<String> {
        let path = format!("/proc/{}/{name}", self.id);
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    }
}

#[derive(Debug)]
struct Mapping {
    start: u64,
    end: u64,
    rss_kib: u64,
}

fn parse(smaps: &str) -> Option<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let (word, rest) = line.split_once(' ')?;
        if let Some((start, end)) = word.split_once('-') {
            let address = |digits| u64::from_str_radix(digits, 16).ok();
            mappings.push(Mapping { start: address(start)?, end: address(end)?, rss_kib: 0 });
        } else if word == "Rss:" {
            mappings.last_mut()?.rss_kib = rest.trim().strip_suffix(" kB")?.parse().ok()?;
        }
    }
    Some(mappings)
}

/// Sums the resident pages of all mappings except the guest's memory. That is a run of adjacent mappings
/// (files may be mapped into it) of exactly the guest's size. Reserved heaps of threads may have that size
/// too, but are nearly empty.
fn without_guest(mappings: &[Mapping], guest_kib: u64) -> Option<u64> {
    let rss = |mappings: &[Mapping]| mappings.iter().map(|mapping| mapping.rss_kib).sum::<u64>();
    let mut guest = None;
    for first in 0..mappings.len() {
        let mut end = mappings[first].start;
        for (count, mapping) in (1..).zip(&mappings[first..]) {
            if mapping.start != end {
                break;
            }
            end = mapping.end;
            if end - mappings[first].start == guest_kib << 10 {
                guest = guest.max(Some(rss(&mappings[first..first + count])));
            }
        }
    }
    Some(rss(mappings) - guest?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
10000000-10100000 r-xp 00000000 00:02 42      /bench/boot
Size:               1024 kB
Rss:                 700 kB
VmFlags: rd ex mr mw me
7e0000000000-7e0001001000 ---p 00000000 00:00 0
Rss:                   0 kB
7f0000000000-7f0000800000 rw-p 00000000 00:00 0
Rss:                  96 kB
7f0000800000-7f0001000000 rw-p 00200000 00:02 43      /cache/vmlinux
Rss:                4000 kB
7f0001000000-7f0001001000 rw-p 00000000 00:00 0
Rss:                   4 kB
7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0       [stack]
Rss:                  20 kB
";

    #[test]
    fn memory_of_the_guest_is_not_the_vmms() {
        let mappings = parse(SMAPS).unwrap();
        assert_eq!(mappings.len(), 6);
        assert_eq!(without_guest(&mappings, (16 << 10) + 4), Some(720));
        assert_eq!(without_guest(&mappings, 17 << 10), None);
    }
}
