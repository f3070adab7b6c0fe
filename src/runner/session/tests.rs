//! Sessions with a machine that plays a script.

use std::collections::VecDeque;

use ktstr_core::assert::AssertResult;
use ktstr_core::machine::MachineSpec;
use ktstr_core::result::ClockSpan;
use ktstr_core::wire::{FileKind, RunRequest};
use ktstr_vmm::Error;

use super::*;

/// What the machine does next.
enum Scene {
    Console(&'static str),
    /// The console shows a line after so long.
    LateLine(Duration),
    Reports(Vec<GuestMessage>),
    Damaged(GuestMessage),
    /// Neither machine nor runner get to run for so long.
    HeldUp(Duration),
    Exit(ExitReason),
}

struct Script {
    began: Instant,
    scenes: VecDeque<Scene>,
    encoder: Encoder,
    exited: bool,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a script of {} scenes", self.scenes.len())
    }
}

impl Vm for Script {
    fn next_event(&mut self, deadline: Instant) -> Result<Event, Error> {
        let mut port = |reports: &[GuestMessage]| {
            let frames = reports.iter().map(|report| self.encoder.encode(report).unwrap());
            Event::Port { port: 0, bytes: frames.flatten().collect() }
        };
        Ok(match self.scenes.pop_front() {
            Some(Scene::Console(text)) => Event::Console(text.into()),
            Some(Scene::LateLine(time)) => {
                std::thread::sleep(time);
                Event::Console(b"a line\n".to_vec())
            }
            Some(Scene::Reports(reports)) => port(&reports),
            Some(Scene::Damaged(report)) => match port(&[report]) {
                Event::Port { port, mut bytes } => {
                    *bytes.last_mut().unwrap() ^= 1;
                    Event::Port { port, bytes }
                }
                event => event,
            },
            Some(Scene::HeldUp(time)) => {
                std::thread::sleep(time);
                Event::Deadline
            }
            Some(Scene::Exit(reason)) => {
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

    fn send(&mut self, _: usize, _: &[u8]) -> Result<(), Error> {
        Ok(())
    }

    fn pause(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn registers(&mut self, _cpu: usize) -> Result<ktstr_vmm::Registers, ktstr_vmm::Error> {
        unimplemented!("no session reads registers")
    }

    fn read_memory(&mut self, _: u64, _: &mut [u8]) -> Result<(), Error> {
        Ok(())
    }

    /// CPU 0 is kept from running always, CPU 1 never.
    fn run_delays(&mut self) -> Result<Vec<Duration>, Error> {
        Ok(vec![self.began.elapsed(), Duration::ZERO])
    }

    fn stop(&mut self) -> Result<(), Error> {
        self.exited = true;
        Ok(())
    }
}

/// Boots one script.
#[derive(Debug)]
struct Theatre(std::sync::Mutex<Option<Script>>);

impl Engine for Theatre {
    fn describe(&self) -> String {
        "a script".to_owned()
    }

    fn timing(&self) -> ktstr_vmm::Timing {
        ktstr_vmm::Timing::Native
    }

    fn boot(&self, _: &VmConfig) -> Result<Box<dyn Vm>, Error> {
        Ok(Box::new(self.0.lock().unwrap().take().expect("a script is played once")))
    }
}

fn play(scenes: impl Into<VecDeque<Scene>>) -> RunOutcome {
    let (began, encoder) = (Instant::now(), Encoder::default());
    let script = Script { began, scenes: scenes.into(), encoder, exited: false };
    let config = VmConfig {
        kernel: "kernel".into(),
        initramfs: "initramfs".into(),
        cmdline: String::new(),
        topology: MachineSpec::DEFAULT.topology,
        memory_mib: 256,
        ports: vec!["wire".to_owned()],
    };
    let request =
        RunRequest { test: "test".to_owned(), machine: MachineSpec::DEFAULT, env: Vec::new() };
    let second = Duration::from_secs(1);
    let limits = RunLimits { duration: Some(second), watchdog: second };
    let engine = Theatre(std::sync::Mutex::new(Some(script)));
    run(&engine, &config, Request::Run(request), limits, &mut |_| None)
}

fn hello() -> GuestMessage {
    GuestMessage::Hello(Hello { release: "6.12".to_owned(), init_ns: 1, ready_ns: 2 })
}

fn started() -> Scene {
    Scene::Reports(vec![hello(), GuestMessage::BodyStarted { at_ns: 3 }])
}

fn pass() -> GuestMessage {
    GuestMessage::End(End::Verdict(AssertResult::pass()))
}

#[test]
fn a_whole_stream_is_a_verdict() {
    let outcome =
        play([Scene::Console("[    0.1] Linux\n"), started(), Scene::Reports(vec![pass()])]);
    assert_eq!(outcome.end, RunEnd::Verdict(AssertResult::pass()));
    assert!(outcome.timings.first_line.is_some() && outcome.timings.body.is_some());
}

#[test]
fn the_time_after_the_last_event_is_that_of_a_verdict() {
    let event = || {
        let (phase, what) = ("step 0".to_owned(), "hold for 1ms".to_owned());
        Scene::Reports(vec![GuestMessage::Event(ScenarioEvent { at_ns: 4, phase, what })])
    };
    let held_up = || Scene::HeldUp(Duration::from_millis(20));
    let verdict = || Scene::Reports(vec![pass()]);
    let timings = play([started(), held_up(), event(), event(), held_up(), verdict()]).timings;
    let (after, body) = (timings.last_event_to_verdict.unwrap(), timings.body.unwrap());
    assert!(after >= Duration::from_millis(20) && body >= after + Duration::from_millis(20));
    let gone = Scene::Exit(ExitReason::PowerOff);
    for scenes in [[started(), verdict(), held_up()], [started(), event(), gone]] {
        assert_eq!(play(scenes).timings.last_event_to_verdict, None);
    }
}

#[test]
fn what_the_host_kept_from_each_cpu_is_measured_while_the_body_runs() {
    let body = Scene::HeldUp(Duration::from_millis(50));
    let outcome = play([started(), body, Scene::Reports(vec![pass()])]);
    let [all, none] = outcome.stolen[..] else { panic!("{:?}", outcome.stolen) };
    assert!(all > 0.5 && all <= 1.0 && none == 0.0, "{:?}", outcome.stolen);
    let outcome = play([Scene::Exit(ExitReason::PowerOff)]);
    assert!(outcome.stolen.is_empty(), "no body ran");
}

#[test]
fn a_damaged_stream_is_none() {
    for scenes in [
        vec![started(), Scene::Damaged(pass())],
        vec![Scene::Damaged(hello()), Scene::Reports(vec![pass()])],
    ] {
        let end = play(scenes).end;
        assert!(matches!(end, RunEnd::WireBroken(_)), "{end:?}");
    }
}

#[test]
fn an_end_without_a_report_is_told_by_its_phase() {
    let power_off = || Scene::Exit(ExitReason::PowerOff);
    let early = play([Scene::Console("[    0.100000] Linux\n"), power_off()]).end;
    assert!(
        matches!(&early, RunEnd::InitFailed(why) if why.to_string().contains("while it booted")),
        "{early:?}"
    );
    let panic = Scene::Console("[    0.200000] Kernel panic - not syncing: no timer\n");
    let early = play([panic, Scene::Exit(ExitReason::Reset)]).end;
    assert!(
        matches!(&early, RunEnd::InitFailed(why) if why.to_string().contains("no timer")),
        "{early:?}"
    );
    let late = play([started(), power_off()]).end;
    assert!(matches!(late, RunEnd::GuestGone { .. }), "{late:?}");
}

#[test]
fn silence_and_overrun_are_told_apart() {
    let hung = play([started()]).end;
    assert!(matches!(hung, RunEnd::GuestHung { .. }), "{hung:?}");
    let beats = (0..40).flat_map(|at_ns| {
        let beat = Scene::Reports(vec![GuestMessage::Heartbeat { at_ns }]);
        [Scene::HeldUp(Duration::from_millis(100)), beat]
    });
    let overran = play(std::iter::once(started()).chain(beats).collect::<VecDeque<_>>()).end;
    assert!(matches!(overran, RunEnd::BodyOverran { .. }), "{overran:?}");
}

/// As after Ctrl-Z: time has passed that the guest did not have, and its verdict waits behind
/// something else.
#[test]
fn a_runner_that_was_held_up_does_not_blame_the_guest() {
    let held_up = Scene::HeldUp(Duration::from_secs(6));
    let console = Scene::Console("[    9.000000] clocksource: jumped\n");
    let end = play([started(), held_up, console, Scene::Reports(vec![pass()])]).end;
    assert_eq!(end, RunEnd::Verdict(AssertResult::pass()));
}

#[test]
fn a_guest_that_is_older_than_its_machine_has_a_wrong_clock() {
    let hour_ns = 3_600_000_000_000;
    let late_hello =
        GuestMessage::Hello(Hello { release: "6.12".to_owned(), init_ns: 1, ready_ns: hour_ns });
    let body = GuestMessage::BodyStarted { at_ns: hour_ns };
    let beat = GuestMessage::Heartbeat { at_ns: hour_ns };
    for scenes in [
        [Scene::Reports(vec![late_hello]), Scene::Reports(vec![pass()])],
        [Scene::Reports(vec![hello(), body]), Scene::Reports(vec![pass()])],
        [started(), Scene::Reports(vec![beat, pass()])],
    ] {
        let end = play(scenes).end;
        let RunEnd::WrongClock { span: ClockSpan::Boot, guest, host } = end else {
            panic!("{end:?}")
        };
        assert!(guest == Duration::from_nanos(hour_ns) && host < guest, "{guest:?} {host:?}");
    }
}

#[test]
fn captures_cannot_fill_the_runner() {
    let event = |at_ns| {
        let what = "x".repeat(1 << 19);
        GuestMessage::Event(ScenarioEvent { at_ns, phase: "step 0".to_owned(), what })
    };
    let flood = (0..200).map(|at_ns| Scene::Reports(vec![event(at_ns)]));
    let end = play(std::iter::once(started()).chain(flood).collect::<VecDeque<_>>()).end;
    assert!(matches!(&end, RunEnd::ProtocolViolation(why) if why.contains("64 MiB")), "{end:?}");
}

#[test]
fn file_that_follows_the_end_is_received_and_changes_no_verdict() {
    let announced = |length| GuestMessage::File { kind: FileKind::Profile, length };
    let piece = |text: &str| GuestMessage::FilePiece(text.into());
    let end = || vec![announced(5), pass(), piece("abc")];
    let gone = || Scene::Exit(ExitReason::Reset);
    for (scenes, bytes, is_complete) in [
        (vec![Scene::Reports(end()), Scene::Reports(vec![piece("de"), piece("f")])], "abcde", true),
        (vec![Scene::Reports(end()), gone()], "abc", false),
        (vec![Scene::Reports(end())], "abc", false),
        (vec![Scene::Reports(end()), Scene::Damaged(piece("de"))], "abc", false),
        (vec![Scene::Reports(vec![announced(u64::MAX), pass(), piece("abc")])], "", false),
    ] {
        let scenes = std::iter::once(started()).chain(scenes);
        let outcome = play(scenes.collect::<VecDeque<_>>());
        assert_eq!(outcome.end, RunEnd::Verdict(AssertResult::pass()));
        let file = outcome.profile.unwrap();
        assert_eq!(file.bytes, bytes.as_bytes());
        assert_eq!(file.is_complete(), is_complete);
    }
}

#[test]
fn console_does_not_extend_the_wait_for_a_file() {
    let end = vec![GuestMessage::File { kind: FileKind::Profile, length: 1 }, pass()];
    // For longer than any scaled watchdog.
    let lines = (0..120).map(|_| Scene::LateLine(Duration::from_millis(100)));
    let file = Scene::Reports(vec![GuestMessage::FilePiece(b"a".to_vec())]);
    let scenes = [started(), Scene::Reports(end)].into_iter().chain(lines).chain([file]);
    let outcome = play(scenes.collect::<VecDeque<_>>());
    assert_eq!(outcome.end, RunEnd::Verdict(AssertResult::pass()));
    assert!(!outcome.profile.unwrap().is_complete());
}
