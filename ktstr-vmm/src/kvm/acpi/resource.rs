//! Resource descriptors: the elements of a device's `_CRS`.
//!
//! Source: ACPI 6.5, 6.4 ("Resource Data Types for ACPI").

use super::aml;

/// Flags of an address space that a bridge produces, with both ends fixed (6.4.3.5.5).
const FIXED_PRODUCER: u8 = 1 << 3 | 1 << 2;

/// Encodes `ResourceTemplate () { descriptors }`: a buffer with an end tag (6.4.2.9).
pub(super) fn template(descriptors: &[Vec<u8>]) -> Vec<u8> {
    // A checksum of zero means that it is not checked.
    aml::buffer(&[&descriptors.concat()[..], &[0x79, 0]].concat())
}

/// Encodes `IO (Decode16, port, port, 1, len)` (6.4.2.5).
pub(super) fn io(port: u16, len: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x47, 1, low, high, low, high, 1, len]
}

/// Encodes `Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { gsi }` (6.4.3.6).
pub(super) fn edge_interrupt(gsi: u32) -> Vec<u8> {
    let (consumer, edge) = (1 << 0, 1 << 1);
    [&[0x89, 6, 0, consumer | edge, 1][..], &gsi.to_le_bytes()].concat()
}

/// Encodes `WordBusNumber (ResourceProducer, MinFixed, MaxFixed, ...)` of one bus (6.4.3.5.3).
pub(super) fn bus(number: u16) -> Vec<u8> {
    let (bus_number, granularity, translation, length) = (2, 0, 0, 1);
    let mut bytes = vec![0x88, 13, 0, bus_number, FIXED_PRODUCER, 0];
    for word in [granularity, number, number, translation, length] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Encodes `DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
/// ...)` (6.4.3.5.2).
pub(super) fn memory(base: u32, size: u32) -> Vec<u8> {
    let (memory, read_write, granularity, translation) = (0, 1, 0, 0);
    let mut bytes = vec![0x87, 23, 0, memory, FIXED_PRODUCER, read_write];
    for word in [granularity, base, base + (size - 1), translation, size] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes
}
