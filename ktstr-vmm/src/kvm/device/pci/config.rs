//! The configuration space of a PCI function: 256 bytes, of which the guest may write some bits.
//!
//! Source: PCI Local Bus Specification 3.0, chapter 6 ("Configuration Space").

use super::super::registers::read_registers;

/// The offset of the command register.
pub(in super::super) const COMMAND: usize = 0x04;
/// Command register: the function decodes its memory addresses.
pub(in super::super) const COMMAND_MEMORY: u16 = 1 << 1;
/// Command register: the function may access memory and send interrupts.
pub(in super::super) const COMMAND_MASTER: u16 = 1 << 2;
/// The offset of the first base address register.
pub(in super::super) const BAR0: usize = 0x10;

const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const CACHE_LINE_SIZE: usize = 0x0c;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// The offset of the first capability, after the header.
const HEADER_END: u8 = 0x40;

/// The identity of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Identity {
    pub(in super::super) vendor: u16,
    pub(in super::super) device: u16,
    /// Base class, subclass and programming interface.
    pub(in super::super) class: u32,
    pub(in super::super) revision: u8,
    /// The subsystem's device ID. Its vendor is Red Hat, as for all virtio devices.
    pub(in super::super) subsystem: u16,
}

const RED_HAT: u16 = 0x1af4;

/// The configuration space of a function.
#[derive(Debug)]
pub(in super::super) struct ConfigSpace {
    registers: [u8; 256],
    /// The bits that the guest may write.
    writable: [u8; 256],
    /// The offset of the next capability.
    end: u8,
    /// The offset of the pointer to it.
    link: usize,
}

impl ConfigSpace {
    /// Creates a function without BARs and capabilities.
    pub(in super::super) fn new(identity: Identity) -> Self {
        let mut config =
            Self { registers: [0; 256], writable: [0; 256], end: HEADER_END, link: CAPABILITIES };
        config.set(0, &identity.vendor.to_le_bytes());
        config.set(2, &identity.device.to_le_bytes());
        config.set(8, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        config.set(SUBSYSTEM_VENDOR, &RED_HAT.to_le_bytes());
        config.set(SUBSYSTEM_VENDOR + 2, &identity.subsystem.to_le_bytes());
        config.allow(COMMAND, &(COMMAND_MEMORY | COMMAND_MASTER).to_le_bytes());
        config.allow(CACHE_LINE_SIZE, &[0xff]);
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    /// Adds the first BAR: a 32-bit address, not prefetchable.
    ///
    /// The bits below its size are not writable, by which a guest finds the size: it writes all
    /// ones.
    pub(in super::super) fn set_bar0(&mut self, address: u32, size: u32) {
        debug_assert!(size.is_power_of_two() && address.is_multiple_of(size));
        self.set(BAR0, &address.to_le_bytes());
        self.allow(BAR0, &(!(size - 1)).to_le_bytes());
    }

    /// Adds a capability with this ID and body, and the bits of the body that are writable.
    ///
    /// Returns its offset; the body begins two bytes later.
    pub(in super::super) fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> usize {
        let offset = usize::from(self.end);
        self.registers[STATUS] |= STATUS_CAPABILITIES as u8;
        self.registers[self.link] = self.end;
        self.set(offset, &[id, 0]);
        self.set(offset + 2, body);
        self.allow(offset + 2, writable);
        self.link = offset + 1;
        self.end += (2 + body.len()).next_multiple_of(4) as u8;
        offset
    }

    /// Sets registers on behalf of the device.
    pub(in super::super) fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.registers[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// Reads registers.
    pub(in super::super) fn read(&self, offset: usize, data: &mut [u8]) {
        read_registers(&self.registers, offset, data);
    }

    /// Writes the bits that the guest may write.
    pub(in super::super) fn write(&mut self, offset: usize, data: &[u8]) {
        let registers = self.registers.iter_mut().zip(&self.writable).skip(offset);
        for ((register, mask), value) in registers.zip(data) {
            *register = *register & !mask | value & mask;
        }
    }

    /// Returns the registers to save.
    pub(in super::super) fn save(&self) -> [u8; 256] {
        self.registers
    }

    /// Restores the bits of saved registers that a guest may write; the others are fixed.
    pub(in super::super) fn restore(&mut self, registers: &[u8; 256]) {
        self.write(0, registers);
    }

    /// Returns a register of 16 bits.
    pub(in super::super) fn word(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.registers[offset], self.registers[offset + 1]])
    }

    /// Returns a register of 32 bits.
    pub(in super::super) fn dword(&self, offset: usize) -> u32 {
        u32::from(self.word(offset)) | u32::from(self.word(offset + 2)) << 16
    }
}
