//! The machine that a test runs on, as its author describes it.

pub mod kargs;
mod timing;
mod topology;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

pub use timing::Timing;
pub use topology::{Llcs, Topology, TopologyError};

/// A virtual machine: its hardware, and the kernel that it boots.
///
/// A test declares one; it travels in the request to the guest, which checks it, and into the
/// record of the run. [`MachineSpec::DEFAULT`] and a literal make one in a `static`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// CPUs, caches and nodes.
    pub topology: Topology,
    /// Memory in MiB, over all nodes.
    pub memory_mib: u32,
    /// The kernel to boot, as in `KTSTR_KERNEL`; `None` leaves the choice to the environment.
    pub kernel: Option<Cow<'static, str>>,
    /// Whether the kernel randomizes its addresses.
    pub kaslr: bool,
    /// Whether the kernel keeps page-table isolation where software emulates the CPUs.
    ///
    /// With it, each system call flushes the emulated TLB.
    pub mitigations: bool,
    /// Extra words of the kernel command line, separated by spaces. [`kargs::check`] accepts them.
    pub kargs: Cow<'static, str>,
}

impl MachineSpec {
    /// The defaults of the attribute's keys.
    pub const DEFAULT: Self = Self {
        topology: Topology::DEFAULT,
        memory_mib: 256,
        kernel: None,
        kaslr: true,
        mitigations: false,
        kargs: Cow::Borrowed(""),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_spec_can_be_static_and_survives_the_wire() {
        static SPEC: MachineSpec = MachineSpec {
            topology: Topology { llcs: Llcs::of(&[4, 2]), ..Topology::DEFAULT },
            kernel: Some(Cow::Borrowed("debian:trixie")),
            kargs: Cow::Borrowed("nohz_full=1 isolcpus=1"),
            ..MachineSpec::DEFAULT
        };
        let wire = postcard::to_allocvec(&SPEC).unwrap();
        assert_eq!(postcard::from_bytes(&wire), Ok(SPEC.clone()));
        let json = serde_json::to_string(&SPEC).unwrap();
        assert!(json.contains(r#""topology":"1n2l4+2c1t""#), "{json}");
        assert_eq!(serde_json::from_str::<MachineSpec>(&json).unwrap(), SPEC);
    }
}
