//! What the threads of a machine tell each other: output, and who is to run.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{Event, ExitReason, Registers};

/// The most of a port's output that waits for the caller; then the guest's own queues fill up.
const PORT_LIMIT: usize = 1 << 20;
/// The most of the console's output that waits for the caller; what comes then is dropped, for
/// hardware cannot make a kernel wait, and is counted.
const CONSOLE_LIMIT: usize = 1 << 20;
/// How long console bytes are left to gather: they come one by one.
const CONSOLE_GATHER: Duration = Duration::from_millis(5);

/// What the vCPUs are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Run,
    Pause,
    /// The guest has ended: leave, but for the one CPU that hands over what it wrote last.
    Finish,
    /// Leave at once.
    Stop,
}

/// The meeting place. No lock is held while anything waits or asks KVM.
#[derive(Debug)]
pub(super) struct Hub {
    state: Mutex<State>,
    /// Something happened that the caller may wait for.
    caller: Condvar,
    /// Something happened that a vCPU may wait for.
    vcpus: Condvar,
}

#[derive(Debug)]
struct State {
    ports: VecDeque<(usize, Vec<u8>)>,
    port_bytes: usize,
    /// A transmit queue waits for room.
    is_stalled: bool,
    console: Vec<u8>,
    console_lost: u64,
    /// When the console is to be handed over again.
    console_due: Instant,
    wanted: Wanted,
    parked: Vec<Option<Registers>>,
    /// vCPU threads that have not ended.
    live: usize,
    end: Option<ExitReason>,
}

/// What the caller is to do next.
#[derive(Debug)]
pub(super) enum Next {
    Event(Event),
    /// The guest has ended: have all CPUs [`Wanted::Finish`], then ask again.
    Finish,
    /// All is over and handed over.
    Exited(ExitReason),
}

impl Hub {
    /// For so many CPUs, which are not to run yet.
    pub(super) fn new(cpus: usize) -> Self {
        let state = State {
            ports: VecDeque::new(),
            port_bytes: 0,
            is_stalled: false,
            console: Vec::new(),
            console_lost: 0,
            console_due: Instant::now(),
            wanted: Wanted::Pause,
            parked: vec![None; cpus],
            live: cpus,
            end: None,
        };
        Self { state: Mutex::new(state), caller: Condvar::new(), vcpus: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change below is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // What vCPUs say.

    /// Takes console output; never waits.
    pub(super) fn console(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let room = CONSOLE_LIMIT.saturating_sub(state.console.len());
        let (kept, lost) = bytes.split_at(bytes.len().min(room));
        let was_empty = state.console.is_empty();
        state.console.extend_from_slice(kept);
        state.console_lost += lost.len() as u64;
        if was_empty {
            self.caller.notify_one();
        }
    }

    /// How many bytes of port output there is room for. None: the caller will have room made known.
    pub(super) fn port_room(&self) -> usize {
        let mut state = self.lock();
        let room = PORT_LIMIT.saturating_sub(state.port_bytes);
        state.is_stalled |= room == 0;
        room
    }

    /// Takes port output.
    pub(super) fn port(&self, port: usize, bytes: Vec<u8>) {
        let mut state = self.lock();
        state.port_bytes += bytes.len();
        state.ports.push_back((port, bytes));
        self.caller.notify_one();
    }

    /// The machine ends; the first reason counts.
    pub(super) fn end(&self, reason: ExitReason) {
        self.lock().end.get_or_insert(reason);
        self.caller.notify_one();
    }

    /// What a vCPU is to do that was kicked.
    pub(super) fn wanted(&self) -> Wanted {
        self.lock().wanted
    }

    /// Waits until a paused CPU is to go on, or stop; says meanwhile what is in its registers.
    pub(super) fn park(&self, cpu: usize, registers: Registers) -> Wanted {
        let mut state = self.lock();
        if state.wanted != Wanted::Pause {
            return state.wanted;
        }
        state.parked[cpu] = Some(registers);
        self.caller.notify_one();
        while state.wanted == Wanted::Pause {
            state = self.vcpus.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked[cpu] = None;
        state.wanted
    }

    /// Waits, at the machine's end, until the caller has taken some of the output. False: it does
    /// not want any more.
    pub(super) fn wait_for_room(&self) -> bool {
        let mut state = self.lock();
        while state.port_bytes >= PORT_LIMIT && state.wanted != Wanted::Stop {
            state = self.vcpus.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.wanted != Wanted::Stop
    }

    /// The last word of a vCPU's thread.
    pub(super) fn leave(&self) {
        self.lock().live -= 1;
        self.caller.notify_one();
    }

    // What the caller says.

    /// Has all CPUs do something as soon as they look; those in the guest need a kick for that.
    pub(super) fn want(&self, wanted: Wanted) {
        self.lock().wanted = wanted;
        self.vcpus.notify_all();
    }

    /// Waits until all CPUs are parked or gone. False: they were not by `deadline`.
    pub(super) fn wait_parked(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        loop {
            if state.parked.iter().flatten().count() >= state.live {
                return true;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            (state, _) =
                self.caller.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The registers of a paused CPU.
    pub(super) fn registers(&self, cpu: usize) -> Option<Registers> {
        *self.lock().parked.get(cpu)?
    }

    /// Whether the guest has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.lock().end.is_some()
    }

    /// How many vCPU threads have not ended.
    pub(super) fn live(&self) -> usize {
        self.lock().live
    }

    /// Waits for something to hand over, until `deadline`. The second value says that a stalled
    /// queue can go on.
    pub(super) fn next(&self, deadline: Instant) -> (Option<Next>, bool) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if let Some((port, bytes)) = state.ports.pop_front() {
                state.port_bytes -= bytes.len();
                let resumes = state.is_stalled && state.port_bytes < PORT_LIMIT / 2;
                if resumes {
                    state.is_stalled = false;
                    self.vcpus.notify_all();
                }
                return (Some(Next::Event(Event::Port { port, bytes })), resumes);
            }
            let mut until = deadline;
            if !state.console.is_empty() {
                if now >= state.console_due || state.end.is_some() {
                    state.console_due = now + CONSOLE_GATHER;
                    return (Some(Next::Event(Event::Console(state.take_console()))), false);
                }
                until = until.min(state.console_due);
            }
            if let Some(reason) = &state.end {
                if state.live == 0 {
                    return (Some(Next::Exited(reason.clone())), false);
                }
                if matches!(state.wanted, Wanted::Run | Wanted::Pause) {
                    return (Some(Next::Finish), false);
                }
            }
            if now >= deadline {
                return (None, false);
            }
            let left = until.saturating_duration_since(now);
            (state, _) =
                self.caller.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    fn take_console(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.console);
        if self.console_lost > 0 {
            let lost = format!("\n[{} bytes of console output were dropped]\n", self.console_lost);
            bytes.extend_from_slice(lost.as_bytes());
            self.console_lost = 0;
        }
        bytes
    }
}
