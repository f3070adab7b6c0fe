//! Onlines and offlines CPUs.
//!
//! Source: Linux 6.12, core-api/cpu_hotplug.rst.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The directory of the CPUs in sysfs.
pub(super) const CPU_DIRECTORY: &str = "/sys/devices/system/cpu";

/// Onlines or offlines a CPU; returns whether it was online before. `directory` is [`CPU_DIRECTORY`]
/// except in tests.
///
/// # Errors
///
/// If the CPU does not exist or has no switch, as CPU 0, or if the kernel refuses, as for the last CPU of
/// a cpuset.
pub(super) fn set_online(directory: &Path, cpu: u32, online: bool) -> Result<bool> {
    let path = directory.join(format!("cpu{cpu}/online"));
    let was_online = match fs::read_to_string(&path) {
        Ok(text) => text.trim() == "1",
        Err(error) => {
            let present = fs::read_to_string(directory.join("present")).unwrap_or_default();
            bail!(
                "cannot online or offline CPU {cpu}: {}: {error}; this machine has CPUs {}, and CPU 0 is \
                 always online",
                path.display(),
                present.trim()
            )
        }
    };
    if was_online != online {
        let value = u8::from(online).to_string();
        // With O_CREAT, sysfs would answer EACCES for a file that does not exist.
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(value.as_bytes()))
            .with_context(|| format!("failed to write {value} to {}", path.display()))?;
    }
    Ok(was_online)
}
