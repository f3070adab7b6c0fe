//! Pipes and other descriptors that PID 1 uses without blocking.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::pipe::{PipeFlags, pipe_with};

/// Creates a pipe with a non-blocking reading end; the writing end is for the child.
pub(super) fn output_pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).context("failed to create a pipe")?;
    set_nonblocking(&reader)?;
    Ok((reader, writer))
}

pub(super) fn set_nonblocking(fd: impl AsFd) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd).context("failed to read descriptor flags")?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)
        .context("failed to set descriptor flags")
}

/// The result of a non-blocking read.
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
