//! Kernels and QEMU for the host side, fetched once and kept in a cache.
//!
//! [`kernel::resolve`] turns what a test or `KTSTR_KERNEL` asks for into a [`Kernel`]: the image,
//! what to boot (the uncompressed vmlinux where it can be had), its modules and its config.
//! [`modules_for`] picks the modules a guest needs from it. [`qemu::resolve`] finds or fetches an
//! emulator that is known not to corrupt guests. Everything lands in a [`Cache`], whose entries
//! appear complete or not at all, so that ten test processes fetch a kernel once.
//!
//! Packages come from the Debian archive through apt-get in a private configuration: its
//! signature checks and proxies are the machine's, nothing is installed and no root is needed.
//! A warm resolution reads a few small files: no network, no subprocess, no hashing.

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
mod spec;
mod units;
mod versions;

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
