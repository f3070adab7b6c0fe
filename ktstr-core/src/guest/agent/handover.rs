//! Passes the topology and the descriptors from PID 1 to the process of a body.
//!
//! The program that PID 1 executes has one end of a socket pair, the link, as its standard input. It sends the pid of
//! the body that it has forked and exits. PID 1 is then the body's parent, and sends the topology with the descriptors
//! of the body attached. From then on, the body sends its messages on the link.

use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail, ensure};
use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::Pid;

use crate::guest::topology::TestTopology;
use crate::model::wire::{Decoder, Encoder};

/// PID 1's end of the link, and what it sends to the body.
#[derive(Debug)]
pub(super) struct Handover {
    link: UnixStream,
    topology: Vec<u8>,
    stdout: OwnedFd,
    panics: OwnedFd,
}

impl Handover {
    /// Prepares the handover. Returns it with the other end of the link. `stdout` and `panics` are the
    /// writing ends of pipes.
    pub(super) fn new(
        topology: &TestTopology,
        stdout: OwnedFd,
        panics: OwnedFd,
    ) -> Result<(Self, OwnedFd)> {
        let topology = Encoder::default().encode(topology).context("the topology is too large")?;
        let (link, theirs) = UnixStream::pair().context("failed to create a socket pair")?;
        link.set_nonblocking(true).context("failed to set socket flags")?;
        Ok((Self { link, topology, stdout, panics }, theirs.into()))
    }

    /// Returns the pid of the body; `None` if the program has not sent one.
    pub(super) fn body(&mut self) -> Option<Pid> {
        let mut pid = [0; 4];
        self.link.read_exact(&mut pid).ok()?;
        Pid::from_raw(i32::from_ne_bytes(pid))
    }

    /// Lets the body start. Returns the link to it.
    pub(super) fn give(self) -> Result<UnixStream> {
        let stdin = rustix::stdio::stdin();
        let files = [stdin, self.stdout.as_fd(), self.panics.as_fd()];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(3))];
        let mut attached = SendAncillaryBuffer::new(&mut space);
        ensure!(attached.push(SendAncillaryMessage::ScmRights(&files)), "the space is too small");
        let bytes = IoSlice::new(&self.topology);
        // PID 1 must not wait until the body reads: the link is empty, so it takes all bytes at once.
        let sent = sendmsg(&self.link, &[bytes], &mut attached, SendFlags::NOSIGNAL)
            .context("failed to send the test body its descriptors")?;
        ensure!(sent == self.topology.len(), "the link took {sent} bytes of the topology");
        Ok(self.link)
    }
}

/// What a body receives. All descriptors are close-on-exec.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) topology: TestTopology,
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) panics: OwnedFd,
}

/// Sends PID 1 the pid of the body.
pub(super) fn announce(link: impl AsFd, body: Pid) -> Result<()> {
    // A socket takes four bytes at once.
    rustix::io::write(link, &body.as_raw_nonzero().get().to_ne_bytes())?;
    Ok(())
}

/// Waits until PID 1 is the parent of this process and lets it start.
pub(super) fn receive(link: &UnixStream) -> Result<Received> {
    let (mut decoder, mut files) = (Decoder::default(), Vec::new());
    let mut buffer = vec![0; 1 << 16];
    let topology = loop {
        if let Some(topology) = decoder.next().context("the topology from PID 1 is damaged")? {
            break topology;
        }
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(3))];
        let mut attached = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [IoSliceMut::new(&mut buffer)];
        let received = recvmsg(link, &mut bytes, &mut attached, RecvFlags::CMSG_CLOEXEC)
            .context("failed to receive from PID 1")?;
        ensure!(received.bytes > 0, "PID 1 has closed the link");
        decoder.push(&buffer[..received.bytes]);
        for message in attached.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                files.extend(received);
            }
        }
    };
    let Ok([stdin, stdout, panics]) = <[OwnedFd; 3]>::try_from(files) else {
        bail!("PID 1 has sent another number of descriptors");
    };
    Ok(Received { topology, stdin, stdout, panics })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rustix::io::{FdFlags, fcntl_getfd};

    use super::super::pipe::output_pipe;
    use super::*;

    fn topology(cpus: u32) -> TestTopology {
        let cpus: Vec<_> = (0..cpus).collect();
        let each = cpus.iter().map(|cpu| vec![*cpu]).collect();
        TestTopology { nodes: vec![cpus.clone()], llcs: vec![cpus.clone()], cores: each, cpus }
    }

    #[test]
    fn give_passes_the_topology_and_the_descriptors() {
        for cpus in [1, 4096] {
            let (reader, stdout) = output_pipe().unwrap();
            let (_, panics) = output_pipe().unwrap();
            let (mut handover, theirs) = Handover::new(&topology(cpus), stdout, panics).unwrap();
            let theirs = UnixStream::from(theirs);
            announce(&theirs, Pid::INIT).unwrap();
            assert_eq!(handover.body(), Some(Pid::INIT));
            let ours = handover.give().unwrap();

            let received = receive(&theirs).unwrap();
            assert_eq!(received.topology, topology(cpus));
            for fd in [&received.stdin, &received.stdout, &received.panics] {
                assert_eq!(fcntl_getfd(fd).unwrap(), FdFlags::CLOEXEC);
            }
            std::fs::File::from(received.stdout).write_all(b"text").unwrap();
            let mut text = String::new();
            // To the end: PID 1 has kept no writing end.
            std::fs::File::from(blocking(reader)).read_to_string(&mut text).unwrap();
            assert_eq!(text, "text");
            (&theirs).write_all(b"message").unwrap();
            let mut message = [0; 7];
            (&ours).read_exact(&mut message).unwrap();
            assert_eq!(&message, b"message");
        }
    }

    fn blocking(fd: OwnedFd) -> OwnedFd {
        let flags = rustix::fs::fcntl_getfl(&fd).unwrap();
        rustix::fs::fcntl_setfl(&fd, flags - rustix::fs::OFlags::NONBLOCK).unwrap();
        fd
    }

    #[test]
    fn body_is_none_if_the_program_has_ended_without_it() {
        let ((_, stdout), (_, panics)) = (output_pipe().unwrap(), output_pipe().unwrap());
        let (mut handover, theirs) = Handover::new(&topology(1), stdout, panics).unwrap();
        // A process that it has left running keeps the link open.
        assert_eq!(handover.body(), None);
        drop(theirs);
        assert_eq!(handover.body(), None);
    }

    #[test]
    fn receive_fails_if_pid_1_has_closed_the_link() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        let error = receive(&theirs).unwrap_err().to_string();
        assert_eq!(error, "PID 1 has closed the link");
    }
}
