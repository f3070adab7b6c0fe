//! Sessions with a machine that follows a script.

mod fork;
mod memory;
mod work;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};

use ktstr_core::assert::AssertResult;
use ktstr_core::machine::MachineSpec;
use ktstr_core::result::ClockSpan;
use ktstr_core::snapshot::{KernelSnapshot, ProcIdentity};
use ktstr_core::wire::{FileKind, RunRequest};
use ktstr_core::workload::{CpusetPeriod, WorkerReport};
use ktstr_vmm::Error;

use super::*;

/// An action of the machine.
enum Action {
    Console(&'static str),
    /// The console shows a line after this time.
    LateLine(Duration),
    Send(Vec<GuestMessage>),
    SendDamaged(GuestMessage),
    /// The first byte of a message, and no more.
    Partial(GuestMessage),
    /// Neither the machine nor the runner runs for this time.
    Stall(Duration),
    Exit(ExitReason),
}

/// What a machine has received.
type Sent = Arc<Mutex<Vec<u8>>>;

/// Writes the files of a machine.
type OnSave = fn(&Path) -> Result<(), Error>;

struct ScriptedVm {
    began: Instant,
    actions: VecDeque<Action>,
    encoder: Encoder,
    exited: bool,
    is_paused: bool,
    sent: Sent,
    save: OnSave,
}

impl ScriptedVm {
    fn new(actions: impl IntoIterator<Item = Action>) -> Self {
        Self {
            began: Instant::now(),
            actions: actions.into_iter().collect(),
            encoder: Encoder::default(),
            exited: false,
            is_paused: false,
            sent: Sent::default(),
            save: |_| panic!("it is saved"),
        }
    }
}

impl std::fmt::Debug for ScriptedVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a script of {} actions", self.actions.len())
    }
}

impl Vm for ScriptedVm {
    fn next_event(&mut self, deadline: Instant) -> Result<Event, Error> {
        let mut port = |messages: &[GuestMessage]| {
            let frames = messages.iter().map(|message| self.encoder.encode(message).unwrap());
            Event::Port { port: 0, bytes: frames.flatten().collect() }
        };
        let is_in_flight = |action: &Action| {
            matches!(action, Action::Console(_) | Action::Partial(_) | Action::Exit(_))
        };
        if self.is_paused && !self.actions.front().is_some_and(is_in_flight) {
            return Ok(Event::Deadline);
        }
        Ok(match self.actions.pop_front() {
            Some(Action::Console(text)) => Event::Console(text.into()),
            Some(Action::LateLine(time)) => {
                std::thread::sleep(time);
                Event::Console(b"a line\n".to_vec())
            }
            Some(Action::Send(messages)) => port(&messages),
            Some(Action::SendDamaged(message)) => match port(&[message]) {
                Event::Port { port, mut bytes } => {
                    *bytes.last_mut().unwrap() ^= 1;
                    Event::Port { port, bytes }
                }
                event => event,
            },
            Some(Action::Partial(message)) => match port(&[message]) {
                Event::Port { port, bytes } => Event::Port { port, bytes: bytes[..1].to_vec() },
                event => event,
            },
            Some(Action::Stall(time)) => {
                std::thread::sleep(time);
                Event::Deadline
            }
            Some(Action::Exit(reason)) => {
                self.exited = true;
                Event::Exited(reason)
            }
            None if self.exited => Event::Exited(ExitReason::Stopped),
            None => {
                std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
                Event::Deadline
            }
        })
    }

    fn send(&mut self, _: usize, bytes: &[u8]) -> Result<(), Error> {
        self.sent.lock().unwrap().extend_from_slice(bytes);
        Ok(())
    }

    fn pause(&mut self) -> Result<(), Error> {
        self.is_paused = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Error> {
        self.is_paused = false;
        Ok(())
    }

    fn save(&mut self, directory: &Path) -> Result<(), Error> {
        assert!(self.is_paused);
        (self.save)(directory)
    }

    fn registers(&mut self, _cpu: usize) -> Result<ktstr_vmm::Registers, ktstr_vmm::Error> {
        unimplemented!("a session does not read registers")
    }

    fn read_memory(&mut self, _: u64, _: &mut [u8]) -> Result<(), Error> {
        Ok(())
    }

    /// CPU 0 never runs, CPU 1 always does.
    fn run_delays(&mut self) -> Result<Vec<Duration>, Error> {
        Ok(vec![self.began.elapsed(), Duration::ZERO])
    }

    fn stop(&mut self) -> Result<(), Error> {
        self.exited = true;
        Ok(())
    }
}

/// Boots one scripted machine.
#[derive(Debug)]
struct ScriptedEngine(Mutex<Option<ScriptedVm>>);

impl Engine for ScriptedEngine {
    fn describe(&self) -> String {
        "a script".to_owned()
    }

    fn timing(&self) -> ktstr_core::machine::Timing {
        ktstr_core::machine::Timing::Native
    }

    fn boot(&self, _: &VmConfig) -> Result<Box<dyn Vm>, Error> {
        Ok(Box::new(self.0.lock().unwrap().take().expect("booted once")))
    }
}

fn play(actions: impl Into<VecDeque<Action>>) -> RunOutcome {
    play_within(Duration::from_secs(1), actions)
}

/// Plays a body that may take and be silent for `limit`.
fn play_within(limit: Duration, actions: impl Into<VecDeque<Action>>) -> RunOutcome {
    let engine = ScriptedEngine(Mutex::new(Some(ScriptedVm::new(actions.into()))));
    run_on(&engine, Plan::Boot(None), limit)
}

/// Runs a test whose body may take and be silent for `limit`.
fn run_on(engine: &dyn Engine, plan: Plan, limit: Duration) -> RunOutcome {
    let config = VmConfig {
        kernel: "kernel".into(),
        initramfs: "initramfs".into(),
        cmdline: String::new(),
        kaslr: true,
        topology: MachineSpec::DEFAULT.topology,
        memory_mib: 256,
        ports: vec!["wire".to_owned()],
    };
    let request = RunRequest {
        test: "test".to_owned(),
        machine: MachineSpec::DEFAULT,
        env: Vec::new(),
        restored: None,
    };
    let limits = RunLimits { duration: Some(limit), watchdog: limit };
    run(engine, &config, plan, Request::Run(request), limits, &mut |_| None)
}

fn hello() -> GuestMessage {
    GuestMessage::Hello(Hello { release: "6.12".to_owned(), init_ns: 1, ready_ns: 2 })
}

fn started() -> Action {
    Action::Send(vec![hello(), GuestMessage::BodyStarted { at_ns: 3 }])
}

fn pass() -> GuestMessage {
    GuestMessage::End(End::Verdict(AssertResult::pass()))
}

#[test]
fn run_returns_the_verdict_of_a_complete_stream() {
    let outcome =
        play([Action::Console("[    0.1] Linux\n"), started(), Action::Send(vec![pass()])]);
    assert_eq!(outcome.end, RunEnd::Verdict(AssertResult::pass()));
    assert!(outcome.timings.first_line.is_some() && outcome.timings.body.is_some());
}

#[test]
fn timings_measure_from_the_last_event_to_a_verdict() {
    let event = || {
        let (phase, what) = ("step 0".to_owned(), "hold for 1ms".to_owned());
        Action::Send(vec![GuestMessage::Event(ScenarioEvent { at_ns: 4, phase, what })])
    };
    let stall = || Action::Stall(Duration::from_millis(20));
    let verdict = || Action::Send(vec![pass()]);
    let timings = play([started(), stall(), event(), event(), stall(), verdict()]).timings;
    let (after, body) = (timings.last_event_to_verdict.unwrap(), timings.body.unwrap());
    assert!(after >= Duration::from_millis(20) && body >= after + Duration::from_millis(20));
    let gone = Action::Exit(ExitReason::PowerOff);
    for actions in [[started(), verdict(), stall()], [started(), event(), gone]] {
        assert_eq!(play(actions).timings.last_event_to_verdict, None);
    }
}

#[test]
fn stolen_measures_steal_time_of_the_body() {
    let body = Action::Stall(Duration::from_millis(50));
    let outcome = play([started(), body, Action::Send(vec![pass()])]);
    let [all, none] = outcome.stolen[..] else { panic!("{:?}", outcome.stolen) };
    assert!(all > 0.5 && all <= 1.0 && none == 0.0, "{:?}", outcome.stolen);
    let outcome = play([Action::Exit(ExitReason::PowerOff)]);
    assert!(outcome.stolen.is_empty(), "the body did not run");
}

#[test]
fn run_detects_a_damaged_stream() {
    for actions in [
        vec![started(), Action::SendDamaged(pass())],
        vec![Action::SendDamaged(hello()), Action::Send(vec![pass()])],
    ] {
        let end = play(actions).end;
        assert!(matches!(end, RunEnd::WireBroken(_)), "{end:?}");
    }
}

#[test]
fn end_without_a_message_depends_on_the_phase() {
    let power_off = || Action::Exit(ExitReason::PowerOff);
    let early = play([Action::Console("[    0.100000] Linux\n"), power_off()]).end;
    assert!(
        matches!(&early, RunEnd::InitFailed(why) if why.to_string().contains("while it booted")),
        "{early:?}"
    );
    let panic = Action::Console("[    0.200000] Kernel panic - not syncing: no timer\n");
    let early = play([panic, Action::Exit(ExitReason::Reset)]).end;
    assert!(
        matches!(&early, RunEnd::InitFailed(why) if why.to_string().contains("no timer")),
        "{early:?}"
    );
    let late = play([started(), power_off()]).end;
    assert!(matches!(late, RunEnd::GuestGone { .. }), "{late:?}");
}

#[test]
fn run_distinguishes_a_hung_guest_from_a_slow_body() {
    let hung = play([started()]).end;
    assert!(matches!(hung, RunEnd::GuestHung { .. }), "{hung:?}");
    let beats = (0..40).flat_map(|at_ns| {
        let beat = Action::Send(vec![GuestMessage::Heartbeat { at_ns }]);
        [Action::Stall(Duration::from_millis(100)), beat]
    });
    let overran = play(std::iter::once(started()).chain(beats).collect::<VecDeque<_>>()).end;
    assert!(matches!(overran, RunEnd::BodyOverran { .. }), "{overran:?}");
}

/// Simulates Ctrl-Z: time passes in which the guest does not run, and its verdict is not the first pending event.
#[test]
fn run_does_not_time_out_after_a_stall_of_the_host() {
    let stall = Action::Stall(Duration::from_secs(6));
    let console = Action::Console("[    9.000000] clocksource: jumped\n");
    let end = play([started(), stall, console, Action::Send(vec![pass()])]).end;
    assert_eq!(end, RunEnd::Verdict(AssertResult::pass()));
}

#[test]
fn run_detects_a_guest_clock_ahead_of_the_host() {
    let hour_ns = 3_600_000_000_000;
    let late_hello =
        GuestMessage::Hello(Hello { release: "6.12".to_owned(), init_ns: 1, ready_ns: hour_ns });
    let body = GuestMessage::BodyStarted { at_ns: hour_ns };
    let beat = GuestMessage::Heartbeat { at_ns: hour_ns };
    for actions in [
        [Action::Send(vec![late_hello]), Action::Send(vec![pass()])],
        [Action::Send(vec![hello(), body]), Action::Send(vec![pass()])],
        [started(), Action::Send(vec![beat, pass()])],
    ] {
        let end = play(actions).end;
        let RunEnd::WrongClock { span: ClockSpan::Boot, guest, host } = end else {
            panic!("{end:?}")
        };
        assert!(guest == Duration::from_nanos(hour_ns) && host < guest, "{guest:?} {host:?}");
    }
}

/// Messages of the wrong kind or at the wrong time, as a forged PID 1 sends them.
#[test]
fn run_refuses_messages_out_of_order() {
    let body_started = || GuestMessage::BodyStarted { at_ns: 3 };
    let refused = || GuestMessage::End(End::Refused("none".to_owned()));
    for (messages, text) in [
        (vec![pass()], "End(Verdict) before Hello"),
        (vec![body_started(), pass()], "BodyStarted before Hello"),
        (vec![hello(), pass()], "End(Verdict) between Hello and BodyStarted"),
        (vec![hello(), hello(), body_started(), pass()], "Hello between Hello and BodyStarted"),
        (vec![hello(), body_started(), body_started(), pass()], "BodyStarted while the body ran"),
        (vec![hello(), body_started(), hello(), pass()], "Hello while the body ran"),
        (vec![hello(), body_started(), refused()], "End(Refused) while the body ran"),
        (
            vec![hello(), body_started(), GuestMessage::FilePiece(vec![0]), pass()],
            "FilePiece while the body ran",
        ),
    ] {
        let end = play([Action::Send(messages)]).end;
        let want = format!("unexpected message {text}");
        assert!(matches!(&end, RunEnd::WireBroken(why) if *why == want), "{text}: {end:?}");
    }
}

/// With a limit of 2 s, a body that announces itself every 100 ms does not run for 6 s and pass.
#[test]
fn run_ends_although_the_body_starts_again_and_again() {
    let again = (0..60).flat_map(|at_ns| {
        let again = Action::Send(vec![GuestMessage::BodyStarted { at_ns }]);
        [Action::Stall(Duration::from_millis(100)), again]
    });
    let began = Instant::now();
    let actions = std::iter::once(started()).chain(again).chain([Action::Send(vec![pass()])]);
    let end = play(actions.collect::<VecDeque<_>>()).end;
    assert!(matches!(end, RunEnd::WireBroken(_)), "{end:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// Plays a body that sends `message` again and again, and would pass in the end.
fn flood(count: u64, message: impl Fn(u64) -> GuestMessage) -> RunOutcome {
    let flood = (0..count).map(|number| Action::Send(vec![message(number)]));
    let actions = std::iter::once(started()).chain(flood).chain([Action::Send(vec![pass()])]);
    play_within(Duration::from_secs(300), actions.collect::<VecDeque<_>>())
}

#[test]
fn run_limits_what_captures_and_events_take() {
    let long = || "x".repeat(1_000_000);
    let event = |at_ns, what| {
        GuestMessage::Event(ScenarioEvent { at_ns, phase: "step 0".to_owned(), what })
    };
    let capture = |at_ns, cgroup, comm| {
        let procs = vec![ProcIdentity { pid: 1, comm, start_ticks: 0 }];
        let (tag, pids) = (String::new(), Vec::new());
        GuestMessage::Capture(CgroupProcsSnapshot { tag, cgroup, pids, procs, at_ns })
    };
    // A few bytes on the wire, but structures in memory.
    let empty = |at_ns| {
        let periods = vec![CpusetPeriod::default(); 400_000];
        let worker = WorkerReport { cpuset_periods: periods, ..WorkerReport::default() };
        let (name, cgroups, workers) = (String::new(), Vec::new(), vec![worker]);
        GuestMessage::Snapshot(Snapshot { name, at_ns, cgroups, workers, kernel: None })
    };
    let snapshot = |at_ns, key| {
        let kernel = KernelSnapshot::new().with_value(key, 1);
        let (name, cgroups, workers) = (String::new(), Vec::new(), Vec::new());
        GuestMessage::Snapshot(Snapshot { name, at_ns, cgroups, workers, kernel: Some(kernel) })
    };
    // Another text is the long one each time.
    let outcomes = [
        flood(40, |at_ns| event(at_ns, long())),
        flood(40, |at_ns| capture(at_ns, long(), String::new())),
        flood(40, |at_ns| capture(at_ns, String::new(), long())),
        flood(40, |at_ns| snapshot(at_ns, long())),
        // Many structures without content, and many messages.
        flood(4, empty),
        flood(100_000, |at_ns| event(at_ns, String::new())),
    ];
    for RunOutcome { end, events, captures, snapshots, .. } in outcomes {
        let is_refused =
            matches!(&end, RunEnd::ProtocolViolation(why) if why.contains("more than 24 MiB"));
        assert!(is_refused, "{end:?}");
        let kept = events.len() + captures.len() + snapshots.len();
        assert!([3, 26, 90_000].iter().any(|most| (most / 2..=*most).contains(&kept)), "{kept}");
    }
}

#[test]
fn run_keeps_no_more_of_a_panic_than_its_bound() {
    let message = "why".repeat(100_000);
    let outcome = play([
        started(),
        Action::Send(vec![
            GuestMessage::Panic { message: format!("{message}, file.rs:1") },
            GuestMessage::End(End::Panicked(message)),
        ]),
    ]);
    let RunEnd::BodyPanicked(text) = outcome.end else { panic!("{:?}", outcome.end) };
    assert!(text.len() < 16 << 10, "{} bytes", text.len());
}

#[test]
fn receive_file_never_changes_the_verdict() {
    let announced = |length| GuestMessage::File { kind: FileKind::Profile, length };
    let piece = |text: &str| GuestMessage::FilePiece(text.into());
    let end = || vec![announced(5), pass(), piece("abc")];
    let gone = || Action::Exit(ExitReason::Reset);
    for (actions, bytes, is_complete) in [
        (vec![Action::Send(end()), Action::Send(vec![piece("de"), piece("f")])], "abcde", true),
        (vec![Action::Send(end()), gone()], "abc", false),
        (vec![Action::Send(end())], "abc", false),
        (vec![Action::Send(end()), Action::SendDamaged(piece("de"))], "abc", false),
        (vec![Action::Send(vec![announced(u64::MAX), pass(), piece("abc")])], "", false),
    ] {
        let actions = std::iter::once(started()).chain(actions);
        let outcome = play(actions.collect::<VecDeque<_>>());
        assert_eq!(outcome.end, RunEnd::Verdict(AssertResult::pass()));
        let file = outcome.profile.unwrap();
        assert_eq!(file.bytes, bytes.as_bytes());
        assert_eq!(file.is_complete(), is_complete);
    }
}

#[test]
fn receive_file_does_not_wait_longer_for_console_output() {
    let end = vec![GuestMessage::File { kind: FileKind::Profile, length: 1 }, pass()];
    // For longer than any scaled watchdog.
    let lines = (0..120).map(|_| Action::LateLine(Duration::from_millis(100)));
    let file = Action::Send(vec![GuestMessage::FilePiece(b"a".to_vec())]);
    let actions = [started(), Action::Send(end)].into_iter().chain(lines).chain([file]);
    let outcome = play(actions.collect::<VecDeque<_>>());
    assert_eq!(outcome.end, RunEnd::Verdict(AssertResult::pass()));
    assert!(!outcome.profile.unwrap().is_complete());
}
