//! Engines that boot a Linux kernel in a virtual machine and report what happened: facts, no
//! opinion.
//!
//! An [`Engine`] turns a [`VmConfig`] into a running [`Vm`]; the caller pulls [`Event`]s from it
//! until the machine is gone. Nothing here knows of tests: any kernel, any initramfs.
//!
//! [`probe`] tells in milliseconds whether this host's KVM can serve.
//! [`paging`] and [`btf`] help to read the memory of a kernel that is paused.

pub mod btf;
mod config;
mod engine;
mod error;
pub mod kvm;
pub mod paging;
pub mod probe;
pub mod qemu;
mod schedstat;
mod tsc;

pub use config::{Topology, VmConfig};
pub use engine::{Engine, Event, ExitReason, Registers, Timing, Vm};
pub use error::Error;
