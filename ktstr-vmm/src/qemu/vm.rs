//! A machine that QEMU runs, as its owner controls it through descriptors.
//!
//! There is one thread. Whatever it waits for, [`QemuVm::poll_once`] also moves the data of every
//! other stream, so QEMU never blocks on a reader that waits for QEMU.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::Qemu;
use super::args::{self, Inherited, StartFrom};
use super::channel::Channel;
use super::inbox::Inbox;
use super::memory::GuestMemory;
use super::process::{Inherit, QemuOutput, QemuProcess};
use super::qmp::{self, QmpMessage};
use super::room;
use super::saved::{SaveWriter, SavedFiles};
use crate::config::VmConfig;
use crate::engine::{Event, ExitReason, Registers, Vm};
use crate::error::Error;
use crate::{schedstat, tsc};

/// How long QEMU may take to answer. It takes milliseconds unless the host is overloaded.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long console bytes are collected before they are read: QEMU writes them one by one, and a
/// wakeup for each would load a busy host for little use to the caller.
const CONSOLE_GATHER: Duration = Duration::from_millis(5);
/// The number of bytes that [`QemuVm::drain`] reads from a channel at most. A socket or pipe holds less;
/// only a process that keeps writing sends more.
const MAX_DRAINED: usize = 4 << 20;
/// Bytes that are read at most after the guest's end. Its rings may describe the same memory any
/// number of times.
const MAX_FLUSHED: u64 = 16 << 20;

/// A QEMU process and the streams to it.
#[derive(Debug)]
pub(super) struct QemuVm {
    process: QemuProcess,
    stderr: Channel,
    console: Channel,
    /// The earliest time at which the console is read again.
    console_due: Instant,
    ports: Vec<Channel>,
    qmp: Channel,
    parser: qmp::QmpParser,
    last_id: u64,
    /// The answer to the last command, once it has arrived.
    answer: Option<Result<Value, String>>,
    /// How the last migration ended, once it has.
    migration: Option<Migration>,
    /// The thread IDs of the CPUs, once QEMU was queried for them.
    threads: Vec<i32>,
    memory: GuestMemory,
    /// What a machine that is restored from this one must have in common with it.
    identity: Vec<String>,
    inbox: Inbox,
    /// Why the guest ended, while QEMU may still hold the guest's last output.
    guest_end: Option<ExitReason>,
    /// Why the machine ended, once all its output is in the inbox. QEMU has exited, or holds the
    /// memory of a restored machine.
    exited: Option<ExitReason>,
}

/// The end of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Migration {
    Completed,
    Failed,
}

/// A descriptor that can become ready.
#[derive(Debug, Clone, Copy)]
enum Source {
    Process,
    Stderr,
    Console,
    Qmp,
    Port(usize),
}

impl QemuVm {
    /// Starts QEMU and then the guest's CPUs.
    pub(super) fn boot(qemu: &Qemu, config: &VmConfig) -> Result<Self, Error> {
        config.check()?;
        let memory = GuestMemory::new(config)?;
        room::check(config, memory.low())?;
        let identity = args::identity(config, &qemu.version, qemu.cpu);
        let inherit = Inherit::default();
        let mut vm = Self::spawn(qemu, config, StartFrom::Kernel, memory, inherit, identity)?;
        vm.start().map_err(|error| vm.start_error(error))?;
        Ok(vm)
    }

    /// Starts QEMU with the state and the memory of the machine saved in `dir`, and then its CPUs.
    pub(super) fn restore(qemu: &Qemu, config: &VmConfig, dir: &Path) -> Result<Self, Error> {
        config.check()?;
        let identity = args::identity(config, &qemu.version, qemu.cpu);
        let node_sizes = config.node_sizes_mib().map(|mib| mib << 20);
        let SavedFiles { state, memory } = SavedFiles::open(dir, &identity, node_sizes)?;
        let memory = GuestMemory::saved(config, memory);
        let start = StartFrom::SavedMachine;
        let mut inherit = Inherit::default();
        let state = format!("file:/proc/self/fd/{}", inherit.add(&state)?);
        let mut vm = Self::spawn(qemu, config, start, memory, inherit, identity)?;
        vm.load(&state).map_err(|error| vm.start_error(error))?;
        Ok(vm)
    }

    /// Starts QEMU, whose CPUs do not run yet.
    fn spawn(
        qemu: &Qemu,
        config: &VmConfig,
        start: StartFrom,
        memory: GuestMemory,
        mut inherit: Inherit,
        identity: Vec<String>,
    ) -> Result<Self, Error> {
        let channel = |inherit: &mut Inherit| {
            let (ours, theirs) = Channel::pair()?;
            Ok::<_, Error>((ours, inherit.add(theirs)?))
        };
        let (qmp, qmp_fd) = channel(&mut inherit)?;
        let pairs = config.ports.iter().map(|_| channel(&mut inherit));
        let (ports, port_fds) = pairs.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let memory_fds = memory.files().map(|(fd, _)| inherit.add(fd)).collect::<Result<_, _>>()?;
        let fds = Inherited { qmp: qmp_fd, ports: port_fds, memory: memory_fds };
        let args = args::build(config, &fds, qemu.cpu, tsc::host_khz(), start);
        tracing::debug!(program = ?qemu.argv, ?args, "starting QEMU");
        let (process, QemuOutput { stdout, stderr }) =
            QemuProcess::spawn(&qemu.argv, &args, inherit)?;
        Ok(Self {
            process,
            stderr,
            console: stdout,
            console_due: Instant::now(),
            ports,
            qmp,
            parser: qmp::QmpParser::default(),
            last_id: 0,
            answer: None,
            migration: None,
            threads: Vec::new(),
            memory,
            identity,
            inbox: Inbox::default(),
            guest_end: None,
            exited: None,
        })
    }

    /// Opens QMP, which must be the first command, then starts the CPUs.
    fn start(&mut self) -> Result<(), Error> {
        self.command("qmp_capabilities")?;
        self.command("cont").map(drop)
    }

    /// Loads the state of a saved machine from a URI of QEMU, then starts the CPUs.
    fn load(&mut self, state: &str) -> Result<(), Error> {
        self.command("qmp_capabilities")?;
        self.set_migration_capabilities()?;
        self.migrate("restore", "migrate-incoming", state, ANSWER_TIMEOUT)?;
        // Before the CPUs run: a guest that ends at once leaves its memory readable.
        let first = self.threads()?.first().copied();
        let none = || Error::Protocol("a machine without CPUs".to_owned());
        self.memory.attach(first.ok_or_else(none)?)?;
        self.command("cont").map(drop)
    }

    /// Returns the error of a machine that has not started: what QEMU printed, if it has exited.
    fn start_error(&mut self, error: Error) -> Error {
        match self.exited.take() {
            Some(ExitReason::EngineDied { status, stderr }) => Error::Start { status, stderr },
            _ => error,
        }
    }

    /// Leaves memory that is in files out of migrations, and reports their progress.
    fn set_migration_capabilities(&mut self) -> Result<(), Error> {
        let capability = |name| json!({ "capability": name, "state": true });
        let capabilities =
            json!({ "capabilities": [capability("x-ignore-shared"), capability("events")] });
        self.command_with("migrate-set-capabilities", Some(&capabilities)).map(drop)
    }

    /// Starts a migration to or from a URI of QEMU and waits until it has ended, or else cancels it.
    fn migrate(
        &mut self,
        operation: &'static str,
        command: &'static str,
        uri: &str,
        timeout: Duration,
    ) -> Result<(), Error> {
        self.migration = None;
        self.command_with(command, Some(&json!({ "uri": uri })))?;
        let deadline = Instant::now() + timeout;
        loop {
            match self.migration {
                Some(Migration::Completed) => return Ok(()),
                Some(Migration::Failed) => {
                    // After a failed restore QEMU exits, and its standard error has the reason.
                    let info = self.command("query-migrate")?;
                    let reason = info["error-desc"].as_str().unwrap_or("unknown reason").to_owned();
                    return Err(Error::Migrate { operation, reason });
                }
                None if self.exited.is_some() => return Err(Error::Gone { operation }),
                None if Instant::now() >= deadline => {
                    // QEMU stops the CPUs when a migration completes, so that a machine which runs on
                    // would stop at any later time.
                    self.command("migrate_cancel")?;
                    return Err(Error::Timeout { command, seconds: timeout.as_secs() });
                }
                None => self.poll_once(deadline)?,
            }
        }
    }

    /// Waits until the CPUs can run again after a migration. QEMU reports its end shortly before that,
    /// in the state `finish-migrate`, in which it refuses `cont` (monitor/qmp-cmds.c, `qmp_cont`).
    fn wait_migration_over(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        while self.command("query-status")?["status"] == "finish-migrate" {
            if Instant::now() >= deadline {
                let seconds = ANSWER_TIMEOUT.as_secs();
                return Err(Error::Timeout { command: "migrate", seconds });
            }
        }
        Ok(())
    }

    /// Writes the files of the paused machine.
    fn save_paused(&mut self, dir: &Path) -> Result<(), Error> {
        let mut writer = SaveWriter::new(dir)?;
        let state = writer.create_state()?;
        self.set_migration_capabilities()?;
        self.migrate("save", "migrate", &format!("file:{state}"), ANSWER_TIMEOUT)?;
        for (memory, size) in self.memory.files() {
            writer.add_memory(memory, size)?;
        }
        writer.finish(&self.identity)
    }

    fn threads(&mut self) -> Result<&[i32], Error> {
        if self.threads.is_empty() {
            self.threads = qmp::cpu_threads(&self.command("query-cpus-fast")?)?;
        }
        Ok(&self.threads)
    }

    /// Sends a command without arguments, as [`Self::command_with`].
    fn command(&mut self, command: &'static str) -> Result<Value, Error> {
        self.command_with(command, None)
    }

    /// Sends a command to QEMU and returns its answer. All streams are served meanwhile.
    fn command_with(
        &mut self,
        command: &'static str,
        arguments: Option<&Value>,
    ) -> Result<Value, Error> {
        self.last_id += 1;
        self.answer = None;
        tracing::debug!(command, id = self.last_id, "QMP command");
        self.qmp.send(qmp::command(command, arguments, self.last_id).as_bytes())?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            if let Some(answer) = self.answer.take() {
                let error = answer.as_ref().err();
                tracing::debug!(command, id = self.last_id, ?error, "QMP answer");
                return answer.map_err(|reason| Error::Refused { command, reason });
            }
            if self.exited.is_some() {
                return Err(Error::Gone { operation: command });
            }
            if Instant::now() >= deadline {
                return Err(Error::Timeout { command, seconds: ANSWER_TIMEOUT.as_secs() });
            }
            self.poll_once(deadline)?;
        }
    }

    /// Waits until a descriptor is ready or `deadline` has passed, and moves what is ready.
    fn poll_once(&mut self, deadline: Instant) -> Result<(), Error> {
        for source in self.wait(deadline)? {
            match source {
                Source::Process => {
                    // It has ended, so all that it wrote can be read without waiting.
                    let status = self.process.wait()?;
                    self.drain()?;
                    let stderr = self.inbox.stderr();
                    self.set_exited(ExitReason::EngineDied { status, stderr });
                }
                source => drop(self.transfer(source)?),
            }
        }
        Ok(())
    }

    /// Polls all open descriptors. Returns those that are ready; none at `deadline`.
    fn wait(&self, deadline: Instant) -> Result<Vec<Source>, Error> {
        let now = Instant::now();
        let mut until = deadline;
        let mut names = vec![Source::Process];
        let mut fds = vec![PollFd::from_borrowed_fd(self.process.pidfd(), PollFlags::IN)];
        for (source, channel) in self.channels() {
            let Some((fd, flags)) = channel.interest() else { continue };
            // Let console bytes gather: wake up when they are due, not when there are some.
            if matches!(source, Source::Console) && now < self.console_due {
                until = until.min(self.console_due);
                continue;
            }
            names.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        // A deadline that the kernel's clock cannot represent means to wait without one.
        let timeout = Timespec::try_from(until.saturating_duration_since(now)).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(errno) => return Err(Error::io("wait for the engine")(errno)),
        }
        let ready = names.into_iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|(source, _)| source).collect())
    }

    fn channels(&self) -> impl Iterator<Item = (Source, &Channel)> {
        let ports = self.ports.iter().enumerate();
        [(Source::Stderr, &self.stderr), (Source::Console, &self.console), (Source::Qmp, &self.qmp)]
            .into_iter()
            .chain(ports.map(|(index, port)| (Source::Port(index), port)))
    }

    /// Moves bytes from and to one channel. Returns how many were read.
    fn transfer(&mut self, source: Source) -> Result<usize, Error> {
        let channel = match source {
            Source::Process => return Ok(0),
            Source::Stderr => &mut self.stderr,
            Source::Console => &mut self.console,
            Source::Qmp => &mut self.qmp,
            Source::Port(index) => &mut self.ports[index],
        };
        let was_open = channel.is_open();
        channel.flush()?;
        let bytes = channel.read()?;
        if was_open && !channel.is_open() {
            tracing::debug!(?source, "QEMU closed its end");
        }
        let count = bytes.len();
        match source {
            Source::Process => {}
            Source::Stderr => self.inbox.add_stderr(&bytes),
            Source::Console => {
                self.console_due = Instant::now() + CONSOLE_GATHER;
                self.inbox.add(Event::Console(bytes))?;
            }
            Source::Qmp => {
                for message in self.parser.push(&bytes)? {
                    self.handle_message(message);
                }
            }
            Source::Port(port) => self.inbox.add(Event::Port { port, bytes })?,
        }
        Ok(count)
    }

    /// Records the answer or the event in a message of QEMU.
    fn handle_message(&mut self, message: QmpMessage) {
        match message {
            QmpMessage::Return { id, value } if id == self.last_id => self.answer = Some(Ok(value)),
            QmpMessage::Error { id, desc } if id.is_none_or(|id| id == self.last_id) => {
                self.answer = Some(Err(desc));
            }
            QmpMessage::Shutdown { reason } => {
                tracing::debug!(reason, "QMP event SHUTDOWN");
                self.guest_end = match &*reason {
                    "guest-shutdown" => Some(ExitReason::PowerOff),
                    "guest-reset" | "guest-panic" => Some(ExitReason::Reset),
                    // Another cause, such as a signal: QEMU exits and reports it on stderr.
                    _ => None,
                };
            }
            QmpMessage::Migration { status } => {
                tracing::debug!(status, "QMP event MIGRATION");
                self.migration = match &*status {
                    "completed" => Some(Migration::Completed),
                    "failed" => Some(Migration::Failed),
                    _ => None,
                };
            }
            // The greeting, other events, and answers to commands that have timed out.
            _ => {}
        }
    }

    /// Reads the guest's last output after its end, then kills QEMU, unless the memory of the machine
    /// would end with it.
    ///
    /// Output that did not fit into a socket is still in the guest's rings. QEMU continues to empty
    /// them as this process reads. It is done when two answers in a row arrived without data:
    /// before each, QEMU has run an iteration of its main loop with room to write. What exceeds
    /// [`MAX_FLUSHED`] is lost.
    fn flush_guest_output(&mut self) -> Result<(), Error> {
        let mut quiet = 0;
        let end = self.inbox.received() + MAX_FLUSHED;
        while quiet < 2 && self.exited.is_none() && self.inbox.received() < end {
            let before = self.inbox.received();
            match self.command("query-status") {
                Ok(_) | Err(Error::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
            self.drain()?;
            quiet = if self.inbox.received() == before { quiet + 1 } else { 0 };
        }
        if self.memory.is_private() {
            if self.exited.is_none() {
                self.set_exited(ExitReason::Stopped);
            }
            return Ok(());
        }
        self.kill(ExitReason::Stopped)
    }

    /// Kills QEMU and collects its output. `reason` counts unless the guest has ended before.
    fn kill(&mut self, reason: ExitReason) -> Result<(), Error> {
        if self.exited.is_none() {
            tracing::debug!("killing QEMU");
            self.process.kill()?;
            self.drain()?;
            self.set_exited(reason);
        } else {
            // It holds the memory of a restored machine, or has already exited.
            self.process.kill()?;
        }
        Ok(())
    }

    /// Records that the machine has exited: because of the guest's end, else for `reason`.
    fn set_exited(&mut self, reason: ExitReason) {
        let reason = self.guest_end.take().unwrap_or(reason);
        tracing::debug!(%reason, "machine exited");
        self.exited = Some(reason);
    }

    /// Reads the data that can be read without waiting, up to [`MAX_DRAINED`] of each channel.
    fn drain(&mut self) -> Result<(), Error> {
        let sources: Vec<Source> = self.channels().map(|(source, _)| source).collect();
        for source in sources {
            let mut drained = 0;
            while drained < MAX_DRAINED {
                match self.transfer(source)? {
                    0 => break,
                    count => drained += count,
                }
            }
        }
        Ok(())
    }
}

impl Vm for QemuVm {
    fn next_event(&mut self, deadline: Instant) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.inbox.pop() {
                return Ok(event);
            }
            if let Some(reason) = &self.exited {
                return Ok(Event::Exited(reason.clone()));
            }
            if self.guest_end.is_some() {
                self.flush_guest_output()?;
                continue;
            }
            let is_late = Instant::now() >= deadline;
            self.poll_once(deadline)?;
            let is_idle =
                self.inbox.is_empty() && self.exited.is_none() && self.guest_end.is_none();
            if is_late && is_idle {
                return Ok(Event::Deadline);
            }
        }
    }

    fn send(&mut self, port: usize, bytes: &[u8]) -> Result<(), Error> {
        if self.exited.is_some() {
            return Err(Error::Gone { operation: "send" });
        }
        self.ports.get_mut(port).ok_or(Error::NoPort(port))?.send(bytes)
    }

    fn pause(&mut self) -> Result<(), Error> {
        self.command("stop")?;
        // What the guest has written is the caller's next events, although console bytes gather.
        self.drain()
    }

    fn resume(&mut self) -> Result<(), Error> {
        match self.command("cont") {
            // QEMU refuses to continue after the guest's end, which is the caller's next event.
            Err(Error::Refused { .. }) if self.guest_end.is_some() => Ok(()),
            result => result.map(drop),
        }
    }

    fn registers(&mut self, _cpu: usize) -> Result<Registers, Error> {
        Err(Error::Unsupported {
            operation: "read the registers of its CPUs: this needs KVM, and QEMU runs it",
        })
    }

    fn read_memory(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.memory.read(gpa, buf)
    }

    fn run_delays(&mut self) -> Result<Vec<Duration>, Error> {
        self.threads()?.iter().map(|tid| schedstat::run_delay(*tid)).collect()
    }

    fn save(&mut self, dir: &Path) -> Result<(), Error> {
        if self.memory.is_private() {
            return Err(Error::Unsupported { operation: "be saved: it was itself restored" });
        }
        let was_running = self.command("query-status")?["running"] == true;
        self.command("stop")?;
        let saved = match self.guest_end {
            Some(_) => Err(Error::Gone { operation: "save" }),
            None => self.save_paused(dir),
        };
        // Whether or not it was saved, the machine continues.
        let mut resumed = self.wait_migration_over();
        if was_running {
            resumed = resumed.and_then(|()| self.resume());
        }
        saved.and(resumed)
    }

    fn stop(&mut self) -> Result<(), Error> {
        self.kill(ExitReason::Stopped)
    }
}

#[cfg(test)]
mod tests;
