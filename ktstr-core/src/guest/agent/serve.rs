//! PID 1's loop: between the wire to the host and the one child that carries out the request.

use std::convert::Infallible;
use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::child::Child;
use super::outbox::Outbox;
use super::pipe::{Taken, take};
use super::{body, profile, shell, truth};
use crate::guest::registry;
use crate::linux::sys::{self, since_boot_ns};
use crate::model::wire::{
    Decoder, Encoder, End, FileKind, GuestMessage, Hello, Payload, Request, RunRequest,
};

/// How often PID 1 says that it lives.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// While more than this waits for the host, the child's output is left in its pipes.
const QUEUE: usize = 1 << 20;

/// The most that is read at a time.
const CHUNK: usize = 1 << 16;

pub(super) struct Agent {
    port: File,
    requests: Decoder,
    encoder: Encoder,
    queue: Outbox,
    /// Where reads go.
    buffer: Box<[u8]>,
    next_heartbeat: Instant,
    /// What the body says of itself; only counted once it has ended.
    end: Option<End>,
    panic: Option<String>,
}

impl Agent {
    pub(super) fn new(port: File) -> Result<Self> {
        Ok(Self {
            port,
            requests: Decoder::default(),
            encoder: Encoder::default(),
            queue: Outbox::default(),
            buffer: vec![0; CHUNK].into(),
            next_heartbeat: Instant::now(),
            end: None,
            panic: None,
        })
    }

    /// Says hello, carries out one request, reports its end, and waits for the machine to be ended.
    pub(super) fn serve(mut self, began_ns: u64) -> Result<Infallible> {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        self.tell(&GuestMessage::Hello(Hello {
            release,
            init_ns: began_ns,
            ready_ns: since_boot_ns(),
        }))?;
        let request = self.wait_for_request()?;
        let end = match self.start(request)? {
            Ok(child) => self.watch(child)?,
            Err(end) => end,
        };
        let profile = profile::open().unwrap_or_else(|error| {
            eprintln!("ktstr-init: cannot open the profile of the body: {error}");
            None
        });
        if let Some((_, length)) = profile {
            self.tell(&GuestMessage::File { kind: FileKind::Profile, length })?;
        }
        self.tell(&GuestMessage::End(end))?;
        // First the verdict, which must not depend on whether the file can be read.
        self.drain_queue(0)?;
        if let Some((file, _)) = profile {
            self.send_file(file)?;
        }
        self.drain_queue(0)?;
        // Not a power-off: a kernel on its way down may drop what the host has yet to read. The
        // host ends the machine when it has the verdict, and the machine ends with its host.
        loop {
            std::thread::park();
        }
    }

    fn send_file(&mut self, mut file: File) -> Result<()> {
        loop {
            let count = file.read(&mut self.buffer).context("cannot read a file for the host")?;
            if count == 0 {
                return Ok(());
            }
            self.tell(&GuestMessage::FilePiece(self.buffer[..count].to_vec()))?;
            self.drain_queue(QUEUE)?;
        }
    }

    /// Sends what waits for the host, until no more than `rest` bytes are left.
    fn drain_queue(&mut self, rest: usize) -> Result<()> {
        while self.queue.len() > rest {
            let mut port = [PollFd::new(&self.port, PollFlags::OUT)];
            poll(&mut port, None).context("cannot wait for the wire")?;
            self.flush()?;
        }
        Ok(())
    }

    fn wait_for_request(&mut self) -> Result<Request> {
        loop {
            self.turn(&mut None)?;
            if let Some(request) = self.requests.next().context("the host's request is damaged")? {
                return Ok(request);
            }
        }
    }

    /// Starts what the request asks for, or says why not.
    fn start(&mut self, request: Request) -> Result<Result<Child, End>> {
        match request {
            Request::Run(request) => self.start_body(request),
            Request::Shell(request) => shell::start(&request),
            Request::Input(_) | Request::Resize(..) | Request::Kill => {
                bail!("the host addressed a program before it named one")
            }
        }
    }

    fn start_body(&mut self, request: RunRequest) -> Result<Result<Child, End>> {
        let Some(entry) = registry::find(&request.test) else {
            let (test, known) = (&request.test, registry::names());
            let why = format!("unknown test `{test}`; this binary has {known:?}");
            return Ok(Err(End::Refused(why)));
        };
        let topology = match truth::check(&request.machine)? {
            Ok(topology) => topology,
            Err(end) => return Ok(Err(end)),
        };
        self.tell(&GuestMessage::BodyStarted { at_ns: since_boot_ns() })?;
        body::start(entry, topology, request.env).map(Ok)
    }

    /// Passes on what the child says until it has ended, and judges how it did.
    fn watch(&mut self, child: Child) -> Result<End> {
        let is_body = child.messages.is_some();
        let mut child = Some(child);
        let status = loop {
            self.turn(&mut child)?;
            while let Some(request) =
                self.requests.next().context("the host's request is damaged")?
            {
                shell::attend(child.as_mut().expect("stays until it has ended"), &request)?;
            }
            let ended = child.as_ref().expect("stays until it has ended").ended();
            if let Some(status) = ended.context("cannot ask for the child's status")? {
                break status;
            }
        };
        self.drain(&mut child)?;
        if !is_body {
            return Ok(End::ShellExited(shell::status(&status)));
        }
        Ok(match (self.end.take(), self.panic.take()) {
            (Some(end), _) if status.exit_status() == Some(0) => end,
            (_, last_panic) => End::Exited { kind: status.into(), last_panic },
        })
    }

    /// Takes what a child that has ended left in its pipes.
    fn drain(&mut self, child: &mut Option<Child>) -> Result<()> {
        let ended = child.as_mut().expect("stays until it has ended");
        ended.has_ended = true;
        // Only the body itself sends messages, so these come to an end.
        while self.receive_messages(ended)? {}
        // The verdict counts more than the order of what is left to do.
        if let Err(error) = ended.output.finish() {
            eprintln!("ktstr-init: {error:#}");
        }
        while !child.as_ref().expect("stays until its output is taken").output.is_complete() {
            self.turn(child)?;
        }
        Ok(())
    }

    /// Waits for the next thing to do, at most until the next heartbeat, and does it.
    fn turn(&mut self, child: &mut Option<Child>) -> Result<()> {
        self.beat(child.as_ref())?;
        // Input for a program that does not read it stays with the host.
        let take_requests = child.as_ref().is_none_or(|child| child.input.len() < QUEUE);
        let mut port = PollFlags::empty();
        port.set(PollFlags::IN, take_requests);
        port.set(PollFlags::OUT, !self.queue.is_empty());
        let mut fds = vec![PollFd::new(&self.port, port)];
        let listen = self.queue.len() < QUEUE;
        fds.extend(child.iter().flat_map(|child| child.interests(listen)));
        let left = self.next_heartbeat.saturating_duration_since(Instant::now());
        let timeout = left.try_into().context("half a second fits a timespec")?;
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("cannot wait for the wire"),
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

    fn beat(&mut self, child: Option<&Child>) -> Result<()> {
        let now = Instant::now();
        if now < self.next_heartbeat {
            return Ok(());
        }
        self.next_heartbeat = now + HEARTBEAT;
        sys::reap_orphans(child.map(|child| child.pid)).context("cannot reap orphans")?;
        // A host that does not read needs no further sign of life.
        if self.queue.is_empty() {
            self.tell(&GuestMessage::Heartbeat { at_ns: since_boot_ns() })?;
        }
        Ok(())
    }

    fn take_requests(&mut self) -> Result<()> {
        match rustix::io::read(&self.port, &mut *self.buffer) {
            // Nothing: the host's end is not connected yet, or no longer.
            Ok(count) => self.requests.push(&self.buffer[..count]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno).context("cannot read the wire"),
        }
        Ok(())
    }

    /// Sends on what is there of the child's output.
    fn receive_output(&mut self, child: &mut Child) -> Result<()> {
        for payload in child.output.take() {
            self.send(payload)?;
        }
        Ok(())
    }

    /// Takes what a body says of itself, once per channel. False if that was nothing.
    ///
    /// A channel at its end is dropped: to wait for it would be to spin.
    fn receive_messages(&mut self, child: &mut Child) -> Result<bool> {
        let mut any = false;
        match child.panics.as_ref().map(|pipe| take(pipe, &mut self.buffer)) {
            Some(Taken::Bytes(count)) => {
                any = true;
                let text = String::from_utf8_lossy(&self.buffer[..count]).into_owned();
                for message in text.split('\0').filter(|message| !message.is_empty()) {
                    self.panic = Some(message.to_owned());
                    self.tell(&GuestMessage::Panic { message: message.to_owned() })?;
                }
            }
            Some(Taken::End) => child.panics = None,
            Some(Taken::Nothing) | None => {}
        }
        let Some((link, decoder)) = &mut child.messages else { return Ok(any) };
        match take(&*link, &mut self.buffer) {
            Taken::Bytes(count) => decoder.push(&self.buffer[..count]),
            Taken::Nothing => return Ok(any),
            Taken::End => {
                child.messages = None;
                return Ok(any);
            }
        }
        loop {
            match decoder.next_with_payload() {
                Ok(Some((GuestMessage::End(end), _))) => self.end = self.end.take().or(Some(end)),
                // Decoded only to see that the host can decode it, too.
                Ok(Some((
                    GuestMessage::Event(_) | GuestMessage::Capture(_) | GuestMessage::Snapshot(_),
                    payload,
                ))) => self.send(payload)?,
                Ok(None) => return Ok(true),
                // A body that tampers with its channel has no verdict.
                Ok(Some(_)) => return Ok(self.distrust(child, "one is not the body's to send")),
                Err(error) => return Ok(self.distrust(child, &error.to_string())),
            }
        }
    }

    /// Closes the channel of a body and takes its verdict away. True: something was received.
    fn distrust(&mut self, child: &mut Child, why: &str) -> bool {
        self.end = Some(End::ProtocolViolation(why.to_owned()));
        child.messages = None;
        true
    }

    fn tell(&mut self, message: &GuestMessage) -> Result<()> {
        self.send(Payload::encode(message).context("cannot encode a message")?)
    }

    fn send(&mut self, payload: Payload) -> Result<()> {
        self.queue.push(self.encoder.seal(payload));
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        self.queue.flush(&self.port).context("cannot write to the wire")
    }
}
