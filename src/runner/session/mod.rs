//! One run on a machine: sends the request, handles what arrives, and decides how the run ended.
//!
//! [`Session`] is the loop over the events of the [`Vm`]. It passes them to the [`Collector`], which keeps
//! what arrived, and to the [`Watchdog`], which decides about timeouts.

mod collector;
mod protocol;
mod steal;
mod watchdog;

use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use ktstr_core::model::pid1::FAILURE_PREFIX;
use ktstr_core::record::{BoundedMeasurements, Start};
use ktstr_core::result::{ExitKind, GuestExit, InitFailure, RunEnd, RunPhase, Timings};
use ktstr_core::snapshot::{CgroupProcsSnapshot, Snapshot};
use ktstr_core::wire::{
    Decoder, Encoder, End, GuestMessage, Hello, Request, Restored, ScenarioEvent, Stream,
};
use ktstr_vmm::{Engine, Event, ExitReason, Vm, VmConfig};

use super::clocks::Clocks;
use super::console;
use super::template::{BootState, Forked, Plan, Saver};
use collector::Collector;
pub(crate) use collector::ReceivedFile;
use protocol::Protocol;
use steal::StealMeter;
pub(crate) use watchdog::RunLimits;
use watchdog::{Overdue, Watchdog};

/// The time of a boot to PID 1 on hardware, the unit of [`Timings::slowness`].
const HARDWARE_BOOT: Duration = Duration::from_secs(1);

/// The time that a forked guest on hardware takes from the start of the engine to the start of the body, the unit
/// of its [`Timings::slowness`]. QEMU's emulation takes 3 to 4 of them on an idle host, as it does for a boot.
const HARDWARE_FORK: Duration = Duration::from_millis(100);

/// How many pending events are handled before a timeout is enforced ...
const MAX_PENDING: usize = 1000;

/// ... and how many bytes. An engine holds less than this for its guest.
const MAX_PENDING_BYTES: usize = 4 << 20;

/// The longest time for the file that follows the end of a run.
const FILE_LIMIT: Duration = Duration::from_secs(120);

/// The result of a run.
#[derive(Debug)]
pub(crate) struct RunOutcome {
    pub(crate) start: Start,
    pub(crate) end: RunEnd,
    /// The exit status of a program run by [`Request::Shell`].
    pub(crate) shell_status: Option<u8>,
    pub(crate) console: String,
    pub(crate) log: String,
    pub(crate) events: Vec<ScenarioEvent>,
    pub(crate) captures: Vec<CgroupProcsSnapshot>,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) measurements: BoundedMeasurements,
    pub(crate) timings: Timings,
    /// See [`RunRecord::stolen`](ktstr_core::record::RunRecord::stolen).
    pub(crate) stolen: Vec<f64>,
    /// The profile of an instrumented body, as far as it arrived.
    pub(crate) profile: Option<ReceivedFile>,
}

/// An event that the caller of [`run`] handles during the run.
#[derive(Debug)]
pub(crate) enum Live<'a> {
    /// The body wrote this.
    Output(Stream, &'a [u8]),
    /// No event arrived for a moment: the caller can send input.
    Idle,
}

/// A function that is called with each [`Live`] event and returns input for the body.
type OnLive<'a> = &'a mut dyn FnMut(Live<'_>) -> Option<Request>;

/// Boots `config` on `engine`, or forks a guest that was booted, sends `request`, and returns how the run ended.
pub(crate) fn run(
    engine: &dyn Engine,
    config: &VmConfig,
    plan: Plan,
    request: Request,
    limits: RunLimits,
    live: OnLive<'_>,
) -> RunOutcome {
    let saver = match plan {
        Plan::Boot(saver) => saver,
        Plan::Fork(fork) => {
            let session = Session::new(request.clone(), limits, Instant::now());
            tracing::debug!("fork on {}", engine.describe());
            match fork.start(engine, config) {
                Ok(forked) => return session.run_forked(forked, live),
                Err(saver) => saver,
            }
        }
    };
    // The boot counts from before the engine is started.
    let mut session = Session::new(request, limits, Instant::now());
    session.saver = saver;
    tracing::debug!("boot on {}", engine.describe());
    match engine.boot(config) {
        Ok(mut vm) => session.run(&mut *vm, live),
        Err(error) => session.finish(engine_failed(&error).into()),
    }
}

/// How a run ended.
#[derive(Debug)]
enum Ended {
    Run(RunEnd),
    /// The program of a shell exited with this status.
    Shell(u8),
}

impl From<RunEnd> for Ended {
    fn from(end: RunEnd) -> Self {
        Self::Run(end)
    }
}

/// The result of an attempt to save a guest.
#[derive(Debug)]
enum Saving {
    Saved,
    /// The guest continues, and was not saved.
    NotSaved(String),
    /// The run ended meanwhile.
    Ended(Ended),
}

/// Returns the wall-clock time and the random bytes for a forked guest.
fn restored() -> Result<Restored, RunEnd> {
    let mut entropy = vec![0; Restored::ENTROPY];
    // Source: getrandom(2): up to 256 bytes are never read in part.
    match rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty()) {
        Ok(Restored::ENTROPY) => {}
        Ok(_) => return Err(RunEnd::EngineFailed("getrandom returned too few bytes".to_owned())),
        Err(errno) => return Err(RunEnd::EngineFailed(format!("getrandom failed: {errno}"))),
    }
    let wall_clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Restored { wall_clock, entropy })
}

fn engine_failed(error: &ktstr_vmm::Error) -> RunEnd {
    RunEnd::EngineFailed(error.to_string())
}

/// The event loop of a run.
struct Session {
    /// The request, until the guest is ready for it.
    request: Option<Request>,
    /// Saves the guest when it is ready for the request.
    saver: Option<Saver>,
    start: Start,
    /// The guest's first message.
    hello: Option<Hello>,
    protocol: Protocol,
    decoder: Decoder,
    encoder: Encoder,
    clocks: Clocks,
    watchdog: Watchdog,
    collector: Collector,
    timings: Timings,
    steal: Option<StealMeter>,
    stolen: Vec<f64>,
}

impl Session {
    fn new(request: Request, limits: RunLimits, now: Instant) -> Self {
        Self {
            protocol: Protocol::new(&request),
            request: Some(request),
            saver: None,
            start: Start::Booted { saved_in: None },
            hello: None,
            decoder: Decoder::default(),
            encoder: Encoder::default(),
            clocks: Clocks::at_boot(),
            watchdog: Watchdog::new(limits, now),
            collector: Collector::default(),
            timings: Timings { slowness: 1.0, ..Timings::default() },
            steal: None,
            stolen: Vec::new(),
        }
    }

    /// Continues at the point at which the session of the template saved its guest.
    fn run_forked(mut self, forked: Forked, live: OnLive<'_>) -> RunOutcome {
        let Forked { mut vm, boot, age, uses } = forked;
        let BootState { ran, next_frame, hello, console } = boot;
        self.start = Start::Forked { template_age: age, uses };
        self.decoder = Decoder::starting_at(next_frame);
        self.clocks.add_time_before_save(ran);
        self.collector.add_console(console.as_bytes());
        self.timings.uptime_at_init = Some(Duration::from_nanos(hello.init_ns));
        let now = Instant::now();
        self.timings.restore = Some(self.watchdog.run_time(now));
        self.watchdog.enter(RunPhase::Ready, now);
        match self.protocol.advance(&GuestMessage::Hello(hello)) {
            Ok(()) => self.run(&mut *vm, live),
            Err(why) => self.finish(RunEnd::WireBroken(why).into()),
        }
    }

    /// Handles the events of `vm` until the run ends, stops it, and returns the outcome.
    fn run(mut self, vm: &mut dyn Vm, live: OnLive<'_>) -> RunOutcome {
        let mut end = self.wait_for_end(vm, live);
        let now = Instant::now();
        tracing::debug!("end of the run: {end:?}");
        if self.watchdog.phase() == RunPhase::Body {
            self.timings.body = Some(self.watchdog.phase_time(now));
        }
        if let Ended::Run(RunEnd::Verdict(_)) = end {
            self.timings.last_event_to_verdict =
                self.collector.last_event.map(|arrived| now - arrived);
        }
        // While the engine still runs: its threads have the delays.
        if let Some(steal) = &self.steal {
            self.stolen = steal.read(vm);
        }
        self.receive_file(vm);
        tracing::debug!("stop the machine");
        if let Err(error) = vm.stop() {
            // An engine that cannot stop its machine has failed, whatever came before.
            end = engine_failed(&error).into();
        }
        self.timings.teardown = now.elapsed();
        self.drain_console(vm);
        tracing::debug!("machine stopped after {:?}", self.timings.teardown);
        self.finish(end)
    }

    fn finish(self, end: Ended) -> RunOutcome {
        let (end, shell_status) = match end {
            Ended::Run(end) => (end, None),
            Ended::Shell(status) => (end_of_body(End::ShellExited(status)), Some(status)),
        };
        RunOutcome {
            start: self.start,
            end,
            shell_status,
            console: self.collector.console(),
            log: String::from_utf8_lossy(&self.collector.log).into_owned(),
            events: self.collector.events,
            captures: self.collector.captures,
            snapshots: self.collector.snapshots,
            measurements: self.collector.measurements,
            timings: self.timings,
            stolen: self.stolen,
            profile: self.collector.profile,
        }
    }

    fn wait_for_end(&mut self, vm: &mut dyn Vm, live: OnLive<'_>) -> Ended {
        loop {
            if self.is_ready()
                && let Some(end) = self.send_request(vm, live)
            {
                return end;
            }
            let deadline = self.watchdog.deadline(Instant::now());
            let event = vm.next_event(deadline);
            self.watchdog.shift_deadlines(deadline, Instant::now());
            if let Some(end) = self.handle_event(vm, event, live) {
                return end;
            }
            if self.watchdog.overdue(Instant::now()).is_none() {
                continue;
            }
            // What has arrived counts before the timeout: handle what is pending, then check again.
            let mut bytes = 0;
            for _ in 0..MAX_PENDING {
                match vm.next_event(Instant::now()) {
                    Ok(Event::Deadline) => break,
                    event => {
                        bytes += event.as_ref().map_or(0, size);
                        if let Some(end) = self.handle_event(vm, event, live) {
                            return end;
                        }
                    }
                }
                if bytes > MAX_PENDING_BYTES {
                    break;
                }
            }
            if let Some(overdue) = self.watchdog.overdue(Instant::now()) {
                tracing::debug!("watchdog: {overdue:?}");
                return self.blame(self.explain_timeout(overdue)).into();
            }
        }
    }

    /// Handles one event; returns the end of the run if the event is that.
    fn handle_event(
        &mut self,
        vm: &mut dyn Vm,
        event: Result<Event, ktstr_vmm::Error>,
        live: OnLive<'_>,
    ) -> Option<Ended> {
        let handled = match event {
            Err(error) => Err(engine_failed(&error)),
            Ok(Event::Console(bytes)) => {
                self.handle_console(&bytes);
                Ok(None)
            }
            Ok(Event::Port { bytes, .. }) => self.handle_port_data(vm, &bytes, live),
            Ok(Event::Exited(reason)) => {
                tracing::debug!("machine exited: {reason:?}");
                Err(self.blame(self.explain_exit(&reason)))
            }
            // Before the request, no program of the guest reads input.
            Ok(Event::Deadline) if self.watchdog.phase() != RunPhase::Body => Ok(None),
            Ok(Event::Deadline) => self.send(vm, live(Live::Idle)).map(|()| None),
        };
        match handled {
            Ok(end) => end.map(|end| self.explain_end(end)),
            Err(end) => Some(end.into()),
        }
    }

    fn handle_console(&mut self, bytes: &[u8]) {
        let now = Instant::now();
        if self.watchdog.phase() == RunPhase::Silent {
            self.timings.first_line = Some(self.watchdog.run_time(now));
        }
        self.watchdog.on_console(now);
        let recent = self.collector.add_console(bytes);
        if self.timings.init.is_none() && recent.contains("Run /init as init process") {
            tracing::debug!("guest: the kernel runs /init");
            self.timings.init = Some(self.watchdog.run_time(now));
        }
        if console::panic_message(&recent).is_some() {
            self.watchdog.on_panic(now);
        }
    }

    /// Handles bytes of the port: any number of messages, of which the first and the last may be partial.
    ///
    /// Returns the end of the body if it has arrived; what follows it stays in the decoder.
    fn handle_port_data(
        &mut self,
        vm: &mut dyn Vm,
        bytes: &[u8],
        live: OnLive<'_>,
    ) -> Result<Option<End>, RunEnd> {
        // Any byte shows that the guest is alive, even in the middle of a message.
        self.watchdog.on_activity(Instant::now());
        self.decoder.push(bytes);
        while let Some((message, length)) = self
            .decoder
            .next_with_length()
            .map_err(|error| RunEnd::WireBroken(error.to_string()))?
        {
            self.protocol.advance(&message).map_err(RunEnd::WireBroken)?;
            self.collector.charge(&message, length)?;
            match message {
                // Steps of the protocol, in this order.
                GuestMessage::Hello(hello) => self.end_boot(hello)?,
                GuestMessage::BodyStarted { at_ns } => self.start_body(vm, at_ns)?,
                GuestMessage::Heartbeat { at_ns } => {
                    self.clocks.check_uptime(at_ns)?;
                    let host = self.watchdog.phase_time(Instant::now());
                    self.clocks.check_body(at_ns, host)?;
                }
                GuestMessage::End(end) => {
                    tracing::debug!("guest: the end arrived");
                    return Ok(Some(end));
                }
                GuestMessage::Log { stream, bytes } => {
                    self.handle_output(vm, stream, &bytes, live)?
                }
                // Facts that are only kept.
                GuestMessage::Event(event) => self.collector.add_event(event, Instant::now()),
                GuestMessage::Capture(capture) => self.collector.captures.push(capture),
                GuestMessage::Snapshot(snapshot) => self.collector.snapshots.push(snapshot),
                GuestMessage::Measurements(list) => self.collector.add_measurements(list),
                GuestMessage::Panic { message } => self.collector.add_panic(message),
                GuestMessage::File { kind, length } => self.collector.announce_file(kind, length),
                // Pieces follow the end, so the protocol refuses them here; see `receive_file`.
                GuestMessage::FilePiece(_) => {}
            }
        }
        Ok(None)
    }

    /// Measures the boot: PID 1 is ready for the request.
    fn end_boot(&mut self, hello: Hello) -> Result<(), RunEnd> {
        self.clocks.check_uptime(hello.ready_ns)?;
        let now = Instant::now();
        let boot = self.watchdog.run_time(now);
        let slowness = boot.as_secs_f64() / HARDWARE_BOOT.as_secs_f64();
        self.timings.uptime_at_init = Some(Duration::from_nanos(hello.init_ns));
        self.timings.boot = Some(boot);
        self.timings.slowness = self.watchdog.set_slowness(slowness);
        self.watchdog.enter(RunPhase::Ready, now);
        tracing::debug!("hello of Linux {:?} after {boot:?}", hello.release);
        self.hello = Some(hello);
        Ok(())
    }

    /// Returns whether the guest waits for the request.
    fn is_ready(&self) -> bool {
        self.request.is_some() && matches!(self.watchdog.phase(), RunPhase::Ready | RunPhase::Body)
    }

    /// Saves the guest if that is requested, and sends the request. Returns the end of the run if that came first.
    fn send_request(&mut self, vm: &mut dyn Vm, live: OnLive<'_>) -> Option<Ended> {
        if let (Some(saver), Some(hello)) = (self.saver.take(), self.hello.take()) {
            let before = Instant::now();
            match self.save(vm, saver, hello, live) {
                Saving::Saved => {
                    self.start = Start::Booted { saved_in: Some(before.elapsed()) };
                }
                Saving::NotSaved(why) => tracing::debug!("the guest was not saved: {why}"),
                Saving::Ended(end) => return Some(end),
            }
            // The guest was paused.
            self.watchdog.exclude(before, Instant::now());
        }
        let mut request = self.request.take()?;
        match &mut request {
            // A shell does not report when its program starts.
            Request::Shell(_) => self.watchdog.enter(RunPhase::Body, Instant::now()),
            Request::Run(run) if matches!(self.start, Start::Forked { .. }) => match restored() {
                Ok(restored) => run.restored = Some(restored),
                Err(end) => return Some(end.into()),
            },
            _ => {}
        }
        self.send(vm, Some(request)).err().map(Ended::Run)
    }

    /// Saves the guest, so that others can be forked from it. The guest was paused and continues.
    fn save(&mut self, vm: &mut dyn Vm, saver: Saver, hello: Hello, live: OnLive<'_>) -> Saving {
        if let Err(error) = vm.pause() {
            // It may be paused nevertheless.
            return match vm.resume() {
                Ok(()) => Saving::NotSaved(error.to_string()),
                Err(error) => Saving::Ended(engine_failed(&error).into()),
            };
        }
        // What the guest has sent belongs to this session and to those of all copies; they continue after it.
        let mut has_read_all = false;
        for _ in 0..MAX_PENDING {
            match vm.next_event(Instant::now()) {
                Ok(Event::Deadline) => {
                    has_read_all = true;
                    break;
                }
                event => {
                    if let Some(end) = self.handle_event(vm, event, live) {
                        return Saving::Ended(end);
                    }
                }
            }
        }
        let is_waiting = has_read_all
            && self.watchdog.phase() == RunPhase::Ready
            && self.decoder.unread() == 0
            && self.collector.kernel_panic().is_none();
        let saved = if is_waiting {
            let ran = self.clocks.run_time();
            let (next_frame, console) = (self.decoder.next_number(), self.collector.console());
            let boot = BootState { ran, next_frame, hello, console };
            saver.save(boot, |directory| vm.save(directory)).map_err(|error| format!("{error:#}"))
        } else {
            Err("it does not wait for a request".to_owned())
        };
        match (vm.resume(), saved) {
            (Err(error), _) => Saving::Ended(engine_failed(&error).into()),
            (Ok(()), Ok(())) => Saving::Saved,
            (Ok(()), Err(why)) => Saving::NotSaved(why),
        }
    }

    fn start_body(&mut self, vm: &mut dyn Vm, at_ns: u64) -> Result<(), RunEnd> {
        self.clocks.check_uptime(at_ns)?;
        self.clocks.start_body(at_ns);
        let now = Instant::now();
        self.timings.ready = Some(self.watchdog.phase_time(now));
        if matches!(self.start, Start::Forked { .. }) {
            let began = self.watchdog.run_time(now);
            let slowness = began.as_secs_f64() / HARDWARE_FORK.as_secs_f64();
            self.timings.slowness = self.watchdog.set_slowness(slowness);
        }
        self.watchdog.enter(RunPhase::Body, now);
        self.steal = StealMeter::start(vm);
        Ok(())
    }

    fn handle_output(
        &mut self,
        vm: &mut dyn Vm,
        stream: Stream,
        bytes: &[u8],
        live: OnLive<'_>,
    ) -> Result<(), RunEnd> {
        self.collector.add_log(bytes);
        let before = Instant::now();
        let input = live(Live::Output(stream, bytes));
        // The callback may block on a slow reader of our output. That is not time of the guest.
        self.watchdog.exclude(before, Instant::now());
        self.send(vm, input)
    }

    fn send(&mut self, vm: &mut dyn Vm, request: Option<Request>) -> Result<(), RunEnd> {
        let Some(request) = request else { return Ok(()) };
        let frame =
            self.encoder.encode(&request).map_err(|error| RunEnd::WireBroken(error.to_string()))?;
        vm.send(0, &frame).map_err(|error| engine_failed(&error))
    }

    /// Receives the file that was announced, after the end of the run. A missing piece changes no verdict.
    fn receive_file(&mut self, vm: &mut dyn Vm) {
        let timeout = self.watchdog.message_timeout();
        let last = Instant::now() + FILE_LIMIT;
        let mut deadline = last.min(Instant::now() + timeout);
        // Neither a console that never falls silent nor a file in single bytes extends the limits.
        while self.collector.expects_file() && Instant::now() <= deadline {
            // First what is already decoded, then new bytes.
            match self.decoder.next() {
                Ok(Some(GuestMessage::FilePiece(piece))) => {
                    self.collector.add_file_piece(&piece);
                    continue;
                }
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return,
            }
            match vm.next_event(deadline) {
                Ok(Event::Port { bytes, .. }) => {
                    self.decoder.push(&bytes);
                    deadline = last.min(Instant::now() + timeout);
                }
                Ok(Event::Console(bytes)) => {
                    self.collector.add_console(&bytes);
                }
                Ok(Event::Exited(_) | Event::Deadline) | Err(_) => return,
            }
        }
    }

    /// Collects what the console still held when the machine was stopped.
    fn drain_console(&mut self, vm: &mut dyn Vm) {
        while let Ok(event) = vm.next_event(Instant::now()) {
            match event {
                Event::Console(bytes) => {
                    self.collector.add_console(&bytes);
                }
                Event::Port { .. } => {}
                Event::Exited(_) | Event::Deadline => return,
            }
        }
    }

    /// Makes a failure before the body an infrastructure failure: it is not caused by the test.
    fn blame(&self, end: RunEnd) -> RunEnd {
        match self.watchdog.phase() {
            RunPhase::Body => end,
            _ if end.is_infrastructure() => end,
            _ => RunEnd::InitFailed(InitFailure::BeforeBody(Box::new(end))),
        }
    }

    fn explain_timeout(&self, overdue: Overdue) -> RunEnd {
        match overdue {
            Overdue::Panicked => {
                RunEnd::GuestPanicked(self.collector.kernel_panic().unwrap_or_default())
            }
            Overdue::NoOutput { silent } => RunEnd::InitFailed(InitFailure::NoOutput { silent }),
            Overdue::Hung { silent } => RunEnd::GuestHung { silent, phase: self.watchdog.phase() },
            Overdue::NotReady { limit } => RunEnd::InitFailed(InitFailure::NotReady { limit }),
            Overdue::BodyTimeout { ran, allowed } => RunEnd::BodyOverran { ran, allowed },
        }
    }

    fn explain_end(&self, mut end: End) -> Ended {
        // The process of the body has done so already, unless the guest is hostile.
        end.shorten();
        match end {
            End::ShellExited(status) => Ended::Shell(status),
            End::Panicked(message) => {
                RunEnd::BodyPanicked(self.collector.panic_with_place(message)).into()
            }
            end => end_of_body(end).into(),
        }
    }

    /// Returns why the machine is gone although no end was received.
    fn explain_exit(&self, reason: &ExitReason) -> RunEnd {
        let exit = match reason {
            ExitReason::EngineDied { .. } => return RunEnd::EngineFailed(reason.to_string()),
            ExitReason::PowerOff => GuestExit::PoweredOff,
            ExitReason::Reset => GuestExit::Reset,
            ExitReason::Stopped => GuestExit::Stopped,
        };
        let phase = self.watchdog.phase();
        let console = self.collector.console();
        // PID 1 may have printed why it failed, before the body or during it.
        if (phase != RunPhase::Body || console.contains(FAILURE_PREFIX))
            && let Some(why) = console::init_failure(&console)
        {
            return RunEnd::InitFailed(InitFailure::Reported(why));
        }
        if let Some(message) = console::panic_message(&console) {
            return RunEnd::GuestPanicked(message);
        }
        if phase == RunPhase::Silent {
            return RunEnd::InitFailed(InitFailure::ExitedSilently(exit));
        }
        RunEnd::GuestGone { exit, phase, unread_bytes: self.decoder.unread() }
    }
}

/// Returns the number of bytes of the guest in an event.
fn size(event: &Event) -> usize {
    match event {
        Event::Console(bytes) | Event::Port { bytes, .. } => bytes.len(),
        Event::Exited(_) | Event::Deadline => 0,
    }
}

/// Returns what an end that the guest sent means for the test.
pub(crate) fn end_of_body(end: End) -> RunEnd {
    match end {
        End::Verdict(mut verdict) => {
            verdict.remove_non_finite();
            RunEnd::Verdict(verdict)
        }
        End::Error(error) => RunEnd::BodyError(error),
        End::Panicked(message) => RunEnd::BodyPanicked(message),
        End::Exited { kind, last_panic } => RunEnd::BodyExited { kind, last_panic },
        End::ProtocolViolation(what) => RunEnd::ProtocolViolation(what),
        End::WrongTopology(differences) => RunEnd::WrongTopology(differences),
        End::Refused(why) => RunEnd::InitFailed(InitFailure::Reported(why)),
        End::ShellExited(status) => {
            RunEnd::BodyExited { kind: ExitKind::Exited(status.into()), last_panic: None }
        }
    }
}

#[cfg(test)]
mod tests;
