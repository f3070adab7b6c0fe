//! What the threads of a machine tell each other: output, and who is to run.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::{Event, ExitReason, Registers};

/// The most of a port's output that waits for the caller; then the guest's own queues fill up.
const PORT_LIMIT: usize = 1 << 20;
/// Output of a port is put together to pieces of this size at least, if the caller is slow.
const PIECE: usize = 64 << 10;
/// The most of the console's output that waits for the caller; what comes then is dropped, for
/// hardware cannot make a kernel wait, and is counted.
const CONSOLE_LIMIT: usize = 1 << 20;
/// How long console bytes are left to gather: they come one by one.
const CONSOLE_GATHER: Duration = Duration::from_millis(5);

/// What the vCPUs are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VcpuCommand {
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
    wanted: VcpuCommand,
    parked: Vec<Option<Registers>>,
    /// vCPU threads that have not ended.
    live: usize,
    end: Option<ExitReason>,
}

/// What the caller is to do next.
#[derive(Debug)]
pub(super) enum HubEvent {
    Event(Event),
    /// The guest has ended: have all CPUs [`VcpuCommand::Finish`], then ask again.
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
            wanted: VcpuCommand::Pause,
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
        match state.ports.back_mut() {
            // Not a piece for each byte of a guest that writes them one by one.
            Some((last, before)) if *last == port && before.len() < PIECE => {
                before.extend_from_slice(&bytes);
            }
            _ => state.ports.push_back((port, bytes)),
        }
        self.caller.notify_one();
    }

    /// The machine ends; the first reason counts.
    pub(super) fn end(&self, reason: ExitReason) {
        self.lock().end.get_or_insert(reason);
        self.caller.notify_one();
    }

    /// What a vCPU is to do that was kicked.
    pub(super) fn wanted(&self) -> VcpuCommand {
        self.lock().wanted
    }

    /// Waits until a paused CPU is to go on, or stop; says meanwhile what is in its registers.
    pub(super) fn park(&self, cpu: usize, registers: Registers) -> VcpuCommand {
        let mut state = self.lock();
        if state.wanted != VcpuCommand::Pause {
            return state.wanted;
        }
        state.parked[cpu] = Some(registers);
        self.caller.notify_one();
        while state.wanted == VcpuCommand::Pause {
            state = self.vcpus.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked[cpu] = None;
        state.wanted
    }

    /// Waits, at the machine's end, until the caller has taken half of the output. False: it does
    /// not want any more.
    pub(super) fn wait_for_room(&self) -> bool {
        self.wait_at_end(|state| state.port_bytes < PORT_LIMIT / 2)
    }

    /// Waits, at the machine's end, until no other vCPU runs: the caller makes them leave as soon
    /// as it asks for events. False: it does not want any.
    pub(super) fn wait_alone(&self) -> bool {
        self.wait_at_end(|state| state.live == 1)
    }

    fn wait_at_end(&self, is_done: impl Fn(&State) -> bool) -> bool {
        let mut state = self.lock();
        while !is_done(&state) && state.wanted != VcpuCommand::Stop {
            state = self.vcpus.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.wanted != VcpuCommand::Stop
    }

    /// The last word of a vCPU's thread.
    pub(super) fn leave(&self) {
        self.lock().live -= 1;
        self.caller.notify_one();
        self.vcpus.notify_all();
    }

    // What the caller says.

    /// Has all CPUs do something as soon as they look; those in the guest need a kick for that.
    pub(super) fn want(&self, wanted: VcpuCommand) {
        self.lock().wanted = wanted;
        self.vcpus.notify_all();
    }

    /// Waits until all CPUs are parked or gone, or the guest has ended. False: they were not by
    /// `deadline`.
    pub(super) fn wait_parked(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        loop {
            // The CPU that hands over is not parked before the caller has taken all.
            if state.parked.iter().flatten().count() >= state.live || state.end.is_some() {
                return true;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            (state, _) =
                self.caller.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The registers of a paused CPU.
    pub(super) fn registers(&self, cpu: usize) -> Option<Registers> {
        let state = self.lock();
        // A CPU that may go on is not paused, even if it has not noticed yet.
        (state.wanted == VcpuCommand::Pause).then_some(*state.parked.get(cpu)?)?
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
    pub(super) fn next(&self, deadline: Instant) -> (Option<HubEvent>, bool) {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            // Before anything else: CPUs that still run could write for ever.
            if state.end.is_some() && matches!(state.wanted, VcpuCommand::Run | VcpuCommand::Pause)
            {
                return (Some(HubEvent::Finish), false);
            }
            if let Some((port, bytes)) = state.ports.pop_front() {
                state.port_bytes -= bytes.len();
                let resumes = state.is_stalled && state.port_bytes < PORT_LIMIT / 2;
                if resumes {
                    state.is_stalled = false;
                    self.vcpus.notify_all();
                }
                return (Some(HubEvent::Event(Event::Port { port, bytes })), resumes);
            }
            let mut until = deadline;
            if !state.console.is_empty() {
                if now >= state.console_due || state.end.is_some() {
                    state.console_due = now + CONSOLE_GATHER;
                    return (Some(HubEvent::Event(Event::Console(state.take_console()))), false);
                }
                until = until.min(state.console_due);
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn running(cpus: usize) -> Hub {
        let hub = Hub::new(cpus);
        hub.want(VcpuCommand::Run);
        hub
    }

    fn next(hub: &Hub) -> Option<HubEvent> {
        hub.next(Instant::now()).0
    }

    #[test]
    fn a_console_that_nobody_reads_is_bounded_and_says_what_is_lost() {
        let hub = running(1);
        (0..3 * CONSOLE_LIMIT / 64).for_each(|_| hub.console(&[b'x'; 64]));
        let Some(HubEvent::Event(Event::Console(bytes))) = next(&hub) else { panic!() };
        let text = String::from_utf8(bytes).unwrap();
        let said = text.trim_start_matches('x');
        assert_eq!(text.len() - said.len(), CONSOLE_LIMIT);
        assert_eq!(said, format!("\n[{} bytes of console output were dropped]\n", 2 << 20));
        hub.console(b"more");
        hub.end(ExitReason::PowerOff);
        hub.want(VcpuCommand::Finish);
        let Some(HubEvent::Event(Event::Console(bytes))) = next(&hub) else { panic!() };
        assert_eq!(bytes, b"more");
    }

    #[test]
    fn ports_of_single_bytes_come_in_few_pieces_and_in_order() {
        let hub = running(1);
        for index in 0..PORT_LIMIT {
            assert!(hub.port_room() > 0);
            hub.port(index / (PORT_LIMIT / 4) % 2, vec![index as u8]);
        }
        assert_eq!(hub.port_room(), 0);
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        let mut resumes = 0;
        while let (Some(HubEvent::Event(Event::Port { port, bytes: piece })), goes_on) =
            hub.next(Instant::now())
        {
            assert!(piece.iter().enumerate().all(|(at, byte)| *byte == (bytes + at) as u8));
            bytes += piece.len();
            resumes += usize::from(goes_on);
            pieces.push(port);
        }
        assert_eq!((bytes, pieces.len(), resumes), (PORT_LIMIT, PORT_LIMIT / PIECE, 1));
        pieces.dedup();
        assert_eq!(pieces, [0, 1, 0, 1]);
    }

    #[test]
    fn the_end_comes_before_what_others_still_write() {
        let hub = running(2);
        hub.port(0, vec![1]);
        hub.end(ExitReason::PowerOff);
        hub.end(ExitReason::Reset);
        assert!(matches!(next(&hub), Some(HubEvent::Finish)));
        hub.want(VcpuCommand::Finish);
        assert!(matches!(next(&hub), Some(HubEvent::Event(Event::Port { .. }))));
        assert!(next(&hub).is_none());
        hub.leave();
        assert!(hub.wait_alone());
        hub.leave();
        assert!(matches!(next(&hub), Some(HubEvent::Exited(ExitReason::PowerOff))));
    }

    #[test]
    fn a_pause_does_not_wait_for_a_guest_that_ends() {
        let hub = running(2);
        hub.want(VcpuCommand::Pause);
        assert!(!hub.wait_parked(Instant::now()));
        hub.end(ExitReason::PowerOff);
        assert!(hub.wait_parked(Instant::now()));
    }

    #[test]
    fn a_cpu_that_may_go_on_has_no_registers_to_show() {
        let hub = Hub::new(1);
        let registers = Registers { rip: 1, ..Registers::default() };
        std::thread::scope(|scope| {
            let parked = scope.spawn(|| hub.park(0, registers));
            while !hub.wait_parked(Instant::now()) {}
            assert_eq!((hub.registers(0), hub.registers(1)), (Some(registers), None));
            hub.want(VcpuCommand::Run);
            assert_eq!(hub.registers(0), None);
            assert_eq!(parked.join().unwrap(), VcpuCommand::Run);
        });
    }

    #[test]
    fn whoever_hands_over_stops_when_told() {
        let hub = running(2);
        hub.port(0, vec![0; PORT_LIMIT]);
        std::thread::scope(|scope| {
            let waits = [scope.spawn(|| hub.wait_alone()), scope.spawn(|| hub.wait_for_room())];
            hub.want(VcpuCommand::Stop);
            assert_eq!(waits.map(|thread| thread.join().unwrap()), [false; 2]);
        });
    }
}
