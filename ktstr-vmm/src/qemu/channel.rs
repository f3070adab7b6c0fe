//! Byte streams between this process and QEMU; reading and writing never block.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::PollFlags;
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{SendFlags, send};

use crate::error::Error;

/// Bytes of one read at most.
pub(super) const CHUNK: usize = 64 << 10;
/// Bytes that may wait for the guest or QEMU to read them.
const MAX_UNSENT: usize = 64 << 20;

/// This process's end of a stream to QEMU.
#[derive(Debug)]
pub(super) struct Channel {
    fd: OwnedFd,
    unsent: VecDeque<u8>,
    is_open: bool,
}

impl Channel {
    /// Creates a socket pair; the second descriptor is for QEMU.
    pub(super) fn pair() -> Result<(Self, OwnedFd), Error> {
        let make = || {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            Ok((Self::new(ours.into()), theirs.into()))
        };
        make().map_err(Error::io::<std::io::Error>("create a socket pair"))
    }

    fn new(fd: OwnedFd) -> Self {
        Self { fd, unsent: VecDeque::new(), is_open: true }
    }

    /// Wraps this process's end of a pipe that is only read.
    pub(super) fn reader(fd: OwnedFd) -> Result<Self, Error> {
        ioctl_fionbio(&fd, true).map_err(Error::io("make a pipe non-blocking"))?;
        Ok(Self::new(fd))
    }

    /// Returns whether QEMU has not closed its end.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Returns the descriptor and the events to poll it for; `None` once the other end is closed.
    pub(super) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let write = if self.unsent.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        self.is_open.then(|| (self.fd.as_fd(), PollFlags::IN | write))
    }

    /// Reads up to [`CHUNK`] bytes without waiting; empty if there are none now.
    pub(super) fn read(&mut self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        if !self.is_open {
            return Ok(bytes);
        }
        bytes.reserve_exact(CHUNK);
        loop {
            match rustix::io::read(&self.fd, rustix::buffer::spare_capacity(&mut bytes)) {
                // A peer that ended with unread bytes shows as a reset, after its own bytes were
                // read.
                Ok(0) | Err(Errno::CONNRESET) => self.is_open = false,
                Ok(_) | Err(Errno::AGAIN) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(Error::io("read from the engine")(errno)),
            }
            break;
        }
        bytes.shrink_to_fit();
        Ok(bytes)
    }

    /// Queues bytes, and writes as many as the other end takes now.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.unsent.len() + bytes.len() > MAX_UNSENT {
            return Err(Error::Overflow {
                limit_mib: MAX_UNSENT >> 20,
                direction: "for the guest to read them",
            });
        }
        self.unsent.extend(bytes);
        self.flush()
    }

    /// Writes queued bytes, as many as the other end takes now.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        while self.is_open && !self.unsent.is_empty() {
            match send(&self.fd, self.unsent.as_slices().0, SendFlags::NOSIGNAL) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                // The reader has closed its end. Bytes that QEMU wrote before may still be
                // readable.
                Err(Errno::PIPE | Errno::CONNRESET) => self.unsent.clear(),
                Err(errno) => return Err(Error::io("write to the engine")(errno)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn pair() -> (Channel, UnixStream) {
        let (ours, theirs) = Channel::pair().unwrap();
        (ours, theirs.into())
    }

    #[test]
    fn send_queues_bytes_for_a_slow_reader() {
        let (mut ours, mut theirs) = pair();
        let sent: Vec<u8> = (0..2 << 20).map(|i: u32| (i % 251) as u8).collect();
        ours.send(&sent).unwrap();
        assert!(ours.interest().unwrap().1.contains(PollFlags::OUT), "a socket holds less");

        let mut received = vec![0; sent.len()];
        let mut filled = 0;
        while filled < received.len() {
            filled += theirs.read(&mut received[filled..]).unwrap();
            ours.flush().unwrap();
        }
        assert!(received == sent);
        assert_eq!(ours.interest().unwrap().1, PollFlags::IN);
    }

    #[test]
    fn read_returns_bytes_before_the_end() {
        let (mut ours, mut theirs) = pair();
        ours.send(b"never read").unwrap();
        theirs.write_all(b"last words").unwrap();
        drop(theirs);
        ours.send(b"discarded").unwrap();
        assert_eq!(ours.read().unwrap(), b"last words");
        assert_eq!(ours.read().unwrap(), b"");
        assert!(ours.interest().is_none());
    }

    #[test]
    fn send_limits_unsent_bytes() {
        let (mut ours, _theirs) = pair();
        ours.send(&vec![0; MAX_UNSENT]).unwrap();
        let error = ours.send(&vec![0; 1 << 20]).unwrap_err();
        assert_eq!(error.to_string(), "more than 64 MiB are waiting for the guest to read them");
    }
}
