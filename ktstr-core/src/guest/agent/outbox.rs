//! The queue of frames for the port.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;

/// Frames in the order in which they are sent. They are not copied.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    frames: VecDeque<Vec<u8>>,
    /// The bytes of the first frame that are sent.
    sent: usize,
    /// The bytes of all frames that are not sent.
    unsent: usize,
}

impl Outbox {
    pub(super) fn push(&mut self, frame: Vec<u8>) {
        self.unsent += frame.len();
        self.frames.push_back(frame);
    }

    /// Returns the number of bytes that are not sent.
    pub(super) fn len(&self) -> usize {
        self.unsent
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unsent == 0
    }

    /// Writes as much as `port` takes without blocking.
    ///
    /// # Errors
    ///
    /// The errors of the write.
    pub(super) fn flush(&mut self, port: impl AsFd) -> io::Result<()> {
        while let Some(frame) = self.frames.front() {
            match rustix::io::write(&port, &frame[self.sent..]) {
                Ok(count) => {
                    self.sent += count;
                    self.unsent -= count;
                }
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
            if self.sent == frame.len() {
                self.frames.pop_front();
                self.sent = 0;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::super::pipe::set_nonblocking;
    use super::*;

    #[test]
    fn flush_sends_all_frames_in_order_through_a_full_pipe() {
        let (mut reader, writer) = io::pipe().unwrap();
        set_nonblocking(&writer).unwrap();
        let frames: Vec<Vec<u8>> = (0..10).map(|index| vec![index; 30_000]).collect();
        let mut outbox = Outbox::default();
        frames.iter().for_each(|frame| outbox.push(frame.clone()));
        let mut received = vec![0; outbox.len()];
        let mut filled = 0;
        outbox.flush(&writer).unwrap();
        assert!(!outbox.is_empty(), "a pipe holds less");
        while filled < received.len() {
            filled += reader.read(&mut received[filled..]).unwrap();
            outbox.flush(&writer).unwrap();
        }
        assert!(outbox.is_empty());
        assert_eq!(received, frames.concat());
    }
}
