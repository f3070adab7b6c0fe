//! Access to registers as bytes.

/// Reads `data` from registers without side effects; bytes after their end are zeros.
pub(super) fn read_registers(registers: &[u8], offset: usize, data: &mut [u8]) {
    data.fill(0);
    let there = registers.get(offset..).unwrap_or_default();
    let len = data.len().min(there.len());
    data[..len].copy_from_slice(&there[..len]);
}
