//! The memory that a worker shares with its parent and its group.

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use rustix::thread::futex;

use super::sync::Desk;
use super::telemetry::Telemetry;

/// What a worker shares with its parent and its group.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// One of the four below; a futex.
    pub(super) state: AtomicU32,
    /// What failed, as an index into `STEPS`, and its error number; 0 for no error.
    pub(super) failed_step: AtomicU32,
    pub(super) errno: AtomicI32,
    pub(super) pid: AtomicI32,
    pub(super) telemetry: Telemetry,
    pub(super) desk: Desk,
}

pub(super) const PREPARING: u32 = 0;
pub(super) const WAITING: u32 = 1;
pub(super) const RELEASED: u32 = 2;
/// It ends without having been ready.
pub(super) const UNFIT: u32 = 3;

impl Page {
    pub(super) fn change_state(&self, state: u32) {
        self.state.store(state, Ordering::Release);
        // It fails for an address that is no futex, which this one is.
        let _ = futex::wake(&self.state, futex::Flags::empty(), 1);
    }

    /// The worker's end by an error.
    pub(super) fn fail(&self, error: &io::Error) -> i32 {
        self.errno.store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::Release);
        1
    }
}
