//! System calls that no safe crate provides, each behind a safe function where that is possible.

mod clock;
mod memory;
mod net;
mod process;
mod profile;
mod random;
mod sched;
mod signal;
mod terminal;

pub(crate) use clock::{since_boot_ns, ticks_per_second};
pub(crate) use memory::{Region, Shared, set_mempolicy};
pub(crate) use net::bring_up_loopback;
pub(crate) use process::{
    clone_into_cgroup, close_fds_except, die_with_parent, exit_now, fork, fork_and_reap,
    is_session_and_group_leader, reap, reap_orphans,
};
pub(crate) use profile::ProfileRuntime;
pub(crate) use random::reseed;
pub(crate) use sched::{
    HighestPriority, SchedAttr, raise_priority, sched_setattr, set_highest_priority,
};
#[cfg(test)]
pub(crate) use signal::forbid_system_calls;
pub use signal::stop_ignoring_sigchld;
pub(crate) use signal::{block_signals, count_signals, signals_counted};
pub(crate) use terminal::take_terminal;
