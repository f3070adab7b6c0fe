//! The saved state of a machine, except for the content of its memory, which is a file of its own.
//!
//! The encoding is a header (magic, version, length and checksum of the rest; little endian), then
//! the fields of [`MachineState`]. Versions are not compatible with each other: another version is
//! refused, and the caller saves a machine again.

mod bindings;
mod vcpu;

use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip,
};
use kvm_ioctls::VmFd;

use super::codec::{Encode, Input, StateError, fields};
use super::device::{Devices, DevicesState};
use super::tsc::TimeState;
use crate::config::VmConfig;
use crate::kvm_error::Error;
use crate::saved::checksum;

pub(super) use vcpu::{VcpuState, msrs};

const MAGIC: [u8; 8] = *b"ktstrkvm";
/// The version of the format. It must be raised whenever a field of a state changes.
const VERSION: u32 = 1;
/// Bytes of the header: magic, version, length, checksum.
const HEADER: usize = 8 + 4 + 8 + 8;
/// The largest state in bytes. The state of a vCPU has some 12 KiB, and there are at most 255 vCPUs.
pub(super) const MAX_LEN: usize = 64 << 20;

/// The state of a machine that is paused.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MachineState {
    /// The configuration of the machine, and the host that it ran on.
    pub(super) identity: Identity,
    pub(super) time: TimeState,
    pub(super) memory: MemoryFile,
    /// In the order of the CPUs.
    pub(super) vcpus: Vec<VcpuState>,
    pub(super) chips: Vec<ChipState>,
    pub(super) devices: DevicesState,
}

fields!(MachineState { identity, time, memory, vcpus, chips, devices });

impl MachineState {
    /// Encodes the state with its header.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        self.put(&mut body);
        let mut out = MAGIC.to_vec();
        VERSION.put(&mut out);
        (body.len() as u64).put(&mut out);
        checksum(&body).put(&mut out);
        out.extend(body);
        out
    }

    /// Decodes a state. Returns an error for any other bytes, and never panics.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let body = body(bytes)?;
        let mut input = Input::new(body);
        let state = Self::take(&mut input)?;
        input.finish()?;
        Ok(state)
    }
}

/// Decodes a state and creates its devices, as a restore does before it uses KVM, and encodes the
/// state again. The fuzzer calls this.
#[doc(hidden)]
pub fn reencode_state(bytes: &[u8]) -> Result<Vec<u8>, StateError> {
    let state = MachineState::decode(bytes)?;
    // An error of the devices is not one of the encoding.
    let _ = Devices::restore(&state.identity.ports, &state.devices);
    Ok(state.encode())
}

/// Checks the header and returns the bytes after it.
fn body(bytes: &[u8]) -> Result<&[u8], StateError> {
    let (header, body) = bytes.split_at_checked(HEADER).ok_or(StateError::NoState)?;
    let mut header = Input::new(header);
    if <[u8; 8]>::take(&mut header)? != MAGIC {
        return Err(StateError::NoState);
    }
    let found = u32::take(&mut header)?;
    if found != VERSION {
        return Err(StateError::Version { found, supported: VERSION });
    }
    let (expected, found) = (u64::take(&mut header)?, body.len() as u64);
    if found != expected {
        return Err(StateError::Length { found, expected });
    }
    let (stated, computed) = (u64::take(&mut header)?, checksum(body));
    if stated != computed {
        return Err(StateError::Damaged { computed, stated });
    }
    Ok(body)
}

/// The properties that a machine must have in common with the saved one to be restored from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// The ID of the host's boot. Registers of a CPU fit another kernel or another CPU only by
    /// accident, and files that were not synced may be incomplete after a crash of the host.
    boot_id: String,
    kernel: Vec<u8>,
    initramfs: Vec<u8>,
    cmdline: String,
    kaslr: bool,
    numa_nodes: u32,
    llc_cores: Vec<u32>,
    threads_per_core: u32,
    memory_mib: u32,
    ports: Vec<String>,
}

fields!(Identity {
    boot_id,
    kernel,
    initramfs,
    cmdline,
    kaslr,
    numa_nodes,
    llc_cores,
    threads_per_core,
    memory_mib,
    ports,
});

impl Identity {
    /// Returns the identity of a machine with this configuration on the host with this boot ID.
    pub(super) fn new(config: &VmConfig, boot_id: String) -> Self {
        let topology = &config.topology;
        Self {
            boot_id,
            kernel: config.kernel.as_os_str().as_bytes().to_vec(),
            initramfs: config.initramfs.as_os_str().as_bytes().to_vec(),
            cmdline: config.cmdline.clone(),
            kaslr: config.kaslr,
            numa_nodes: topology.numa_nodes,
            llc_cores: topology.llcs.cores().collect(),
            threads_per_core: topology.threads_per_core,
            memory_mib: config.memory_mib,
            ports: config.ports.clone(),
        }
    }

    /// Returns the first difference to the machine that is `wanted`.
    pub(super) fn difference(&self, wanted: &Self) -> Option<String> {
        let kernel = |of: &Self| {
            let path = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (path(&of.kernel), path(&of.initramfs), of.cmdline.clone(), of.kaslr)
        };
        let cpus = |of: &Self| (of.numa_nodes, of.llc_cores.clone(), of.threads_per_core);
        if self.boot_id != wanted.boot_id {
            Some(format!(
                "it was saved in boot {} of a host, this is boot {}",
                self.boot_id, wanted.boot_id
            ))
        } else if kernel(self) != kernel(wanted) {
            Some(format!(
                "(kernel, initramfs, command line, KASLR) are {:?}, expected {:?}",
                kernel(self),
                kernel(wanted)
            ))
        } else if cpus(self) != cpus(wanted) {
            Some(format!(
                "(nodes, cores per cache, threads per core) are {:?}, expected {:?}",
                cpus(self),
                cpus(wanted)
            ))
        } else if self.memory_mib != wanted.memory_mib {
            let (saved, wanted) = (self.memory_mib, wanted.memory_mib);
            Some(format!("it has {saved} MiB of memory, expected {wanted} MiB"))
        } else if self.ports != wanted.ports {
            Some(format!("its ports are {:?}, expected {:?}", self.ports, wanted.ports))
        } else {
            None
        }
    }
}

/// What identifies the file with the memory's content, which is not written after it was saved.
///
/// Not a checksum: to compute it, each restored machine would have to read all of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryFile {
    len: u64,
    modified_s: i64,
    modified_ns: i64,
}

fields!(MemoryFile { len, modified_s, modified_ns });

impl MemoryFile {
    /// Returns the identity of a file after its last write.
    pub(super) fn new(metadata: &Metadata) -> Self {
        Self {
            len: metadata.len(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
        }
    }

    /// Checks that `file` is the one that was saved, and has the length `len` of the memory.
    pub(super) fn check(&self, file: &Metadata, len: u64) -> Result<(), String> {
        let found = Self::new(file);
        if found.len != len {
            Err(StateError::Length { found: found.len, expected: len }.to_string())
        } else if found != *self {
            Err("was changed after it was saved".to_owned())
        } else {
            Ok(())
        }
    }
}

/// The state of an interrupt controller: two PICs and an I/O APIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChipState {
    chip_id: u32,
    registers: Box<[i8; 512]>,
}

fields!(ChipState { chip_id, registers });

impl ChipState {
    /// Reads the state of all controllers.
    pub(super) fn read_all(vm: &VmFd) -> Result<Vec<Self>, Error> {
        [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
            .into_iter()
            .map(|chip_id| {
                let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
                vm.get_irqchip(&mut chip).map_err(Error::ioctl("KVM_GET_IRQCHIP"))?;
                // SAFETY: all fields of the union are integers, and all its bytes are initialised,
                // by `default` and then by KVM.
                let registers = Box::new(unsafe { chip.chip.dummy });
                Ok(Self { chip_id, registers })
            })
            .collect()
    }

    /// Sets the state of the controller.
    pub(super) fn restore(&self, vm: &VmFd) -> Result<(), Error> {
        let mut chip = kvm_irqchip { chip_id: self.chip_id, ..kvm_irqchip::default() };
        chip.chip.dummy = *self.registers;
        vm.set_irqchip(&chip).map_err(Error::ioctl("KVM_SET_IRQCHIP"))
    }
}

#[cfg(test)]
mod tests;
