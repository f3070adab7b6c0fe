//! KVM as an [`Engine`]: a small VMM for x86-64, in this process.
//!
//! A machine has one thread per vCPU and no others. The threads share a `KvmMachine` (KVM's
//! descriptor, memory, devices), which contains a `Hub`: output waits there for the owner, and the
//! owner's commands for the vCPUs. Only the threads, which are confined, handle data of the guest;
//! the owner just kicks them. A machine has no name in the file system, and nothing is left
//! behind, however this process ends.
//!
//! Source: Linux 6.12, Documentation/virt/kvm/api.rst.

mod acpi;
mod boot;
mod codec;
mod cpu;
mod cpus;
mod device;
mod hub;
mod initial_memory;
mod layout;
mod memory;
mod pio;
mod seccomp;
mod signal;
mod state;
mod tsc;
mod vcpu;
mod vm;

use std::path::Path;

use ktstr_core::machine::Timing;

use crate::config::VmConfig;
use crate::engine::{Engine, Vm};
use crate::probe::{self, KvmFacts, Unusable};

pub use crate::kvm_error::{BootError, Error};
#[doc(hidden)]
pub use acpi::acpi_tables;
#[doc(hidden)]
pub use codec::StateError;
#[doc(hidden)]
pub use device::{Board, Devices, DevicesState, Msi, Power};
#[doc(hidden)]
pub use initial_memory::InitialMemory;
#[doc(hidden)]
pub use state::reencode_state;

/// The KVM of this host.
#[derive(Debug)]
pub struct Kvm {
    kvm: kvm_ioctls::Kvm,
    facts: KvmFacts,
}

impl Kvm {
    /// Opens `/dev/kvm` and checks that it can run a kernel, which takes milliseconds.
    ///
    /// # Errors
    ///
    /// Why it cannot, and how to fix it.
    pub fn open() -> Result<Self, Unusable> {
        let (kvm, facts) = probe::open()?;
        Ok(Self { kvm, facts })
    }
}

impl Engine for Kvm {
    fn describe(&self) -> String {
        match &self.facts.module {
            Some(module) => format!("KVM ({module})"),
            None => "KVM".to_owned(),
        }
    }

    fn timing(&self) -> Timing {
        Timing::Native
    }

    fn boot(&self, config: &VmConfig) -> Result<Box<dyn Vm>, crate::error::Error> {
        Ok(Box::new(vm::KvmVm::boot(&self.kvm, config)?))
    }

    fn restore(&self, config: &VmConfig, dir: &Path) -> Result<Box<dyn Vm>, crate::error::Error> {
        Ok(Box::new(vm::KvmVm::restore(&self.kvm, config, dir)?))
    }
}
