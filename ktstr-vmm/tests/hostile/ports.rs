//! Accesses to all I/O ports.

use ktstr_vmm::ExitReason;

use crate::machine::{Guest, SOON};

/// The address at which the host reads the result.
const RESULT: u32 = 0x20_0000;

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn io_ports_survive_reads_and_writes() {
    // in al; in ax; in eax; then, with a value that does not end a machine, out al; out ax; out eax
    for access in [&[0xec][..], &[0x66, 0xed], &[0xed], &[0xee], &[0x66, 0xef], &[0xef]] {
        let mut machine = Guest::new(|code| {
            code.edx(0).repeat(0x1_0000, |code| {
                // inc edx
                code.eax(0xaaaa_aaaa).raw(access).raw(&[0xff, 0xc2])
            });
            code.power_off()
        })
        .boot();
        assert_eq!(machine.run(6 * SOON).reason, ExitReason::PowerOff, "{access:x?}");
    }
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn string_instructions_are_several_accesses() {
    let text = b"to the console, byte by byte\n";
    let mut guest = Guest::new(|code| {
        // cld; rep outsb
        code.raw(&[0xfc]).esi(0x200_0000).ecx(text.len() as u32).edx(0x3f8).raw(&[0xf3, 0x6e]);
        // The line status register again and again: rep insb
        code.edi(RESULT).ecx(5000).edx(0x3fd).raw(&[0xf3, 0x6c]);
        // The bridge's ID: rep insd, rep insw
        code.out32(0xcf8, 0x8000_0000).edi(RESULT + 0x2000).ecx(4).edx(0xcfc).raw(&[0xf3, 0x6d]);
        code.edi(RESULT + 0x3000).ecx(4).edx(0xcfe).raw(&[0xf3, 0x66, 0x6d]);
        // Off: rep outsb
        code.esi(0x201_0000).ecx(3).edx(0x600).raw(&[0xf3, 0x6e]).spin()
    });
    guest.data = vec![(0x200_0000, text.to_vec()), (0x201_0000, vec![0, 0x34, 0])];
    let mut machine = guest.boot();
    let end = machine.run(SOON);
    assert_eq!(end.reason, ExitReason::PowerOff);
    assert_eq!(end.console, text);
    let mut status = [0x60; 5001];
    status[5000] = 0;
    assert_eq!(machine.read::<5001>(RESULT), status);
    assert_eq!(machine.read::<20>(RESULT + 0x2000)[..16], [0x36, 0x1b, 8, 0].repeat(4));
    assert_eq!(machine.read::<10>(RESULT + 0x3000), [8, 0, 8, 0, 8, 0, 8, 0, 0, 0]);
}

#[test]
#[ignore = "needs a KVM that runs kernels: cargo xtask nested"]
fn io_ports_survive_string_instructions() {
    let mut guest = Guest::new(|code| {
        code.raw(&[0xfc]).edx(0);
        code.repeat(0x1_0000 / 0x101, |code| {
            for (count, string) in [
                (5000, &[0xf3, 0x6c][..]),
                (3000, &[0xf3, 0x66, 0x6d]),
                (2000, &[0xf3, 0x6d]),
                (5, &[0xf3, 0x6e]),
                (5, &[0xf3, 0x66, 0x6f]),
                (5, &[0xf3, 0x6f]),
            ] {
                code.edi(RESULT).esi(0x200_0000).ecx(count).raw(string);
            }
            // add edx, 0x101
            code.raw(&[0x81, 0xc2, 0x01, 0x01, 0, 0])
        });
        code.power_off()
    });
    guest.data = vec![(0x200_0000, vec![0xaa; 64])];
    assert_eq!(guest.boot().run(6 * SOON).reason, ExitReason::PowerOff);
}
