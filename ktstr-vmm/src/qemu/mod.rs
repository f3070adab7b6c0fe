//! QEMU as an [`Engine`]: one process per machine, emulating its CPUs (TCG).
//!
//! Nothing of a machine has a name in the file system: QMP and the ports are socket pairs, the
//! console is a pipe and guest memory a memfd, all inherited by QEMU. So machines cannot meet, and
//! whatever way this process ends, nothing is left behind.
//!
//! Sources: QEMU 10.0, qemu-options.hx (options), docs/interop/qmp-spec.rst (QMP).

mod args;
mod channel;
mod inbox;
mod memory;
mod process;
mod qmp;
mod room;
mod vm;

use std::ffi::OsString;

use crate::config::VmConfig;
use crate::engine::{Engine, Timing, Vm};
use crate::error::Error;

/// A QEMU program for x86-64 guests.
#[derive(Debug, Clone)]
pub struct Qemu {
    argv: Vec<OsString>,
    version: String,
    cpu: args::CpuModel,
}

impl Qemu {
    /// Names the program to run and its version (`11.1.3`).
    ///
    /// `argv` is the program and the arguments to put before all others, such as `-L` and a folder
    /// of firmware. What the program starts ends with the machine, too.
    ///
    /// # Panics
    ///
    /// If `argv` is empty.
    pub fn new(argv: Vec<OsString>, version: impl Into<String>) -> Self {
        assert!(!argv.is_empty(), "a QEMU needs a program to run");
        Self { argv, version: version.into(), cpu: args::CpuModel::Intel }
    }

    /// Gives guests a CPU on which they can run guests of their own, with KVM's `kvm_amd`.
    ///
    /// Each of its CPUs has a last-level cache of its own, so a
    /// [`Topology`](crate::Topology) that asks for another sharing is not what the guest sees.
    #[must_use]
    pub fn with_nested_virtualization(self) -> Self {
        Self { cpu: args::CpuModel::Amd, ..self }
    }
}

impl Engine for Qemu {
    fn describe(&self) -> String {
        match self.cpu {
            args::CpuModel::Intel => format!("QEMU {} (TCG)", self.version),
            args::CpuModel::Amd => format!("QEMU {} (TCG with SVM)", self.version),
        }
    }

    fn timing(&self) -> Timing {
        Timing::Emulated
    }

    /// Starts QEMU; it dies with the calling *thread*, which must outlive the machine.
    fn boot(&self, config: &VmConfig) -> Result<Box<dyn Vm>, Error> {
        Ok(Box::new(vm::QemuVm::boot(&self.argv, self.cpu, config)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_virtualization_is_told() {
        let qemu = Qemu::new(vec!["qemu".into()], "10.0.13").with_nested_virtualization();
        assert_eq!(qemu.describe(), "QEMU 10.0.13 (TCG with SVM)");
    }
}
