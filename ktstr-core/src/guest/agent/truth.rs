//! Whether the machine is the one that was asked for.

use anyhow::{Context, Result, ensure};

use crate::model::topology::{TestTopology, Topology};
use crate::model::wire::End;

/// What firmware and the legacy area below 1 MiB take away, at most.
const RESERVED_KIB: u64 = 2048;

/// The machine as its sysfs shows it, or the end of a run for which it is the wrong one.
pub(super) fn check(asked: &Topology, memory_mib: u32) -> Result<Result<TestTopology, End>> {
    let seen = TestTopology::read()?;
    let mut differences = seen.differences(asked);
    differences.extend(memory_differences(memory_mib, asked.numa_nodes)?);
    Ok(if differences.is_empty() { Ok(seen) } else { Err(End::WrongTopology(differences)) })
}

/// Where the memory differs from `asked_mib` in equal shares on `nodes` nodes, one line each.
fn memory_differences(asked_mib: u32, nodes: u32) -> Result<Vec<String>> {
    let iomem = std::fs::read_to_string("/proc/iomem").context("cannot read /proc/iomem")?;
    let seen_kib = system_ram_kib(&iomem)?;
    let asked_kib = u64::from(asked_mib) * 1024;
    let mut differences = Vec::new();
    if !(asked_kib - RESERVED_KIB..=asked_kib).contains(&seen_kib) {
        differences.push(format!(
            "memory: asked for {asked_mib} MiB, the guest sees {seen_kib} KiB of RAM"
        ));
    }
    // A kernel without NUMA has one node, and no file that says so.
    for node in (0..nodes).filter(|_| nodes > 1) {
        let path = format!("/sys/devices/system/node/node{node}/meminfo");
        let meminfo = match std::fs::read_to_string(&path) {
            Ok(meminfo) => meminfo,
            // The guest has no such node.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {path}")),
        };
        let share_kib = asked_kib / u64::from(nodes);
        // The kernel takes what it needs for itself from the nodes as it likes.
        let seen_kib = mem_total_kib(&meminfo).unwrap_or(0);
        if !(share_kib / 3..=share_kib + 1024).contains(&seen_kib) {
            differences.push(format!(
                "memory of node {node}: asked for {share_kib} KiB, the guest sees {seen_kib} KiB"
            ));
        }
    }
    Ok(differences)
}

/// Reads `Node 0 MemTotal:  460064 kB`.
fn mem_total_kib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.contains(" MemTotal:"))?;
    line.split_whitespace().rev().nth(1)?.parse().ok()
}

/// Adds up the memory that firmware told the kernel is RAM: ranges of bytes, both ends included.
///
/// Not MemTotal, which lacks what the kernel keeps for itself, a share that varies.
fn system_ram_kib(iomem: &str) -> Result<u64> {
    let mut bytes = 0;
    for line in iomem.lines().filter(|line| line.ends_with(" : System RAM")) {
        let parse = |hex: &str| u64::from_str_radix(hex.trim(), 16).ok();
        let range = line.split_once(" : ").and_then(|(range, _)| range.split_once('-'));
        let (first, last) = range
            .and_then(|(first, last)| Some((parse(first)?, parse(last)?)))
            .with_context(|| format!("malformed line in /proc/iomem: {line}"))?;
        bytes += last - first + 1;
    }
    ensure!(bytes > 0, "/proc/iomem shows no System RAM");
    Ok(bytes / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_memory_is_read() {
        let meminfo = "Node 1 MemTotal:         503500 kB\nNode 1 MemFree:          490000 kB\n";
        assert_eq!(mem_total_kib(meminfo), Some(503_500));
        assert_eq!(mem_total_kib(""), None);
    }

    #[test]
    fn ram_is_added_up() {
        let iomem = "00000000-00000fff : Reserved\n\
                     00001000-0009fbff : System RAM\n\
                     000f0000-000fffff : System ROM\n\
                     00100000-0ffdffff : System RAM\n\
                     \x20 01000000-01ffffff : Kernel code\n";
        assert_eq!(system_ram_kib(iomem).unwrap(), (0x9ec00 + 0xfee0000) / 1024);
        assert!(system_ram_kib("00000000-00000000 : System RAM\n").is_ok_and(|kib| kib == 0));
        assert!(system_ram_kib("").is_err());
    }
}
