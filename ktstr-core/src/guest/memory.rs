//! Whether the machine has the memory it was given.

use anyhow::{Context, Result, ensure};

/// What firmware and the legacy area below 1 MiB take away, at most.
const RESERVED_KIB: u64 = 2048;

/// Where the memory differs from `asked_mib`, if it does.
pub(super) fn difference(asked_mib: u32) -> Result<Option<String>> {
    let iomem = std::fs::read_to_string("/proc/iomem").context("cannot read /proc/iomem")?;
    let seen_kib = system_ram_kib(&iomem)?;
    let asked_kib = u64::from(asked_mib) * 1024;
    let right = (asked_kib - RESERVED_KIB..=asked_kib).contains(&seen_kib);
    Ok((!right).then(|| {
        format!("memory: asked for {asked_mib} MiB, the guest sees {} KiB of RAM", seen_kib)
    }))
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
