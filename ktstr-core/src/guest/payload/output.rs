//! The output of a program.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// The number of bytes that are kept of each stream: the last 256 KiB.
pub const OUTPUT_KEPT: usize = 256 << 10;

/// The number of bytes to read from a pipe at a time: the default capacity of a pipe.
const CHUNK: usize = 64 << 10;

/// The largest number of bytes to read from a stream after the end of the program: the largest capacity
/// of a pipe without privilege. A descendant that is still running may write without end.
const REST: usize = 1 << 20;

/// The output of a program on one of its streams.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// The end of the output, at most [`OUTPUT_KEPT`] bytes. Invalid UTF-8 is replaced.
    pub text: String,
    /// The number of bytes before that, which were not kept.
    pub dropped: u64,
}

impl Output {
    /// Returns the complete lines. The first one is incomplete if output was dropped; the last one may
    /// be if the output is not `is_whole`, because the program was stopped.
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

/// Cuts a text after 80 characters, as messages need it.
pub(super) fn short(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The output of a program until its end, and when that was.
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

/// Starts a thread that reads the two streams of a program until the program has ended.
///
/// The streams are pipes because a program that opens `/proc/self/fd/1` again would overwrite a file.
///
/// # Errors
///
/// If the thread cannot be started.
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
        // Checked before the pipes are read, so that they contain everything written before the end.
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
    fn tail_keeps_the_end_and_counts_the_rest() {
        let mut tail = Tail::default();
        tail.push(b"abc");
        tail.push(&vec![b'x'; OUTPUT_KEPT - 1]);
        tail.push(b"");
        let output = tail.into_output();
        assert_eq!((output.text.len(), output.dropped), (OUTPUT_KEPT, 2));
        assert!(output.text.starts_with("cx"));
    }
    #[test]
    fn lines_drops_incomplete_lines() {
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
