//! ACPI tables: they describe CPUs, nodes, the console, PCI and the power registers to a kernel.
//!
//! [`build`] writes all of them as one block for [`layout::ACPI`]. They describe hardware-reduced
//! ACPI, a machine without the registers, timer and interrupt of a PC's ACPI, so there is little to
//! emulate and little to probe.
//!
//! Source: ACPI 6.5.

mod aml;
mod dsdt;
mod fadt;
mod madt;
mod resource;
mod srat;
mod table;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use ktstr_core::machine::Topology;

use super::cpus::Cpus;
use super::layout;
use super::memory::{self, MemoryNode};
use crate::config::VmConfig;
use crate::error::Error;
use table::{Table, checksum};

/// Bytes of the RSDP.
const RSDP: usize = 36;
/// The alignment of tables, which the RSDP requires (5.2.5.1).
const ALIGNMENT: usize = 16;

/// Writes the tables as they are placed at [`layout::ACPI`]: the RSDP, for which kernels search,
/// followed by the tables that it leads to.
///
/// # Errors
///
/// [`Error::Config`] if they take more than [`layout::ACPI_SIZE`]. With at most 255 CPUs this needs
/// more nodes than CPUs, or a thousand ranges of memory.
pub(in crate::kvm) fn build(cpus: &Cpus, memory: &[MemoryNode]) -> Result<Vec<u8>, Error> {
    let mut block = Block { bytes: vec![0; RSDP] };
    let dsdt = block.push(&dsdt::dsdt());
    let tables = [
        block.push(&fadt::fadt(dsdt)),
        block.push(&madt::madt(cpus)),
        block.push(&srat::srat(cpus, memory)),
        block.push(&srat::slit(cpus.nodes)),
    ];
    let xsdt = block.push(&xsdt(&tables));
    block.bytes[..RSDP].copy_from_slice(&rsdp(xsdt));
    match block.bytes.len() {
        0..=layout::ACPI_SIZE => Ok(block.bytes),
        len => Err(Error::Config(format!(
            "the ACPI tables of {} CPUs, {} nodes and {} ranges of memory take {len} bytes \
             (maximum {})",
            cpus.list.len(),
            cpus.nodes,
            memory.len(),
            layout::ACPI_SIZE,
        ))),
    }
}

/// Writes the tables of a machine with `memory_mib` MiB, for tests of the tables alone.
///
/// # Errors
///
/// [`Error::Config`] if such a machine cannot exist.
#[doc(hidden)]
pub fn acpi_tables(topology: &Topology, memory_mib: u32) -> Result<Vec<u8>, Error> {
    let config = VmConfig {
        kernel: PathBuf::new(),
        initramfs: PathBuf::new(),
        cmdline: String::new(),
        kaslr: true,
        topology: *topology,
        memory_mib,
        ports: Vec::new(),
    };
    config.check()?;
    build(&Cpus::new(topology)?, &memory::place(config.node_sizes_mib().map(|mib| mib << 20)))
}

/// Concatenated tables, which begin at [`layout::ACPI`].
#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
}

impl Block {
    /// Appends a table and returns its guest-physical address.
    fn push(&mut self, table: &[u8]) -> u64 {
        let offset = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(offset, 0);
        self.bytes.extend_from_slice(table);
        layout::ACPI + offset as u64
    }
}

/// Writes the Extended System Description Table: the addresses of the other tables (5.2.8).
fn xsdt(tables: &[u64]) -> Vec<u8> {
    let mut xsdt = Table::new(b"XSDT", 1);
    for address in tables {
        xsdt.u64(*address);
    }
    xsdt.finish()
}

/// Writes the Root System Description Pointer (5.2.5.3).
fn rsdp(xsdt: u64) -> [u8; RSDP] {
    const REVISION: u8 = 2;
    let mut bytes = [0; RSDP];
    bytes[..8].copy_from_slice(b"RSD PTR ");
    bytes[9..15].copy_from_slice(table::OEM_ID);
    bytes[15] = REVISION;
    // The address of an RSDT, at 16, stays 0: the XSDT replaces it.
    bytes[20] = RSDP as u8;
    bytes[24..32].copy_from_slice(&xsdt.to_le_bytes());
    // The first checksum covers the 20 bytes of revision 0.
    bytes[8] = checksum(&bytes[..20]);
    bytes[32] = checksum(&bytes);
    bytes
}
