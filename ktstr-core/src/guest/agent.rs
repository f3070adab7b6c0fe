//! PID 1's loop: between the wire to the host and the one child that carries out the order.

use std::collections::VecDeque;
use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::child::{Child, Taken, take};
use super::{body, shell};
use crate::registry;
use crate::sys::{self, since_boot_ns};
use crate::topology::TestTopology;
use crate::wire::{Decoder, Encoder, End, Hello, Order, Report, RunOrder};
use crate::workload::describe_status;

/// How often PID 1 says that it lives.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// How long the host may take to end the machine after the last report, before PID 1 does.
const FAREWELL: Duration = Duration::from_secs(10);

/// While more than this waits for the host, the child's output is left in its pipes.
const QUEUE: usize = 1 << 20;

/// The most that is read from one pipe at a time.
const CHUNK: usize = 1 << 16;

pub(super) struct Agent {
    port: File,
    orders: Decoder,
    encoder: Encoder,
    queue: VecDeque<u8>,
    next_heartbeat: Instant,
    /// What the body says of itself; only counted once it has ended.
    end: Option<End>,
    panic: Option<String>,
}

impl Agent {
    pub(super) fn new(port: File) -> Result<Self> {
        Ok(Self {
            port,
            orders: Decoder::default(),
            encoder: Encoder::default(),
            queue: VecDeque::new(),
            next_heartbeat: Instant::now(),
            end: None,
            panic: None,
        })
    }

    /// Says hello, carries out one order, reports its end.
    pub(super) fn serve(mut self, began_ns: u64) -> Result<()> {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        self.tell(&Report::Hello(Hello { release, init_ns: began_ns, ready_ns: since_boot_ns() }))?;
        let order = self.wait_for_order()?;
        let end = match self.start(order)? {
            Ok(child) => self.watch(child)?,
            Err(end) => end,
        };
        self.tell(&Report::End(end))?;
        while !self.queue.is_empty() {
            self.turn(&mut None)?;
        }
        // The host ends the machine when it has read the verdict. If it is gone, so are we.
        let until = Instant::now() + FAREWELL;
        while Instant::now() < until {
            self.turn(&mut None)?;
        }
        Ok(())
    }

    fn wait_for_order(&mut self) -> Result<Order> {
        loop {
            self.turn(&mut None)?;
            if let Some(order) = self.orders.next().context("the host's order is damaged")? {
                return Ok(order);
            }
        }
    }

    /// Starts what the order asks for, or says why not.
    fn start(&mut self, order: Order) -> Result<Result<Child, End>> {
        match order {
            Order::Run(order) => self.start_body(&order),
            Order::Shell(order) => shell::start(&order),
            Order::Input(_) | Order::Resize(..) | Order::Kill => {
                bail!("the host addressed a program before it named one")
            }
        }
    }

    fn start_body(&mut self, order: &RunOrder) -> Result<Result<Child, End>> {
        let Some(entry) = registry::find(&order.test) else {
            let known: Vec<_> =
                registry::TESTS.iter().map(registry::TestEntry::test_name).collect();
            let why =
                format!("no test of this binary is called {}; there are {known:?}", order.test);
            return Ok(Err(End::Refused(why)));
        };
        let topology = TestTopology::read()?;
        let mut differences = topology.differences(&entry.topology);
        differences.extend(super::memory::difference(order.memory_mib)?);
        if !differences.is_empty() {
            return Ok(Err(End::WrongTopology(differences)));
        }
        for (name, value) in &order.env {
            sys::set_env(name, value);
        }
        self.tell(&Report::BodyStarted { at_ns: since_boot_ns() })?;
        body::fork(entry, &topology).map(Ok)
    }

    /// Passes on what the child says until it has ended, and judges how it did.
    fn watch(&mut self, child: Child) -> Result<End> {
        let is_body = child.reports.is_some();
        let mut child = Some(child);
        let status = loop {
            self.turn(&mut child)?;
            while let Some(order) = self.orders.next().context("the host's order is damaged")? {
                shell::attend(child.as_mut().expect("stays until it has ended"), &order)?;
            }
            let ended = child.as_ref().expect("stays until it has ended").ended();
            if let Some(status) = ended.context("cannot ask for the child's status")? {
                break status;
            }
        };
        // What the child wrote before its end is still in its pipes. Only that is taken: what it
        // left running may keep them open for ever.
        self.drain(&mut child)?;
        Ok(match (self.end.take(), self.panic.take()) {
            _ if !is_body => End::ShellExited(shell::status(&status)),
            (Some(end), _) if status.exit_status() == Some(0) => end,
            (_, Some(panic)) => End::Panicked(panic),
            _ => End::Exited { status: describe_status(&status) },
        })
    }

    fn drain(&mut self, child: &mut Option<Child>) -> Result<()> {
        while self.receive(child)? {
            while self.queue.len() > QUEUE {
                self.turn(&mut None)?;
            }
        }
        Ok(())
    }

    /// Waits for the next thing to do, at most until the next heartbeat, and does it.
    fn turn(&mut self, child: &mut Option<Child>) -> Result<()> {
        self.beat(child.as_ref())?;
        let mut port = PollFlags::IN;
        port.set(PollFlags::OUT, !self.queue.is_empty());
        let mut fds = vec![PollFd::new(&self.port, port)];
        let listen = self.queue.len() < QUEUE;
        fds.extend(child.iter().flat_map(|child| child.interests(listen)));
        let left = self.next_heartbeat.saturating_duration_since(Instant::now());
        let timeout = left.try_into().context("half a second fits a timespec")?;
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("cannot wait for the wire"),
        }
        self.take_orders()?;
        if listen {
            self.receive(child)?;
        }
        if let Some(child) = child {
            child.feed();
        }
        self.flush()
    }

    fn beat(&mut self, child: Option<&Child>) -> Result<()> {
        let now = Instant::now();
        if now < self.next_heartbeat {
            return Ok(());
        }
        self.next_heartbeat = now + HEARTBEAT;
        sys::reap_orphans(child.map(|child| child.pid)).context("cannot reap orphans")?;
        // A host that does not read needs no further sign of life.
        if self.queue.is_empty() {
            self.tell(&Report::Heartbeat { at_ns: since_boot_ns() })?;
        }
        Ok(())
    }

    fn take_orders(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(&self.port, &mut buffer) {
                // Zero: the host's end is not connected yet, or no longer.
                Ok(0) | Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Ok(count) => self.orders.push(&buffer[..count]),
                Err(errno) => return Err(errno).context("cannot read the wire"),
            }
        }
    }

    /// Takes what is there from each pipe of the child, once. False if nothing was.
    fn receive(&mut self, child: &mut Option<Child>) -> Result<bool> {
        let Some(child) = child else { return Ok(false) };
        let mut buffer = vec![0; CHUNK];
        let mut any = false;
        let mut logs = Vec::new();
        child.outputs.retain(|(stream, pipe)| match take(pipe, &mut buffer) {
            Taken::Bytes(count) => {
                logs.push((*stream, buffer[..count].to_vec()));
                true
            }
            Taken::Nothing => true,
            Taken::End => false,
        });
        for (stream, bytes) in logs {
            any = true;
            self.tell(&Report::Log { stream, bytes })?;
        }
        if let Some(pipe) = &child.panics
            && let Taken::Bytes(count) = take(pipe, &mut buffer)
        {
            any = true;
            let message = String::from_utf8_lossy(&buffer[..count]).into_owned();
            self.panic = Some(message.clone());
            self.tell(&Report::Panic { message })?;
        }
        if let Some((link, decoder)) = &mut child.reports
            && let Taken::Bytes(count) = take(&*link, &mut buffer)
        {
            any = true;
            decoder.push(&buffer[..count]);
            while let Some(report) = decoder.next().context("the body's reports are damaged")? {
                match report {
                    Report::End(end) => self.end = Some(end),
                    report => self.tell(&report)?,
                }
            }
        }
        Ok(any)
    }

    fn tell(&mut self, report: &Report) -> Result<()> {
        let frame = self.encoder.encode(report).context("cannot encode a report")?;
        self.queue.extend(frame);
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        while !self.queue.is_empty() {
            match rustix::io::write(&self.port, self.queue.as_slices().0) {
                Ok(count) => drop(self.queue.drain(..count)),
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(errno) => return Err(errno).context("cannot write to the wire"),
            }
        }
        Ok(())
    }
}
