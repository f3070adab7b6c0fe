//! Engines that boot a Linux kernel in a virtual machine and report what happens as facts, without
//! judging them.
//!
//! An [`Engine`] turns a [`VmConfig`] into a running [`Vm`]; the caller pulls [`Event`]s from it
//! until the machine has exited. This crate does not know about tests: any kernel and initramfs do.
//!
//! [`probe`] finds out in milliseconds whether the KVM of this host is usable.
//! [`paging`] and [`btf`] help to read the memory of a kernel that is paused, [`printk`] reads the
//! messages of one that runs or has died.

pub mod btf;
mod config;
mod engine;
mod error;
pub mod kvm;
mod kvm_error;
mod lock;
pub mod paging;
pub mod printk;
pub mod probe;
pub mod qemu;
mod saved;
mod schedstat;
mod tsc;

pub use config::VmConfig;
pub use engine::{Engine, Event, ExitReason, Registers, Vm};
pub use error::Error;
