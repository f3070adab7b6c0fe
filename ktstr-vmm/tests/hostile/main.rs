//! Guests that are no kernels, but a few bytes of code that mean harm.
//!
//! Whatever they do, the host sees it end cleanly, in time and in little memory, and can stop it at
//! once; no thread and no descriptor stays behind. Each test boots for real: `cargo xtask nested
//! --test hostile` runs them all wherever there is no KVM.

mod code;
mod cpus;
mod ends;
mod floods;
mod machine;
mod ports;
mod queues;
mod registers;
mod virtio;
