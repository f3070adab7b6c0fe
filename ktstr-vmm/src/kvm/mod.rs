//! KVM as an [`Engine`](crate::Engine): a small VMM for x86-64, in this process.
#![allow(dead_code, reason = "in the making")]

mod acpi;
mod cpu;
mod cpus;
mod device;
mod layout;

#[doc(hidden)]
pub use device::fuzz_devices;
