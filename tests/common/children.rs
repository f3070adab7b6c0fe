//! Processes for cgroups to hold, and waiting for what they do.

#![allow(dead_code, reason = "not every suite needs all of it")]

use std::time::{Duration, Instant};

use ktstr::prelude::*;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};

/// A forked process, killed and reaped when it is dropped.
pub(crate) struct Child {
    pid: Option<Pid>,
}

impl Child {
    /// Forks a process that ends with the status `run` returns.
    pub(crate) fn fork(run: impl FnOnce() -> i32) -> Result<Self> {
        // SAFETY: the child has only this thread; glibc keeps its allocator usable, and the
        // closures of this suite take no lock that another thread of a body may hold.
        match unsafe { libc::fork() } {
            -1 => Err(std::io::Error::last_os_error()).context("cannot fork"),
            0 => {
                let run = std::panic::AssertUnwindSafe(run);
                let status = std::panic::catch_unwind(run).unwrap_or(101);
                // SAFETY: ends the child without running anything of its parent's.
                unsafe { libc::_exit(status) }
            }
            pid => Ok(Self { pid: Pid::from_raw(pid) }),
        }
    }

    /// Forks a process that begins with `run` once it is in a cgroup.
    pub(crate) fn fork_in(
        cgroups: &dyn CgroupOps,
        cgroup: &str,
        run: impl FnOnce() -> i32,
    ) -> Result<Self> {
        let (gate, opener) = rustix::pipe::pipe()?;
        let child = Self::fork(|| match rustix::io::read(&gate, &mut [0_u8; 1]) {
            Ok(1) => run(),
            _ => 102,
        })?;
        cgroups.place_task_during_handshake(cgroup, child.pid())?;
        rustix::io::write(&opener, &[1])?;
        Ok(child)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.map_or(0, |pid| pid.as_raw_nonzero().get())
    }

    /// Returns whether the process has ended. It is not reaped.
    pub(crate) fn has_ended(&self) -> Result<bool> {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let Some(pid) = self.pid else { return Ok(true) };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(waitid(WaitId::Pid(pid), options)?.is_some())
    }

    /// Waits until the process has ended.
    pub(crate) fn wait(mut self) -> Result<WaitStatus> {
        let pid = self.pid.take();
        Ok(waitpid(pid, WaitOptions::empty())?.context("it was waited for without NOHANG")?.1)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pid) = self.pid.take() {
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

pub(crate) fn spin() -> i32 {
    loop {
        std::hint::spin_loop();
    }
}

pub(crate) fn pause() -> i32 {
    loop {
        std::thread::park();
    }
}

/// Polls a counter of the kernel, for which there is no event.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !is_so()? {
        ensure!(began.elapsed() < Duration::from_secs(30), "30 s went by without: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Returns all controllers that the manager supports.
pub(crate) fn all() -> std::collections::BTreeSet<Controller> {
    Controller::ALL.into()
}
