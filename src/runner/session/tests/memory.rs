//! The memory that the worst guest takes from this process.

use std::io::Write as _;
use std::process::Command;

use ktstr_core::assert::Measurement;
use ktstr_core::registry::TestEntry;

use super::*;
use crate::report::{self, Style};
use crate::runner::echo::Echo;
use crate::runner::{artifacts, keep_outcome, record};

/// The most bytes by which a run may increase the memory of its process, in addition to the memory of the guest and
/// of its engine; also in docs/security.md.
const LIMIT: usize = 512 << 20;

/// The length of most messages, near the largest that a frame can have.
const LONG: usize = 1_000_000;

/// A machine that sends what it makes at the moment, so that the messages of the flood themselves take no memory.
struct FloodVm {
    messages: Box<dyn Iterator<Item = Event>>,
}

impl std::fmt::Debug for FloodVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a flood")
    }
}

impl Vm for FloodVm {
    fn next_event(&mut self, _: Instant) -> Result<Event, Error> {
        Ok(self.messages.next().unwrap_or(Event::Exited(ExitReason::Stopped)))
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

    fn registers(&mut self, _: usize) -> Result<ktstr_vmm::Registers, Error> {
        unimplemented!("a session does not read registers")
    }

    fn read_memory(&mut self, _: u64, _: &mut [u8]) -> Result<(), Error> {
        Ok(())
    }

    fn run_delays(&mut self) -> Result<Vec<Duration>, Error> {
        Ok(Vec::new())
    }

    fn stop(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// Returns a value of this process in `/proc/self/status`, in bytes.
fn status(field: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    let kib = line.trim_start_matches(':').trim().strip_suffix(" kB").unwrap();
    kib.parse::<usize>().unwrap() << 10
}

fn snapshot(at_ns: u64, worker: WorkerReport) -> GuestMessage {
    let (name, cgroups, workers) = (String::new(), Vec::new(), vec![worker]);
    GuestMessage::Snapshot(Snapshot { name, at_ns, cgroups, workers, kernel: None })
}

/// Returns a message that was sent at this time.
type Message = fn(u64) -> GuestMessage;

/// Returns messages of one kind that take the most memory for what they are charged, up to the bound, by name.
fn worst_collected() -> [(&'static str, u64, Message); 2] {
    [
        ("structures", 3, |at_ns| {
            // Just more than a power of two, to which a vector grows.
            let cpuset_periods = vec![CpusetPeriod::default(); (1 << 18) + 1];
            snapshot(at_ns, WorkerReport { cpuset_periods, ..WorkerReport::default() })
        }),
        ("values", 25, |at_ns| {
            let (name, cgroups, workers) = (String::new(), Vec::new(), Vec::new());
            let values = (0..100_000).map(|number| (format!("{number:x}"), 0)).collect();
            let mut kernel = KernelSnapshot::new();
            kernel.values = values;
            GuestMessage::Snapshot(Snapshot { name, at_ns, cgroups, workers, kernel: Some(kernel) })
        }),
    ]
}

/// Returns what a guest sends that fills everything: both texts with bytes that take three times as many as
/// characters, all messages to their bounds, a verdict of the longest lists, and a file.
fn flood(collected: Message, count: u64) -> Box<dyn Iterator<Item = Event>> {
    let mut encoder = Encoder::default();
    let port = move |message: GuestMessage| Event::Port {
        port: 0,
        bytes: encoder.encode(&message).unwrap(),
    };
    // Less than the bound of a text, beyond which the older half is dropped.
    let console = (0..8).map(|_| Event::Console(vec![0xff; LONG]));
    let log = || GuestMessage::Log { stream: Stream::Stdout, bytes: vec![0xff; LONG] };
    let measurements =
        || GuestMessage::Measurements(vec![Measurement::new("", 0.0, ""); LONG / 20]);
    let panic = || GuestMessage::Panic { message: "\0".repeat(LONG / 100) };
    let event = |at_ns| {
        let (phase, what) = (String::new(), String::new());
        GuestMessage::Event(ScenarioEvent { at_ns, phase, what })
    };
    let capture = || {
        let identity = ProcIdentity { pid: 0, comm: String::new(), start_ticks: 0 };
        let (tag, cgroup, pids) = (String::new(), String::new(), vec![0; LONG / 10]);
        let procs = vec![identity; LONG / 100];
        GuestMessage::Capture(CgroupProcsSnapshot { tag, cgroup, pids, procs, at_ns: 0 })
    };
    let verdict = || {
        let mut verdict = AssertResult::pass();
        for _ in 0..LONG / 8 {
            verdict.note("");
        }
        GuestMessage::End(End::Verdict(verdict))
    };
    const FILE: u64 = 64 << 20;
    let first = [hello(), GuestMessage::BodyStarted { at_ns: 3 }];
    let file = GuestMessage::File { kind: FileKind::Profile, length: FILE };
    let messages = first
        .into_iter()
        .chain((0..8).map(move |_| log()))
        .chain((0..4).map(move |_| measurements()))
        .chain((0..100).map(move |_| panic()))
        .chain((0..1000).map(event))
        .chain(std::iter::once_with(capture))
        .chain((0..count).map(collected))
        .chain([file])
        .chain(std::iter::once_with(verdict))
        .chain((0..FILE / (1 << 19)).map(|_| GuestMessage::FilePiece(vec![1; 1 << 19])));
    Box::new(console.chain(messages.map(port)))
}

/// Plays a flood with all that a run does with what arrived: prints, judges, reports, and writes it.
fn run_flood(collected: Message, count: u64) {
    let limit = Duration::from_secs(3600);
    let (limits, request) =
        (RunLimits { duration: Some(limit), watchdog: limit }, MachineSpec::DEFAULT);
    let (test, env, restored) = ("test".to_owned(), Vec::new(), None);
    let request = RunRequest { test, machine: request, env, restored };
    let session = Session::new(Request::Run(request), limits, Instant::now());
    let mut echo = Echo::default();
    let outcome = session.run(&mut FloodVm { messages: flood(collected, count) }, &mut |live| {
        if let Live::Output(_, bytes) = live {
            echo.print(bytes);
        }
        None
    });
    echo.finish();
    assert!(matches!(outcome.end, RunEnd::Verdict(_)), "{}", outcome.end);
    assert!(outcome.measurements.is_truncated() && outcome.profile.as_ref().unwrap().is_complete());
    let mut record = record::begin(&TestEntry { name: "test", ..TestEntry::DEFAULT });
    keep_outcome(outcome, Duration::ZERO, &mut record);
    let root = tempfile::tempdir().unwrap();
    artifacts::begin_in(root.path(), &mut record);
    record.passed = Some(false);
    artifacts::finish(&mut record);
    // The record has all of it.
    assert_eq!(record.artifacts.as_ref().unwrap().errors, [""; 0]);
    std::hint::black_box(report::render(&record, Style::PLAIN));
}

/// Prints the growth of this process for one flood. Not by `println!`: what libtest captures is a part of the growth.
#[test]
#[ignore = "a process of another test"]
fn flooded_process() {
    let Ok(wanted) = std::env::var(FLOOD) else { return };
    let (_, count, collected) =
        worst_collected().into_iter().find(|(name, ..)| *name == wanted).unwrap();
    let before = status("VmRSS");
    run_flood(collected, count);
    let growth = status("VmHWM").saturating_sub(before);
    let _ = writeln!(std::io::stderr().lock(), "growth {growth}");
}

/// Names the flood for the process of [`flooded_process`].
const FLOOD: &str = "KTSTR_TEST_FLOOD";

#[test]
fn memory_of_a_run_is_bounded_whatever_the_guest_sends() {
    for (name, ..) in worst_collected() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let test = format!("{}::flooded_process", module_path!().split_once("::").unwrap().1);
        command.args(["--exact", &test, "--ignored"]).env(FLOOD, name);
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{name}: {}{stderr}",
            String::from_utf8_lossy(&output.stdout)
        );
        let growth = stderr.lines().find_map(|line| line.strip_prefix("growth ")?.parse().ok());
        let growth: usize = growth.unwrap_or_else(|| panic!("{name}: {stderr}"));
        eprintln!("{name}: {} MiB", growth >> 20);
        assert!((50 << 20..=LIMIT).contains(&growth), "{name}: {} MiB", growth >> 20);
    }
}
