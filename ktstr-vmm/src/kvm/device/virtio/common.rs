//! The registers by which a driver negotiates features, sets up queues and reports its state.
//!
//! Source: virtio 1.2, 4.1.4.3 ("Common configuration structure layout"), 2.1 ("Device Status
//! Field"), 3.1 ("Device Initialization").

use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

use super::super::pci::NO_VECTOR;
use super::super::registers::read_registers;
use super::interrupts::Interrupts;
use super::queue::{Broken, Virtqueue, VirtqueueState};
use crate::kvm::codec::{StateError, fields};

/// `VIRTIO_F_EVENT_IDX`: each side sets the index of the buffer at which it wants a notification.
const F_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`: the driver does not use the legacy interface, which is not implemented.
const F_VERSION_1: u64 = 1 << 32;

/// Bits of the device status.
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;
const FAILED: u8 = 128;
const DRIVERS_OWN: u8 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;

/// Bytes of the structure.
const SIZE: usize = 0x40;

/// Offsets of its fields.
const DEVICE_FEATURE_SELECT: usize = 0x00;
const DEVICE_FEATURE: usize = 0x04;
const DRIVER_FEATURE_SELECT: usize = 0x08;
const DRIVER_FEATURE: usize = 0x0c;
const CONFIG_MSIX_VECTOR: usize = 0x10;
const NUM_QUEUES: usize = 0x12;
const DEVICE_STATUS: usize = 0x14;
const QUEUE_SELECT: usize = 0x16;
const QUEUE_SIZE: usize = 0x18;
const QUEUE_MSIX_VECTOR: usize = 0x1a;
const QUEUE_ENABLE: usize = 0x1c;
const QUEUE_DESC: usize = 0x20;
const QUEUE_DESC_HIGH: usize = QUEUE_DESC + 4;
const QUEUE_DRIVER: usize = 0x28;
const QUEUE_DRIVER_HIGH: usize = QUEUE_DRIVER + 4;
const QUEUE_DEVICE: usize = 0x30;
const QUEUE_DEVICE_HIGH: usize = QUEUE_DEVICE + 4;

/// The state that all kinds of virtio devices have.
///
/// The configuration generation is always 0, because the configuration never changes. So is the
/// notification offset of each queue: drivers write the number of the queue to one address for all.
#[derive(Debug)]
pub(super) struct Common {
    offered: u64,
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    config_vector: u16,
    status: u8,
    queue_select: u16,
    pub(super) queues: Vec<Virtqueue>,
}

/// The saved state of [`Common`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommonState {
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    config_vector: u16,
    status: u8,
    queue_select: u16,
    queues: Vec<VirtqueueState>,
}

fields!(CommonState {
    accepted,
    device_feature_select,
    driver_feature_select,
    config_vector,
    status,
    queue_select,
    queues,
});

impl Common {
    /// Creates a device with these queues. It offers `features` and those of this crate.
    pub(super) fn new(features: u64, queues: Vec<Virtqueue>) -> Self {
        Self {
            offered: features | F_VERSION_1 | F_EVENT_IDX,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queues,
        }
    }

    /// Returns the state to save.
    pub(super) fn save(&self) -> CommonState {
        CommonState {
            accepted: self.accepted,
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            config_vector: self.config_vector,
            status: self.status,
            queue_select: self.queue_select,
            queues: self.queues.iter().map(Virtqueue::save).collect(),
        }
    }

    /// Restores a saved state into a new device.
    pub(super) fn restore(
        &mut self,
        state: &CommonState,
        interrupts: &Interrupts,
    ) -> Result<(), StateError> {
        if state.queues.len() != self.queues.len() {
            return Err(StateError::Device { what: "number of virtqueues" });
        }
        self.accepted = state.accepted;
        self.device_feature_select = state.device_feature_select;
        self.driver_feature_select = state.driver_feature_select;
        self.config_vector = interrupts.mapped(state.config_vector);
        self.status = state.status & (DRIVERS_OWN | NEEDS_RESET);
        self.queue_select = state.queue_select;
        for (queue, state) in self.queues.iter_mut().zip(&state.queues) {
            queue.restore(state)?;
            queue.vector = interrupts.mapped(state.vector);
        }
        Ok(())
    }

    /// Returns whether the driver is ready and the device does not need a reset.
    pub(super) fn is_live(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// Records that the device needs a reset. Returns the vector by which to notify the driver of
    /// it.
    ///
    /// Source: virtio 1.2, 2.1.2 ("Device Requirements: Device Status Field").
    pub(super) fn set_broken(&mut self) -> Option<u16> {
        let vector = self.is_live().then_some(self.config_vector);
        self.status |= NEEDS_RESET;
        vector
    }

    /// Reads a part of the structure.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        let mut image = [0; SIZE];
        let mut put = |offset: usize, bytes: &[u8]| {
            image[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(DEVICE_FEATURE_SELECT, &self.device_feature_select.to_le_bytes());
        put(DEVICE_FEATURE, &half(self.offered, self.device_feature_select).to_le_bytes());
        put(DRIVER_FEATURE_SELECT, &self.driver_feature_select.to_le_bytes());
        put(DRIVER_FEATURE, &half(self.accepted, self.driver_feature_select).to_le_bytes());
        put(CONFIG_MSIX_VECTOR, &self.config_vector.to_le_bytes());
        put(NUM_QUEUES, &(self.queues.len() as u16).to_le_bytes());
        put(DEVICE_STATUS, &[self.status]);
        put(QUEUE_SELECT, &self.queue_select.to_le_bytes());
        // A queue that does not exist reads as zeros: drivers check its size.
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            let ring = queue.ring();
            put(QUEUE_SIZE, &ring.size().to_le_bytes());
            put(QUEUE_MSIX_VECTOR, &queue.vector.to_le_bytes());
            put(QUEUE_ENABLE, &u16::from(ring.ready()).to_le_bytes());
            put(QUEUE_DESC, &ring.desc_table().to_le_bytes());
            put(QUEUE_DRIVER, &ring.avail_ring().to_le_bytes());
            put(QUEUE_DEVICE, &ring.used_ring().to_le_bytes());
        } else {
            put(QUEUE_MSIX_VECTOR, &NO_VECTOR.to_le_bytes());
        }
        read_registers(&image, offset, data);
    }

    /// Writes a field with its own width, as drivers must; other writes are ignored.
    ///
    /// Returns whether the write resets the device.
    pub(super) fn write(
        &mut self,
        offset: usize,
        data: &[u8],
        interrupts: &Interrupts,
        memory: &GuestMemoryMmap,
    ) -> Result<bool, Broken> {
        match *data {
            [0] if offset == DEVICE_STATUS => {
                self.reset();
                return Ok(true);
            }
            [value] if offset == DEVICE_STATUS => self.set_status(value),
            [a, b] => self.write_word(offset, u16::from_le_bytes([a, b]), interrupts, memory)?,
            [a, b, c, d] => self.write_dword(offset, u32::from_le_bytes([a, b, c, d])),
            // Only addresses have 64 bits. Drivers should write them in halves; a few do not.
            [a, b, c, d, e, f, g, h]
                if matches!(offset, QUEUE_DESC | QUEUE_DRIVER | QUEUE_DEVICE) =>
            {
                self.write_dword(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_dword(offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
        Ok(false)
    }

    fn reset(&mut self) {
        let mut queues = std::mem::take(&mut self.queues);
        queues.iter_mut().for_each(Virtqueue::reset);
        *self = Self::new(self.offered, queues);
    }

    /// Sets bits of the status; only a reset clears them.
    ///
    /// If a driver accepts features that were not offered, or the legacy interface, `FEATURES_OK`
    /// does not stay set, and neither does `DRIVER_OK`.
    fn set_status(&mut self, value: u8) {
        let mut status = self.status | value & DRIVERS_OWN;
        let is_acceptable = self.accepted & !self.offered == 0 && self.accepted & F_VERSION_1 != 0;
        if self.status & FEATURES_OK == 0 && !is_acceptable {
            status &= !FEATURES_OK;
        }
        if status & FEATURES_OK == 0 {
            status &= !DRIVER_OK;
        }
        self.status = status;
    }

    fn write_word(
        &mut self,
        offset: usize,
        value: u16,
        interrupts: &Interrupts,
        memory: &GuestMemoryMmap,
    ) -> Result<(), Broken> {
        match offset {
            CONFIG_MSIX_VECTOR => self.config_vector = interrupts.mapped(value),
            QUEUE_SELECT => self.queue_select = value,
            _ => {
                let event_idx = self.accepted & F_EVENT_IDX != 0;
                let are_features_ok = self.status & FEATURES_OK != 0;
                let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
                    return Ok(());
                };
                match offset {
                    QUEUE_MSIX_VECTOR => queue.vector = interrupts.mapped(value),
                    QUEUE_SIZE => {
                        if let Some(ring) = queue.unused_ring() {
                            ring.set_size(value);
                        }
                    }
                    // Only once, and only after the features are known: they include EVENT_IDX.
                    QUEUE_ENABLE if value == 1 && are_features_ok && !queue.ring().ready() => {
                        queue.enable(event_idx, memory)?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn write_dword(&mut self, offset: usize, value: u32) {
        match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            DRIVER_FEATURE if self.status & FEATURES_OK == 0 => {
                set_half(&mut self.accepted, self.driver_feature_select, value);
            }
            _ => {
                let queue = self.queues.get_mut(usize::from(self.queue_select));
                let Some(ring) = queue.and_then(Virtqueue::unused_ring) else { return };
                match offset {
                    QUEUE_DESC => ring.set_desc_table_address(Some(value), None),
                    QUEUE_DESC_HIGH => ring.set_desc_table_address(None, Some(value)),
                    QUEUE_DRIVER => ring.set_avail_ring_address(Some(value), None),
                    QUEUE_DRIVER_HIGH => ring.set_avail_ring_address(None, Some(value)),
                    QUEUE_DEVICE => ring.set_used_ring_address(Some(value), None),
                    QUEUE_DEVICE_HIGH => ring.set_used_ring_address(None, Some(value)),
                    _ => {}
                }
            }
        }
    }
}

/// Returns the 32 feature bits that a selector selects.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn set_half(features: &mut u64, select: u32, value: u32) {
    match select {
        0 => *features = *features & !0xffff_ffff | u64::from(value),
        1 => *features = *features & 0xffff_ffff | u64::from(value) << 32,
        // Features above bit 63 are not offered, so drivers write only zeros there.
        _ => {}
    }
}
