//! The state that the vCPU threads of a machine share with its owner: output, and what the vCPUs
//! are to do.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::{Event, ExitReason, Registers};
use crate::lock::lock;

/// Bytes of port output that may wait for the owner; above that the guest's own queues fill up.
const PORT_LIMIT: usize = 1 << 20;
/// Output of a port is merged into pieces of at least this many bytes while the owner is slow.
const PIECE: usize = 64 << 10;
/// Bytes of console output that may wait for the owner. More is dropped and counted, because a
/// serial port cannot make a kernel wait.
const CONSOLE_LIMIT: usize = 1 << 20;
/// How long console bytes are collected before they are handed over: they arrive one by one.
const CONSOLE_GATHER: Duration = Duration::from_millis(5);

/// What the vCPUs are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VcpuCommand {
    /// Run the guest.
    Run,
    /// Park outside of the guest.
    Pause,
    /// The guest has ended: end the thread, except for the one vCPU that flushes the output.
    Finish,
    /// End the thread at once.
    Stop,
}

/// A state change of a vCPU thread. The threads are confined and cannot log, so the owner does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum VcpuChange {
    Parked,
    Resumed,
    Left,
}

/// The shared state. A vCPU never holds its lock while it calls KVM or waits for anything else.
#[derive(Debug)]
pub(super) struct Hub {
    state: Mutex<HubState>,
    /// Signals changes that the owner may wait for.
    owner: Condvar,
    /// Signals changes that a vCPU may wait for.
    vcpus: Condvar,
}

#[derive(Debug)]
struct HubState {
    ports: VecDeque<(usize, Vec<u8>)>,
    port_bytes: usize,
    /// A transmit queue waits for room.
    is_stalled: bool,
    console: Vec<u8>,
    console_lost: u64,
    /// The earliest time at which console output is handed over again.
    console_due: Instant,
    command: VcpuCommand,
    /// The registers of each vCPU that is parked.
    parked: Vec<Option<Registers>>,
    /// vCPU threads that have not ended.
    live: usize,
    end: Option<ExitReason>,
    /// Changes that the owner has not logged yet.
    changes: Vec<(usize, VcpuChange)>,
}

/// The next thing for the owner to handle.
#[derive(Debug)]
pub(super) enum HubEvent {
    /// Pass this event to the caller.
    Event(Event),
    /// The guest has ended: give all vCPUs [`VcpuCommand::Finish`], then ask again.
    Finish,
    /// All vCPUs have ended, and all output was handed over.
    Exited(ExitReason),
}

impl Hub {
    /// Creates the state of a machine with this many vCPUs, which are paused at first.
    pub(super) fn new(cpus: usize) -> Self {
        let state = HubState {
            ports: VecDeque::new(),
            port_bytes: 0,
            is_stalled: false,
            console: Vec::new(),
            console_lost: 0,
            console_due: Instant::now(),
            command: VcpuCommand::Pause,
            parked: vec![None; cpus],
            live: cpus,
            end: None,
            changes: Vec::new(),
        };
        Self { state: Mutex::new(state), owner: Condvar::new(), vcpus: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, HubState> {
        // Poison is harmless: every change below is complete before anything can panic.
        lock(&self.state)
    }

    // Called by vCPU threads.

    /// Adds console output; never waits.
    pub(super) fn console(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let room = CONSOLE_LIMIT.saturating_sub(state.console.len());
        let (kept, lost) = bytes.split_at(bytes.len().min(room));
        let was_empty = state.console.is_empty();
        state.console.extend_from_slice(kept);
        state.console_lost += lost.len() as u64;
        if was_empty {
            self.owner.notify_one();
        }
    }

    /// Returns how many bytes of port output there is room for. After a 0, the owner wakes the
    /// first vCPU once there is room.
    pub(super) fn port_room(&self) -> usize {
        let mut state = self.lock();
        let room = PORT_LIMIT.saturating_sub(state.port_bytes);
        state.is_stalled |= room == 0;
        room
    }

    /// Adds port output.
    pub(super) fn port(&self, port: usize, bytes: Vec<u8>) {
        let mut state = self.lock();
        state.port_bytes += bytes.len();
        match state.ports.back_mut() {
            // Merged, so that a guest that writes single bytes does not cost an event for each.
            Some((last, before)) if *last == port && before.len() < PIECE => {
                before.extend_from_slice(&bytes);
            }
            _ => state.ports.push_back((port, bytes)),
        }
        self.owner.notify_one();
    }

    /// Records why the machine ends; the first reason is kept.
    pub(super) fn end(&self, reason: ExitReason) {
        self.lock().end.get_or_insert(reason);
        self.owner.notify_one();
    }

    /// Returns what the vCPUs are to do.
    pub(super) fn command(&self) -> VcpuCommand {
        self.lock().command
    }

    /// Parks a vCPU until the command is no longer to pause, and returns the new command.
    /// Meanwhile its registers can be read.
    pub(super) fn park(&self, cpu: usize, registers: Registers) -> VcpuCommand {
        let mut state = self.lock();
        // The command may have changed since the vCPU read it.
        if state.command != VcpuCommand::Pause {
            return state.command;
        }
        state.parked[cpu] = Some(registers);
        state.changes.push((cpu, VcpuChange::Parked));
        self.owner.notify_one();
        while state.command == VcpuCommand::Pause {
            state = self.vcpus.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked[cpu] = None;
        state.changes.push((cpu, VcpuChange::Resumed));
        state.command
    }

    /// Waits, after the guest's end, until the owner has taken half of the output. Returns false if
    /// the owner stops the machine instead.
    pub(super) fn wait_for_room(&self) -> bool {
        self.wait_at_end(|state| state.port_bytes < PORT_LIMIT / 2)
    }

    /// Waits, after the guest's end, until the calling vCPU is the last one: the owner ends the
    /// others when it asks for events. Returns false if the owner stops the machine instead.
    pub(super) fn wait_alone(&self) -> bool {
        self.wait_at_end(|state| state.live == 1)
    }

    fn wait_at_end(&self, is_done: impl Fn(&HubState) -> bool) -> bool {
        let mut state = self.lock();
        while !is_done(&state) && state.command != VcpuCommand::Stop {
            state = self.vcpus.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.command != VcpuCommand::Stop
    }

    /// Records that the thread of a vCPU ends. It must not use the hub afterwards.
    pub(super) fn leave(&self, cpu: usize) {
        let mut state = self.lock();
        state.live -= 1;
        state.changes.push((cpu, VcpuChange::Left));
        self.owner.notify_one();
        self.vcpus.notify_all();
    }

    // Called by the owner.

    /// Gives all vCPUs a command. Those that run the guest need a kick to notice it.
    pub(super) fn set_command(&self, command: VcpuCommand) {
        tracing::debug!(?command, "all vCPUs get a command");
        self.lock().command = command;
        self.vcpus.notify_all();
    }

    /// Waits until all vCPUs are parked or have ended, or the guest has ended. Returns false at
    /// `deadline`.
    pub(super) fn wait_parked(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        loop {
            state = self.log_changes(state);
            let parked = state.parked.iter().flatten().count();
            // After the guest's end the vCPU that flushes the output does not park until the owner
            // has taken all of it.
            if parked >= state.live || state.end.is_some() {
                return true;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                let live = state.live;
                drop(state);
                tracing::debug!(parked, live, "timed out while vCPUs park");
                return false;
            };
            (state, _) =
                self.owner.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Logs the changes of vCPUs. It releases the lock meanwhile, because vCPUs would wait for a log
    /// that is read slowly.
    fn log_changes<'a>(&'a self, mut state: MutexGuard<'a, HubState>) -> MutexGuard<'a, HubState> {
        if state.changes.is_empty() {
            return state;
        }
        let changes = std::mem::take(&mut state.changes);
        drop(state);
        for (cpu, change) in changes {
            tracing::debug!(cpu, ?change, "vCPU changed its state");
        }
        self.lock()
    }

    /// Returns the registers of a paused vCPU.
    pub(super) fn registers(&self, cpu: usize) -> Option<Registers> {
        let state = self.lock();
        // After a new command a vCPU counts as running, even if its thread has not noticed yet.
        (state.command == VcpuCommand::Pause).then_some(*state.parked.get(cpu)?)?
    }

    /// Returns whether the guest has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.lock().end.is_some()
    }

    /// Returns how many vCPU threads have not ended.
    pub(super) fn live(&self) -> usize {
        self.lock().live
    }

    /// Waits until there is something for the owner to handle, or returns `None` at `deadline`.
    /// The second value is whether a stalled transmit queue has room again.
    pub(super) fn next(&self, deadline: Instant) -> (Option<HubEvent>, bool) {
        let mut state = self.lock();
        loop {
            state = self.log_changes(state);
            let now = Instant::now();
            // 1. The guest's end comes first: vCPUs that still run could write without end.
            if let Some(reason) = &state.end
                && matches!(state.command, VcpuCommand::Run | VcpuCommand::Pause)
            {
                let reason = reason.clone();
                drop(state);
                tracing::debug!(%reason, "guest ended");
                return (Some(HubEvent::Finish), false);
            }
            // 2. Port output. Below half of the limit a stalled queue continues: not at once, so
            // that it does not stall again after every piece.
            if let Some((port, bytes)) = state.ports.pop_front() {
                state.port_bytes -= bytes.len();
                let resumes = state.is_stalled && state.port_bytes < PORT_LIMIT / 2;
                if resumes {
                    state.is_stalled = false;
                    self.vcpus.notify_all();
                }
                return (Some(HubEvent::Event(Event::Port { port, bytes })), resumes);
            }
            // 3. Console output, once enough time has passed since the last piece.
            let mut until = deadline;
            if !state.console.is_empty() {
                if now >= state.console_due || state.end.is_some() {
                    state.console_due = now + CONSOLE_GATHER;
                    return (Some(HubEvent::Event(Event::Console(state.take_console()))), false);
                }
                until = until.min(state.console_due);
            }
            // 4. The exit, once no thread can add output any more.
            if let Some(reason) = &state.end
                && state.live == 0
            {
                return (Some(HubEvent::Exited(reason.clone())), false);
            }
            if now >= deadline {
                return (None, false);
            }
            let left = until.saturating_duration_since(now);
            (state, _) =
                self.owner.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl HubState {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn running(cpus: usize) -> Hub {
        let hub = Hub::new(cpus);
        hub.set_command(VcpuCommand::Run);
        hub
    }

    fn next(hub: &Hub) -> Option<HubEvent> {
        hub.next(Instant::now()).0
    }

    #[test]
    fn console_output_is_bounded_and_the_loss_is_reported() {
        let hub = running(1);
        (0..3 * CONSOLE_LIMIT / 64).for_each(|_| hub.console(&[b'x'; 64]));
        let Some(HubEvent::Event(Event::Console(bytes))) = next(&hub) else { panic!() };
        let text = String::from_utf8(bytes).unwrap();
        let note = text.trim_start_matches('x');
        assert_eq!(text.len() - note.len(), CONSOLE_LIMIT);
        assert_eq!(note, format!("\n[{} bytes of console output were dropped]\n", 2 << 20));
        hub.console(b"more");
        hub.end(ExitReason::PowerOff);
        hub.set_command(VcpuCommand::Finish);
        let Some(HubEvent::Event(Event::Console(bytes))) = next(&hub) else { panic!() };
        assert_eq!(bytes, b"more");
    }

    #[test]
    fn port_output_of_single_bytes_is_merged_in_order() {
        let hub = running(1);
        for index in 0..PORT_LIMIT {
            assert!(hub.port_room() > 0);
            hub.port(index / (PORT_LIMIT / 4) % 2, vec![index as u8]);
        }
        assert_eq!(hub.port_room(), 0);
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        let mut resumes = 0;
        while let (Some(HubEvent::Event(Event::Port { port, bytes: piece })), has_resumed) =
            hub.next(Instant::now())
        {
            assert!(piece.iter().enumerate().all(|(at, byte)| *byte == (bytes + at) as u8));
            bytes += piece.len();
            resumes += usize::from(has_resumed);
            pieces.push(port);
        }
        assert_eq!((bytes, pieces.len(), resumes), (PORT_LIMIT, PORT_LIMIT / PIECE, 1));
        pieces.dedup();
        assert_eq!(pieces, [0, 1, 0, 1]);
    }

    #[test]
    fn next_returns_the_end_before_output_of_other_vcpus() {
        let hub = running(2);
        hub.port(0, vec![1]);
        hub.end(ExitReason::PowerOff);
        hub.end(ExitReason::Reset);
        assert!(matches!(next(&hub), Some(HubEvent::Finish)));
        hub.set_command(VcpuCommand::Finish);
        assert!(matches!(next(&hub), Some(HubEvent::Event(Event::Port { .. }))));
        assert!(next(&hub).is_none());
        hub.leave(1);
        assert!(hub.wait_alone());
        hub.leave(0);
        assert!(matches!(next(&hub), Some(HubEvent::Exited(ExitReason::PowerOff))));
    }

    #[test]
    fn wait_parked_returns_when_the_guest_ends() {
        let hub = running(2);
        hub.set_command(VcpuCommand::Pause);
        assert!(!hub.wait_parked(Instant::now()));
        hub.end(ExitReason::PowerOff);
        assert!(hub.wait_parked(Instant::now()));
    }

    #[test]
    fn registers_exist_only_while_the_vcpu_is_paused() {
        let hub = Hub::new(1);
        let registers = Registers { rip: 1, ..Registers::default() };
        std::thread::scope(|scope| {
            let parked = scope.spawn(|| hub.park(0, registers));
            while !hub.wait_parked(Instant::now()) {}
            assert_eq!((hub.registers(0), hub.registers(1)), (Some(registers), None));
            hub.set_command(VcpuCommand::Run);
            assert_eq!(hub.registers(0), None);
            assert_eq!(parked.join().unwrap(), VcpuCommand::Run);
        });
    }

    #[test]
    fn waits_at_the_end_return_false_when_the_machine_is_stopped() {
        let hub = running(2);
        hub.port(0, vec![0; PORT_LIMIT]);
        std::thread::scope(|scope| {
            let waits = [scope.spawn(|| hub.wait_alone()), scope.spawn(|| hub.wait_for_room())];
            hub.set_command(VcpuCommand::Stop);
            assert_eq!(waits.map(|thread| thread.join().unwrap()), [false; 2]);
        });
    }
}
