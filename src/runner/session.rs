//! One run: boots a machine, gives it its order, listens until it ends, says how it ended.

use std::time::{Duration, Instant};

use anyhow::Result;
use ktstr_core::guest::agent::COMPLAINT;
use ktstr_core::result::{RunEnd, Timings};
use ktstr_core::snapshot::{CgroupProcsSnapshot, Snapshot};
use ktstr_core::wire::{Decoder, Encoder, End, FileKind, Order, Report, ScenarioEvent, Stream};
use ktstr_vmm::{Engine, Event, ExitReason, Vm, VmConfig};

use super::clocks::Clocks;
use super::console;

/// How long a guest may be silent before its body starts. A stock kernel says something every few
/// hundred milliseconds on hardware; the slowest emulation seen is some forty times slower.
const BOOT_SILENCE: Duration = Duration::from_secs(60);

/// How long a boot may take in all: a machine that only repeats itself ends here.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// What a boot to PID 1 takes on hardware, the measure of [`Timings::slowness`].
const HARDWARE_BOOT: Duration = Duration::from_secs(1);

/// The most that watchdogs are stretched.
const MAX_SLOWNESS: f64 = 8.0;

/// Why a kernel may say nothing at all.
const NO_WORD: &str =
    "the kernel image may be damaged or for another machine, or the memory too small";

/// How long a panicked kernel may take to reset the machine.
const PANIC_GRACE: Duration = Duration::from_secs(10);

/// A wait that ends so long after its deadline was not the guest's doing.
const HELD_UP: Duration = Duration::from_secs(2);

/// How many events that are there already are looked at before a bound is enforced.
const PENDING: usize = 1000;

/// What captures and events of one run may take of this process's memory, roughly.
const MAX_KEPT: usize = 64 << 20;

/// The panics that are remembered; a body may catch any number.
const MAX_PANICS: usize = 64;

/// Of a console or log longer than this, the older half is dropped.
const MAX_TEXT: usize = 8 << 20;

/// What bounds a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// How long the body means to run; `None` lets it run for ever, as a shell does.
    pub(crate) duration: Option<Duration>,
    /// What is added for slow machines, and how long the guest may be silent; before scaling.
    pub(crate) watchdog: Duration,
}

/// What a run left behind.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) end: RunEnd,
    /// The status of a program run by [`Order::Shell`].
    pub(crate) shell_status: Option<u8>,
    pub(crate) console: String,
    pub(crate) log: String,
    pub(crate) events: Vec<ScenarioEvent>,
    pub(crate) captures: Vec<CgroupProcsSnapshot>,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) timings: Timings,
    pub(crate) stolen: Vec<f64>,
    /// The profile of an instrumented body, as far as it arrived.
    pub(crate) profile: Option<ReceivedFile>,
}

/// A file of the guest.
#[derive(Debug)]
pub(crate) struct ReceivedFile {
    /// The length that was announced.
    pub(crate) length: u64,
    /// What arrived of it.
    pub(crate) bytes: Vec<u8>,
}

impl ReceivedFile {
    /// The most that is taken of a file.
    const MAX_LENGTH: u64 = 64 << 20;

    pub(crate) fn new(length: u64) -> Self {
        Self { length, bytes: Vec::new() }
    }

    /// Takes the next piece.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        if self.is_expected() {
            self.bytes.extend_from_slice(piece);
        }
    }

    /// Returns whether all of it arrived, and no more.
    pub(crate) fn is_complete(&self) -> bool {
        self.bytes.len() as u64 == self.length
    }

    /// Returns whether more of it is wanted.
    fn is_expected(&self) -> bool {
        self.length <= Self::MAX_LENGTH && (self.bytes.len() as u64) < self.length
    }
}

/// Boots `config` on `engine`, sends `order`, and returns how it ended. `live` sees the output of
/// the body as it arrives, and may give the body input by what it returns.
pub(crate) fn run(
    engine: &dyn Engine,
    config: &VmConfig,
    order: Order,
    limits: Limits,
    live: &mut dyn FnMut(Live<'_>) -> Option<Order>,
) -> Outcome {
    let started = Instant::now();
    let mut session = Session {
        started,
        order: Some(order),
        limits,
        decoder: Decoder::default(),
        encoder: Encoder::default(),
        phase: Phase::Silent,
        phase_began: started,
        clocks: Clocks::at_boot(),
        last_sign: started,
        panicked: None,
        end: None,
        console: Vec::new(),
        log: Vec::new(),
        panics: Vec::new(),
        events: Vec::new(),
        last_event: None,
        captures: Vec::new(),
        snapshots: Vec::new(),
        kept: 0,
        timings: Timings { slowness: 1.0, ..Timings::default() },
        delays: None,
        stolen: Vec::new(),
        profile: None,
    };
    let end = match engine.boot(config) {
        Ok(mut vm) => {
            let end = session.drive(&mut *vm, live);
            let ended = Instant::now();
            session.leave_phase(ended);
            if let Ended::Run(RunEnd::Verdict(_)) = end {
                session.timings.last_event_to_verdict =
                    session.last_event.map(|arrived| ended - arrived);
            }
            session.measure_stolen(&mut *vm);
            session.receive_file(&mut *vm);
            // A machine that cannot be stopped is an engine's failure, whatever came before.
            let end = match vm.stop() {
                Ok(()) => end,
                Err(error) => Ended::Run(RunEnd::EngineFailed(error.to_string())),
            };
            session.timings.teardown = ended.elapsed();
            session.hear_last_words(&mut *vm);
            end
        }
        Err(error) => Ended::Run(RunEnd::EngineFailed(error.to_string())),
    };
    let (end, shell_status) = match end {
        Ended::Run(end) => (end, None),
        Ended::Shell(status) => (RunEnd::BodyExited(format!("exit status {status}")), Some(status)),
    };
    Outcome {
        end,
        shell_status,
        console: String::from_utf8_lossy(&session.console).replace('\r', ""),
        log: String::from_utf8_lossy(&session.log).into_owned(),
        events: session.events,
        captures: session.captures,
        snapshots: session.snapshots,
        timings: session.timings,
        stolen: session.stolen,
        profile: session.profile,
    }
}

/// What a caller sees while the run goes on.
#[derive(Debug)]
pub(crate) enum Live<'a> {
    /// The body wrote this.
    Output(Stream, &'a [u8]),
    /// Nothing happened for a moment: time to pass on input.
    Idle,
}

/// How far the guest has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing was heard yet.
    Silent,
    /// The kernel has said something.
    Booting,
    /// PID 1 has its order.
    Ready,
    /// The body runs.
    Body,
}

impl Phase {
    fn describe(self) -> &'static str {
        match self {
            Self::Silent => "before its kernel said anything",
            Self::Booting => "while it booted",
            Self::Ready => "before the body started",
            Self::Body => "while the body ran",
        }
    }
}

enum Ended {
    Run(RunEnd),
    Shell(u8),
}

struct Session {
    started: Instant,
    order: Option<Order>,
    limits: Limits,
    decoder: Decoder,
    encoder: Encoder,
    phase: Phase,
    phase_began: Instant,
    clocks: Clocks,
    /// When the guest last gave a sign of life: any byte while it boots, a report later.
    last_sign: Instant,
    /// When the console showed the kernel's panic.
    panicked: Option<Instant>,
    end: Option<End>,
    console: Vec<u8>,
    log: Vec<u8>,
    panics: Vec<String>,
    events: Vec<ScenarioEvent>,
    /// When the last of them arrived.
    last_event: Option<Instant>,
    captures: Vec<CgroupProcsSnapshot>,
    snapshots: Vec<Snapshot>,
    /// About how many bytes these three take.
    kept: usize,
    timings: Timings,
    /// What the engine said of its CPUs when the body started, and when that was.
    delays: Option<(Instant, Vec<Duration>)>,
    /// See [`VmResult::stolen`](ktstr_core::result::VmResult::stolen).
    stolen: Vec<f64>,
    profile: Option<ReceivedFile>,
}

impl Session {
    fn drive(&mut self, vm: &mut dyn Vm, live: &mut dyn FnMut(Live<'_>) -> Option<Order>) -> Ended {
        loop {
            let deadline = self.deadline();
            let event = vm.next_event(deadline);
            self.excuse(deadline);
            if let Some(ended) = self.hear(vm, event, live) {
                return ended;
            }
            if self.overdue(Instant::now()).is_none() {
                continue;
            }
            // What the guest has said already counts before what it has not said in time.
            for _ in 0..PENDING {
                match vm.next_event(Instant::now()) {
                    Ok(Event::Deadline) => break,
                    event => {
                        if let Some(ended) = self.hear(vm, event, live) {
                            return ended;
                        }
                    }
                }
            }
            if let Some(end) = self.overdue(Instant::now()) {
                return Ended::Run(self.blame(end));
            }
        }
    }

    fn hear(
        &mut self,
        vm: &mut dyn Vm,
        event: Result<Event, ktstr_vmm::Error>,
        live: &mut dyn FnMut(Live<'_>) -> Option<Order>,
    ) -> Option<Ended> {
        let heard = match event {
            Err(error) => Err(RunEnd::EngineFailed(error.to_string())),
            Ok(Event::Console(bytes)) => {
                self.hear_console(&bytes);
                Ok(())
            }
            Ok(Event::Port { bytes, .. }) => self.hear_port(vm, &bytes, live),
            Ok(Event::Exited(reason)) => Err(self.blame(self.explain_exit(&reason))),
            // Before the order there is nobody to have input.
            Ok(Event::Deadline) if self.phase != Phase::Body => Ok(()),
            Ok(Event::Deadline) => self.send_input(vm, live(Live::Idle)),
        };
        match (heard, self.end.take()) {
            (Err(end), _) => Some(Ended::Run(end)),
            (Ok(()), Some(end)) => Some(self.explain_end(end)),
            (Ok(()), None) => None,
        }
    }

    /// Takes out of all bounds what this process was held up, by Ctrl-Z or a laptop's lid.
    fn excuse(&mut self, deadline: Instant) {
        let late = Instant::now().saturating_duration_since(deadline);
        if late > HELD_UP {
            self.started += late;
            self.phase_began += late;
            self.last_sign += late;
            self.panicked = self.panicked.map(|when| when + late);
        }
    }

    /// Before the body has started, whatever goes wrong says nothing about it.
    fn blame(&self, end: RunEnd) -> RunEnd {
        match self.phase {
            Phase::Body => end,
            _ if end.is_infrastructure() => end,
            _ => RunEnd::InitFailed(end.to_string()),
        }
    }

    /// Takes what the console still held when the machine was stopped.
    fn hear_last_words(&mut self, vm: &mut dyn Vm) {
        while let Ok(event) = vm.next_event(Instant::now()) {
            match event {
                Event::Console(bytes) => append_bounded(&mut self.console, &bytes),
                Event::Port { .. } => {}
                Event::Exited(_) | Event::Deadline => return,
            }
        }
    }

    fn hear_console(&mut self, bytes: &[u8]) {
        let now = Instant::now();
        if self.phase == Phase::Silent {
            self.timings.first_line = Some(now - self.started);
            self.phase = Phase::Booting;
        }
        if self.phase == Phase::Booting {
            self.last_sign = now;
        }
        append_bounded(&mut self.console, bytes);
        // What is looked for may have begun in the chunk before.
        let recent = self.console.len().saturating_sub(bytes.len() + 256);
        let recent = String::from_utf8_lossy(&self.console[recent..]);
        if self.timings.init.is_none() && recent.contains("Run /init as init process") {
            self.timings.init = Some(now - self.started);
        }
        if self.panicked.is_none() && console::panic_message(&recent).is_some() {
            self.panicked = Some(now);
        }
    }

    fn hear_port(
        &mut self,
        vm: &mut dyn Vm,
        bytes: &[u8],
        live: &mut dyn FnMut(Live<'_>) -> Option<Order>,
    ) -> Result<(), RunEnd> {
        self.last_sign = Instant::now();
        self.decoder.push(bytes);
        while let Some(report) =
            self.decoder.next().map_err(|error| RunEnd::WireBroken(error.to_string()))?
        {
            match report {
                Report::Hello(hello) => {
                    self.clocks.check_uptime(hello.ready_ns)?;
                    let boot = self.started.elapsed();
                    self.timings.uptime_at_init = Some(Duration::from_nanos(hello.init_ns));
                    self.timings.boot = Some(boot);
                    let slowness = boot.as_secs_f64() / HARDWARE_BOOT.as_secs_f64();
                    self.timings.slowness = slowness.clamp(1.0, MAX_SLOWNESS);
                    self.enter(Phase::Ready);
                    let order = self.order.take();
                    if matches!(order, Some(Order::Shell(_))) {
                        self.enter(Phase::Body);
                    }
                    self.send_input(vm, order)?;
                }
                Report::BodyStarted { at_ns } => {
                    self.clocks.check_uptime(at_ns)?;
                    self.clocks.start_body(at_ns);
                    self.timings.ready = Some(self.phase_began.elapsed());
                    self.enter(Phase::Body);
                    // A host whose kernel does not count it has nothing to say for itself.
                    self.delays = vm.run_delays().ok().map(|delays| (Instant::now(), delays));
                }
                Report::Heartbeat { at_ns } => {
                    self.clocks.check_uptime(at_ns)?;
                    self.clocks.check_body(at_ns, self.phase_began.elapsed())?;
                }
                Report::Log { stream, bytes } => {
                    append_bounded(&mut self.log, &bytes);
                    let before = Instant::now();
                    let input = live(Live::Output(stream, &bytes));
                    // How long that took, be it for a reader that paused, is not the guest's.
                    self.last_sign = Instant::now();
                    self.phase_began += before.elapsed();
                    self.send_input(vm, input)?;
                }
                Report::Event(event) => {
                    self.keep(event.phase.len() + event.what.len())?;
                    self.events.push(event);
                    self.last_event = Some(Instant::now());
                }
                Report::Capture(capture) => {
                    self.keep(64 * (1 + capture.pids.len()) + capture.tag.len())?;
                    self.captures.push(capture);
                }
                Report::Snapshot(snapshot) => {
                    // A worker's histogram may have that much.
                    self.keep((snapshot.cgroups.len() << 10) + (snapshot.workers.len() << 14))?;
                    self.snapshots.push(snapshot);
                }
                Report::Panic { message } => {
                    self.panics.truncate(MAX_PANICS - 1);
                    self.panics.insert(0, message);
                }
                Report::File { kind: FileKind::Profile, length } => {
                    self.profile = Some(ReceivedFile::new(length));
                }
                // They follow the end.
                Report::FilePiece(_) => {}
                Report::End(end) => {
                    self.end = Some(end);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Receives the file that was announced, after the end of the run: what becomes of it changes no verdict.
    fn receive_file(&mut self, vm: &mut dyn Vm) {
        let mut deadline = Instant::now() + self.watchdog();
        while self.profile.as_ref().is_some_and(ReceivedFile::is_expected) {
            match self.decoder.next() {
                Ok(Some(Report::FilePiece(piece))) => {
                    self.profile.iter_mut().for_each(|file| file.push(&piece));
                    continue;
                }
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return,
            }
            match vm.next_event(deadline) {
                Ok(Event::Port { bytes, .. }) => {
                    self.decoder.push(&bytes);
                    deadline = Instant::now() + self.watchdog();
                }
                Ok(Event::Console(bytes)) => {
                    append_bounded(&mut self.console, &bytes);
                    // A console that never falls silent must not extend the deadline.
                    if Instant::now() > deadline {
                        return;
                    }
                }
                Ok(Event::Exited(_) | Event::Deadline) | Err(_) => return,
            }
        }
    }

    fn keep(&mut self, bytes: usize) -> Result<(), RunEnd> {
        self.kept += bytes + 64;
        if self.kept > MAX_KEPT {
            let mib = MAX_KEPT >> 20;
            let why = format!("the test sent over {mib} MiB of captures and events");
            return Err(RunEnd::BodyExited(why));
        }
        Ok(())
    }

    fn send_input(&mut self, vm: &mut dyn Vm, order: Option<Order>) -> Result<(), RunEnd> {
        let Some(order) = order else { return Ok(()) };
        let frame =
            self.encoder.encode(&order).map_err(|error| RunEnd::WireBroken(error.to_string()))?;
        vm.send(0, &frame).map_err(|error| RunEnd::EngineFailed(error.to_string()))
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.phase_began = Instant::now();
    }

    fn leave_phase(&mut self, now: Instant) {
        if self.phase == Phase::Body {
            self.timings.body = Some(now - self.phase_began);
        }
    }

    /// Which part of the body's time the host kept each CPU from running. An engine that is gone
    /// cannot tell.
    fn measure_stolen(&mut self, vm: &mut dyn Vm) {
        let Some((began, before)) = self.delays.take() else { return };
        let wall = began.elapsed().as_secs_f64();
        let Ok(after) = vm.run_delays() else { return };
        let parts = before
            .iter()
            .zip(after)
            .map(|(before, after)| after.saturating_sub(*before).as_secs_f64() / wall);
        // Two clocks: a thread may seem to have waited for a little more than all the time.
        self.stolen = parts.map(|part| part.min(1.0)).collect();
    }

    fn watchdog(&self) -> Duration {
        self.limits.watchdog.mul_f64(self.timings.slowness)
    }

    /// How long the guest may stay silent now.
    fn allowed_silence(&self) -> Duration {
        match self.phase {
            Phase::Silent | Phase::Booting | Phase::Ready => BOOT_SILENCE,
            Phase::Body => self.watchdog(),
        }
    }

    /// When to look at the bounds again even if nothing happens, or at a shell's input.
    fn deadline(&self) -> Instant {
        let interval = match self.limits.duration {
            Some(_) => Duration::from_secs(1),
            None => Duration::from_millis(20),
        };
        Instant::now() + interval
    }

    /// The bound that the guest has run into, if any.
    fn overdue(&self, now: Instant) -> Option<RunEnd> {
        if self.panicked.is_some_and(|when| now > when + PANIC_GRACE) {
            let console = String::from_utf8_lossy(&self.console);
            let message = console::panic_message(&console).unwrap_or_default();
            return Some(RunEnd::GuestPanicked(message));
        }
        let silent = now - self.last_sign;
        if silent > self.allowed_silence() && self.phase == Phase::Silent {
            return Some(RunEnd::InitFailed(format!(
                "its kernel said nothing for {silent:.0?}; {NO_WORD}"
            )));
        }
        if silent > self.allowed_silence() {
            return Some(RunEnd::GuestHung { silent, phase: self.phase.describe() });
        }
        if self.phase != Phase::Body && now > self.started + BOOT_LIMIT {
            return Some(RunEnd::InitFailed(format!("it is not ready after {BOOT_LIMIT:.0?}")));
        }
        let allowed = self.limits.duration? + self.watchdog();
        let ran = now - self.phase_began;
        // A guest that is silent just now may have hung: which of the two is seen a little later.
        let alive = silent < Duration::from_secs(2).mul_f64(self.timings.slowness);
        (self.phase == Phase::Body && ran > allowed && alive)
            .then_some(RunEnd::BodyOverran { ran, allowed })
    }

    fn explain_end(&mut self, end: End) -> Ended {
        match end {
            End::ShellExited(status) => Ended::Shell(status),
            // The panic hook knows the place, what was caught later only the message.
            End::Panicked(message) => {
                // The latest first.
                let mut panics = self.panics.iter();
                let placed = panics.find(|panic| panic.starts_with(&format!("{message}, ")));
                Ended::Run(RunEnd::BodyPanicked(placed.cloned().unwrap_or(message)))
            }
            end => Ended::Run(end_of_body(end)),
        }
    }

    /// Why the machine is gone although no end was reported.
    fn explain_exit(&self, reason: &ExitReason) -> RunEnd {
        let console = String::from_utf8_lossy(&self.console);
        if let ExitReason::EngineDied { .. } = reason {
            return RunEnd::EngineFailed(reason.to_string());
        }
        if (self.phase != Phase::Body || console.contains(COMPLAINT))
            && let Some(why) = console::init_failure(&console)
        {
            return RunEnd::InitFailed(why);
        }
        if let Some(message) = console::panic_message(&console) {
            return RunEnd::GuestPanicked(message);
        }
        if self.phase == Phase::Silent {
            return RunEnd::InitFailed(format!(
                "{reason} before its kernel said anything; {NO_WORD}"
            ));
        }
        let cut = match self.decoder.unread() {
            0 => String::new(),
            unread => format!(", {unread} bytes into an unfinished report"),
        };
        RunEnd::GuestGone(format!("{reason} {}{cut}", self.phase.describe()))
    }
}

/// What an end that the guest reported says of the test.
pub(crate) fn end_of_body(end: End) -> RunEnd {
    match end {
        End::Verdict(verdict) => RunEnd::Verdict(verdict),
        End::Error(error) => RunEnd::BodyError(error),
        End::Panicked(message) => RunEnd::BodyPanicked(message),
        End::Exited { status } => RunEnd::BodyExited(status),
        End::WrongTopology(differences) => RunEnd::WrongTopology(differences),
        End::Refused(why) => RunEnd::InitFailed(why),
        End::ShellExited(status) => RunEnd::BodyExited(format!("exit status {status}")),
    }
}

/// Appends to a text that stays bounded.
fn append_bounded(text: &mut Vec<u8>, bytes: &[u8]) {
    text.extend_from_slice(bytes);
    if text.len() > MAX_TEXT {
        let mut keep = text.split_off(text.len() - MAX_TEXT / 2);
        // Not the second half of a letter.
        let cut = keep.iter().take(3).take_while(|byte| *byte & 0xc0 == 0x80).count();
        keep.drain(..cut);
        *text = b"[... the beginning was dropped ...]\n".to_vec();
        text.extend_from_slice(&keep);
    }
}

#[cfg(test)]
mod tests;
