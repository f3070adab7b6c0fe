//! PID 1's event loop, between the wire to the host and the one child that carries out the request.
//!
//! Invariants: PID 1 never blocks on the child. It reads from the child only while its own queue to
//! the host is short, so that a slow host slows the child and not the heartbeat. The end of a run is
//! the last message but for a file that was announced before it.

use std::convert::Infallible;
use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::body::{self, Harness};
use super::child::Child;
use super::outbox::Outbox;
use super::pipe::{Taken, take};
use super::{machine, profile, restored, shell};
use crate::guest::registry;
use crate::linux::sys::{self, since_boot_ns};
use crate::model::exit::ExitKind;
use crate::model::text::cut;
use crate::model::wire::{
    Decoder, Encoder, End, FileKind, GuestMessage, Hello, Payload, Request, RunRequest,
};

/// The interval of heartbeats.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// The most bytes that PID 1 queues for the host before it stops to read from the child, and for the
/// child before it stops to read from the host.
const QUEUE: usize = 1 << 20;

/// The most bytes of a message that are quoted when it is refused.
const VIOLATION: usize = 200;

/// The most bytes that one read takes.
const CHUNK: usize = 1 << 16;

pub(super) struct Agent {
    port: File,
    harness: Harness,
    requests: Decoder,
    encoder: Encoder,
    queue: Outbox,
    /// The buffer of all reads.
    buffer: Box<[u8]>,
    next_heartbeat: Instant,
    /// The end that the body has sent. It counts only when the body has exited with status 0.
    end: Option<End>,
    last_panic: Option<String>,
}

impl Agent {
    pub(super) fn new(port: File, harness: Harness) -> Self {
        Self {
            port,
            harness,
            requests: Decoder::default(),
            encoder: Encoder::default(),
            queue: Outbox::default(),
            buffer: vec![0; CHUNK].into(),
            next_heartbeat: Instant::now(),
            end: None,
            last_panic: None,
        }
    }

    /// Sends `Hello`, carries out one request, sends its end, and waits until the host ends the machine.
    pub(super) fn serve(mut self, began_ns: u64) -> Result<Infallible> {
        let clock_source = restored::clock_source()?;
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        self.send(&GuestMessage::Hello(Hello {
            release,
            init_ns: began_ns,
            ready_ns: since_boot_ns(),
        }))?;
        let request = self.wait_for_request()?;
        let end = match self.start(request, &clock_source)? {
            Ok(child) => self.watch(child)?,
            Err(end) => end,
        };
        let profile = profile::open().unwrap_or_else(|error| {
            eprintln!("ktstr-init: failed to open the profile of the test body: {error}");
            None
        });
        if let Some((_, length)) = profile {
            self.send(&GuestMessage::File { kind: FileKind::Profile, length })?;
        }
        self.send(&GuestMessage::End(end))?;
        // The end goes first: it must arrive even if the file cannot be read.
        self.drain_queue(0)?;
        if let Some((file, _)) = profile {
            self.send_file(file)?;
        }
        self.drain_queue(0)?;
        // Not a power-off: a kernel that shuts down may drop bytes that the host has not read yet. The
        // host ends the machine when it has the end of the run, and the machine dies with its host.
        loop {
            std::thread::park();
        }
    }

    fn send_file(&mut self, mut file: File) -> Result<()> {
        loop {
            let count = file.read(&mut self.buffer).context("failed to read the profile")?;
            if count == 0 {
                return Ok(());
            }
            self.send(&GuestMessage::FilePiece(self.buffer[..count].to_vec()))?;
            self.drain_queue(QUEUE)?;
        }
    }

    /// Waits until no more than `rest` bytes are queued for the host.
    fn drain_queue(&mut self, rest: usize) -> Result<()> {
        while self.queue.len() > rest {
            let mut port = [PollFd::new(&self.port, PollFlags::OUT)];
            poll(&mut port, None).context("failed to wait for the wire")?;
            self.flush()?;
        }
        Ok(())
    }

    /// Waits for the request of this run.
    fn wait_for_request(&mut self) -> Result<Request> {
        loop {
            self.poll_once(&mut None)?;
            if let Some(request) =
                self.requests.next().context("a request from the host is damaged")?
            {
                return Ok(request);
            }
        }
    }

    /// Starts the child that carries out the request, or returns the end of a run without one.
    fn start(&mut self, request: Request, clock_source: &str) -> Result<Result<Child, End>> {
        match request {
            Request::Run(request) => self.start_body(request, clock_source),
            Request::Shell(request) => shell::start(&request),
            Request::Input(_) | Request::Resize(..) | Request::Kill => {
                bail!("the host sent input before a request")
            }
        }
    }

    fn start_body(
        &mut self,
        request: RunRequest,
        clock_source: &str,
    ) -> Result<Result<Child, End>> {
        let Some(entry) = registry::find(&request.test) else {
            let (test, known) = (&request.test, registry::names());
            let why = format!("unknown test `{test}`; this test binary has {known:?}");
            return Ok(Err(End::Refused(why)));
        };
        if let Some(restored) = &request.restored
            && let Err(error) = restored::apply(restored, clock_source)
        {
            return Ok(Err(End::Refused(format!("the guest cannot be restored: {error:#}"))));
        }
        let topology = match machine::check(&request.machine)? {
            Ok(topology) => topology,
            Err(end) => return Ok(Err(end)),
        };
        let child = match body::start(entry, &topology, request.env, self.harness) {
            Ok(child) => child,
            Err(error) => return Ok(Err(End::Refused(format!("{error:#}")))),
        };
        // The body waits for the handover, which comes after this message.
        self.send(&GuestMessage::BodyStarted { at_ns: since_boot_ns() })?;
        Ok(Ok(child))
    }

    /// Forwards the child's messages until it has ended. Returns the end of the run.
    fn watch(&mut self, child: Child) -> Result<End> {
        let is_body = child.handover.is_some();
        let mut child = Some(child);
        let status = loop {
            self.poll_once(&mut child)?;
            while let Some(request) =
                self.requests.next().context("a request from the host is damaged")?
            {
                shell::attend(
                    child.as_mut().expect("the child stays until it has ended"),
                    &request,
                )?;
            }
            let child = child.as_mut().expect("the child stays until it has ended");
            if let Some(status) = child.ended().context("failed to read the child's status")?
                && !child.continue_with_body(&status)?
            {
                break status;
            }
        };
        // Its last messages and output may still be in its pipes, of which the handover has writers.
        let handover = child.as_mut().and_then(|child| child.handover.take());
        let has_begun = handover.is_none();
        drop(handover);
        self.drain(&mut child)?;
        if !is_body {
            return Ok(End::ShellExited(shell::status(&status)));
        }
        if !has_begun {
            self.drain_queue(0)?;
            let kind = ExitKind::from(status);
            bail!(
                "the program of the test body ended before the body began: {kind}; see its output"
            );
        }
        Ok(match (self.end.take(), self.last_panic.take()) {
            // An end followed by a crash is a crash: the body's destructors are part of the test.
            (Some(end), _) if status.exit_status() == Some(0) => end,
            (_, last_panic) => End::Exited { kind: status.into(), last_panic },
        })
    }

    /// Reads what a child that has ended left in its pipes.
    fn drain(&mut self, child: &mut Option<Child>) -> Result<()> {
        let ended = child.as_mut().expect("the child stays until it has ended");
        ended.has_ended = true;
        // Only the body itself sends messages, so this loop ends.
        while self.receive_messages(ended)? {}
        // Not fatal: without the priority, the output only takes longer.
        if let Err(error) = ended.output.finish() {
            eprintln!("ktstr-init: {error:#}");
        }
        while !child
            .as_ref()
            .expect("the child stays until its output is read")
            .output
            .is_complete()
        {
            self.poll_once(child)?;
        }
        Ok(())
    }

    /// Waits for the next event, at most until the next heartbeat, and handles all that there are.
    fn poll_once(&mut self, child: &mut Option<Child>) -> Result<()> {
        self.beat(child.as_ref())?;
        // Backpressure in both directions: input that the program does not read stays with the host,
        // output that the host does not read stays in the child's pipes.
        let take_requests = child.as_ref().is_none_or(|child| child.input.len() < QUEUE);
        let listen = self.queue.len() < QUEUE;
        let mut port = PollFlags::empty();
        port.set(PollFlags::IN, take_requests);
        port.set(PollFlags::OUT, !self.queue.is_empty());
        let mut fds = vec![PollFd::new(&self.port, port)];
        fds.extend(child.iter().flat_map(|child| child.interests(listen)));
        let left = self.next_heartbeat.saturating_duration_since(Instant::now());
        let timeout = left.try_into().context("the interval does not fit a timespec")?;
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("failed to wait for the wire"),
        }
        if take_requests {
            self.take_requests()?;
        }
        if let Some(child) = child {
            if listen {
                self.receive_messages(child)?;
                self.receive_output(child)?;
            }
            child.feed();
        }
        self.flush()
    }

    /// Reaps orphans and sends a heartbeat, if one is due.
    fn beat(&mut self, child: Option<&Child>) -> Result<()> {
        let now = Instant::now();
        if now < self.next_heartbeat {
            return Ok(());
        }
        self.next_heartbeat = now + HEARTBEAT;
        sys::reap_orphans(child.map(|child| child.pid)).context("failed to reap orphans")?;
        // More heartbeats would only fill the queue of a host that does not read.
        if self.queue.is_empty() {
            self.send(&GuestMessage::Heartbeat { at_ns: since_boot_ns() })?;
        }
        Ok(())
    }

    /// Reads what the host has sent.
    fn take_requests(&mut self) -> Result<()> {
        match rustix::io::read(&self.port, &mut *self.buffer) {
            // 0 bytes: the host is not connected yet, or not any more.
            Ok(count) => self.requests.push(&self.buffer[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno).context("failed to read the wire"),
        }
        Ok(())
    }

    /// Forwards the child's output that its thread has encoded.
    fn receive_output(&mut self, child: &mut Child) -> Result<()> {
        for payload in child.output.take() {
            self.forward(payload)?;
        }
        Ok(())
    }

    /// Reads once from each channel of a body. Returns whether there was anything.
    fn receive_messages(&mut self, child: &mut Child) -> Result<bool> {
        let any_panic = self.receive_panics(child)?;
        let Some((link, decoder)) = &mut child.messages else { return Ok(any_panic) };
        match take(&*link, &mut self.buffer) {
            Taken::Bytes(count) => decoder.push(&self.buffer[..count]),
            Taken::Nothing => return Ok(any_panic),
            Taken::End => {
                // A channel at its end is always readable: `poll` would return at once forever.
                child.messages = None;
                return Ok(any_panic);
            }
        }
        loop {
            let mut violation = match decoder.next_with_payload() {
                Ok(None) => return Ok(true),
                // The first end counts.
                Ok(Some((GuestMessage::End(end), _))) if is_from_body(&end) => {
                    self.end.get_or_insert(end);
                    continue;
                }
                // Decoded only to check that the host can decode it, too.
                Ok(Some((
                    GuestMessage::Event(_)
                    | GuestMessage::Capture(_)
                    | GuestMessage::Snapshot(_)
                    | GuestMessage::Measurements(_),
                    payload,
                ))) => {
                    self.forward(payload)?;
                    continue;
                }
                Ok(Some((message, _))) => format!("unexpected message {message:?}"),
                Err(error) => error.to_string(),
            };
            cut(&mut violation, VIOLATION);
            // Messages that the body must not send cast doubt on all others, its verdict included.
            self.end = Some(End::ProtocolViolation(violation));
            child.messages = None;
            return Ok(true);
        }
    }

    /// Reads the messages of panics of a body. Returns whether there was anything.
    fn receive_panics(&mut self, child: &mut Child) -> Result<bool> {
        match child.panics.as_ref().map(|pipe| take(pipe, &mut self.buffer)) {
            Some(Taken::Bytes(count)) => {
                let text = String::from_utf8_lossy(&self.buffer[..count]).into_owned();
                for message in text.split('\0').filter(|message| !message.is_empty()) {
                    self.last_panic = Some(message.to_owned());
                    self.send(&GuestMessage::Panic { message: message.to_owned() })?;
                }
                return Ok(true);
            }
            Some(Taken::End) => child.panics = None,
            Some(Taken::Nothing) | None => {}
        }
        Ok(false)
    }

    fn send(&mut self, message: &GuestMessage) -> Result<()> {
        self.forward(Payload::encode(message).context("failed to encode a message")?)
    }

    fn forward(&mut self, payload: Payload) -> Result<()> {
        self.queue.push(self.encoder.seal(payload));
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        self.queue.flush(&self.port).context("failed to write to the wire")
    }
}

/// Returns whether a body may send this end. All others are PID 1's own findings.
fn is_from_body(end: &End) -> bool {
    matches!(end, End::Verdict(_) | End::Error(_) | End::Panicked(_))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::model::measurement::Measurement;
    use crate::model::verdict::AssertResult;
    use crate::model::wire::{ScenarioEvent, Stream};

    /// Lets a child send `bytes` as a body does. Returns the end that the agent has stored, whether
    /// it still reads from the child, and what it forwarded to the host.
    fn receive(bytes: &[u8]) -> (Option<End>, bool, Vec<GuestMessage>) {
        let (mut host, port) = UnixStream::pair().unwrap();
        let mut agent = Agent::new(File::from(OwnedFd::from(port)), Harness::Libtest);
        let mut child = Child::fork(|| 0).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        child.messages = Some((ours, Decoder::default()));
        theirs.write_all(bytes).unwrap();
        assert!(agent.receive_messages(&mut child).unwrap());
        let listens = child.messages.is_some();
        let end = agent.end.take();
        sys::reap(child.pid).unwrap();
        drop(agent);
        let (mut sent, mut decoder) = (Vec::new(), Decoder::default());
        host.read_to_end(&mut sent).unwrap();
        decoder.push(&sent);
        let messages = std::iter::from_fn(|| decoder.next().unwrap()).collect();
        (end, listens, messages)
    }

    fn frames(messages: &[GuestMessage]) -> Vec<u8> {
        let mut encoder = Encoder::default();
        messages.iter().flat_map(|message| encoder.encode(message).unwrap()).collect()
    }

    fn pass() -> GuestMessage {
        GuestMessage::End(End::Verdict(AssertResult::pass()))
    }

    #[test]
    fn receive_messages_forwards_facts_and_keeps_the_first_end() {
        let event = ScenarioEvent { at_ns: 1, phase: "step 0".into(), what: "begun".into() };
        let error = GuestMessage::End(End::Error("too late".into()));
        let measured = vec![Measurement::new("gap", 1.5, "ms")];
        let facts = vec![GuestMessage::Event(event), GuestMessage::Measurements(measured)];
        let sent = frames(&[&facts[..], &[pass(), error]].concat());
        let verdict = End::Verdict(AssertResult::pass());
        assert_eq!(receive(&sent), (Some(verdict), true, facts));
    }

    #[test]
    fn receive_messages_refuses_messages_that_a_body_must_not_send() {
        let hello = Hello { release: "6.12".into(), init_ns: 1, ready_ns: 2 };
        let exited = End::Exited { kind: ExitKind::Exited(0), last_panic: None };
        for message in [
            GuestMessage::Hello(hello),
            GuestMessage::BodyStarted { at_ns: 1 },
            GuestMessage::Heartbeat { at_ns: 1 },
            GuestMessage::Log { stream: Stream::Stdout, bytes: b"text".to_vec() },
            GuestMessage::Panic { message: "none".into() },
            GuestMessage::File { kind: FileKind::Profile, length: 1 },
            GuestMessage::FilePiece(vec![1; 20_000]),
            GuestMessage::End(exited),
            GuestMessage::End(End::ProtocolViolation("none".into())),
            GuestMessage::End(End::WrongTopology(vec![])),
            GuestMessage::End(End::Refused("none".into())),
            GuestMessage::End(End::ShellExited(0)),
        ] {
            // Neither a verdict before it counts nor one after it.
            let (end, listens, messages) = receive(&frames(&[pass(), message.clone(), pass()]));
            let Some(End::ProtocolViolation(what)) = end else { panic!("{message:?}: {end:?}") };
            assert!(what.len() < 2 * VIOLATION, "{what}");
            assert_eq!((listens, messages), (false, vec![]), "{message:?}");
        }
    }

    #[test]
    fn receive_messages_refuses_damaged_frames() {
        let mut sent = frames(&[pass(), pass()]);
        *sent.last_mut().unwrap() ^= 1;
        let (end, listens, _) = receive(&sent);
        assert!(matches!(end, Some(End::ProtocolViolation(_))), "{end:?}");
        assert!(!listens);
    }
}
