use super::table::HEADER;
use super::*;
use crate::config::{even, uneven};

const MIB: u64 = 1 << 20;

fn cpus(topology: [u32; 4]) -> Cpus {
    Cpus::new(&even(topology)).unwrap()
}

/// Returns adjacent nodes of 512 MiB.
fn memory(nodes: u32) -> Vec<MemoryNode> {
    let range = |node| MemoryNode { base: u64::from(node) * 512 * MIB, size: 512 * MIB, node };
    (0..nodes).map(range).collect()
}

/// Tables in memory, which are read as a kernel does.
struct AcpiMemory(Vec<u8>);

impl AcpiMemory {
    fn of(topology: Topology) -> Self {
        let cpus = Cpus::new(&topology).unwrap();
        Self(build(&cpus, &memory(topology.numa_nodes)).unwrap())
    }

    fn number(&self, address: u64, len: usize) -> u64 {
        let offset = usize::try_from(address - layout::ACPI).unwrap();
        self.0[offset..][..len].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    /// Returns the table at `address`, after a check of its checksum.
    fn table(&self, address: u64) -> &[u8] {
        let offset = usize::try_from(address - layout::ACPI).unwrap();
        let len = self.number(address + 4, 4) as usize;
        let table = &self.0[offset..][..len];
        assert_eq!(checksum(table), 0, "{:?}", &table[..4]);
        table
    }

    /// Returns the tables that the XSDT leads to.
    fn tables(&self) -> Vec<&[u8]> {
        let xsdt = self.table(self.number(layout::ACPI + 24, 8));
        assert_eq!(&xsdt[..4], b"XSDT");
        let addresses = xsdt[HEADER..].chunks(8).map(|bytes| number(bytes, 0, 8));
        addresses.map(|address| self.table(address)).collect()
    }

    fn find(&self, signature: &[u8; 4]) -> &[u8] {
        self.tables().into_iter().find(|table| table.starts_with(signature)).unwrap()
    }
}

fn number(bytes: &[u8], offset: usize, len: usize) -> u64 {
    bytes[offset..][..len].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// Splits the structures of MADT or SRAT, which begin with type and length.
fn structures(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let [_, len, ..] = bytes {
        let (structure, rest) = bytes.split_at(usize::from(*len));
        found.push(structure);
        bytes = rest;
    }
    found
}

#[test]
fn rsdp_leads_to_all_tables() {
    let memory = AcpiMemory::of(even([2, 4, 2, 2]));
    assert_eq!(&memory.0[..8], b"RSD PTR ");
    assert_eq!(checksum(&memory.0[..20]), 0);
    assert_eq!(checksum(&memory.0[..36]), 0);
    assert_eq!((memory.0[15], number(&memory.0, 16, 4), number(&memory.0, 20, 4)), (2, 0, 36));
    let signatures: Vec<_> = memory.tables().iter().map(|table| &table[..4]).collect();
    assert_eq!(signatures, [b"FACP", b"APIC", b"SRAT", b"SLIT"]);
    assert_eq!(&memory.table(number(memory.find(b"FACP"), 140, 8))[..4], b"DSDT");
}

#[test]
fn fadt_has_ports_and_no_legacy_hardware() {
    let memory = AcpiMemory::of(even([1, 1, 1, 1]));
    let fadt = memory.find(b"FACP");
    assert_eq!(fadt.len(), 276);
    // Offsets and lengths of ACPI 6.5, table 5.9.
    for (field, offset, len, want) in [
        ("revision", 8, 1, 6),
        ("FIRMWARE_CTRL", 36, 4, 0),
        ("DSDT", 40, 4, 0),
        ("SCI_INT to PM_TMR_LEN", 46, 8, 0),
        ("PM1a_EVT_BLK", 56, 4, 0),
        ("IAPC_BOOT_ARCH", 109, 2, 1 << 2 | 1 << 5),
        ("Flags, HW_REDUCED_ACPI and RESET_REG_SUP", 112, 4, 0x10_1475),
        ("RESET_REG, space, width, offset, size", 116, 4, 0x0100_0801),
        ("RESET_REG, address", 120, 8, 0x602),
        ("RESET_VALUE", 128, 1, 1),
        ("minor version", 131, 1, 5),
        ("X_FIRMWARE_CTRL", 132, 8, 0),
        ("X_PM1a_EVT_BLK", 148, 8, 0),
        ("SLEEP_CONTROL_REG", 244, 4, 0x0100_0801),
        ("SLEEP_CONTROL_REG, address", 248, 8, 0x600),
        ("SLEEP_STATUS_REG", 256, 4, 0x0100_0801),
        ("SLEEP_STATUS_REG, address", 260, 8, 0x601),
    ] {
        assert_eq!(number(fadt, offset, len), want, "{field}");
    }
}

#[test]
fn dsdt_has_the_descriptors_of_the_specification() {
    let dsdt = dsdt::dsdt();
    let holds = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|window| window == bytes);
    // Name (_S5_, Package (2) {5, 0})
    assert!(holds(b"\x08_S5_\x12\x05\x02\x0a\x05\x00"));
    // IO (Decode16, 0x3f8, 0x3f8, 1, 8), Interrupt (Consumer, Edge, ActiveHigh, Exclusive) {4}
    assert!(holds(b"\x47\x01\xf8\x03\xf8\x03\x01\x08\x89\x06\x00\x03\x01\x04\x00\x00\x00\x79\x00"));
    // WordBusNumber (0, 0, 0, 0, 1), then the ports of the configuration.
    assert!(holds(
        b"\x88\x0d\x00\x02\x0c\0\0\0\0\0\0\0\0\0\x01\x00\x47\x01\xf8\x0c\xf8\x0c\x01\x08"
    ));
    // DWordMemory (0, 0xd0000000, 0xdfffffff, 0, 0x10000000)
    assert!(holds(
        b"\x87\x17\x00\x00\x0c\x01\0\0\0\0\x00\x00\x00\xd0\xff\xff\xff\xdf\0\0\0\0\x00\x00\x00\x10"
    ));
}

#[test]
fn madt_lists_cpus_in_order() {
    let evens = [[1, 1, 1, 1], [1, 3, 3, 1], [3, 6, 3, 2], [1, 1, 255, 1]].map(even);
    for topology in evens.into_iter().chain([uneven(2, &[3, 1, 1, 2], 2)]) {
        let cpus = Cpus::new(&topology).unwrap();
        let memory = AcpiMemory::of(topology);
        let madt = memory.find(b"APIC");
        assert_eq!(number(madt, 36, 4), 0xfee0_0000);
        assert_eq!(number(madt, 40, 4), 0, "PCAT_COMPAT");
        let structures = structures(&madt[44..]);
        let (io_apic, local_apics) = structures.split_last().unwrap();
        assert_eq!(*io_apic, b"\x01\x0c\0\0\x00\x00\xc0\xfe\0\0\0\0");
        assert_eq!(local_apics.len(), cpus.list.len());
        for (uid, (cpu, structure)) in cpus.list.iter().zip(local_apics).enumerate() {
            assert_eq!(**structure, [0, 8, uid as u8, cpu.apic_id as u8, 1, 0, 0, 0]);
        }
    }
}

#[test]
fn srat_assigns_cpus_and_memory_to_nodes() {
    let cpus = cpus([2, 2, 3, 1]);
    let ranges = [
        MemoryNode { base: 0, size: 0xc000_0000, node: 0 },
        MemoryNode { base: 1 << 32, size: MIB, node: 0 },
        MemoryNode { base: (1 << 32) + MIB, size: 0x1_2345_0000, node: 1 },
    ];
    let srat = srat::srat(&cpus, &ranges);
    assert_eq!(number(&srat, 36, 4), 1);
    let structures = structures(&srat[48..]);
    let (affine_cpus, affine_memory) = structures.split_at(6);
    for (structure, (node, apic_id)) in
        affine_cpus.iter().zip([(0, 0), (0, 1), (0, 2), (1, 4), (1, 5), (1, 6)])
    {
        assert_eq!(**structure, [0, 16, node, apic_id, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    assert_eq!(affine_memory.len(), 3);
    for (structure, range) in affine_memory.iter().zip(ranges) {
        assert_eq!((structure[0], structure.len()), (1, 40));
        assert_eq!(number(structure, 2, 4), u64::from(range.node));
        assert_eq!((number(structure, 8, 8), number(structure, 16, 8)), (range.base, range.size));
        assert_eq!(number(structure, 28, 4), 1, "enabled");
    }
}

#[test]
fn srat_assigns_cpus_of_uneven_nodes() {
    let topology = uneven(2, &[1, 2, 3, 1], 1);
    let srat = srat::srat(&Cpus::new(&topology).unwrap(), &[]);
    let places: Vec<_> = structures(&srat[48..]).iter().map(|cpu| (cpu[2], cpu[3])).collect();
    assert_eq!(places, [(0, 0), (0, 4), (0, 5), (1, 8), (1, 9), (1, 10), (1, 12)]);
}

#[test]
fn slit_has_local_and_remote_distances() {
    for (nodes, want) in
        [(1, &[10][..]), (2, &[10, 20, 20, 10]), (3, &[10, 20, 20, 20, 10, 20, 20, 20, 10])]
    {
        let slit = srat::slit(nodes);
        assert_eq!(number(&slit, 36, 8), u64::from(nodes));
        assert_eq!(&slit[44..], want);
    }
}

#[test]
fn build_fits_the_largest_machines() {
    for topology in [[1, 1, 255, 1], [64, 64, 1, 2], [255, 255, 1, 1]] {
        let bytes = AcpiMemory::of(even(topology)).0.len();
        assert!(bytes <= layout::ACPI_SIZE, "{bytes} bytes for {topology:?}");
    }
    let error = build(&cpus([1, 1, 1, 1]), &memory(1).repeat(3300)).unwrap_err();
    assert!(matches!(error, Error::Config(_)), "{error}");
    assert!(error.to_string().contains("3300 ranges of memory"), "{error}");
}
