//! Pipes and other descriptors that PID 1 uses without blocking.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::pipe::{PipeFlags, pipe_with};

/// A pipe that PID 1 reads without blocking; its other end is left to the child alone.
pub(super) fn output_pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    set_nonblocking(&reader)?;
    Ok((reader, writer))
}

pub(super) fn set_nonblocking(fd: impl AsFd) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd).context("cannot read descriptor flags")?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)
        .context("cannot set descriptor flags")
}

/// What a non-blocking read found.
pub(super) enum Taken {
    Bytes(usize),
    Nothing,
    End,
}

/// Reads once without blocking.
pub(super) fn take(pipe: impl AsFd, buffer: &mut [u8]) -> Taken {
    match rustix::io::read(pipe, buffer) {
        Ok(0) => Taken::End,
        Ok(count) => Taken::Bytes(count),
        Err(_) => Taken::Nothing,
    }
}
