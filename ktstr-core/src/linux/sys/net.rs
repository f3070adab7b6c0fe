//! Network interfaces.

use std::io;

use rustix::ioctl::{Setter, Updater, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// From linux/sockios.h.
const SIOCGIFFLAGS: u32 = 0x8913;
const SIOCSIFFLAGS: u32 = 0x8914;

/// Brings the interface `lo` up. The kernel then assigns 127.0.0.1/8 and ::1 to it.
///
/// Source: netdevice(7); `inetdev_event` in the kernel's net/ipv4/devinet.c.
pub(crate) fn bring_up_loopback() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all fields of `ifreq` are plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = from as libc::c_char;
    }
    // SAFETY: SIOCGIFFLAGS reads the name in the `ifreq` and writes its flags.
    unsafe { ioctl(&socket, Updater::<SIOCGIFFLAGS, _>::new(&mut request)) }?;
    // SAFETY: the call above has written this field of the union, which is plain data.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads the name and the flags of the `ifreq`.
    unsafe { ioctl(&socket, Setter::<SIOCSIFFLAGS, _>::new(request)) }?;
    Ok(())
}
