//! The ACPI tables of any machine: five numbers of 32 bits, the four of the topology and MiB.

#![no_main]

use ktstr_core::machine::Topology;
use ktstr_vmm::kvm::acpi_tables;
use ktstr_vmm::Error;
use libfuzzer_sys::fuzz_target;

/// Where the tables lie, and their room there: what a PC keeps for its BIOS.
const BASE: u64 = 0xe_0000;
const SIZE: usize = 0x2_0000;

fuzz_target!(|numbers: [u32; 5]| {
    let [numa_nodes, llcs, cores_per_llc, threads_per_core, memory_mib] = numbers;
    // Some caches are larger than the others, and there are more than fit.
    let llcs = llcs as usize % 1024;
    let cores = |llc| if llc < llcs / 3 { cores_per_llc & 0xffff } else { cores_per_llc >> 16 };
    let cores = (0..llcs).map(|llc| cores(llc).to_string()).collect::<Vec<_>>().join("+");
    let text = format!("{numa_nodes}n{llcs}l{cores}c{threads_per_core}t");
    let Ok(topology) = text.parse::<Topology>() else { return };
    match acpi_tables(&topology, memory_mib) {
        Ok(block) => check(&block, &topology, memory_mib),
        Err(Error::Config(_)) => {}
        Err(error) => panic!("{error}"),
    }
});

/// Walks the tables as ACPI 6.5, 5.2 has them.
fn check(block: &[u8], topology: &Topology, memory_mib: u32) {
    assert!(block.len() <= SIZE, "{} bytes", block.len());
    assert!(block.starts_with(b"RSD PTR "));
    assert!(sum(&block[..20]) == 0 && sum(&block[..36]) == 0);
    let xsdt = table(block, number(block, 24, 8));
    let tables: Vec<_> =
        xsdt[36..].chunks(8).map(|address| table(block, number(address, 0, 8))).collect();
    let find = |signature: &[u8]| {
        *tables.iter().find(|table| table.starts_with(signature)).expect("each table is there")
    };
    assert!(table(block, number(find(b"FACP"), 140, 8)).starts_with(b"DSDT"));
    let nr_cpus = topology.nr_cpus();
    let mut apic_ids: Vec<_> = structures(&find(b"APIC")[44..])
        .iter()
        .filter(|structure| structure[0] == 0)
        .map(|structure| structure[3])
        .collect();
    assert!(apic_ids.is_sorted() && apic_ids.len() == nr_cpus as usize);
    apic_ids.dedup();
    assert!(apic_ids.len() == nr_cpus as usize && !apic_ids.contains(&255));
    let affinities = structures(&find(b"SRAT")[48..]);
    let (cpus, memory): (Vec<_>, Vec<_>) =
        affinities.into_iter().partition(|structure| structure[0] == 0);
    assert_eq!(cpus.iter().map(|cpu| cpu[3]).collect::<Vec<_>>(), apic_ids);
    check_memory(&memory, topology.numa_nodes, memory_mib);
    let slit = find(b"SLIT");
    assert_eq!(number(slit, 36, 8), u64::from(topology.numa_nodes));
    assert_eq!(slit.len(), 44 + (topology.numa_nodes * topology.numa_nodes) as usize);
}

/// Ranges lie one behind the other, none in the hole for devices, and all of it is there.
fn check_memory(ranges: &[&[u8]], numa_nodes: u32, memory_mib: u32) {
    let (mut end, mut sum) = (0, 0);
    for range in ranges {
        let (node, base, size) = (number(range, 2, 4), number(range, 8, 8), number(range, 16, 8));
        assert!(node < u64::from(numa_nodes) && size > 0 && base >= end);
        (end, sum) = (base + size, sum + size);
        assert!(end <= 0xc000_0000 || base >= 1 << 32, "{base:#x} to {end:#x}");
    }
    assert_eq!(sum, u64::from(memory_mib) << 20);
}

/// Returns the table at a guest-physical address, after checking it.
fn table(block: &[u8], address: u64) -> &[u8] {
    let offset = usize::try_from(address - BASE).expect("an address is in the block");
    let table = &block[offset..][..number(block, offset + 4, 4) as usize];
    assert!(table.len() >= 36 && sum(table) == 0, "{:?}", &table[..4]);
    table
}

/// Splits what begins with type and length.
fn structures(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let [_, len, ..] = bytes {
        let (structure, rest) = bytes.split_at((*len).into());
        found.push(structure);
        bytes = rest;
    }
    found
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn number(bytes: &[u8], offset: usize, len: usize) -> u64 {
    bytes[offset..][..len].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
