//! Linux as a library: cgroup v2, process containment and the system calls that no safe crate offers.
//!
//! It does not use types of ktstr and can be used alone.

pub mod cgroup;
pub mod process;

pub mod sync;
pub(crate) mod sys;
