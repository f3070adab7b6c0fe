//! The map of guest-physical memory and of I/O ports.
//!
//! Source: Linux 6.12, Documentation/arch/x86/boot.rst ("Memory Layout", "64-bit Boot Protocol").

/// Bytes of a page.
pub(super) const PAGE: u64 = 4 << 10;
/// Bytes of a page that a page directory maps.
pub(super) const LARGE_PAGE: u64 = 2 << 20;

/// The global descriptor table that the 64-bit entry requires.
pub(super) const GDT: u64 = 0x500;
/// `struct boot_params`, the "zero page".
pub(super) const ZERO_PAGE: u64 = 0x7000;
/// Page tables of the first 4 GiB, mapped one to one: one page, one page, four pages.
pub(super) const PML4: u64 = 0x9000;
/// See [`PML4`].
pub(super) const PDPT: u64 = 0xa000;
/// See [`PML4`].
pub(super) const PAGE_DIRECTORIES: u64 = 0xb000;
/// The kernel's command line, at most [`CMDLINE_SIZE`] bytes with its final NUL.
pub(super) const CMDLINE: u64 = 0x2_0000;
/// `COMMAND_LINE_SIZE` of x86 kernels.
pub(super) const CMDLINE_SIZE: usize = 2048;
/// The end of usable low memory; kernels expect firmware's data above it.
pub(super) const LOW_MEMORY_END: u64 = 0x9_fc00;

/// ACPI tables, beginning with the RSDP, in the range that a PC reserves for its BIOS.
pub(super) const ACPI: u64 = 0xe_0000;
/// Bytes of that range: 255 CPUs in 64 nodes need half of it.
pub(super) const ACPI_SIZE: usize = 0x2_0000;

/// The first address of usable memory above 1 MiB.
pub(super) const HIGH_MEMORY: u64 = 0x10_0000;
/// The address for which kernels are linked by default: `CONFIG_PHYSICAL_START`.
pub(super) const KERNEL: u64 = 0x100_0000;

/// The hole for devices: memory ends here, or continues at [`HOLE_END`].
pub(super) const HOLE: u64 = 0xc000_0000;
/// The first address after the hole.
pub(super) const HOLE_END: u64 = 1 << 32;

/// The range in which the kernel may place the BARs of PCI devices.
pub(super) const PCI_WINDOW: u64 = 0xd000_0000;
/// Bytes of [`PCI_WINDOW`].
pub(super) const PCI_WINDOW_SIZE: u64 = 0x1000_0000;
/// The I/O APIC, which KVM emulates.
pub(super) const IO_APIC: u64 = 0xfec0_0000;
/// The local APICs, which KVM emulates.
pub(super) const LOCAL_APIC: u64 = 0xfee0_0000;
/// A page that KVM needs on Intel, followed by three more pages (`KVM_SET_TSS_ADDR`).
pub(super) const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// See [`KVM_IDENTITY_MAP`].
pub(super) const KVM_TSS: u64 = 0xfffb_d000;

/// The first port of the 16550 serial console.
pub(super) const COM1: u16 = 0x3f8;
/// The interrupt line of the serial console.
pub(super) const COM1_IRQ: u32 = 4;
/// ACPI's sleep control register, by which a guest powers off.
pub(super) const SLEEP_CONTROL: u16 = 0x600;
/// ACPI's sleep status register.
pub(super) const SLEEP_STATUS: u16 = 0x601;
/// ACPI's reset register, by which a guest requests a reset.
pub(super) const RESET: u16 = 0x602;
/// The value of [`RESET`] that resets the machine.
pub(super) const RESET_VALUE: u8 = 1;
/// `SLP_TYP` of the state S5, in [`SLEEP_CONTROL`] at bit 2; bit 5 is `SLP_EN`.
pub(super) const SLEEP_TYPE_S5: u8 = 5;
/// PCI's address register; its data register follows at [`PCI_DATA`].
pub(super) const PCI_ADDRESS: u16 = 0xcf8;
/// See [`PCI_ADDRESS`].
pub(super) const PCI_DATA: u16 = 0xcfc;
