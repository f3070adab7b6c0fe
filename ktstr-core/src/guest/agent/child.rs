//! A child of PID 1 and its pipes.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus};

use super::handover::Handover;
use super::output::Output;
use super::pipe::output_pipe;
use crate::linux::sys;
use crate::model::wire::{Decoder, Stream};

/// A child of PID 1 that is not reaped yet. All its descriptors are non-blocking.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: Pid,
    pidfd: OwnedFd,
    /// The writing end of its standard input, until that is closed.
    pub(super) stdin: Option<OwnedFd>,
    /// Input that is not written yet, and whether that is the last.
    pub(super) input: VecDeque<u8>,
    pub(super) input_ends: bool,
    /// Its standard output and error, or the terminal that is both.
    pub(super) output: Output,
    /// Whether it has ended: from then on, only its output is awaited.
    pub(super) has_ended: bool,
    /// What PID 1 still has to send to a body. Until then, this child is the program that forks the body.
    pub(super) handover: Option<Handover>,
    /// The socket to which a body sends its messages.
    pub(super) messages: Option<(UnixStream, Decoder)>,
    /// The pipe to which a body writes the messages of its panics.
    pub(super) panics: Option<OwnedFd>,
}

impl Child {
    /// Forks a child that runs `main` with its output in pipes.
    ///
    /// # Errors
    ///
    /// If a pipe or the fork fails, because the guest lacks memory or pids.
    pub(super) fn fork(main: impl FnOnce() -> i32) -> Result<Self> {
        let (stdout, stdout_writer) = output_pipe()?;
        let (stderr, stderr_writer) = output_pipe()?;
        let child = || {
            let wired = rustix::stdio::dup2_stdout(&stdout_writer)
                .and_then(|()| rustix::stdio::dup2_stderr(&stderr_writer));
            if wired.is_err() || rustix::process::setsid().is_err() { 1 } else { main() }
        };
        // SAFETY: the only other thread of PID 1 is libtest's, which waits and holds no lock.
        let pid = unsafe { sys::fork(child) }.context("failed to fork")?;
        let outputs = vec![(Stream::Stdout, stdout), (Stream::Stderr, stderr)];
        Self::new(pid, None, outputs)
    }

    pub(super) fn new(
        pid: Pid,
        stdin: Option<OwnedFd>,
        outputs: Vec<(Stream, OwnedFd)>,
    ) -> Result<Self> {
        Ok(Self {
            pid,
            pidfd: pidfd_open(pid)?,
            stdin,
            input: VecDeque::new(),
            input_ends: false,
            output: Output::start(outputs)?,
            has_ended: false,
            handover: None,
            messages: None,
            panics: None,
        })
    }

    /// Continues with the body if this child has ended and has forked one. Returns whether it has.
    pub(super) fn continue_with_body(&mut self, status: &WaitIdStatus) -> Result<bool> {
        if status.exit_status() != Some(0) {
            return Ok(false);
        }
        let Some(body) = self.handover.as_mut().and_then(Handover::body) else { return Ok(false) };
        let Some(handover) = self.handover.take() else { return Ok(false) };
        // The body has become a child of PID 1, and does nothing before the handover.
        sys::reap(self.pid).context("failed to reap the program of the test body")?;
        self.pidfd = pidfd_open(body)?;
        self.pid = body;
        self.messages = Some((handover.give()?, Decoder::default()));
        Ok(true)
    }

    /// Returns the descriptors to wait for: its end, input if there is some to write, and output if
    /// `listen`.
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

    /// Writes as much input as its standard input takes without blocking.
    pub(super) fn feed(&mut self) {
        while let Some(stdin) = self.stdin.as_ref().filter(|_| !self.input.is_empty()) {
            match rustix::io::write(stdin, self.input.as_slices().0) {
                Ok(count) => drop(self.input.drain(..count)),
                Err(Errno::AGAIN | Errno::INTR) => return,
                // The program has closed its standard input, which it may do.
                Err(_) => self.stdin = None,
            }
        }
        if self.input_ends {
            self.stdin = None;
        }
    }

    /// Returns the pidfd, which is readable once the child has ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Returns how the child ended; `None` while it runs. Does not reap it.
    pub(super) fn ended(&self) -> io::Result<Option<WaitIdStatus>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(rustix::process::waitid(WaitId::PidFd(self.pidfd()), options)?)
    }
}

fn pidfd_open(pid: Pid) -> Result<OwnedFd> {
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .context("failed to open a pidfd; this needs Linux 5.3 or later")
}
