//! A driver that behaves like Linux's: PCI enumeration, virtio initialization, multiport.

use std::collections::VecDeque;

use vm_memory::{Bytes, GuestAddress};

use ktstr_vmm::kvm::{Devices, Power};

use crate::board::FakeBoard;

/// The first port of the serial console.
pub(crate) const COM1: u16 = 0x3f8;
/// The ports of PCI configuration mechanism #1.
pub(crate) const PCI_ADDRESS: u16 = 0xcf8;
pub(crate) const PCI_DATA: u16 = 0xcfc;
/// The first address at which BARs may be.
const PCI_WINDOW: u64 = 0xd000_0000;

pub(crate) const F_MULTIPORT: u64 = 1 << 1;
pub(crate) const F_EVENT_IDX: u64 = 1 << 29;
pub(crate) const F_VERSION_1: u64 = 1 << 32;

pub(crate) const DESC_NEXT: u16 = 1;
pub(crate) const DESC_WRITE: u16 = 2;
pub(crate) const DESC_INDIRECT: u16 = 4;

/// The address to which this driver moves the BAR.
const BAR: u64 = PCI_WINDOW + 0x12_0000;
/// The first address that it allocates.
const HEAP: u64 = 0x10_0000;
pub(crate) const MEMORY: usize = 8 << 20;

/// A guest and its machine.
pub(crate) struct Guest {
    pub(crate) devices: Devices,
    pub(crate) board: FakeBoard,
    pub(crate) queues: Vec<Queue>,
    common: u64,
    isr: u64,
    device: u64,
    notify: u64,
    pub(crate) msix_control: u8,
    pub(crate) msix_table: u64,
    pub(crate) msix_pending: u64,
    features: u64,
    next: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Queue {
    pub(crate) index: u16,
    pub(crate) size: u16,
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    /// Counts of the buffers that were made available and that were taken back.
    pub(crate) next_avail: u16,
    next_used: u16,
    free: VecDeque<u16>,
    /// The buffers of each head.
    chains: Vec<Vec<Buffer>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Buffer {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
}

pub(crate) fn names(ports: &[&str]) -> Vec<String> {
    ports.iter().map(|&name| name.to_owned()).collect()
}

impl Guest {
    /// Creates a machine before any access of a driver.
    pub(crate) fn new(ports: &[&str]) -> Self {
        Self {
            devices: Devices::new(&names(ports)),
            // Two nodes.
            board: FakeBoard::new(&[(0, MEMORY / 2), (MEMORY as u64 / 2, MEMORY / 2)]),
            queues: Vec::new(),
            common: 0,
            isr: 0,
            device: 0,
            notify: 0,
            msix_control: 0,
            msix_table: 0,
            msix_pending: 0,
            features: F_MULTIPORT | F_EVENT_IDX | F_VERSION_1,
            next: HEAP,
        }
    }

    /// Creates a machine with a ready driver and ports that can be opened.
    pub(crate) fn booted(ports: &[&str]) -> Self {
        Self::booted_with(ports, F_MULTIPORT | F_EVENT_IDX | F_VERSION_1)
    }

    pub(crate) fn booted_with(ports: &[&str], features: u64) -> Self {
        let mut guest = Self { features, ..Self::new(ports) };
        guest.enumerate();
        guest.initialize();
        guest.set_up_ports();
        guest
    }

    // Ports and memory.

    pub(crate) fn outb(&self, port: u16, value: u8) -> Option<Power> {
        self.devices.pio_write(port, &[value], &self.board)
    }

    pub(crate) fn inb(&self, port: u16) -> u8 {
        let mut data = [0x5a];
        self.devices.pio_read(port, &mut data);
        data[0]
    }

    pub(crate) fn outl(&self, port: u16, value: u32) {
        assert_eq!(self.devices.pio_write(port, &value.to_le_bytes(), &self.board), None);
    }

    pub(crate) fn inl(&self, port: u16) -> u32 {
        let mut data = [0x5a; 4];
        self.devices.pio_read(port, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn mmio_read<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut data = [0x5a; N];
        self.devices.mmio_read(gpa, &mut data);
        data
    }

    pub(crate) fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.devices.mmio_write(gpa, data, &self.board);
    }

    pub(crate) fn poke<T: vm_memory::ByteValued>(&self, gpa: u64, value: T) {
        self.board.memory.write_obj(value, GuestAddress(gpa)).unwrap();
    }

    pub(crate) fn peek<T: vm_memory::ByteValued>(&self, gpa: u64) -> T {
        self.board.memory.read_obj(GuestAddress(gpa)).unwrap()
    }

    pub(crate) fn alloc(&mut self, len: usize) -> u64 {
        let at = self.next;
        self.next += (len as u64).next_multiple_of(0x1000);
        assert!(self.next <= MEMORY as u64);
        self.board.memory.write_slice(&vec![0; len], GuestAddress(at)).unwrap();
        at
    }

    // PCI.

    pub(crate) fn select(&self, device: u32, register: u8) {
        self.outl(PCI_ADDRESS, 1 << 31 | device << 11 | u32::from(register & 0xfc));
    }

    pub(crate) fn config(&self, device: u32, register: u8) -> u32 {
        self.select(device, register);
        self.inl(PCI_DATA)
    }

    pub(crate) fn config_byte(&self, device: u32, register: u8) -> u8 {
        self.select(device, register);
        self.inb(PCI_DATA + u16::from(register & 3))
    }

    pub(crate) fn set_config(&self, device: u32, register: u8, value: u32) {
        self.select(device, register);
        self.outl(PCI_DATA, value);
    }

    pub(crate) fn set_config_word(&self, device: u32, register: u8, value: u16) {
        self.select(device, register);
        let port = PCI_DATA + u16::from(register & 2);
        assert_eq!(self.devices.pio_write(port, &value.to_le_bytes(), &self.board), None);
    }

    /// Returns the offsets and IDs of the capabilities.
    pub(crate) fn capabilities(&self) -> Vec<(u8, u8)> {
        assert_ne!(self.config(1, 4) >> 16 & 0x10, 0, "the status has the bit of capabilities");
        let mut list = Vec::new();
        let mut at = self.config_byte(1, 0x34);
        while at != 0 {
            assert!(list.len() < 48 && at.is_multiple_of(4));
            list.push((at, self.config_byte(1, at)));
            at = self.config_byte(1, at + 1);
        }
        list
    }

    /// Finds the console, moves its BAR and finds the structures in it.
    pub(crate) fn enumerate(&mut self) {
        // Linux's test for mechanism #1.
        self.outb(PCI_ADDRESS + 3, 1);
        let before = self.inl(PCI_ADDRESS);
        self.outl(PCI_ADDRESS, 0x8000_0000);
        assert_eq!(self.inl(PCI_ADDRESS), 0x8000_0000);
        self.outl(PCI_ADDRESS, before);

        let found: Vec<_> = (0..32).filter(|&device| self.config(device, 0) != !0).collect();
        assert_eq!(found, [0, 1]);
        assert_eq!(self.config(0, 8) >> 8, 0x06_0000, "a host bridge");
        assert_eq!(self.config(1, 0), 0x1043_1af4);
        assert_eq!(self.config_byte(1, 0x0e), 0, "one function, an ordinary header");
        assert_eq!(self.config_byte(1, 0x3d), 0, "no interrupt line");

        self.set_config_word(1, 4, 0);
        let first = self.config(1, 0x10);
        self.set_config(1, 0x10, !0);
        let mask = self.config(1, 0x10);
        assert_eq!(mask & 0xf, 0, "32 bits of memory");
        assert_eq!((mask & !0xf).wrapping_neg(), 0x8000);
        self.set_config(1, 0x10, first);
        for other in [0x14, 0x18, 0x1c, 0x20, 0x24, 0x30] {
            self.set_config(1, other, !0);
            assert_eq!(self.config(1, other), 0);
        }
        assert_eq!(self.mmio_read(u64::from(first) + 0x12), [0xff; 2], "not decoded");
        self.set_config(1, 0x10, BAR as u32);
        self.set_config_word(1, 4, 0b110);

        for (at, id) in self.capabilities() {
            let offset = BAR + u64::from(self.config(1, at + 8));
            match (id, self.config_byte(1, at + 3)) {
                (9, 1) => self.common = offset,
                (9, 2) => {
                    self.notify = offset;
                    assert_eq!(
                        self.config(1, at + 16),
                        0,
                        "all queues are notified at one address"
                    );
                }
                (9, 3) => self.isr = offset,
                (9, 4) => self.device = offset,
                (9, 5) => {}
                (0x11, _) => {
                    self.msix_control = at;
                    self.msix_table = BAR + u64::from(self.config(1, at + 4));
                    self.msix_pending = BAR + u64::from(self.config(1, at + 8));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    // Virtio.

    pub(crate) fn common<const N: usize>(&self, offset: u64) -> [u8; N] {
        self.mmio_read(self.common + offset)
    }

    pub(crate) fn set_common(&self, offset: u64, data: &[u8]) {
        self.mmio_write(self.common + offset, data);
    }

    pub(crate) fn status(&self) -> u8 {
        self.common::<1>(0x14)[0]
    }

    pub(crate) fn set_status(&self, status: u8) {
        self.set_common(0x14, &[status]);
    }

    pub(crate) fn isr(&self) -> u8 {
        self.mmio_read::<1>(self.isr)[0]
    }

    pub(crate) fn max_nr_ports(&self) -> u32 {
        u32::from_le_bytes(self.mmio_read(self.device + 4))
    }

    pub(crate) fn offered(&self) -> u64 {
        [0_u32, 1].into_iter().fold(0, |features, select| {
            self.set_common(0, &select.to_le_bytes());
            features | u64::from(u32::from_le_bytes(self.common(4))) << (32 * select)
        })
    }

    pub(crate) fn accept(&self, features: u64) {
        for select in [0_u32, 1] {
            self.set_common(8, &select.to_le_bytes());
            self.set_common(12, &((features >> (32 * select)) as u32).to_le_bytes());
        }
    }

    /// Brings the device from reset to `DRIVER_OK`.
    pub(crate) fn initialize(&mut self) {
        self.queues.clear();
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.set_status(1);
        self.set_status(1 | 2);
        self.negotiate();
        let nr_queues = (self.max_nr_ports() + 1) * 2;
        assert_eq!(u32::from(u16::from_le_bytes(self.common(0x12))), nr_queues);
        self.set_up_msix(nr_queues as u16 + 1);
        for index in 0..nr_queues as u16 {
            let queue = self.set_up_queue(index);
            self.queues.push(queue);
        }
        for queue in &self.queues {
            self.set_common(0x16, &queue.index.to_le_bytes());
            self.set_common(0x1c, &1_u16.to_le_bytes());
            assert_eq!(self.common(0x1c), 1_u16.to_le_bytes());
        }
        self.set_status(1 | 2 | 8 | 4);
        assert_eq!(self.status(), 1 | 2 | 8 | 4);
    }

    fn negotiate(&self) {
        assert_eq!(self.offered(), F_MULTIPORT | F_EVENT_IDX | F_VERSION_1);
        self.accept(self.features);
        self.set_status(1 | 2 | 8);
        assert_eq!(self.status(), 1 | 2 | 8);
    }

    /// Gives vector v the message data 0x40 + v.
    fn set_up_msix(&self, vectors: u16) {
        let control = (self.config(1, self.msix_control) >> 16) as u16;
        assert_eq!(control & 0x7ff, vectors - 1);
        self.set_config_word(1, self.msix_control + 2, control | 0xc000);
        for vector in 0..vectors {
            let entry = self.msix_table + 16 * u64::from(vector);
            self.mmio_write(entry, &0xfee0_1000_u32.to_le_bytes());
            self.mmio_write(entry + 4, &0_u32.to_le_bytes());
            self.mmio_write(entry + 8, &(0x40 + u32::from(vector)).to_le_bytes());
            self.mmio_write(entry + 12, &0_u32.to_le_bytes());
        }
        self.set_config_word(1, self.msix_control + 2, control & !0x4000 | 0x8000);
        self.set_common(0x10, &0_u16.to_le_bytes());
        assert_eq!(self.common(0x10), 0_u16.to_le_bytes());
    }

    fn set_up_queue(&mut self, index: u16) -> Queue {
        self.set_common(0x16, &index.to_le_bytes());
        assert_eq!(self.common(0x1c), [0; 2], "not enabled yet");
        assert_eq!(self.common(0x1e), [0; 2], "notified at offset 0");
        let size = u16::from_le_bytes(self.common(0x18));
        assert!(size > 0 && size.is_power_of_two());
        let desc = self.alloc(16 * usize::from(size));
        let avail = self.alloc(6 + 2 * usize::from(size));
        let used = self.alloc(6 + 8 * usize::from(size));
        self.set_common(0x18, &size.to_le_bytes());
        for (offset, address) in [(0x20, desc), (0x28, avail), (0x30, used)] {
            self.set_common(offset, &(address as u32).to_le_bytes());
            self.set_common(offset + 4, &((address >> 32) as u32).to_le_bytes());
        }
        // Linux uses no interrupts for the control messages that it has sent.
        let vector = if index == 3 { 0xffff } else { index + 1 };
        self.set_common(0x1a, &vector.to_le_bytes());
        assert_eq!(self.common(0x1a), vector.to_le_bytes());
        Queue {
            index,
            size,
            desc,
            avail,
            used,
            next_avail: 0,
            next_used: 0,
            free: (0..size).collect(),
            chains: vec![Vec::new(); usize::from(size)],
        }
    }

    /// Makes a chain available. Returns whether the device requests a notification.
    pub(crate) fn add(&mut self, index: usize, buffers: &[Buffer]) -> bool {
        let mut queue = self.queues[index].clone();
        let slots: Vec<_> = queue.free.drain(..buffers.len()).collect();
        for (i, (slot, buffer)) in slots.iter().zip(buffers).enumerate() {
            let next = slots.get(i + 1).copied();
            let flags = buffer.flags | if next.is_some() { DESC_NEXT } else { 0 };
            self.write_desc(&queue, *slot, *buffer, flags, next.unwrap_or(0));
        }
        queue.chains[usize::from(slots[0])] = buffers.to_vec();
        let old = queue.next_avail;
        self.publish(&mut queue, slots[0]);
        let new = queue.next_avail;
        let wants = if self.features & F_EVENT_IDX != 0 {
            let event: u16 = self.peek(queue.used + 4 + 8 * u64::from(queue.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.peek::<u16>(queue.used) & 1 == 0
        };
        self.queues[index] = queue;
        wants
    }

    pub(crate) fn write_desc(
        &self,
        queue: &Queue,
        slot: u16,
        buffer: Buffer,
        flags: u16,
        next: u16,
    ) {
        let at = queue.desc + 16 * u64::from(slot);
        self.poke(at, buffer.address);
        self.poke(at + 8, buffer.len);
        self.poke(at + 12, flags);
        self.poke(at + 14, next);
    }

    /// Puts a head into the available ring.
    pub(crate) fn publish(&self, queue: &mut Queue, head: u16) {
        let slot = u64::from(queue.next_avail % queue.size);
        self.poke(queue.avail + 4 + 2 * slot, head);
        queue.next_avail = queue.next_avail.wrapping_add(1);
        self.poke(queue.avail + 2, queue.next_avail);
    }

    pub(crate) fn notify(&self, index: usize) {
        self.mmio_write(self.notify, &(index as u16).to_le_bytes());
    }

    pub(crate) fn add_and_notify(&mut self, index: usize, buffers: &[Buffer]) {
        if self.add(index, buffers) {
            self.notify(index);
        }
    }

    /// Takes back the next used chain and the number of bytes written to it; requests an interrupt
    /// at the next one.
    pub(crate) fn take_used(&mut self, index: usize) -> Option<(Vec<Buffer>, u32)> {
        let queue = self.queues[index].clone();
        if self.peek::<u16>(queue.used + 2) == queue.next_used {
            return None;
        }
        let at = queue.used + 4 + 8 * u64::from(queue.next_used % queue.size);
        let (head, len): (u32, u32) = (self.peek(at), self.peek(at + 4));
        let queue = &mut self.queues[index];
        queue.next_used = queue.next_used.wrapping_add(1);
        let chain = std::mem::take(&mut queue.chains[head as usize]);
        let mut slot = head as u16;
        let queue = self.queues[index].clone();
        for _ in &chain {
            self.queues[index].free.push_back(slot);
            slot = self.peek(queue.desc + 16 * u64::from(slot) + 14);
        }
        self.poke(queue.avail + 4 + 2 * u64::from(queue.size), queue.next_used);
        Some((chain, len))
    }

    pub(crate) fn has_free(&self, index: usize, slots: usize) -> bool {
        self.queues[index].free.len() >= slots
    }

    /// Returns the queues with interrupts since the last call; `None` is the device itself.
    pub(crate) fn take_interrupts(&self) -> Vec<Option<u32>> {
        let messages = self.board.messages.take();
        assert!(messages.iter().all(|message| message.address == 0xfee0_1000));
        messages.iter().map(|message| message.data.checked_sub(0x41)).collect()
    }

    // The console.

    /// Adds this many buffers of a page to a receive queue.
    pub(crate) fn fill(&mut self, index: usize, count: usize) {
        for _ in 0..count {
            let address = self.alloc(0x1000);
            self.add_and_notify(index, &[Buffer { address, len: 0x1000, flags: DESC_WRITE }]);
        }
    }

    /// Sends a control message. Like Linux, it does not wait longer than the notification takes.
    pub(crate) fn control(&mut self, id: u32, event: u16, value: u16) {
        let address = self.alloc(8);
        self.poke(address, id);
        self.poke(address + 4, event);
        self.poke(address + 6, value);
        self.add_and_notify(3, &[Buffer { address, len: 8, flags: 0 }]);
        assert!(self.take_used(3).is_some(), "Linux spins until the message is used");
    }

    /// Takes control messages and makes their buffers available again.
    pub(crate) fn take_control(&mut self) -> Vec<(u32, u16, u16, Vec<u8>)> {
        let mut messages = Vec::new();
        while let Some((chain, len)) = self.take_used(2) {
            let at = chain[0].address;
            let mut rest = vec![0; len as usize - 8];
            self.board.memory.read_slice(&mut rest, GuestAddress(at + 8)).unwrap();
            messages.push((self.peek(at), self.peek(at + 4), self.peek(at + 6), rest));
            self.add_and_notify(2, &chain);
        }
        messages
    }

    /// Brings the device from `DRIVER_OK` to ports that can be opened.
    pub(crate) fn set_up_ports(&mut self) {
        self.fill(2, 8);
        self.control(!0, 0, 1);
        let ids: Vec<_> = self.take_control().into_iter().map(|message| message.0).collect();
        for id in ids {
            self.fill(2 + 2 * id as usize, 16);
            self.control(id, 3, 1);
        }
        self.take_control();
        self.take_interrupts();
    }

    pub(crate) fn open(&mut self, id: u32) {
        self.control(id, 6, 1);
    }

    /// Takes the bytes that a port has received and makes the buffers available again.
    pub(crate) fn read_port(&mut self, id: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some((chain, len)) = self.take_used(2 + 2 * id) {
            let mut part = vec![0; len as usize];
            self.board.memory.read_slice(&mut part, GuestAddress(chain[0].address)).unwrap();
            bytes.extend(part);
            self.add_and_notify(2 + 2 * id, &chain);
        }
        bytes
    }

    /// Writes to a port, as one chain with a buffer for each slice.
    pub(crate) fn write_port(&mut self, id: usize, slices: &[&[u8]]) {
        let mut buffers = Vec::new();
        for slice in slices {
            let address = self.alloc(slice.len().max(1));
            self.board.memory.write_slice(slice, GuestAddress(address)).unwrap();
            buffers.push(Buffer { address, len: slice.len() as u32, flags: 0 });
        }
        self.add_and_notify(3 + 2 * id, &buffers);
    }

    /// Does the work that a vCPU's loop does, until there is none left.
    pub(crate) fn service(&self) {
        let mut iterations = 0;
        while self.devices.service(&self.board) {
            iterations += 1;
            assert!(iterations < 10_000, "the work does not end");
        }
    }

    /// Returns all bytes of a port.
    pub(crate) fn output(&self, port: usize) -> Vec<u8> {
        let output = self.board.output.borrow();
        output.iter().filter(|(from, _)| *from == port).flat_map(|(_, b)| b.clone()).collect()
    }
}
