//! The order of the guest's messages, as a state machine.
//!
//! A message out of order is not an error of the test, because PID 1 forwards only facts and the end of a body. It
//! comes from a guest whose PID 1 has been replaced, so no other message of this guest is trusted.

use ktstr_core::wire::{End, GuestMessage, Request};

/// What the guest has sent so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing.
    Booting,
    /// `Hello`, upon which the host has requested a test.
    TestRequested,
    /// `BodyStarted`.
    Body,
    /// `Hello`, upon which the host has requested a program.
    Program,
    /// `End`. Only a file may follow, which is received separately.
    Ended,
}

/// The state machine of one run.
#[derive(Debug)]
pub(super) struct Protocol {
    state: State,
    requests_program: bool,
    /// Whether a file was announced.
    has_file: bool,
}

impl Protocol {
    pub(super) fn new(request: &Request) -> Self {
        let requests_program = matches!(request, Request::Shell(_));
        Self { state: State::Booting, requests_program, has_file: false }
    }

    /// Advances by a message of the guest.
    ///
    /// # Errors
    ///
    /// If the message is not expected now: which, and when.
    pub(super) fn advance(&mut self, message: &GuestMessage) -> Result<(), String> {
        use GuestMessage as M;
        self.state = match (self.state, message) {
            (State::Booting, M::Hello(_)) if self.requests_program => State::Program,
            (State::Booting, M::Hello(_)) => State::TestRequested,
            (State::TestRequested, M::BodyStarted { .. }) => State::Body,
            (State::TestRequested | State::Body | State::Program, M::Heartbeat { .. })
            | (State::Body | State::Program, M::Log { .. })
            | (
                State::Body,
                M::Event(_) | M::Capture(_) | M::Snapshot(_) | M::Measurements(_) | M::Panic { .. },
            ) => self.state,
            (State::TestRequested | State::Body | State::Program, M::File { .. })
                if !self.has_file =>
            {
                self.has_file = true;
                self.state
            }
            (state, M::End(end)) if ends(state, end) => State::Ended,
            (state, message) => {
                return Err(format!("unexpected message {} {}", name(message), describe(state)));
            }
        };
        Ok(())
    }
}

/// Returns whether a run in this state can end in this way.
fn ends(state: State, end: &End) -> bool {
    match end {
        End::Verdict(_)
        | End::Error(_)
        | End::Panicked(_)
        | End::Exited { .. }
        | End::ProtocolViolation(_) => state == State::Body,
        End::WrongTopology(_) | End::Refused(_) => {
            matches!(state, State::TestRequested | State::Program)
        }
        End::ShellExited(_) => state == State::Program,
    }
}

fn name(message: &GuestMessage) -> &'static str {
    match message {
        GuestMessage::Hello(_) => "Hello",
        GuestMessage::BodyStarted { .. } => "BodyStarted",
        GuestMessage::Heartbeat { .. } => "Heartbeat",
        GuestMessage::Log { .. } => "Log",
        GuestMessage::Event(_) => "Event",
        GuestMessage::Capture(_) => "Capture",
        GuestMessage::Snapshot(_) => "Snapshot",
        GuestMessage::Measurements(_) => "Measurements",
        GuestMessage::Panic { .. } => "Panic",
        GuestMessage::File { .. } => "File",
        GuestMessage::FilePiece(_) => "FilePiece",
        GuestMessage::End(end) => match end {
            End::Verdict(_) => "End(Verdict)",
            End::Error(_) => "End(Error)",
            End::Panicked(_) => "End(Panicked)",
            End::Exited { .. } => "End(Exited)",
            End::ProtocolViolation(_) => "End(ProtocolViolation)",
            End::WrongTopology(_) => "End(WrongTopology)",
            End::Refused(_) => "End(Refused)",
            End::ShellExited(_) => "End(ShellExited)",
        },
    }
}

fn describe(state: State) -> &'static str {
    match state {
        State::Booting => "before Hello",
        State::TestRequested => "between Hello and BodyStarted",
        State::Body => "while the body ran",
        State::Program => "while a program ran",
        State::Ended => "after End",
    }
}

#[cfg(test)]
mod tests {
    use ktstr_core::assert::AssertResult;
    use ktstr_core::machine::MachineSpec;
    use ktstr_core::result::ExitKind;
    use ktstr_core::snapshot::{CgroupProcsSnapshot, Snapshot};
    use ktstr_core::wire::{FileKind, Hello, RunRequest, ScenarioEvent, ShellRequest, Stream};

    use super::*;

    fn test() -> Request {
        let machine = MachineSpec::DEFAULT;
        Request::Run(RunRequest {
            test: "test".to_owned(),
            machine,
            env: Vec::new(),
            restored: None,
        })
    }

    fn program() -> Request {
        let (argv, env, machine) = (Vec::new(), Vec::new(), MachineSpec::DEFAULT);
        Request::Shell(ShellRequest { argv, env, terminal: None, machine })
    }

    /// Returns one message of each kind and of each end.
    fn messages() -> Vec<GuestMessage> {
        let text = String::new;
        let (tag, cgroup, pids, procs) = (text(), text(), Vec::new(), Vec::new());
        let (name, cgroups, workers) = (text(), Vec::new(), Vec::new());
        let ends = [
            End::Verdict(AssertResult::pass()),
            End::Error(text()),
            End::Panicked(text()),
            End::Exited { kind: ExitKind::Exited(0), last_panic: None },
            End::ProtocolViolation(text()),
            End::WrongTopology(Vec::new()),
            End::Refused(text()),
            End::ShellExited(0),
        ];
        let others = [
            GuestMessage::Hello(Hello { release: text(), init_ns: 0, ready_ns: 0 }),
            GuestMessage::BodyStarted { at_ns: 0 },
            GuestMessage::Heartbeat { at_ns: 0 },
            GuestMessage::Log { stream: Stream::Stdout, bytes: Vec::new() },
            GuestMessage::Event(ScenarioEvent { at_ns: 0, phase: text(), what: text() }),
            GuestMessage::Capture(CgroupProcsSnapshot { tag, cgroup, pids, procs, at_ns: 0 }),
            GuestMessage::Snapshot(Snapshot { name, at_ns: 0, cgroups, workers, kernel: None }),
            GuestMessage::Measurements(Vec::new()),
            GuestMessage::Panic { message: text() },
            GuestMessage::File { kind: FileKind::Profile, length: 0 },
            GuestMessage::FilePiece(Vec::new()),
        ];
        others.into_iter().chain(ends.map(GuestMessage::End)).collect()
    }

    /// Every message after every beginning of a run: the accepted ones are listed.
    #[test]
    fn advance_accepts_only_the_listed_messages() {
        const BODY: &str = "Heartbeat Log Event Capture Snapshot Measurements Panic File End(Verdict) \
                            End(Error) End(Panicked) End(Exited) End(ProtocolViolation)";
        for (request, before, accepted) in [
            (test(), &[][..], "Hello"),
            (program(), &[], "Hello"),
            (test(), &["Hello"], "BodyStarted Heartbeat File End(WrongTopology) End(Refused)"),
            (
                program(),
                &["Hello"],
                "Heartbeat Log File End(WrongTopology) End(Refused) End(ShellExited)",
            ),
            (test(), &["Hello", "BodyStarted"], BODY),
            (test(), &["Hello", "BodyStarted", "Log", "Event", "Heartbeat"], BODY),
            (test(), &["Hello", "BodyStarted", "File"], &BODY.replace("File ", "")),
            (test(), &["Hello", "BodyStarted", "End(Verdict)"], ""),
            (test(), &["Hello", "End(Refused)"], ""),
            (program(), &["Hello", "End(ShellExited)"], ""),
        ] {
            let found = messages().into_iter().filter(|message| {
                let mut protocol = Protocol::new(&request);
                for step in before {
                    let all = messages();
                    let step = all.iter().find(|message| name(message) == *step).unwrap();
                    protocol.advance(step).unwrap();
                }
                protocol.advance(message).is_ok()
            });
            let found: Vec<_> = found.map(|message| name(&message)).collect();
            assert_eq!(found.join(" "), accepted, "after {before:?}");
        }
    }

    #[test]
    fn advance_names_the_message_and_the_state() {
        let error = Protocol::new(&test()).advance(&messages()[1]).unwrap_err();
        assert_eq!(error, "unexpected message BodyStarted before Hello");
    }
}
