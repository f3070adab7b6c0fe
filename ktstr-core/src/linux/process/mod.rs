//! Processes that cannot outlive their owner.
//!
//! A [`Job`] contains the processes that were started in it and all their descendants: children that
//! left their session, daemons that forked twice, fork bombs. Dropping it kills them. So does the
//! end of the owner, even by `kill -9`: a *keeper*, a forked process that waits for it, kills them
//! then.
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
//! let result = job.shutdown(Signal::TERM, Duration::from_secs(2), true)?;
//! println!("{result}");
//! assert!(server.wait()?.success());
//! # Ok(())
//! # }
//! ```
//!
//! A job is a new cgroup v2 where the caller may create one, and else a process group, which
//! guarantees less. [`Job::mechanism`] returns which; docs/guide/processes.md lists the guarantees.
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
pub(crate) use name::is_job_cgroup;
pub use procfs::Process;
pub(crate) use procfs::Stat;
pub use rustix::process::Signal;
pub use shutdown::{ExitedProcess, Shutdown};

pub use crate::linux::sys::stop_ignoring_sigchld;
