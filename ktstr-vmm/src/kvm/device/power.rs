//! The registers that end a machine: ACPI's sleep and reset registers, and the two older reset
//! registers of a PC that kernels fall back to.
//!
//! Reads are not handled here, because all of them read as zero: in the sleep status register it
//! means that the machine was not woken, in that of the keyboard controller that it is ready.
//!
//! Source: ACPI 6.5, 4.8.3.6 ("Reset Register") and 4.8.3.7 ("Sleep Control and Status
//! Registers"); Linux 6.12, arch/x86/kernel/reboot.c.

use crate::kvm::layout::{RESET, RESET_VALUE, SLEEP_CONTROL, SLEEP_TYPE_S5};

/// How a guest ends its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// It powers off.
    Off,
    /// It resets.
    Reset,
}

/// `SLP_EN`: enter the state of the type in the three bits from [`SLP_TYP_SHIFT`].
const SLP_EN: u8 = 1 << 5;
const SLP_TYP_SHIFT: u8 = 2;

/// The keyboard controller's command register.
const I8042_COMMAND: u16 = 0x64;
/// Pulses its output line 0, which is wired to the CPU's reset.
const I8042_RESET: u8 = 0xfe;

/// The reset control register of Intel's chipsets.
const RESET_CONTROL: u16 = 0xcf9;
/// Resets now; without this bit, the others select the kind of reset.
const RST_CPU: u8 = 1 << 2;

/// Returns how a write to an I/O port ends the machine, if it does.
pub(super) fn write(port: u16, data: &[u8]) -> Option<Power> {
    let &[value] = data else { return None };
    let power = match port {
        SLEEP_CONTROL => {
            let is_s5 = value >> SLP_TYP_SHIFT & 7 == SLEEP_TYPE_S5;
            (value & SLP_EN != 0 && is_s5, Power::Off)
        }
        RESET => (value == RESET_VALUE, Power::Reset),
        I8042_COMMAND => (value == I8042_RESET, Power::Reset),
        RESET_CONTROL => (value & RST_CPU != 0, Power::Reset),
        _ => return None,
    };
    power.0.then_some(power.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_ends_the_machine_only_for_these_values() {
        let ends: Vec<_> = (0..=u16::MAX)
            .flat_map(|port| (0..=u8::MAX).map(move |value| (port, value)))
            .filter_map(|(port, value)| Some((port, value, write(port, &[value])?)))
            .filter(|&(port, ..)| port != RESET_CONTROL)
            .collect();
        let off = [0x34, 0x35, 0x36, 0x37, 0x74, 0x75, 0x76, 0x77]
            .into_iter()
            .flat_map(|low| [(0x600, low, Power::Off), (0x600, low | 0x80, Power::Off)]);
        let mut want: Vec<_> = off.collect();
        want.sort_by_key(|&(_, value, _)| value);
        want.insert(0, (0x64, 0xfe, Power::Reset));
        want.push((0x602, 1, Power::Reset));
        assert_eq!(ends, want);
    }

    #[test]
    fn write_resets_by_the_chipset_register() {
        for (value, want) in [
            (0x00, None),
            (0x02, None),
            (0x0a, None),
            (0x06, Some(Power::Reset)),
            (0x0e, Some(Power::Reset)),
        ] {
            assert_eq!(write(0xcf9, &[value]), want, "{value:#x}");
        }
    }

    #[test]
    fn write_ignores_other_sizes_than_bytes() {
        assert_eq!(write(0x600, &[0x34, 0]), None);
        assert_eq!(write(0xcf9, &[0x0e, 0, 0, 0]), None);
        assert_eq!(write(0x602, &[]), None);
    }
}
