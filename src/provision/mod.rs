//! Finds or fetches kernels and QEMU, and keeps them in a cache.
//!
//! [`kernel::resolve`] turns the request of a test or of `KTSTR_KERNEL` into a [`Kernel`]: the image, the file to
//! boot (the uncompressed vmlinux if possible), the modules and the config. [`modules_for`] selects the modules
//! that a guest needs. [`qemu::resolve`] finds or fetches an emulator that is known not to corrupt guests. The
//! entries of the [`Cache`] appear complete or not at all, so that ten test processes fetch a kernel once.
//!
//! Packages come from the Debian archive through apt-get with a private configuration. It checks signatures and
//! uses the proxies of the machine, installs nothing, and does not need root. With a filled cache, a resolution
//! only reads a few small files: no network, no subprocess, no hashing.

pub mod cache;
pub mod kernel;
pub mod modules;
pub mod qemu;
pub mod tool;
pub mod vmlinux;

mod apt;
mod bootable;
mod carry;
mod catalog;
mod debian;
mod decompress;
mod image;
mod mirror;
mod release;
mod spec;
mod units;
mod versions;

#[doc(hidden)]
pub use apt::{parse_show, parse_uri_line};
#[doc(hidden)]
pub use mirror::{in_list, in_sources};

pub use apt::{Package, require_tools};
pub use bootable::{Boot, BootFormat, Kernel, Provenance};
pub use cache::Cache;
pub use catalog::KnownKernel;
pub use kernel::KernelStatus;
pub use modules::{Module, modules_for};
pub use qemu::{Origin, QemuProgram};
pub use spec::{KernelSpec, SpecError};
pub use units::{disk_usage, megabytes};

pub(crate) use apt::find_program;
pub(crate) use image::identity;
