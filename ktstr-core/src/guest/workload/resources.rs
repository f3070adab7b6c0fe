//! Descriptors that the workers of one group share.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};
use rustix::pipe::{PipeFlags, pipe_with};

/// The number of event descriptors of an EpollStorm.
const EVENTS: usize = 16;

/// Descriptors that a group's workers inherit. The parent closes its own when the group is forked.
#[derive(Debug)]
pub(super) enum Resources {
    None,
    /// One pipe to each of two workers.
    Pipes([Pipe; 2]),
    Events(Vec<OwnedFd>),
}

#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) reader: OwnedFd,
    pub(super) writer: OwnedFd,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Self { reader, writer })
    }
}

impl Resources {
    pub(super) fn pipes() -> io::Result<Self> {
        Ok(Self::Pipes([Pipe::new()?, Pipe::new()?]))
    }

    pub(super) fn events() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let events = (0..EVENTS).map(|_| Ok(eventfd(0, flags)?));
        Ok(Self::Events(events.collect::<io::Result<_>>()?))
    }
}
