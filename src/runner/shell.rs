//! Runs a shell, interactive or with one command, in a VM of its own.

mod terminal;
mod userland;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use ktstr_core::machine::MachineSpec;
use ktstr_core::wire::{Request, ShellRequest, Stream};

use super::session::RunOutcome;
use super::{Live, MachineRequest, Prepared, Program, RunLimits, environment};
use crate::notice::notice;
use crate::report::{self, Untrusted};
use terminal::Terminal;
pub(super) use userland::Userland;

/// The longest silence of the guest, as for a test.
pub(super) const WATCHDOG: Duration = Duration::from_secs(20);

/// Ctrl-], as in telnet and virsh: programs in the guest hardly use it.
const LEAVE: u8 = 0x1d;

/// A shell and its machine.
#[derive(Debug, Clone)]
pub struct Shell {
    /// The guest. Its memory is raised if the guest could not boot with it.
    pub machine: MachineSpec,
    /// A command for the guest's `sh -c`; without one, `sh` reads the standard input of this process.
    pub command: Option<String>,
}

impl Shell {
    /// Boots the machine and runs the shell in it; returns its exit status.
    ///
    /// Needs a `main` that begins with [`init_if_guest`](super::init_if_guest). Without a command, and if standard
    /// input and output are a terminal, the shell gets a terminal of its own, and this one is in raw mode until
    /// the shell exits.
    ///
    /// # Errors
    ///
    /// If the machine cannot be prepared, differs from the request, or ends before the shell; the error then
    /// shows the end of the console.
    pub fn run(&self) -> Result<u8> {
        let env = environment::passed_on(&[])?;
        let userland = Userland::of_host()?;
        let prepared = Prepared::new(&MachineRequest {
            program: Program::this_program(),
            spec: &self.machine,
            env: &[],
            contents: userland.into(),
            nests: false,
            forks: false,
        })?;
        let is_terminal =
            self.command.is_none() && io::stdin().is_terminal() && io::stdout().is_terminal();
        let size = if is_terminal { Some(terminal::size()?) } else { None };
        let spec = &prepared.spec;
        notice(&format!("booting {}, {} MiB ...", spec.topology, spec.memory_mib));
        let limits = RunLimits { duration: None, watchdog: WATCHDOG };
        let mut streams = Streams { size, ..Streams::default() };
        let request = self.request(env, spec.clone(), size);
        let outcome = prepared.run(Request::Shell(request), limits, &mut |live| {
            streams.handle(&live).unwrap_or_else(|error| {
                streams.error.get_or_insert(error);
                Some(Request::Kill)
            })
        });
        // Leave raw mode before anything else is printed.
        drop(streams.terminal.take());
        if let Some(error) = streams.error {
            return Err(error);
        }
        status(&outcome?)
    }

    fn request(
        &self,
        env: Vec<(OsString, OsString)>,
        machine: MachineSpec,
        terminal: Option<(u16, u16)>,
    ) -> ShellRequest {
        let command = self.command.iter().flat_map(|command| ["-c", command]);
        let mut env = env;
        env.extend([("SHELL", "/bin/sh"), ("PS1", "ktstr# ")].map(|(n, v)| (n.into(), v.into())));
        if terminal.is_some() {
            let term = std::env::var_os("TERM").unwrap_or_else(|| "linux".into());
            env.push(("TERM".into(), term));
        }
        ShellRequest {
            argv: ["/bin/sh"].into_iter().chain(command).map(str::to_owned).collect(),
            env,
            terminal,
            machine,
        }
    }
}

/// Returns the exit status of the program, or why there is none, with the end of the console.
pub(super) fn status(outcome: &RunOutcome) -> Result<u8> {
    outcome.shell_status.ok_or_else(|| {
        let mut text = String::new();
        report::tail(&mut text, "console", &outcome.console);
        let end = outcome.end.to_string();
        anyhow!("{}\n{}", Untrusted::new(&end), text.trim_end())
    })
}

/// Connects the standard streams of this process with those of the guest.
#[derive(Debug, Default)]
struct Streams {
    /// The size of the terminal that the guest has received.
    size: Option<(u16, u16)>,
    terminal: Option<Terminal>,
    input: Option<Receiver<Vec<u8>>>,
    error: Option<anyhow::Error>,
}

impl Streams {
    /// Prints output of the guest, and returns input for it.
    fn handle(&mut self, live: &Live<'_>) -> Result<Option<Request>> {
        if self.error.is_some() {
            return Ok(None);
        }
        // Not before the guest accepts input: until then, Ctrl-C ends this process as any other.
        if self.input.is_none() {
            if self.size.is_some() {
                notice("`exit` or Ctrl-D ends the shell and its machine, Ctrl-] at once");
                self.terminal = Some(Terminal::raw()?);
            }
            self.input = Some(read_stdin());
        }
        if let Live::Output(stream, bytes) = live {
            print(*stream, bytes).context("failed to print the output of the guest")?;
        }
        if let Some(known) = self.size {
            let size = terminal::size()?;
            if size != known {
                self.size = Some(size);
                return Ok(Some(Request::Resize(size.0, size.1)));
            }
        }
        let input = self.input.as_ref().map_or(Err(TryRecvError::Empty), Receiver::try_recv);
        Ok(match input {
            Ok(bytes) if self.size.is_some() && bytes.contains(&LEAVE) => {
                // The prompt of the guest is on this line.
                print(Stream::Stderr, b"\r\n").context("failed to end the line")?;
                Some(Request::Kill)
            }
            Ok(bytes) => Some(Request::Input(bytes)),
            Err(_) => None,
        })
    }
}

/// Reads standard input on a thread, which ends with the process. An empty vector is the end of the input.
fn read_stdin() -> Receiver<Vec<u8>> {
    // Bounded, so that a large file is not read ahead of the guest.
    let (sender, receiver) = sync_channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        loop {
            // An error counts as the end.
            let count = io::stdin().lock().read(&mut buffer).unwrap_or(0);
            if sender.send(buffer[..count].to_vec()).is_err() || count == 0 {
                return;
            }
        }
    });
    receiver
}

fn print(stream: Stream, bytes: &[u8]) -> io::Result<()> {
    match stream {
        Stream::Stdout => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes)?;
            stdout.flush()
        }
        Stream::Stderr => io::stderr().lock().write_all(bytes),
    }
}

#[cfg(test)]
mod tests {
    use ktstr_core::result::RunEnd;
    use ktstr_core::topology::Llcs;

    use super::*;

    fn shell(command: Option<&str>) -> Shell {
        let command = command.map(str::to_owned);
        Shell { machine: MachineSpec::DEFAULT, command }
    }

    #[test]
    fn order_passes_a_command_as_one_argument() {
        let request = shell(Some("exit 7")).request(Vec::new(), MachineSpec::DEFAULT, None);
        assert_eq!(request.argv, ["/bin/sh", "-c", "exit 7"]);
        assert_eq!((request.terminal, request.machine), (None, MachineSpec::DEFAULT));
        assert!(request.env.iter().all(|(name, _)| name != "TERM"));
    }

    #[test]
    fn order_requests_a_terminal_for_a_prompt() {
        let request = shell(None).request(Vec::new(), MachineSpec::DEFAULT, Some((24, 80)));
        assert_eq!((request.argv, request.terminal), (vec!["/bin/sh".to_owned()], Some((24, 80))));
        assert!(request.env.iter().any(|(name, _)| name == "TERM"));
    }

    #[test]
    fn shell_does_not_run_on_a_machine_that_differs_from_the_request() {
        let userland = Userland::of_host().unwrap();
        let shell = shell(Some("echo ran"));
        let request = MachineRequest {
            program: Program::this_test_binary().unwrap(),
            spec: &shell.machine,
            env: &[],
            contents: userland.into(),
            nests: false,
            forks: false,
        };
        let prepared = Prepared::new(&request).unwrap();
        let mut other = prepared.spec.clone();
        other.topology.llcs = Llcs::even(2, 2);
        other.memory_mib += 64;
        let request = Request::Shell(shell.request(Vec::new(), other, None));
        let limits = RunLimits { duration: None, watchdog: WATCHDOG };
        let outcome = prepared.run(request, limits, &mut |_| None).unwrap();
        let RunEnd::WrongTopology(differences) = outcome.end else { panic!("{:?}", outcome.end) };
        for what in ["online CPUs", "last-level caches", "cores", "memory"] {
            assert!(differences.iter().any(|line| line.starts_with(what)), "{differences:?}");
        }
        assert_eq!((outcome.shell_status, outcome.log.as_str()), (None, ""));
    }
}
