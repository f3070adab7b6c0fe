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

use crate::{Engine, Error, Vm, VmConfig};

/// A QEMU program for x86-64 guests.
#[derive(Debug, Clone)]
pub struct Qemu {
    argv: Vec<OsString>,
    version: String,
    cpu: args::Cpu,
}

impl Qemu {
    /// The oldest version whose TCG keeps several CPUs right while a kernel patches its own code.
    const FIRST_MULTI_THREADED: u32 = 10;

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
        Self { argv, version: version.into(), cpu: args::Cpu::Intel }
    }

    /// Gives guests a CPU on which they can run guests of their own, with KVM's `kvm_amd`.
    ///
    /// Each of its CPUs has a last-level cache of its own, so a
    /// [`Topology`](crate::Topology) that asks for another sharing is not what the guest sees.
    #[must_use]
    pub fn with_nested_virtualization(self) -> Self {
        Self { cpu: args::Cpu::Amd, ..self }
    }

    /// The version given to [`Qemu::new`].
    pub fn version(&self) -> &str {
        &self.version
    }

    /// How TCG runs the CPUs of a guest: each in its own thread where this version can be trusted.
    ///
    /// QEMU 7.2 runs stale translations of code another CPU has just patched (`Oops: int3`);
    /// versions between it and 10 were never tried, so they are taken for as bad.
    fn tcg_threads(&self) -> args::TcgThreads {
        let major = self.version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        match major {
            Some(major) if major < Self::FIRST_MULTI_THREADED => args::TcgThreads::Single,
            _ => args::TcgThreads::Multi,
        }
    }
}

impl Engine for Qemu {
    fn describe(&self) -> String {
        match self.cpu {
            args::Cpu::Intel => format!("QEMU {} (TCG)", self.version),
            args::Cpu::Amd => format!("QEMU {} (TCG with SVM)", self.version),
        }
    }

    /// Starts QEMU; it dies with the calling *thread*, which must outlive the machine.
    fn boot(&self, config: &VmConfig) -> Result<Box<dyn Vm>, Error> {
        Ok(Box::new(vm::QemuVm::boot(&self.argv, self.tcg_threads(), self.cpu, config)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_proven_versions_run_cpus_in_parallel() {
        for (version, want) in [
            ("7.2.22", args::TcgThreads::Single),
            ("9.2.0", args::TcgThreads::Single),
            ("10.0.13", args::TcgThreads::Multi),
            ("11.0.0", args::TcgThreads::Multi),
            ("git-build", args::TcgThreads::Multi),
        ] {
            assert_eq!(Qemu::new(vec!["qemu".into()], version).tcg_threads(), want, "{version}");
        }
    }

    #[test]
    fn nested_virtualization_is_told() {
        let qemu = Qemu::new(vec!["qemu".into()], "10.0.13").with_nested_virtualization();
        assert_eq!(qemu.describe(), "QEMU 10.0.13 (TCG with SVM)");
    }
}
