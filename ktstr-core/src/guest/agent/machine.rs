//! Checks that the machine is the requested one.

use anyhow::{Context, Result, ensure};

use crate::guest::topology::TestTopology;
use crate::model::machine::MachineSpec;
use crate::model::wire::End;

/// The most that firmware and the legacy area below 1 MiB take away.
const RESERVED_KIB: u64 = 2048;

/// Returns the machine as its sysfs shows it, or the end of a run on a machine that is not `spec`.
pub(super) fn check(spec: &MachineSpec) -> Result<Result<TestTopology, End>> {
    let seen = TestTopology::read()?;
    let mut differences = seen.differences(&spec.topology);
    differences.extend(memory_differences(spec.memory_mib, spec.topology.numa_nodes)?);
    let cmdline = std::fs::read_to_string("/proc/cmdline").context("cannot read /proc/cmdline")?;
    differences.extend(missing_kargs(&spec.kargs, &cmdline));
    Ok(if differences.is_empty() { Ok(seen) } else { Err(End::WrongTopology(differences)) })
}

/// Returns the words of `kargs` that the kernel's command line lacks, one line each.
fn missing_kargs(kargs: &str, cmdline: &str) -> Vec<String> {
    let words = kargs.split_whitespace();
    words
        .filter(|word| !cmdline.split_whitespace().any(|found| found == *word))
        .map(|word| format!("kernel argument: requested `{word}`, /proc/cmdline lacks it"))
        .collect()
}

/// Returns the differences between the memory and `asked_mib` in equal shares on `nodes` nodes, one
/// line each.
fn memory_differences(asked_mib: u32, nodes: u32) -> Result<Vec<String>> {
    let iomem = std::fs::read_to_string("/proc/iomem").context("cannot read /proc/iomem")?;
    let seen_kib = system_ram_kib(&iomem)?;
    let asked_kib = u64::from(asked_mib) * 1024;
    let mut differences = Vec::new();
    if !(asked_kib - RESERVED_KIB..=asked_kib).contains(&seen_kib) {
        differences.push(format!(
            "memory: requested {asked_mib} MiB, the guest has {seen_kib} KiB of RAM"
        ));
    }
    // A kernel without NUMA has one node and no files about nodes.
    for node in (0..nodes).filter(|_| nodes > 1) {
        let path = format!("/sys/devices/system/node/node{node}/meminfo");
        let meminfo = match std::fs::read_to_string(&path) {
            Ok(meminfo) => meminfo,
            // The guest has no such node.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {path}")),
        };
        let share_kib = asked_kib / u64::from(nodes);
        // The kernel allocates its own memory from any node.
        let seen_kib = mem_total_kib(&meminfo).unwrap_or(0);
        if !(share_kib / 3..=share_kib + 1024).contains(&seen_kib) {
            differences.push(format!(
                "memory of node {node}: requested {share_kib} KiB, the guest has {seen_kib} KiB"
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

/// Adds up the memory that firmware reports as RAM: ranges of bytes, both ends included.
///
/// Not MemTotal, which lacks the memory that the kernel reserves, a share that varies.
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
    fn mem_total_kib_reads_the_memory_of_a_node() {
        let meminfo = "Node 1 MemTotal:         503500 kB\nNode 1 MemFree:          490000 kB\n";
        assert_eq!(mem_total_kib(meminfo), Some(503_500));
        assert_eq!(mem_total_kib(""), None);
    }

    #[test]
    fn missing_kargs_are_named() {
        assert_eq!(missing_kargs(" a=1  b", "x a=1 b\n"), [""; 0]);
        let missing = missing_kargs("a=1 b", "a=12 b");
        assert_eq!(missing, ["kernel argument: requested `a=1`, /proc/cmdline lacks it"]);
    }

    #[test]
    fn system_ram_kib_adds_up_ranges() {
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
