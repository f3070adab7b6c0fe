//! Switching CPUs on and off.
//!
//! Source: Linux 6.12, core-api/cpu_hotplug.rst.

use std::fs;
use std::io::Write;

use anyhow::{Context, Result, bail};

/// Switches a CPU on or off; returns whether it was on before.
///
/// # Errors
///
/// If there is no such CPU, or the kernel refuses: the first CPU, the last one of a cpuset.
pub(super) fn switch(cpu: u32, online: bool) -> Result<bool> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
    let before = match fs::read_to_string(&path) {
        Ok(text) => text.trim() == "1",
        Err(error) => {
            let all = fs::read_to_string("/sys/devices/system/cpu/present").unwrap_or_default();
            let all = all.trim();
            bail!(
                "CPU {cpu} cannot be switched: {path}: {error}; there are {all}, and CPU 0 stays on"
            )
        }
    };
    if before != online {
        // With O_CREAT, sysfs would answer EACCES for a file that is not there.
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(if online { b"1" } else { b"0" }))
            .with_context(|| format!("the kernel does not take {} for {path}", u8::from(online)))?;
    }
    Ok(before)
}
