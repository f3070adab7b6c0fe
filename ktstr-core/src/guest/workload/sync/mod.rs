//! How workers of one group wait for each other: futexes in the memory they share.

mod lock;
mod mailbox;
mod queue;

pub(super) use lock::Lock;
pub(super) use mailbox::Mailbox;
pub(super) use queue::Queue;

use std::sync::atomic::AtomicU32;

/// The part of a worker's page through which its group reaches it. What the whole group shares is on
/// the page of its first worker.
#[derive(Debug, Default)]
pub(super) struct Desk {
    pub(super) inbox: Mailbox,
    pub(super) answers: Mailbox,
    /// 1 if it is there to be won.
    pub(super) prize: AtomicU32,
    pub(super) lock: Lock,
    pub(super) queue: Queue,
}
