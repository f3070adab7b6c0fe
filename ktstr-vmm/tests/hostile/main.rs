//! Hostile guests: a few bytes of code instead of a kernel.
//!
//! Whatever a guest does, the host sees it end cleanly, in time and within a limit of memory, and
//! can stop it at once; no thread and no descriptor is left behind. Each test boots a machine:
//! `cargo xtask nested --test hostile` runs all of them on hosts without KVM.

mod code;
mod cpus;
mod ends;
mod floods;
mod machine;
mod ports;
mod queues;
mod registers;
mod saved;
mod virtio;
