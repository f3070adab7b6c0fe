//! The memory that a worker shares with its parent and its group.

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use rustix::thread::futex;

use super::sync::Desk;
use super::telemetry::Telemetry;

/// What one worker shares with its parent and its group.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// One of the four states below; a futex.
    pub(super) state: AtomicU32,
    /// The step that failed, as an index into `STEPS`.
    pub(super) failed_step: AtomicU32,
    /// The errno of a step or of the work loop; 0 for none.
    pub(super) errno: AtomicI32,
    pub(super) pid: AtomicI32,
    pub(super) telemetry: Telemetry,
    pub(super) desk: Desk,
}

pub(super) const PREPARING: u32 = 0;
pub(super) const WAITING: u32 = 1;
pub(super) const RELEASED: u32 = 2;
/// The worker ends because its preparation failed.
pub(super) const UNFIT: u32 = 3;

impl Page {
    /// Sets the state and wakes the process that waits for a change.
    pub(super) fn change_state(&self, state: u32) {
        self.state.store(state, Ordering::Release);
        // It fails only for an address that is not aligned or not mapped.
        let _ = futex::wake(&self.state, futex::Flags::empty(), 1);
    }

    /// Records the error with which the worker ends. Returns its exit status.
    pub(super) fn fail(&self, error: &io::Error) -> i32 {
        self.errno.store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::Release);
        1
    }
}
