//! QEMU as an [`Engine`]: one process per machine, which emulates its CPUs (TCG).
//!
//! A machine has no name in the file system: QMP and the ports are socket pairs, the console is a
//! pipe and guest memory a memfd, all inherited by QEMU. So machines do not interfere with each
//! other, and nothing is left behind, however this process ends, except for the files of a save that
//! it interrupts.
//!
//! Sources: QEMU 10.0, qemu-options.hx (options), docs/interop/qmp-spec.rst (QMP).

mod args;
mod channel;
mod inbox;
mod mappings;
mod memory;
mod process;
mod qmp;
mod room;
mod saved;
mod vm;

use std::ffi::OsString;
use std::path::Path;

use ktstr_core::machine::Timing;

use crate::config::VmConfig;
use crate::engine::{Engine, Vm};
use crate::error::Error;

#[doc(hidden)]
pub use qmp::parse_stream as parse_qmp;
#[doc(hidden)]
pub use saved::reencode_manifest;

/// A QEMU program for x86-64 guests.
#[derive(Debug, Clone)]
pub struct Qemu {
    argv: Vec<OsString>,
    version: String,
    cpu: args::CpuModel,
}

impl Qemu {
    /// Creates an engine from the program to run and its version (`11.1.3`).
    ///
    /// `argv` is the program and the arguments before all others, such as `-L` with a directory of
    /// firmware. Descendants of the program are killed with the machine, too.
    ///
    /// # Panics
    ///
    /// If `argv` is empty.
    pub fn new(argv: Vec<OsString>, version: impl Into<String>) -> Self {
        assert!(!argv.is_empty(), "the program to run is missing");
        Self { argv, version: version.into(), cpu: args::CpuModel::Intel }
    }

    /// Gives guests a CPU on which they can run guests of their own, with KVM's `kvm_amd`.
    ///
    /// Each of its CPUs has its own last-level cache, so the caches that the guest sees differ from
    /// a topology in which CPUs share them.
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

    /// Starts QEMU, which is killed when the calling *thread* ends: it must outlive the machine.
    fn boot(&self, config: &VmConfig) -> Result<Box<dyn Vm>, Error> {
        Ok(Box::new(vm::QemuVm::boot(self, config)?))
    }

    fn restore(&self, config: &VmConfig, dir: &Path) -> Result<Box<dyn Vm>, Error> {
        Ok(Box::new(vm::QemuVm::restore(self, config, dir)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn describe_names_nested_virtualization() {
        let qemu = Qemu::new(vec!["qemu".into()], "10.0.13").with_nested_virtualization();
        assert_eq!(qemu.describe(), "QEMU 10.0.13 (TCG with SVM)");
    }
}
