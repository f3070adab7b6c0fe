//! The kernel's random number generator.

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{NoArg, Setter, ioctl};

/// From linux/random.h.
const RNDADDENTROPY: u32 = 0x4008_5203;
const RNDRESEEDCRNG: u32 = 0x5207;

/// `struct rand_pool_info` of linux/random.h, with its bytes.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct RandPoolInfo<const SIZE: usize> {
    entropy_count: i32,
    buf_size: i32,
    buf: [u8; SIZE],
}

/// Adds random bytes to the pool of the kernel and seeds its generator from the pool. `urandom` is `/dev/urandom`.
///
/// The kernel would use the pool only at the next reseeding, which is up to a minute away.
///
/// Source: random(4); `random_ioctl` in the kernel's drivers/char/random.c.
pub(crate) fn reseed<const SIZE: usize>(urandom: impl AsFd, bytes: [u8; SIZE]) -> io::Result<()> {
    let size = SIZE as i32;
    let info = RandPoolInfo { entropy_count: 8 * size, buf_size: size, buf: bytes };
    // SAFETY: RNDADDENTROPY reads the two numbers and then as many bytes as the second states, which `buf` has.
    unsafe { ioctl(&urandom, Setter::<RNDADDENTROPY, _>::new(info)) }?;
    // SAFETY: RNDRESEEDCRNG has no argument.
    unsafe { ioctl(&urandom, NoArg::<RNDRESEEDCRNG>::new()) }?;
    Ok(())
}
