//! A guest, from its first byte to the report of its run: the order and the bounds of its messages, its console and
//! output, and what is shown of them.
//!
//! The bytes are a list of events. The first byte of each selects its kind, the second the length of its content.

#![no_main]

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ktstr::machine::MachineSpec;
use ktstr::prelude::AssertResult;
use ktstr::record::{RunRecord, Timing};
use ktstr::result::RunEnd;
use ktstr::runner::fuzzing;
use ktstr_core::wire::{Encoder, End, FileKind, GuestMessage, Hello, ScenarioEvent, Stream};
use ktstr_vmm::{Engine, Error, Event, ExitReason, Registers, Vm, VmConfig};
use libfuzzer_sys::fuzz_target;
use serde::ser::{Serialize, SerializeTuple, Serializer};

fuzz_target!(|data: &[u8]| {
    let config = VmConfig {
        kernel: "kernel".into(),
        initramfs: "initramfs".into(),
        cmdline: String::new(),
        kaslr: true,
        topology: MachineSpec::DEFAULT.topology,
        memory_mib: 256,
        ports: vec!["wire".to_owned()],
    };
    let engine = ScriptedEngine(Mutex::new(Some(script(data))));
    let shown = fuzzing::run_on(&engine, &config);
    assert!(shown.record.end != RunEnd::Running);
    check_text(&shown.output);
    check_text(&shown.report);
    assert!(shown.report.len() < 1 << 20, "{} bytes", shown.report.len());
    // A run without a command to run it again has no such line, whatever the guest sends.
    assert!(!shown.report.lines().any(|line| line.starts_with("  rerun")), "{}", shown.report);
    let json = serde_json::to_vec(&shown.record).expect("a record is JSON");
    let read: RunRecord = serde_json::from_slice(&json).expect("a record can be read back");
    // As text, because a measurement may be NaN, which does not equal itself.
    assert_eq!(format!("{:?}", read.end), format!("{:?}", shown.record.end));
});

/// Text that is printed on a terminal and into the log of a CI system.
fn check_text(text: &str) {
    let is_hidden = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    assert!(!text.contains(is_hidden), "{text:?}");
    for command in ["##[", "##vso[", "##teamcity["] {
        assert!(!text.contains(command), "{text:?}");
    }
    assert!(!text.lines().any(|line| line.trim_start().starts_with("::")), "{text:?}");
}

fn script(mut data: &[u8]) -> ScriptedVm {
    let (mut events, mut encoder) = (VecDeque::new(), Encoder::default());
    while let [kind, length, rest @ ..] = data {
        let (content, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        data = rest;
        let text = || String::from_utf8_lossy(content).into_owned();
        let message = match kind % 14 {
            0 => {
                events.push_back(Event::Console(content.to_vec()));
                continue;
            }
            1 => {
                events.push_back(Event::Port { port: 0, bytes: content.to_vec() });
                continue;
            }
            2 => {
                let bytes = encoder.encode(&Raw(content)).expect("it is short");
                events.push_back(Event::Port { port: 0, bytes });
                continue;
            }
            // What a run needs to get further.
            3 => GuestMessage::Hello(Hello { release: text(), init_ns: 1, ready_ns: 2 }),
            4 => GuestMessage::BodyStarted { at_ns: 3 },
            5 => GuestMessage::Heartbeat { at_ns: 4 },
            6 => GuestMessage::Log { stream: Stream::Stdout, bytes: content.to_vec() },
            7 => GuestMessage::Event(ScenarioEvent { at_ns: 5, phase: text(), what: text() }),
            8 => GuestMessage::Panic { message: text() },
            9 => GuestMessage::File { kind: FileKind::Profile, length: content.len() as u64 },
            10 => GuestMessage::FilePiece(content.to_vec()),
            11 => {
                let mut verdict = AssertResult::fail_msg(text());
                verdict.note(text());
                GuestMessage::End(End::Verdict(verdict))
            }
            12 => GuestMessage::End(End::Refused(text())),
            _ => GuestMessage::End(End::Panicked(text())),
        };
        let bytes = encoder.encode(&message).expect("it is short");
        events.push_back(Event::Port { port: 0, bytes });
    }
    ScriptedVm { events }
}

/// Bytes as the payload of a frame.
struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        for byte in self.0 {
            tuple.serialize_element(byte)?;
        }
        tuple.end()
    }
}

#[derive(Debug)]
struct ScriptedEngine(Mutex<Option<ScriptedVm>>);

impl Engine for ScriptedEngine {
    fn describe(&self) -> String {
        "a script".to_owned()
    }

    fn timing(&self) -> Timing {
        Timing::Native
    }

    fn boot(&self, _: &VmConfig) -> Result<Box<dyn Vm>, Error> {
        let script = self.0.lock().expect("nothing panics with it").take();
        Ok(Box::new(script.expect("it boots once")))
    }
}

#[derive(Debug)]
struct ScriptedVm {
    events: VecDeque<Event>,
}

impl Vm for ScriptedVm {
    fn next_event(&mut self, _: Instant) -> Result<Event, Error> {
        Ok(self.events.pop_front().unwrap_or(Event::Exited(ExitReason::Reset)))
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

    fn registers(&mut self, _: usize) -> Result<Registers, Error> {
        Ok(Registers::default())
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
