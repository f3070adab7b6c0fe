//! Finds a virtio-console port by its name.
//!
//! Drivers probe in the background, and a port gets its name after its device, so PID 1 waits for
//! the kernel's device events instead of polling.
//!
//! Sources: virtio 1.2, 5.3 Console Device; Linux 6.12,
//! Documentation/ABI/testing/sysfs-class-virtio-ports.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use crate::model::pid1::MODULES;

const PORTS: &str = "/sys/class/virtio-ports";

/// The timeout for a driver to find its device, which normally takes milliseconds.
const APPEARS_WITHIN: Duration = Duration::from_secs(20);

/// Opens the port called `name` for reading and writing without blocking.
///
/// # Errors
///
/// If it does not appear; the error lists the ports that did.
pub(super) fn open(name: &str) -> Result<File> {
    // The socket is opened first, so that a port that appears after the check is announced.
    let events = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(KOBJECT_UEVENT),
    )
    .context("failed to listen for device events (CONFIG_NET)")?;
    rustix::net::bind(&events, &SocketAddrNetlink::new(0, 1))
        .context("failed to listen for device events")?;
    let deadline = Instant::now() + APPEARS_WITHIN;
    loop {
        if let Some(device) = find(name) {
            return OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open(&device)
                .with_context(|| format!("failed to open {device}"));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!(
                "no virtio-console port {name} appeared; this guest has {:?}; the kernel needs \
                 CONFIG_VIRTIO_CONSOLE and CONFIG_VIRTIO_PCI, built in or as modules in {}",
                names(),
                MODULES
            );
        }
        let timeout = left.try_into().context("the timeout does not fit a timespec")?;
        poll(&mut [PollFd::new(&events, PollFlags::IN)], Some(&timeout))
            .context("failed to wait for device events")?;
        // The content of an event does not matter; ENOBUFS means that there were many.
        while rustix::net::recv(&events, &mut [0_u8; 4096][..], RecvFlags::empty()).is_ok() {}
    }
}

/// Returns the device of a port, if it has appeared.
fn find(name: &str) -> Option<String> {
    names().into_iter().find(|(_, port)| port == name).map(|(device, _)| format!("/dev/{device}"))
}

/// Returns all ports, each with its device and its name.
fn names() -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir(PORTS) else { return Vec::new() };
    let name = |device: &str| fs::read_to_string(Path::new(PORTS).join(device).join("name"));
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .map(|device| (name(&device).unwrap_or_default().trim().to_owned(), device))
        .map(|(name, device)| (device, name))
        .collect()
}
