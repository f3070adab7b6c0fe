//! A machine that QEMU runs, seen through its descriptors.
//!
//! One thread does all: whatever it waits for, [`QemuVm::turn`] also moves what waits on every
//! other stream, so QEMU never blocks on a reader that waits for QEMU.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::Value;

use super::args::{self, CpuModel, Inherited};
use super::channel::Channel;
use super::inbox::Inbox;
use super::memory::GuestMemory;
use super::process::{Inherit, QemuOutput, QemuProcess};
use super::qmp::{self, QmpMessage};
use super::room;
use crate::config::VmConfig;
use crate::engine::{Event, ExitReason, Registers, Vm};
use crate::error::Error;
use crate::{schedstat, tsc};

/// How long QEMU may take to answer; it does in milliseconds unless the host is overwhelmed.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long console bytes are left to gather: QEMU writes them one by one, and waking up for each
/// would cost a busy host more than it brings the caller.
const CONSOLE_GATHER: Duration = Duration::from_millis(5);

/// A QEMU process and the streams to it.
#[derive(Debug)]
pub(super) struct QemuVm {
    process: QemuProcess,
    stderr: Channel,
    console: Channel,
    /// When the console is to be read again.
    console_due: Instant,
    ports: Vec<Channel>,
    qmp: Channel,
    parser: qmp::Parser,
    /// The number of the last command, and its answer once that has come.
    last_id: u64,
    answer: Option<Result<Value, String>>,
    /// The threads of the CPUs, once they have been asked for.
    threads: Vec<i32>,
    memory: GuestMemory,
    inbox: Inbox,
    /// How the guest ended, while QEMU still holds what it wrote last.
    guest_end: Option<ExitReason>,
    /// Set once QEMU is gone and everything it wrote is in the inbox.
    exited: Option<ExitReason>,
}

/// What can become ready.
#[derive(Debug, Clone, Copy)]
enum Source {
    Process,
    Stderr,
    Console,
    Qmp,
    Port(usize),
}

impl QemuVm {
    /// Starts QEMU and lets the guest's CPUs go.
    pub(super) fn boot(argv: &[OsString], cpu: CpuModel, config: &VmConfig) -> Result<Self, Error> {
        config.check()?;
        let memory = GuestMemory::new(config)?;
        room::check(config, memory.low())?;
        let mut inherit = Inherit::default();
        let channel = |inherit: &mut Inherit| {
            let (ours, theirs) = Channel::pair()?;
            Ok::<_, Error>((ours, inherit.add(theirs)?))
        };
        let (qmp, qmp_fd) = channel(&mut inherit)?;
        let pairs = config.ports.iter().map(|_| channel(&mut inherit));
        let (ports, port_fds) = pairs.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
        let memory_fds = memory.fds().map(|fd| inherit.add(fd)).collect::<Result<_, _>>()?;
        let fds = Inherited { qmp: qmp_fd, ports: port_fds, memory: memory_fds };
        let args = args::build(config, &fds, cpu, tsc::host_khz());
        let (process, QemuOutput { stdout, stderr }) = QemuProcess::spawn(argv, &args, inherit)?;

        let mut vm = Self {
            process,
            stderr,
            console: stdout,
            console_due: Instant::now(),
            ports,
            qmp,
            parser: qmp::Parser::default(),
            last_id: 0,
            answer: None,
            threads: Vec::new(),
            memory,
            inbox: Inbox::default(),
            guest_end: None,
            exited: None,
        };
        vm.start()?;
        Ok(vm)
    }

    /// Opens QMP, which nothing may precede, then releases the CPUs.
    fn start(&mut self) -> Result<(), Error> {
        for command in ["qmp_capabilities", "cont"] {
            self.command(command).map_err(|error| match self.exited.take() {
                Some(ExitReason::EngineDied { status, stderr }) => Error::Start { status, stderr },
                _ => error,
            })?;
        }
        Ok(())
    }

    /// Has QEMU carry out a command, and keeps everything moving until it answers.
    fn command(&mut self, command: &'static str) -> Result<Value, Error> {
        self.last_id += 1;
        self.answer = None;
        self.qmp.send(qmp::command(command, self.last_id).as_bytes())?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            if let Some(answer) = self.answer.take() {
                return answer.map_err(|reason| Error::Refused { command, reason });
            }
            if self.exited.is_some() {
                return Err(Error::Gone { operation: command });
            }
            if Instant::now() >= deadline {
                return Err(Error::Timeout { command, seconds: ANSWER_TIMEOUT.as_secs() });
            }
            self.turn(deadline)?;
        }
    }

    /// Waits until something is ready or `deadline` has passed, and moves what is ready.
    fn turn(&mut self, deadline: Instant) -> Result<(), Error> {
        for source in self.wait(deadline)? {
            match source {
                Source::Process => {
                    let status = self.process.wait()?;
                    self.drain()?;
                    let stderr = self.inbox.stderr();
                    let died = ExitReason::EngineDied { status, stderr };
                    self.exited = Some(self.guest_end.take().unwrap_or(died));
                }
                source => drop(self.transfer(source)?),
            }
        }
        Ok(())
    }

    /// Polls everything that is open; returns what is ready, nothing when the time is over.
    fn wait(&self, deadline: Instant) -> Result<Vec<Source>, Error> {
        let now = Instant::now();
        let mut until = deadline;
        let mut names = vec![Source::Process];
        let mut fds = vec![PollFd::from_borrowed_fd(self.process.pidfd(), PollFlags::IN)];
        for (source, channel) in self.channels() {
            let Some((fd, flags)) = channel.interest() else { continue };
            if matches!(source, Source::Console) && now < self.console_due {
                until = until.min(self.console_due);
                continue;
            }
            names.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        // A deadline too far for the kernel's clock is none.
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

    /// Moves bytes from and to one channel; returns whether any came.
    fn transfer(&mut self, source: Source) -> Result<bool, Error> {
        let channel = match source {
            Source::Process => return Ok(false),
            Source::Stderr => &mut self.stderr,
            Source::Console => &mut self.console,
            Source::Qmp => &mut self.qmp,
            Source::Port(index) => &mut self.ports[index],
        };
        channel.flush()?;
        let bytes = channel.read()?;
        let any = !bytes.is_empty();
        match source {
            Source::Process => {}
            Source::Stderr => self.inbox.add_stderr(&bytes),
            Source::Console => {
                self.console_due = Instant::now() + CONSOLE_GATHER;
                self.inbox.add_console(bytes)?;
            }
            Source::Qmp => {
                for message in self.parser.push(&bytes)? {
                    self.hear(message);
                }
            }
            Source::Port(index) => self.inbox.add_port(index, bytes)?,
        }
        Ok(any)
    }

    /// Takes note of what QEMU says.
    fn hear(&mut self, message: QmpMessage) {
        match message {
            QmpMessage::Return { id, value } if id == self.last_id => self.answer = Some(Ok(value)),
            QmpMessage::Error { id, desc } if id.is_none_or(|id| id == self.last_id) => {
                self.answer = Some(Err(desc));
            }
            QmpMessage::Shutdown { reason } => {
                self.guest_end = match &*reason {
                    "guest-shutdown" => Some(ExitReason::PowerOff),
                    "guest-reset" | "guest-panic" => Some(ExitReason::Reset),
                    // Not the guest's doing, such as a signal: QEMU will exit and say more.
                    _ => None,
                };
            }
            // The greeting, other events and answers that came too late.
            _ => {}
        }
    }

    /// Ends QEMU after the guest's end, once it has handed over all that the guest wrote.
    ///
    /// What did not fit into a socket still waits in the guest's rings, and QEMU goes on emptying
    /// them as we read. It has nothing more when two answers in a row came with no data: before
    /// each it has been round its main loop, with room to write.
    fn settle(&mut self) -> Result<(), Error> {
        let mut quiet = 0;
        while quiet < 2 && self.exited.is_none() {
            let before = self.inbox.received();
            match self.command("query-status") {
                Ok(_) | Err(Error::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
            self.drain()?;
            quiet = if self.inbox.received() == before { quiet + 1 } else { 0 };
        }
        self.end(ExitReason::Stopped)
    }

    /// Kills QEMU and collects what it wrote; `reason` is why unless the guest had its own.
    fn end(&mut self, reason: ExitReason) -> Result<(), Error> {
        if self.exited.is_none() {
            self.process.kill()?;
            self.drain()?;
            self.exited = Some(self.guest_end.take().unwrap_or(reason));
        }
        Ok(())
    }

    /// Reads all that can be read without waiting.
    fn drain(&mut self) -> Result<(), Error> {
        let sources: Vec<Source> = self.channels().map(|(source, _)| source).collect();
        for source in sources {
            while self.transfer(source)? {}
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
                self.settle()?;
                continue;
            }
            let is_late = Instant::now() >= deadline;
            self.turn(deadline)?;
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
        self.command("stop").map(drop)
    }

    fn resume(&mut self) -> Result<(), Error> {
        match self.command("cont") {
            // QEMU refuses to go on after the guest's end, of which the caller hears soon.
            Err(Error::Refused { .. }) if self.guest_end.is_some() => Ok(()),
            result => result.map(drop),
        }
    }

    fn registers(&mut self, _cpu: usize) -> Result<Registers, Error> {
        Err(Error::Unsupported {
            operation: "tell its registers: QEMU runs it, and KVM is needed for that",
        })
    }

    fn read_memory(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.memory.read(gpa, buf)
    }

    fn run_delays(&mut self) -> Result<Vec<Duration>, Error> {
        if self.threads.is_empty() {
            self.threads = qmp::cpu_threads(&self.command("query-cpus-fast")?)?;
        }
        self.threads.iter().map(|tid| schedstat::run_delay(*tid)).collect()
    }

    fn stop(&mut self) -> Result<(), Error> {
        self.end(ExitReason::Stopped)
    }
}

#[cfg(test)]
mod tests;
