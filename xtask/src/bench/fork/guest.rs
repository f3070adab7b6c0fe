//! A guest without the runner: it is sent a request, and its messages are waited for.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use ktstr_core::wire::{Decoder, Encoder, GuestMessage, Request, RunRequest};
use ktstr_vmm::{Event, Vm};

/// The timeout of any step, on the slowest host.
const TIMEOUT: Duration = Duration::from_secs(300);

/// A guest and the stream of its messages.
#[derive(Debug)]
pub(super) struct Guest {
    vm: Box<dyn Vm>,
    decoder: Decoder,
    console: Vec<u8>,
}

impl Guest {
    pub(super) fn new(vm: Box<dyn Vm>, decoder: Decoder) -> Self {
        Self { vm, decoder, console: Vec::new() }
    }

    /// Sends the first request.
    pub(super) fn send(&mut self, request: RunRequest) -> Result<()> {
        let frame = Encoder::default().encode(&Request::Run(request))?;
        Ok(self.vm.send(0, &frame)?)
    }

    /// Waits until PID 1 is ready for a request.
    pub(super) fn wait_for_greeting(&mut self) -> Result<()> {
        self.wait("PID 1", |message| matches!(message, GuestMessage::Hello(_)))
    }

    /// Waits until PID 1 starts the body.
    pub(super) fn wait_for_body(&mut self) -> Result<()> {
        self.wait("the body", |message| matches!(message, GuestMessage::BodyStarted { .. }))
    }

    /// Waits until the body has written something.
    pub(super) fn wait_for_output(&mut self) -> Result<()> {
        self.wait("output", |message| matches!(message, GuestMessage::Log { .. }))
    }

    /// Runs the guest for a while, and keeps what it sends.
    pub(super) fn run_for(&mut self, time: Duration) -> Result<()> {
        let deadline = Instant::now() + time;
        while self.step(deadline)? {}
        Ok(())
    }

    /// Saves the guest. Returns the decoder of its copies, and how long it took.
    pub(super) fn save(&mut self, dir: &Path) -> Result<(Decoder, Duration)> {
        // What it has sent is not in its copies.
        self.vm.pause()?;
        self.run_for(Duration::ZERO)?;
        let began = Instant::now();
        self.vm.save(dir)?;
        Ok((self.decoder.clone(), began.elapsed()))
    }

    fn wait(&mut self, what: &str, is_wanted: fn(&GuestMessage) -> bool) -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            while let Some(message) = self.decoder.next()? {
                match message {
                    message if is_wanted(&message) => return Ok(()),
                    GuestMessage::End(end) => bail!("the test ended before {what}: {end:?}"),
                    _ => {}
                }
            }
            if !self.step(deadline)? {
                bail!("no {what} within {TIMEOUT:?}: {}", self.console());
            }
        }
    }

    /// Handles the next event. Returns whether there was one before `deadline`.
    fn step(&mut self, deadline: Instant) -> Result<bool> {
        match self.vm.next_event(deadline)? {
            Event::Console(bytes) => self.console.extend(bytes),
            Event::Port { bytes, .. } => self.decoder.push(&bytes),
            Event::Exited(reason) => bail!("the guest exited: {reason}: {}", self.console()),
            Event::Deadline => return Ok(false),
        }
        Ok(true)
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&self.console).into_owned()
    }
}
