//! Saving a machine into a directory, and restoring machines from it.
//!
//! The directory has two files: `memory`, which restored machines map, and `state`.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::{KvmVm, check_capabilities, create_vm};
use crate::config::VmConfig;
use crate::error::Error;
use crate::kvm::cpus::Cpus;
use crate::kvm::device::Devices;
use crate::kvm::memory::{Memory, place};
use crate::kvm::state::{ChipState, Identity, MAX_LEN, MachineState, MemoryFile, VcpuState};
use crate::kvm::tsc::{self, Moment};
use crate::kvm_error::Error as KvmError;
use crate::saved;

const MEMORY: &str = "memory";
const STATE: &str = "state";

/// The missing feature of a KVM on Linux before 5.16, where all counters of a restored machine would
/// be wrong.
const NO_OFFSET: &str =
    "be saved: its KVM cannot set time-stamp counters (Linux 5.16 or later can)";

impl KvmVm {
    /// Writes the files of a machine that is paused. After an error there are none.
    pub(super) fn save_paused(&self, paused: &Moment, dir: &Path) -> Result<(), Error> {
        let memory = NewFile::create(dir.join(MEMORY))?;
        let state = NewFile::create(dir.join(STATE))?;
        let path = &memory.path;
        let written = self.machine.memory.save(&memory.file).map_err(Error::file("write", path))?;
        tracing::debug!(path = %path.display(), written, "saved the memory");
        let metadata = memory.file.metadata().map_err(Error::file("read the size of", path))?;
        let bytes = self.state(paused, MemoryFile::new(&metadata))?.encode();
        if bytes.len() > MAX_LEN {
            return Err(Error::Overflow {
                limit_mib: MAX_LEN >> 20,
                direction: "for the guest to read them",
            });
        }
        (&state.file).write_all(&bytes).map_err(Error::file("write", &state.path))?;
        memory.seal()?;
        state.seal()?;
        // Now both are complete; until here an error deletes both.
        memory.keep();
        state.keep();
        Ok(())
    }

    fn state(&self, paused: &Moment, memory: MemoryFile) -> Result<MachineState, Error> {
        let vcpus = self.vcpus.iter().map(|vcpu| self.vcpu_state(*vcpu));
        Ok(MachineState {
            identity: Identity::new(&self.config, saved::host_boot()?),
            time: paused.save(self.tsc_khz),
            memory,
            vcpus: vcpus.collect::<Result<_, _>>()?,
            chips: ChipState::read_all(&self.machine.vm)?,
            devices: self.machine.devices.save(),
        })
    }

    /// Reads the state of a vCPU. Its thread is parked, so it does not use its descriptor, but keeps it
    /// locked: this is another descriptor of the same vCPU.
    fn vcpu_state(&self, vcpu: RawFd) -> Result<VcpuState, Error> {
        // SAFETY: the descriptor is open for as long as `self.machine` owns the vCPU.
        let vcpu = unsafe { BorrowedFd::borrow_raw(vcpu) };
        let copy = rustix::io::fcntl_dupfd_cloexec(vcpu.as_fd(), 0)
            .map_err(Error::io("duplicate the descriptor of a vCPU"))?;
        // SAFETY: the descriptor is that of a vCPU of this VM, and the result becomes its only owner.
        let vcpu = unsafe { self.machine.vm.create_vcpu_from_rawfd(copy.into_raw_fd()) }
            .map_err(KvmError::ioctl("mmap of a vCPU"))?;
        let offset = tsc::offset(&vcpu).map_err(|_| Error::Unsupported { operation: NO_OFFSET })?;
        Ok(VcpuState::read(&vcpu, &self.msrs, offset)?)
    }

    /// Creates a machine from the files of a saved one, and starts its vCPUs.
    pub(in crate::kvm) fn restore(kvm: &Kvm, config: &VmConfig, dir: &Path) -> Result<Self, Error> {
        check_capabilities(kvm)?;
        config.check()?;
        let cpus = Cpus::new(&config.topology)?;
        let path = dir.join(STATE);
        let damaged = |reason: String| Error::Damaged { path: path.clone(), reason };
        let state =
            MachineState::decode(&read(&path)?).map_err(|error| damaged(error.to_string()))?;
        let other = |difference| Error::OtherMachine { dir: dir.to_owned(), difference };
        if let Some(difference) =
            state.identity.difference(&Identity::new(config, saved::host_boot()?))
        {
            return Err(other(difference));
        }
        if state.vcpus.len() != cpus.list.len() {
            let (found, expected) = (state.vcpus.len(), cpus.list.len());
            return Err(damaged(format!("has {found} vCPUs (expected: {expected})")));
        }
        let devices = Devices::restore(&config.ports, &state.devices)
            .map_err(|error| damaged(error.to_string()))?;
        let memory = map_memory(config, &state.memory, &dir.join(MEMORY))?;
        let vm = create_vm(kvm, &memory)?;
        let vcpus = restore_vcpus(&vm, &cpus, &state)?;
        let tsc_khz = vcpus[0].get_tsc_khz().map_err(KvmError::ioctl("KVM_GET_TSC_KHZ"))?;
        if tsc_khz != state.time.tsc_khz {
            let saved = state.time.tsc_khz;
            return Err(other(format!(
                "its counters have {saved} kHz, those of KVM {tsc_khz} kHz"
            )));
        }
        restore_time(&vm, &vcpus, &state)?;
        tracing::debug!(dir = %dir.display(), "restored the state");
        Self::start(kvm, config, vm, vcpus, memory, devices)
    }
}

/// Creates the vCPUs in their saved state, except for the time.
fn restore_vcpus(vm: &VmFd, cpus: &Cpus, state: &MachineState) -> Result<Vec<VcpuFd>, KvmError> {
    let mut vcpus = Vec::new();
    for (cpu, state) in cpus.list.iter().zip(&state.vcpus) {
        let vcpu =
            vm.create_vcpu(cpu.apic_id.into()).map_err(KvmError::ioctl("KVM_CREATE_VCPU"))?;
        state.restore_cpuid(&vcpu)?;
        vcpus.push(vcpu);
    }
    state.chips.iter().try_for_each(|chip| chip.restore(vm))?;
    for (index, (vcpu, state)) in vcpus.iter().zip(&state.vcpus).enumerate() {
        state.restore_registers(vcpu, index)?;
    }
    Ok(vcpus)
}

/// Sets the guest's clock and counters, which continue together from the time of the pause, and the
/// timers that use them.
fn restore_time(vm: &VmFd, vcpus: &[VcpuFd], state: &MachineState) -> Result<(), Error> {
    let paused = state.time.moment();
    // The clock first: a kernel that finds its counters ahead of the clock marks them unstable.
    vm.set_clock(&paused.clock()).map_err(KvmError::ioctl("KVM_SET_CLOCK"))?;
    let now = Moment::now(vm).map_err(KvmError::ioctl("KVM_GET_CLOCK"))?;
    let ahead = now.ahead_since(&paused, state.time.tsc_khz);
    for (index, (vcpu, state)) in vcpus.iter().zip(&state.vcpus).enumerate() {
        tsc::set_offset(vcpu, state.tsc_offset.wrapping_sub(ahead))
            .map_err(Error::io("set the time-stamp counter of a vCPU"))?;
        state.restore_timer(vcpu, index)?;
        // As after a pause: lets the guest's watchdogs ignore the time that has passed.
        let _ = vcpu.kvmclock_ctrl();
    }
    Ok(())
}

fn map_memory(config: &VmConfig, saved: &MemoryFile, path: &Path) -> Result<Memory, Error> {
    let ranges = place(config.node_sizes_mib().map(|mib| mib << 20));
    let file = saved::open(path)?;
    let metadata = file.metadata().map_err(Error::file("read the size of", path))?;
    saved
        .check(&metadata, Memory::file_len(&ranges))
        .map_err(|reason| Error::Damaged { path: path.to_owned(), reason })?;
    Ok(Memory::map(&ranges, &file)?)
}

/// Reads a file, of a longer one only a byte more than [`MAX_LEN`]: it is damaged.
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let limit = MAX_LEN as u64 + 1;
    saved::open(path)?.take(limit).read_to_end(&mut bytes).map_err(Error::file("read", path))?;
    Ok(bytes)
}

/// A new file, which is deleted again unless it is kept.
#[derive(Debug)]
struct NewFile {
    path: PathBuf,
    file: File,
    is_kept: bool,
}

impl NewFile {
    fn create(path: PathBuf) -> Result<Self, Error> {
        // For its owner only: it has all that the guest has in its memory.
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let file = options.open(&path).map_err(Error::file("create", &path))?;
        Ok(Self { path, file, is_kept: false })
    }

    /// Makes the file read-only, because nothing writes it from now on.
    fn seal(&self) -> Result<(), Error> {
        saved::seal(&self.file).map_err(Error::file("set the mode of", &self.path))
    }

    fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_kept {
            // Best effort: the error that is returned is the one of the save.
            let _ = fs::remove_file(&self.path);
        }
    }
}
