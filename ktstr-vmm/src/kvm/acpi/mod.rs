//! ACPI tables: how a kernel learns of CPUs, nodes, its console, PCI and how to switch off.
//!
//! [`build`] writes all of them as one block for [`layout::ACPI`]. They describe hardware-reduced
//! ACPI, that is, a machine without the registers, timer and interrupt of a PC's ACPI, so there is
//! little to emulate and little to probe.
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
/// Tables begin at multiples of this, as the RSDP has to (5.2.5.1).
const ALIGNMENT: usize = 16;

/// Writes the tables as they are to lie at [`layout::ACPI`]: the RSDP, which kernels search for,
/// and behind it what it leads to.
///
/// # Errors
///
/// [`Error::Config`] if they take more than [`layout::ACPI_SIZE`]; with at most 255 CPUs that takes
/// more nodes than there are CPUs, or a thousand ranges of memory.
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
            "the ACPI tables of {} CPUs, {} nodes and {} ranges of memory take {len} bytes, of at \
             most {}",
            cpus.list.len(),
            cpus.nodes,
            memory.len(),
            layout::ACPI_SIZE,
        ))),
    }
}

/// Writes the tables of a machine with `memory_mib` MiB, for a look at them without the machine.
///
/// # Errors
///
/// [`Error::Config`] if there can be no such machine.
#[doc(hidden)]
pub fn acpi_tables(topology: &Topology, memory_mib: u32) -> Result<Vec<u8>, Error> {
    let config = VmConfig {
        kernel: PathBuf::new(),
        initramfs: PathBuf::new(),
        cmdline: String::new(),
        topology: *topology,
        memory_mib,
        ports: Vec::new(),
    };
    config.check()?;
    build(&Cpus::new(topology)?, &memory::place(config.node_sizes_mib().map(|mib| mib << 20)))
}

/// Tables one behind the other, from [`layout::ACPI`] on.
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

/// Writes the Extended System Description Table: the addresses of the others (5.2.8).
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
    // The address of an RSDT, at 16, stays 0: the XSDT comes in its place.
    bytes[20] = RSDP as u8;
    bytes[24..32].copy_from_slice(&xsdt.to_le_bytes());
    // The first checksum is that of revision 0, of 20 bytes.
    bytes[8] = checksum(&bytes[..20]);
    bytes[32] = checksum(&bytes);
    bytes
}
