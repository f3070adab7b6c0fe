//! Processes that cannot outlive their owner.
//!
//! A [`Job`] holds everything that was started in it and everything that those started: children
//! that left their session, daemons that forked twice, fork bombs. Dropping it kills them all, and
//! so does the end of the owner, by `kill -9`, too: a *keeper*, a forked process that does nothing
//! but wait for that end, sees to it.
//!
//! ```no_run
//! use std::process::Command;
//! use std::time::Duration;
//!
//! use ktstr_core::process::{Job, Limits, Signal};
//!
//! # fn main() -> Result<(), ktstr_core::process::Error> {
//! let job = Job::new(Limits::none().memory_max(256 << 20).cpu_quota(0.5))?;
//! let mut server = job.spawn(Command::new("my-server"))?;
//! let report = job.shutdown(Signal::TERM, Duration::from_secs(2), true)?;
//! println!("{report}");
//! assert!(server.wait()?.success());
//! # Ok(())
//! # }
//! ```
//!
//! A job is a fresh cgroup v2 where the caller can have one, and else a process group, which holds
//! less; [`Job::mechanism`] tells. docs/guide/processes.md has what each of them guarantees.
//!
//! Sources: Linux 6.12, admin-guide/cgroup-v2.rst; clone(2), pidfd_open(2), setpgid(2), prctl(2).

mod cgroup;
mod child;
mod containment;
mod error;
mod group;
mod job;
mod keeper;
mod limits;
mod name;
mod pinned;
mod place;
mod procfs;
mod shutdown;

pub use child::Child;
pub(crate) use child::wait_for;
pub use error::Error;
pub use job::{Job, Mechanism, Stats};
pub use limits::Limits;
pub use procfs::Process;
pub(crate) use procfs::Stat;
pub use rustix::process::Signal;
pub use shutdown::{Left, Shutdown};

pub use crate::linux::sys::stop_ignoring_sigchld;
