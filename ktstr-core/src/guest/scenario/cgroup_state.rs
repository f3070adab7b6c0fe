//! The state of a cgroup that the scenario created.

use std::time::Duration;

use super::knob::CgroupKnob;
use crate::guest::assert::{CgroupAsked, CpuQuota};
use crate::linux::sys::since_boot_ns;

/// A cgroup that an operation created. Its cpuset is in the
/// [`CpusetTracker`](super::cpusets::CpusetTracker), its expected OOM kills are in the
/// [`OomLedger`](super::oom::OomLedger).
#[derive(Debug)]
pub(super) struct CgroupState {
    pub(super) name: String,
    /// When it was created, in nanoseconds since boot.
    pub(super) made_ns: u64,
    /// The knobs that checks use, except for the cpuset, which depends on the ancestors too.
    pub(super) asked: CgroupAsked,
    pub(super) is_frozen: bool,
    /// It has a `memory.high`, above which the kernel slows down its tasks.
    pub(super) has_memory_high: bool,
}

impl CgroupState {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            made_ns: since_boot_ns(),
            asked: CgroupAsked::default(),
            is_frozen: false,
            has_memory_high: false,
        }
    }

    /// Records the value of a knob that the kernel has accepted.
    pub(super) fn record(&mut self, knob: &CgroupKnob) {
        match knob {
            CgroupKnob::CpuMax(quota_us, period_us) => {
                self.asked.quota = quota_us.map(|quota_us| CpuQuota {
                    quota: Duration::from_micros(quota_us),
                    period: Duration::from_micros(*period_us),
                });
            }
            CgroupKnob::CpuWeight(weight) => self.asked.weight = Some(*weight),
            CgroupKnob::MemoryHigh(bytes) => self.has_memory_high = bytes.is_some(),
            _ => {}
        }
    }
}
