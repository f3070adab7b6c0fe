//! What a program prints.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// How many bytes of each stream are kept: the last 256 KiB.
pub const OUTPUT_KEPT: usize = 256 << 10;

/// What is read from one pipe at a time: as much as one holds, unless it was enlarged.
const CHUNK: usize = 64 << 10;

/// The most that is taken from a stream after the end of the program: what a pipe can hold at most
/// without privilege. Who was left running may write for ever.
const REST: usize = 1 << 20;

/// What a program printed on one of its streams.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// The last of it, at most [`OUTPUT_KEPT`] bytes. What is no UTF-8 is replaced.
    pub text: String,
    /// How many bytes there were before that.
    pub dropped: u64,
}

impl Output {
    /// The lines that are whole: the first is not if what was before it was not kept, the last may not
    /// be if the program did not end by itself.
    pub(super) fn lines(&self, is_whole: bool) -> &str {
        let text = match (self.dropped, self.text.find('\n')) {
            (0, _) => &*self.text,
            (_, Some(end)) => &self.text[end + 1..],
            (_, None) => "",
        };
        match (is_whole, text.rfind('\n')) {
            (true, _) => text,
            (false, Some(end)) => &text[..=end],
            (false, None) => "",
        }
    }
}

/// What a program has printed until its end, and when that was.
#[derive(Debug)]
pub(super) struct Collected {
    pub(super) outputs: [Output; 2],
    pub(super) ended: Instant,
}

#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
    dropped: u64,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let over = self.bytes.len().saturating_sub(OUTPUT_KEPT);
        self.bytes.drain(..over);
        self.dropped += over as u64;
    }

    fn into_output(self) -> Output {
        let text = String::from_utf8_lossy(&Vec::from(self.bytes)).into_owned();
        Output { text, dropped: self.dropped }
    }
}

/// Reads a program's two streams on a thread of its own until the program has ended.
///
/// Pipes and not files: a program may open `/proc/self/fd/1` again, and would then write over what
/// a file holds.
///
/// # Errors
///
/// If there can be no such thread.
pub(super) fn collect(
    pipes: [OwnedFd; 2],
    pidfd: OwnedFd,
) -> io::Result<JoinHandle<io::Result<Collected>>> {
    for pipe in &pipes {
        let flags = rustix::fs::fcntl_getfl(pipe)?;
        rustix::fs::fcntl_setfl(pipe, flags | OFlags::NONBLOCK)?;
    }
    std::thread::Builder::new().name("ktstr-output".to_owned()).spawn(move || read(pipes, &pidfd))
}

fn read(pipes: [OwnedFd; 2], pidfd: &OwnedFd) -> io::Result<Collected> {
    let mut pipes = pipes.map(Some);
    let mut tails = [Tail::default(), Tail::default()];
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
        fds.extend(pipes.iter().flatten().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        // Looked at before the pipes: what it wrote before its end is there by then.
        let has_ended = !fds[0].revents().is_empty();
        let ended = Instant::now();
        for (pipe, tail) in pipes.iter_mut().zip(&mut tails) {
            let mut most = if has_ended { REST } else { 1 };
            while let Some(reader) = pipe.as_ref().filter(|_| most > 0) {
                match rustix::io::read(reader, &mut buffer) {
                    Ok(0) => *pipe = None,
                    Ok(count) => {
                        tail.push(&buffer[..count]);
                        most = most.saturating_sub(count);
                    }
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        if has_ended {
            return Ok(Collected { outputs: tails.map(Tail::into_output), ended });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_it_is_kept_and_the_rest_counted() {
        let mut tail = Tail::default();
        tail.push(b"abc");
        tail.push(&vec![b'x'; OUTPUT_KEPT - 1]);
        tail.push(b"");
        let output = tail.into_output();
        assert_eq!((output.text.len(), output.dropped), (OUTPUT_KEPT, 2));
        assert!(output.text.starts_with("cx"));
    }
    #[test]
    fn lines_are_whole() {
        for (text, dropped, is_whole, want) in [
            ("a\nb", 0, true, "a\nb"),
            ("a\nb", 0, false, "a\n"),
            ("a\nb\nc", 1, true, "b\nc"),
            ("a\nb\nc", 1, false, "b\n"),
            ("500 us", 1, true, ""),
            ("p=9", 0, false, ""),
        ] {
            let output = Output { text: text.to_owned(), dropped };
            assert_eq!(output.lines(is_whole), want);
        }
    }
}
