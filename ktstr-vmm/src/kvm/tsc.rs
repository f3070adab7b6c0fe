//! The time-stamp counters of a machine that was paused: they continue where they stopped, like its
//! clock. A kernel compares the two, and marks a counter that has run on as unstable.
//!
//! Source: Linux 6.12, Documentation/virt/kvm/devices/vcpu.rst, 4 (`KVM_VCPU_TSC_CTRL`), and
//! api.rst, 4.29 (`KVM_GET_CLOCK`).

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_clock_data, kvm_device_attr,
};
use kvm_ioctls::VmFd;

use super::codec::fields;
use crate::tsc;

/// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)` and `_IOW(KVMIO, 0xe2, struct kvm_device_attr)`
const KVM_SET_DEVICE_ATTR: libc::Ioctl = 0x4018_aee1;
const KVM_GET_DEVICE_ATTR: libc::Ioctl = 0x4018_aee2;

/// How often clock and counter are read: the pair with the least time between them is used.
const READS: u32 = 8;

/// The guest's clock and the host's counter at the same time. Counters of guests have the same
/// rate, because this engine does not scale them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    clock_ns: u64,
    tsc: u64,
}

impl Moment {
    /// Reads clock and counter.
    pub(super) fn now(vm: &VmFd) -> Result<Self, kvm_ioctls::Error> {
        let mut best = None;
        for _ in 0..READS {
            let before = tsc::read();
            let clock = vm.get_clock()?;
            // KVM returns both if it can, else the counter is read before and after the clock.
            let width = tsc::read().wrapping_sub(before);
            if clock.flags & KVM_CLOCK_HOST_TSC != 0 {
                return Ok(Self { clock_ns: clock.clock, tsc: clock.host_tsc });
            }
            let moment = Self { clock_ns: clock.clock, tsc: before.wrapping_add(width / 2) };
            if best.is_none_or(|(least, _)| width < least) {
                best = Some((width, moment));
            }
        }
        Ok(best.expect("it was read more than once").1)
    }

    /// Returns the state to save, with this rate of the counters.
    pub(super) fn save(&self, tsc_khz: u32) -> TimeState {
        TimeState { clock_ns: self.clock_ns, tsc: self.tsc, tsc_khz }
    }

    /// Returns the value that makes the guest's clock continue from this moment.
    pub(super) fn clock(&self) -> kvm_clock_data {
        kvm_clock_data { clock: self.clock_ns, ..kvm_clock_data::default() }
    }

    /// Returns how far the counter, with a rate of `khz`, has run ahead of the clock since
    /// `earlier`.
    pub(super) fn ahead_since(&self, earlier: &Self, khz: u32) -> u64 {
        let clock_ns = u128::from(self.clock_ns.saturating_sub(earlier.clock_ns));
        let counted = (clock_ns * u128::from(khz) / 1_000_000) as u64;
        self.tsc.wrapping_sub(earlier.tsc).wrapping_sub(counted)
    }
}

/// A saved [`Moment`], and the rate of the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimeState {
    clock_ns: u64,
    tsc: u64,
    pub(super) tsc_khz: u32,
}

fields!(TimeState { clock_ns, tsc, tsc_khz });

impl TimeState {
    /// Returns the saved moment.
    pub(super) fn moment(&self) -> Moment {
        Moment { clock_ns: self.clock_ns, tsc: self.tsc }
    }
}

#[cfg(test)]
impl TimeState {
    /// Returns a state in which every field has a value of its own.
    pub(super) fn sample() -> Self {
        Self { clock_ns: 5_000_000_000, tsc: 100, tsc_khz: 2_000_000 }
    }
}

/// Returns the offset of a vCPU's counter from the host's.
///
/// # Errors
///
/// `ENXIO` on Linux before 5.16.
pub(super) fn offset(vcpu: &impl AsRawFd) -> io::Result<u64> {
    let mut offset = 0_u64;
    access(vcpu, KVM_GET_DEVICE_ATTR, &mut offset)?;
    Ok(offset)
}

/// Sets the offset of a vCPU's counter from the host's.
///
/// # Errors
///
/// `ENXIO` on Linux before 5.16.
pub(super) fn set_offset(vcpu: &impl AsRawFd, mut offset: u64) -> io::Result<()> {
    access(vcpu, KVM_SET_DEVICE_ATTR, &mut offset)
}

/// Sets the counter of a vCPU back by `count`.
///
/// # Errors
///
/// `ENXIO` on Linux before 5.16: the counter then runs on.
pub(super) fn set_back(vcpu: &impl AsRawFd, count: u64) -> io::Result<()> {
    set_offset(vcpu, offset(vcpu)?.wrapping_sub(count))
}

fn access(vcpu: &impl AsRawFd, ioctl: libc::Ioctl, offset: &mut u64) -> io::Result<()> {
    let attribute = kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: std::ptr::from_mut(offset) as u64,
    };
    // SAFETY: the ioctl reads the struct and, at the address in it, reads or writes the 64 bits of
    // this attribute. It keeps neither pointer.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), ioctl, &raw const attribute) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ahead_since_subtracts_the_time_of_the_clock() {
        let earlier = Moment { clock_ns: 5_000_000_000, tsc: 100 };
        let khz = 2_000_000;
        for (clock_ns, tsc, want) in [
            (5_000_000_000, 6_000_000_100, 6_000_000_000),
            (5_000_001_500, 6_000_003_100, 6_000_000_000),
            (6_000_000_000, 2_000_000_100, 0),
        ] {
            assert_eq!(Moment { clock_ns, tsc }.ahead_since(&earlier, khz), want);
        }
    }
}
