//! A machine that KVM runs, as its owner controls it.

mod saved;

use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use super::cpu::{cpuid, regs};
use super::cpus::Cpus;
use super::device::Devices;
use super::hub::{Hub, HubEvent, VcpuCommand};
use super::initial_memory::InitialMemory;
use super::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use super::memory::Memory;
use super::tsc::{self, Moment};
use super::vcpu::{self, KvmMachine};
use super::{seccomp, signal, state};
use crate::config::VmConfig;
use crate::engine::{Event, ExitReason, Registers, Vm};
use crate::error::Error;
use crate::kvm_error::Error as KvmError;
use crate::schedstat;

/// How long vCPUs may take to leave the guest. It takes microseconds unless the host is overloaded.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of stack of a vCPU's thread, which does little more than `KVM_RUN`.
const STACK_SIZE: usize = 256 << 10;

/// The kernel command line that this machine needs: the name of the console, no test of the timer,
/// which fails on a busy host, and a reset through ACPI.
const CMDLINE: &str = "console=ttyS0 no_timer_check reboot=acpi";

/// The capabilities of KVM that this engine requires.
const CAPABILITIES: [(Cap, &str, &str); 5] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP", "emulates interrupt controllers"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "gives memory to guests"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", "reports CPU features"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI", "delivers the interrupts of devices"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK", "keeps the clock of a paused guest"),
];

/// A running machine: one thread per vCPU.
#[derive(Debug)]
pub(super) struct KvmVm {
    machine: Arc<KvmMachine>,
    threads: Vec<JoinHandle<Result<(), KvmError>>>,
    config: VmConfig,
    /// The MSRs to save.
    msrs: Vec<u32>,
    /// Descriptors of the vCPUs. The `VcpuFd`s are locked by their threads.
    vcpus: Vec<RawFd>,
    /// The rate of the vCPUs' time-stamp counters, in kHz.
    tsc_khz: u32,
    /// The time at which the guest was paused, while it is.
    paused: Option<Moment>,
    exited: Option<ExitReason>,
}

impl KvmVm {
    /// Creates a machine and starts its vCPUs.
    pub(super) fn boot(kvm: &Kvm, config: &VmConfig) -> Result<Self, Error> {
        check_capabilities(kvm)?;
        let InitialMemory { cpus, memory, entry } =
            InitialMemory::new(config, &format!("{CMDLINE} {}", config.cmdline))?;
        tracing::debug!(kernel = %config.kernel.display(), entry = format!("{entry:#x}"), "loaded");
        let vm = create_vm(kvm, &memory)?;
        tracing::debug!(memory_mib = config.memory_mib, "created the VM");
        let vcpus = create_vcpus(kvm, &vm, &cpus, entry)?;
        tracing::debug!(count = vcpus.len(), "created the vCPUs");
        Self::start(kvm, config, vm, vcpus, memory, Devices::new(&config.ports))
    }

    /// Starts the vCPUs of a machine in the state that they have.
    fn start(
        kvm: &Kvm,
        config: &VmConfig,
        vm: VmFd,
        vcpus: Vec<VcpuFd>,
        memory: Memory,
        devices: Devices,
    ) -> Result<Self, Error> {
        let tsc_khz = vcpus[0].get_tsc_khz().map_err(KvmError::ioctl("KVM_GET_TSC_KHZ"))?;
        let msrs = state::msrs(kvm)?;
        let descriptors = vcpus.iter().map(AsRawFd::as_raw_fd).collect();
        let machine = Arc::new(KvmMachine {
            hub: Hub::new(vcpus.len()),
            tids: vcpus.iter().map(|_| AtomicI32::new(0)).collect(),
            vcpus: vcpus.into_iter().map(Mutex::new).collect(),
            vm,
            memory,
            devices,
        });
        let mut this = Self {
            machine,
            threads: Vec::new(),
            config: config.clone(),
            msrs,
            vcpus: descriptors,
            tsc_khz,
            paused: None,
            exited: None,
        };
        this.start_threads()?;
        Ok(this)
    }

    /// Starts a thread for each vCPU, waits until all are ready, and runs the guest.
    fn start_threads(&mut self) -> Result<(), Error> {
        let thread_error =
            |operation, cpu| move |reason: String| KvmError::Thread { operation, cpu, reason };
        let filter =
            seccomp::filter().map_err(|error| thread_error("confine", 0)(error.to_string()))?;
        let filter = Arc::new(filter);
        let count = self.machine.vcpus.len();
        for index in 0..count {
            let (machine, filter) = (Arc::clone(&self.machine), Arc::clone(&filter));
            let thread =
                std::thread::Builder::new().name(format!("vcpu{index}")).stack_size(STACK_SIZE);
            // A kick that reaches a thread with its signals unblocked would kill this process.
            let thread =
                signal::while_blocked(|| thread.spawn(move || vcpu::run(&machine, index, &filter)));
            match thread {
                Ok(thread) => self.threads.push(thread),
                Err(error) => {
                    // The hub counts the vCPUs without a thread, too.
                    (index..count).for_each(|cpu| self.machine.hub.leave(cpu));
                    self.end_threads();
                    return Err(thread_error("start", index)(error.to_string()).into());
                }
            }
        }
        self.wait_parked("start the vCPUs")?;
        if self.machine.hub.live() < count {
            let early = || thread_error("keep", 0)("it ended before the guest began".to_owned());
            return Err(self.end_threads().unwrap_or_else(early).into());
        }
        tracing::debug!(count, "the vCPU threads are ready");
        self.machine.hub.set_command(VcpuCommand::Run);
        Ok(())
    }

    fn wait_parked(&self, command: &'static str) -> Result<(), Error> {
        if self.machine.hub.wait_parked(Instant::now() + PAUSE_TIMEOUT) {
            Ok(())
        } else {
            Err(Error::Timeout { command, seconds: PAUSE_TIMEOUT.as_secs() })
        }
    }

    /// Reads the guest's clock and the host's counter.
    fn moment(&self) -> Result<Moment, Error> {
        Ok(Moment::now(&self.machine.vm).map_err(KvmError::ioctl("KVM_GET_CLOCK"))?)
    }

    /// Gives all vCPUs a command, and gets those that run the guest out of it.
    fn command_all(&self, command: VcpuCommand) {
        // In this order: a vCPU that is kicked finds the new command.
        self.machine.hub.set_command(command);
        self.threads.iter().for_each(signal::kick);
    }

    /// Ends all threads and waits for them. Returns the first error of one.
    fn end_threads(&mut self) -> Option<KvmError> {
        if self.threads.is_empty() {
            return None;
        }
        self.command_all(VcpuCommand::Stop);
        let mut failed = None;
        for thread in self.threads.drain(..) {
            // The guard of a thread that panicked has recorded it in the hub.
            if let Ok(Err(error)) = thread.join() {
                failed.get_or_insert(error);
            }
        }
        tracing::debug!("all vCPU threads have ended");
        failed
    }
}

/// Fails if KVM lacks a capability that this engine requires.
fn check_capabilities(kvm: &Kvm) -> Result<(), KvmError> {
    for (cap, capability, needed_for) in CAPABILITIES {
        if !kvm.check_extension(cap) {
            return Err(KvmError::Capability { capability, needed_for });
        }
    }
    Ok(())
}

/// Creates a VM with the memory and the interrupt controllers of the machine.
fn create_vm(kvm: &Kvm, memory: &Memory) -> Result<VmFd, KvmError> {
    let vm = kvm.create_vm().map_err(KvmError::ioctl("KVM_CREATE_VM"))?;
    for (slot, (gpa, hva, size)) in (0..).zip(memory.regions()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: hva,
        };
        // SAFETY: the region is one live mapping of that size, which `memory` owns. The VM and the
        // memory become fields of one `KvmMachine`. Its last owner drops the vCPUs and the VM
        // before the memory.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(KvmError::ioctl("KVM_SET_USER_MEMORY_REGION"))?;
    }
    vm.set_identity_map_address(KVM_IDENTITY_MAP)
        .map_err(KvmError::ioctl("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(KVM_TSS as usize).map_err(KvmError::ioctl("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(KvmError::ioctl("KVM_CREATE_IRQCHIP"))?;
    Ok(vm)
}

/// Creates the vCPUs in the state that the boot protocol asks for.
fn create_vcpus(kvm: &Kvm, vm: &VmFd, cpus: &Cpus, entry: u64) -> Result<Vec<VcpuFd>, KvmError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::ioctl("KVM_GET_SUPPORTED_CPUID"))?;
    let msrs = Msrs::from_entries(&regs::msrs()).expect("KVM accepts more MSRs than these");
    let mut vcpus = Vec::new();
    for (index, cpu) in cpus.list.iter().enumerate() {
        // KVM uses the vCPU's number as its APIC ID.
        let vcpu =
            vm.create_vcpu(cpu.apic_id.into()).map_err(KvmError::ioctl("KVM_CREATE_VCPU"))?;
        let cpuid = cpuid::cpuid(supported.as_slice(), cpus, index);
        let cpuid = CpuId::from_entries(&cpuid).expect("a CPU has at most 256 CPUID entries");
        vcpu.set_cpuid2(&cpuid).map_err(KvmError::ioctl("KVM_SET_CPUID2"))?;
        let set = vcpu.set_msrs(&msrs).map_err(KvmError::ioctl("KVM_SET_MSRS"))?;
        if set < regs::msrs().len() {
            return Err(KvmError::Capability {
                capability: "one of the MSRs 0x1a0 and 0x2ff",
                needed_for: "firmware sets on every CPU",
            });
        }
        if index == 0 {
            let sregs = vcpu.get_sregs().map_err(KvmError::ioctl("KVM_GET_SREGS"))?;
            vcpu.set_sregs(&regs::sregs(sregs)).map_err(KvmError::ioctl("KVM_SET_SREGS"))?;
            vcpu.set_regs(&regs::regs(entry)).map_err(KvmError::ioctl("KVM_SET_REGS"))?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

impl Vm for KvmVm {
    fn next_event(&mut self, deadline: Instant) -> Result<Event, Error> {
        loop {
            if let Some(reason) = &self.exited {
                return Ok(Event::Exited(reason.clone()));
            }
            let (next, can_resume) = self.machine.hub.next(deadline);
            if can_resume && let Some(first) = self.threads.first() {
                signal::kick(first);
            }
            match next {
                Some(HubEvent::Event(event)) => return Ok(event),
                Some(HubEvent::Finish) => self.command_all(VcpuCommand::Finish),
                Some(HubEvent::Exited(reason)) => {
                    self.end_threads();
                    tracing::debug!(%reason, "machine exited");
                    self.exited = Some(reason);
                }
                None => return Ok(Event::Deadline),
            }
        }
    }

    fn send(&mut self, port: usize, bytes: &[u8]) -> Result<(), Error> {
        if port >= self.config.ports.len() {
            return Err(Error::NoPort(port));
        }
        let first = self.threads.first().ok_or(Error::Gone { operation: "send" })?;
        self.machine.devices.send(port, bytes)?;
        signal::kick(first);
        Ok(())
    }

    fn pause(&mut self) -> Result<(), Error> {
        if self.threads.is_empty() {
            return Err(Error::Gone { operation: "pause" });
        }
        if self.paused.is_none() && !self.machine.hub.has_ended() {
            self.command_all(VcpuCommand::Pause);
            let paused = self.wait_parked("pause").and_then(|()| self.moment());
            // After a failure the machine must not stay half paused: run all vCPUs again.
            let run = |_: &Error| self.machine.hub.set_command(VcpuCommand::Run);
            self.paused = Some(paused.inspect_err(run)?);
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Error> {
        if self.threads.is_empty() {
            return Err(Error::Gone { operation: "resume" });
        }
        if let Some(paused) = self.paused {
            // The guest's clock continues where it stopped. The counters must, too, because kernels
            // compare the two: all are set back by the same amount.
            let clock = paused.clock();
            self.machine.vm.set_clock(&clock).map_err(KvmError::ioctl("KVM_SET_CLOCK"))?;
            let ahead = self.moment()?.ahead_since(&paused, self.tsc_khz);
            for vcpu in &self.vcpus {
                // Not an error: before Linux 5.16 KVM cannot, and the counters have run on.
                let _ = tsc::set_back(vcpu, ahead);
            }
            self.paused = None;
            self.machine.hub.set_command(VcpuCommand::Run);
        }
        Ok(())
    }

    fn registers(&mut self, cpu: usize) -> Result<Registers, Error> {
        self.machine.hub.registers(cpu).ok_or(Error::NotPaused { cpu })
    }

    fn read_memory(&mut self, gpa: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.machine.memory.read(gpa, buf)
    }

    fn run_delays(&mut self) -> Result<Vec<Duration>, Error> {
        if self.threads.is_empty() {
            return Err(Error::Gone { operation: "report its run delays" });
        }
        let tids = self.machine.tids.iter().map(|tid| tid.load(Ordering::Acquire));
        tids.map(schedstat::run_delay).collect()
    }

    fn save(&mut self, dir: &Path) -> Result<(), Error> {
        let was_running = self.paused.is_none();
        self.pause()?;
        // A guest that has ended is not paused.
        let Some(paused) = self.paused.filter(|_| !self.machine.hub.has_ended()) else {
            return Err(Error::Gone { operation: "save" });
        };
        let saved = self.save_paused(&paused, dir);
        let resumed = if was_running { self.resume() } else { Ok(()) };
        saved.and(resumed)
    }

    fn stop(&mut self) -> Result<(), Error> {
        self.machine.hub.end(ExitReason::Stopped);
        self.end_threads();
        Ok(())
    }
}

impl Drop for KvmVm {
    fn drop(&mut self) {
        self.end_threads();
    }
}
