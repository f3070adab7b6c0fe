//! A guest that is controlled by bytes.
//!
//! The bytes are a sequence of accesses to ports, registers and queues. A guest can begin with a
//! driver that has set up everything, so that few bytes are needed to reach the queues.

use vm_memory::{Bytes, GuestAddress};

use ktstr_vmm::kvm::{Devices, DevicesState};

use crate::board::FakeBoard;

/// Two adjacent ranges of memory, like those of nodes, and one above the hole.
const MEMORY: [(u64, usize); 3] = [(0, 0x8000), (0x8000, 0x8000), (1 << 32, 0x1000)];
/// The first port of the serial console.
const COM1: u16 = 0x3f8;
/// The ports of PCI configuration mechanism #1.
const PCI_ADDRESS: u16 = 0xcf8;
const PCI_DATA: u16 = 0xcfc;
/// The first address at which BARs may be.
const PCI_WINDOW: u64 = 0xd000_0000;
const PORTS: usize = 2;
const QUEUES: u16 = 8;
const QUEUE_SIZE: u16 = 16;
/// The address of the first queue's rings. Each queue has a page: table, available and used ring.
const RINGS: u64 = 0x1000;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;

/// Flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

const NOTIFY: u64 = PCI_WINDOW + 0x3000;
const BAR_SIZE: u32 = 0x8000;

/// Runs devices with the guest that the bytes describe. In most cases its driver is ready, and then
/// accesses the queues in any way.
///
/// # Panics
///
/// If the devices do, or hand over more bytes than there is room for.
pub(crate) fn fuzz_queues(data: &[u8]) {
    let mut guest = Guest::new(data);
    if guest.byte() & 1 == 0 {
        guest.boot();
    }
    guest.run(|guest| {
        let kind = guest.byte() & 15;
        guest.step(kind);
    });
}

/// Restores devices from the saved state that the first bytes are, after their number in 16 bits, and
/// runs them with the guest that the other bytes describe.
///
/// # Panics
///
/// If the devices do, or if a state that is accepted has another encoding.
pub(crate) fn fuzz_state(data: &[u8]) {
    let mut guest = Guest::new(data);
    let len = usize::from(guest.word()).min(guest.rest.len());
    let (bytes, rest) = guest.rest.split_at(len);
    let Ok(state) = DevicesState::decode(bytes) else { return };
    assert_eq!(state.encode(), bytes);
    let Ok(devices) = Devices::restore(&names(), &state) else { return };
    (guest.devices, guest.rest) = (devices, rest);
    guest.run(|guest| {
        let kind = guest.byte() & 15;
        guest.step(kind);
    });
}

/// Runs devices with the guest that the bytes describe, which accesses ports and registers.
///
/// # Panics
///
/// If the devices do, or if a register has a value that a guest cannot have written.
pub(crate) fn fuzz_registers(data: &[u8]) {
    let mut guest = Guest::new(data);
    guest.run(|guest| {
        let kind = guest.byte() % 7;
        guest.step(kind);
    });
    guest.check_config();
}

fn names() -> [String; PORTS] {
    ["a".to_owned(), "b".to_owned()]
}

struct Guest<'a> {
    devices: Devices,
    board: FakeBoard,
    rest: &'a [u8],
}

impl<'a> Guest<'a> {
    fn new(data: &'a [u8]) -> Self {
        Self { devices: Devices::new(&names()), board: FakeBoard::new(&MEMORY), rest: data }
    }

    /// Runs steps until there are no more bytes.
    fn run(&mut self, step: impl Fn(&mut Self)) {
        while !self.rest.is_empty() {
            step(self);
            self.board.messages.take();
            self.board.irqs.take();
            self.board.output.take();
            self.board.console.take();
        }
        self.devices.is_drained();
        self.check_save();
    }

    /// Checks that the devices can be saved and restored, whatever the guest did to them.
    fn check_save(&self) {
        let state = self.devices.save();
        let decoded = DevicesState::decode(&state.encode()).expect("it was just encoded");
        let restored = Devices::restore(&names(), &decoded).expect("its devices are the same");
        assert_eq!(restored.save(), state);
    }

    fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    /// Returns the next bytes; after the end, zeros.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let len = N.min(self.rest.len());
        bytes[..len].copy_from_slice(&self.rest[..len]);
        self.rest = &self.rest[len..];
        bytes
    }

    /// Returns the bytes of an access, usually of a size that guests use.
    fn data(&mut self) -> ([u8; 8], usize) {
        let len = [1, 2, 4, 8, 4, 2, 1, 3][usize::from(self.byte() & 7)];
        (self.take(), len)
    }

    /// Returns an address, usually of memory.
    fn address(&mut self) -> u64 {
        match self.byte() {
            0 => u64::from_le_bytes(self.take()),
            1 => (1 << 32) + u64::from(self.word()),
            _ => u64::from(self.word()),
        }
    }

    fn port(&mut self) -> u16 {
        let nth = u16::from(self.byte());
        match nth & 3 {
            0 => self.word(),
            1 => COM1 + (nth >> 2 & 7),
            2 => PCI_ADDRESS,
            _ => PCI_DATA + (nth >> 2 & 3),
        }
    }

    /// Runs one of 16 kinds of steps; the first seven are accesses to ports and registers.
    fn step(&mut self, kind: u8) {
        match kind {
            0 => {
                let (port, (data, len)) = (self.port(), self.data());
                self.devices.pio_write(port, &data[..len], &self.board);
            }
            1 => {
                let (port, (mut data, len)) = (self.port(), self.data());
                self.devices.pio_read(port, &mut data[..len]);
            }
            2 if self.byte() & 1 == 0 => {
                self.common(0x14, &[0]);
                self.boot();
            }
            2 => {
                let register = self.byte() & 0xfc;
                self.outl(PCI_ADDRESS, 0x8000_0800 | u32::from(register));
            }
            3 => {
                let gpa = PCI_WINDOW + u64::from(self.word());
                let (data, len) = self.data();
                self.devices.mmio_write(gpa, &data[..len], &self.board);
            }
            4 => {
                let gpa = PCI_WINDOW + u64::from(self.word());
                let (mut data, len) = self.data();
                self.devices.mmio_read(gpa, &mut data[..len]);
            }
            5 => {
                // The most important registers.
                let gpa = PCI_WINDOW + u64::from(self.byte() & 0x3f);
                let (data, len) = self.data();
                self.devices.mmio_write(gpa, &data[..len], &self.board);
            }
            6 => {
                let (gpa, (data, len)) = (self.address(), self.data());
                self.devices.mmio_write(gpa, &data[..len], &self.board);
            }
            7 => {
                let (gpa, (data, len)) = (self.address(), self.data());
                self.poke(gpa, &data[..len]);
            }
            8 => {
                let (queue, slot) = (self.byte(), self.byte());
                self.describe(queue, slot);
            }
            9 => {
                let (queue, head) = (self.byte(), self.byte());
                self.publish(queue, head);
            }
            10 => {
                let (queue, slot) = (self.byte(), self.byte() & 15);
                self.describe(queue, slot);
                self.publish(queue, slot);
            }
            11 => self.control(),
            12 => {
                let queue = u16::from(self.byte());
                self.notify(queue % (QUEUES + 1));
            }
            13 => {
                let (port, len) = (self.byte(), self.word());
                let bytes = vec![port; usize::from(len & 0xfff)];
                let result = self.devices.send(usize::from(port & 3), &bytes);
                assert_eq!(result.is_ok(), usize::from(port & 3) < PORTS);
            }
            14 => {
                let room = self.word();
                self.board.room.set(usize::from(room));
            }
            _ => {
                self.devices.service(&self.board);
            }
        }
    }

    /// Writes to memory, if the address is memory.
    fn poke(&self, gpa: u64, bytes: &[u8]) {
        // A guest that misses its memory only harms itself.
        let _ = self.board.memory.write_slice(bytes, GuestAddress(gpa));
    }

    /// Writes a descriptor, usually one that is a chain of its own.
    fn describe(&mut self, queue: u8, slot: u8) {
        let address = self.address();
        let len = match self.byte() {
            0 => u32::from_le_bytes(self.take()),
            1 => u32::from(self.word()),
            len => u32::from(len),
        };
        let (flags, next) = (self.byte(), self.byte());
        let flags = match flags >> 4 {
            0 => u16::from(flags),
            1 => NEXT,
            2 => NEXT | WRITE,
            // What the device expects: every other queue is a receive queue of the driver.
            _ if queue & 1 == 0 => WRITE,
            _ => 0,
        };
        self.set_descriptor(queue, slot, address, len, flags, next);
    }

    fn set_descriptor(&self, queue: u8, slot: u8, address: u64, len: u32, flags: u16, next: u8) {
        let at = RINGS * (1 + u64::from(queue & 7)) + 16 * u64::from(slot & 15);
        self.poke(at, &address.to_le_bytes());
        self.poke(at + 8, &len.to_le_bytes());
        self.poke(at + 12, &flags.to_le_bytes());
        self.poke(at + 14, &u16::from(next).to_le_bytes());
    }

    /// Makes a chain available, and usually notifies the device.
    fn publish(&self, queue: u8, head: u8) {
        let ring = RINGS * (1 + u64::from(queue & 7)) + AVAILABLE;
        let index: u16 = self.board.memory.read_obj(GuestAddress(ring + 2)).unwrap_or(0);
        let slot = ring + 4 + 2 * u64::from(index % QUEUE_SIZE);
        self.poke(slot, &u16::from(head & 0x1f).to_le_bytes());
        self.poke(ring + 2, &index.wrapping_add(1).to_le_bytes());
        if head & 0x20 == 0 {
            self.notify(u16::from(queue & 7));
        }
    }

    /// Sends a control message.
    fn control(&mut self) {
        const MESSAGE: u64 = 0x100;
        let (id, event, value) = (self.byte(), self.byte(), self.byte());
        self.poke(MESSAGE, &u32::from(id & 3).to_le_bytes());
        self.poke(MESSAGE + 4, &u16::from(event & 7).to_le_bytes());
        self.poke(MESSAGE + 6, &u16::from(value & 1).to_le_bytes());
        self.set_descriptor(3, 0, MESSAGE, 8, 0, 0);
        self.publish(3, 0);
    }

    fn notify(&self, queue: u16) {
        self.devices.mmio_write(NOTIFY, &queue.to_le_bytes(), &self.board);
    }

    fn outl(&self, port: u16, value: u32) {
        self.devices.pio_write(port, &value.to_le_bytes(), &self.board);
    }

    fn common(&self, offset: u64, data: &[u8]) {
        self.devices.mmio_write(PCI_WINDOW + offset, data, &self.board);
    }

    /// Checks that the functions have not changed: a guest can set only a few bits.
    fn check_config(&self) {
        for (function, id) in [(0, 0x0008_1b36), (0x800, 0x1043_1af4)] {
            assert_eq!(self.config(function), id, "vendor and device");
            assert_eq!(self.config(function + 4) & 0xfff9, 0, "command");
        }
        let bar = self.config(0x810);
        assert_eq!(bar % BAR_SIZE, 0, "BAR at {bar:#x}");
        let mut next = self.config(0x834) & 0xff;
        let mut capabilities = Vec::new();
        while next != 0 {
            capabilities.push(next);
            assert!(capabilities.len() < 16, "capabilities at {capabilities:x?}");
            next = self.config(0x800 + next) >> 8 & 0xff;
        }
        assert_eq!(capabilities.len(), 6, "capabilities at {capabilities:x?}");
    }

    fn config(&self, register: u32) -> u32 {
        self.outl(PCI_ADDRESS, 0x8000_0000 | register);
        let mut value = [0; 4];
        self.devices.pio_read(PCI_DATA, &mut value);
        u32::from_le_bytes(value)
    }

    /// Does what a driver does until it is ready.
    fn boot(&self) {
        self.outl(PCI_ADDRESS, 0x8000_0804);
        self.outl(PCI_DATA, 6);
        self.outl(PCI_ADDRESS, 0x8000_0810);
        self.outl(PCI_DATA, PCI_WINDOW as u32);
        // The first capability is MSI-X.
        self.outl(PCI_ADDRESS, 0x8000_0840);
        self.outl(PCI_DATA, 1 << 31);
        for vector in 0..=u64::from(QUEUES) {
            self.common(0x400c + 16 * vector, &[0; 4]);
        }
        self.common(0x14, &[3]);
        // VIRTIO_CONSOLE_F_MULTIPORT, VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1.
        for (half, features) in [(0_u32, 1_u32 << 29 | 2), (1, 1)] {
            self.common(0x08, &half.to_le_bytes());
            self.common(0x0c, &features.to_le_bytes());
        }
        self.common(0x14, &[3 | 8]);
        for queue in 0..QUEUES {
            let ring = RINGS as u32 * (1 + u32::from(queue));
            self.poke(u64::from(ring), &[0; RINGS as usize]);
            self.common(0x16, &queue.to_le_bytes());
            self.common(0x18, &QUEUE_SIZE.to_le_bytes());
            self.common(0x1a, &(queue + 1).to_le_bytes());
            self.common(0x20, &ring.to_le_bytes());
            self.common(0x28, &(ring + AVAILABLE as u32).to_le_bytes());
            self.common(0x30, &(ring + USED as u32).to_le_bytes());
            self.common(0x1c, &1_u16.to_le_bytes());
        }
        self.common(0x14, &[3 | 8 | 4]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns random bytes for a seed: xorshift64*.
    fn bytes(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56
        };
        (0..len).map(|_| next() as u8).collect()
    }

    #[test]
    fn devices_survive_random_guests() {
        // An operation needs about 5 bytes.
        for seed in 0..1000 {
            fuzz_queues(&bytes(seed, 1200));
            fuzz_registers(&bytes(seed, 300));
        }
    }

    #[test]
    fn devices_survive_random_states() {
        let guest = Guest::new(&[]);
        guest.boot();
        guest.devices.send(0, b"unread").unwrap();
        let state = guest.devices.save().encode();
        let mut accepted = 0;
        for seed in 0..1000 {
            // A few bytes differ from a state that is one.
            let mut state = state.clone();
            for change in bytes(seed, 12).chunks(3) {
                let at = usize::from(change[0]) << 8 | usize::from(change[1]);
                let at = at % state.len();
                state[at] = change[2];
            }
            let decoded = DevicesState::decode(&state);
            accepted += usize::from(decoded.is_ok_and(|s| Devices::restore(&names(), &s).is_ok()));
            let mut data = (state.len() as u16).to_le_bytes().to_vec();
            data.extend(state);
            data.extend(bytes(seed, 300));
            fuzz_state(&data);
        }
        assert!(accepted > 100, "{accepted}");
    }

    #[test]
    fn boot_of_the_random_guest_enables_the_queues() {
        let guest = Guest::new(&[]);
        guest.boot();
        guest.set_descriptor(5, 0, 0x100, 128, 0, 0);
        guest.publish(5, 0);
        assert_eq!(*guest.board.output.borrow(), [(0, vec![0; 128])]);
        assert_eq!(guest.board.messages.borrow().len(), 1);
    }
}
