//! Futexes in shared memory, with which the workers of one group wait for each other.

mod lock;
mod mailbox;
mod queue;

pub(super) use lock::Lock;
pub(super) use mailbox::Mailbox;
pub(super) use queue::Queue;

use std::sync::atomic::AtomicU32;

/// The part of a worker's page that its group uses. What the whole group shares is on the page of its
/// first worker.
#[derive(Debug, Default)]
pub(super) struct Desk {
    pub(super) inbox: Mailbox,
    pub(super) answers: Mailbox,
    /// 1 while it can be won.
    pub(super) prize: AtomicU32,
    pub(super) lock: Lock,
    pub(super) queue: Queue,
}
