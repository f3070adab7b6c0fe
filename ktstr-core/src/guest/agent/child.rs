//! A child of PID 1 and the pipes it talks through.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus};

use super::output::Output;
use super::pipe::output_pipe;
use crate::linux::sys;
use crate::model::wire::{Decoder, Stream};

/// A running child, as PID 1 holds it. All its descriptors are non-blocking.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: Pid,
    pidfd: OwnedFd,
    /// What feeds its standard input, until that is closed.
    pub(super) stdin: Option<OwnedFd>,
    /// What waits to be written there, and whether that is all.
    pub(super) input: VecDeque<u8>,
    pub(super) input_ends: bool,
    /// Its standard output and error, or the terminal that is both.
    pub(super) output: Output,
    /// Whether it has ended: there is nothing to wait for then but its output.
    pub(super) has_ended: bool,
    /// The socket to which a body sends its messages.
    pub(super) messages: Option<(UnixStream, Decoder)>,
    /// Where a body says that it panics.
    pub(super) panics: Option<OwnedFd>,
}

impl Child {
    /// Forks a child that runs `main` with its output in pipes.
    ///
    /// # Errors
    ///
    /// If a pipe or the fork fails, which means that memory or processes have run out.
    pub(super) fn fork(main: impl FnOnce() -> i32) -> Result<Self> {
        let (stdout, stdout_writer) = output_pipe()?;
        let (stderr, stderr_writer) = output_pipe()?;
        let child = || {
            let wired = rustix::stdio::dup2_stdout(&stdout_writer)
                .and_then(|()| rustix::stdio::dup2_stderr(&stderr_writer));
            if wired.is_err() || rustix::process::setsid().is_err() { 1 } else { main() }
        };
        // SAFETY: the other threads of PID 1 hold nothing meanwhile: libtest's waits for its test to
        // end, the agent's for this one to fork if it is not the agent's.
        let pid = unsafe { sys::fork(child) }.context("cannot fork")?;
        let outputs = vec![(Stream::Stdout, stdout), (Stream::Stderr, stderr)];
        Self::new(pid, None, outputs)
    }

    pub(super) fn new(
        pid: Pid,
        stdin: Option<OwnedFd>,
        outputs: Vec<(Stream, OwnedFd)>,
    ) -> Result<Self> {
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .context("cannot open a pidfd; it needs Linux 5.3")?;
        Ok(Self {
            pid,
            pidfd,
            stdin,
            input: VecDeque::new(),
            input_ends: false,
            output: Output::start(outputs)?,
            has_ended: false,
            messages: None,
            panics: None,
        })
    }

    /// What to wait for: input that can go on, output that can be taken if `listen`, the end.
    pub(super) fn interests(&self, listen: bool) -> Vec<PollFd<'_>> {
        let mut fds = Vec::new();
        if !self.has_ended {
            fds.push(PollFd::new(&self.pidfd, PollFlags::IN));
        }
        if let Some(stdin) = self.stdin.as_ref().filter(|_| !self.input.is_empty()) {
            fds.push(PollFd::new(stdin, PollFlags::OUT));
        }
        if listen {
            fds.push(PollFd::from_borrowed_fd(self.output.ready(), PollFlags::IN));
            fds.extend(self.messages.iter().map(|(link, _)| PollFd::new(link, PollFlags::IN)));
            fds.extend(self.panics.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        }
        fds
    }

    /// Writes what its standard input takes without blocking.
    pub(super) fn feed(&mut self) {
        while let Some(stdin) = self.stdin.as_ref().filter(|_| !self.input.is_empty()) {
            match rustix::io::write(stdin, self.input.as_slices().0) {
                Ok(count) => drop(self.input.drain(..count)),
                Err(Errno::AGAIN | Errno::INTR) => return,
                // The program has closed its input; that is its right.
                Err(_) => self.stdin = None,
            }
        }
        if self.input_ends {
            self.stdin = None;
        }
    }

    /// Readable once the child has ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How the child ended; `None` while it runs. Leaves it to be reaped.
    pub(super) fn ended(&self) -> io::Result<Option<WaitIdStatus>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(rustix::process::waitid(WaitId::PidFd(self.pidfd()), options)?)
    }
}
