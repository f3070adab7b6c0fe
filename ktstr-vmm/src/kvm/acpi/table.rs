//! System description tables: a header, a body, a checksum.

use std::mem;

/// Bytes of the header of all tables but the RSDP.
#[cfg(test)]
pub(super) const HEADER: usize = 36;

/// `OEMID`: six characters.
pub(super) const OEM_ID: &[u8; 6] = b"KTSTR ";
const OEM_TABLE_ID: &[u8; 8] = b"KTSTRVMM";
const CREATOR_ID: &[u8; 4] = b"KTST";
const REVISION: u32 = 1;

/// Offsets of the header's fields that are known last.
const LENGTH: usize = 4;
const CHECKSUM: usize = 9;

/// A table that is being written, field by field.
///
/// Source: ACPI 6.5, 5.2.6 ("System Description Table Header").
#[derive(Debug)]
pub(super) struct Table {
    bytes: Vec<u8>,
}

impl Table {
    /// Begins a table with its header.
    pub(super) fn new(signature: &[u8; 4], revision: u8) -> Self {
        let mut table = Self { bytes: Vec::new() };
        table
            .bytes(signature)
            .u32(0)
            .u8(revision)
            .u8(0)
            .bytes(OEM_ID)
            .bytes(OEM_TABLE_ID)
            .u32(REVISION)
            .bytes(CREATOR_ID)
            .u32(REVISION);
        table
    }

    /// Appends one byte.
    pub(super) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    /// Appends two bytes, little-endian.
    pub(super) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends four bytes, little-endian.
    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends eight bytes, little-endian.
    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends `bytes` unchanged.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends `count` bytes that are reserved, or do not apply.
    pub(super) fn zeros(&mut self, count: usize) -> &mut Self {
        self.bytes.resize(self.bytes.len() + count, 0);
        self
    }

    /// Ends the table: writes its length and its checksum into the header, and returns its bytes.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let mut bytes = mem::take(&mut self.bytes);
        let length = bytes.len() as u32;
        bytes[LENGTH..][..4].copy_from_slice(&length.to_le_bytes());
        bytes[CHECKSUM] = checksum(&bytes);
        bytes
    }
}

/// Returns the byte that makes the sum of `bytes` and itself zero.
pub(super) fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finish_sets_length_and_checksum() {
        let table = Table::new(b"TEST", 3).u8(1).u16(0x0302).u32(0x0706_0504).zeros(1).finish();
        assert_eq!(table.len(), HEADER + 8);
        assert_eq!(&table[..4], b"TEST");
        assert_eq!(table[LENGTH..][..4], 44u32.to_le_bytes());
        assert_eq!(table[8], 3);
        assert_eq!(table[HEADER..], [1, 2, 3, 4, 5, 6, 7, 0]);
        assert_eq!(checksum(&table), 0);
    }
}
