//! A machine that KVM runs, seen by its owner.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use super::cpu::{cpuid, regs};
use super::cpus::Cpus;
use super::device::Devices;
use super::error::Error as KvmError;
use super::hub::{Hub, HubEvent, VcpuCommand};
use super::initial_memory::InitialMemory;
use super::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use super::memory::Memory;
use super::tsc::{self, Moment};
use super::vcpu::{self, KvmMachine};
use super::{seccomp, signal};
use crate::config::VmConfig;
use crate::engine::{Event, ExitReason, Registers, Vm};
use crate::error::Error;
use crate::schedstat;

/// How long CPUs may take to leave the guest; they do in microseconds unless the host is
/// overwhelmed.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(60);
/// The stack of a vCPU's thread, which does little more than KVM_RUN.
const STACK_SIZE: usize = 256 << 10;

/// What the kernel must be told on this machine, and why: the console's name; and that the timer
/// needs no test, which a busy host fails.
const CMDLINE: &str = "console=ttyS0 no_timer_check reboot=acpi";

/// What this engine cannot do without.
const CAPABILITIES: [(Cap, &str, &str); 5] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP", "emulates interrupt controllers"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "gives memory to guests"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", "tells CPU features"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI", "delivers the interrupts of devices"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK", "keeps a guest's time honest"),
];

/// A running machine: one thread per vCPU.
#[derive(Debug)]
pub(super) struct KvmVm {
    machine: Arc<KvmMachine>,
    threads: Vec<JoinHandle<Result<(), KvmError>>>,
    ports: usize,
    /// The machine's descriptors of its vCPUs, which their threads have for themselves.
    vcpus: Vec<RawFd>,
    /// How fast their time-stamp counters run.
    tsc_khz: u32,
    /// When the guest was paused, while it is.
    paused: Option<Moment>,
    exited: Option<ExitReason>,
}

impl KvmVm {
    pub(super) fn boot(kvm: &Kvm, config: &VmConfig) -> Result<Self, Error> {
        for (cap, capability, needed_for) in CAPABILITIES {
            if !kvm.check_extension(cap) {
                return Err(KvmError::Capability { capability, needed_for }.into());
            }
        }
        let InitialMemory { cpus, memory, entry } =
            InitialMemory::new(config, &format!("{CMDLINE} {}", config.cmdline))?;
        let vm = create_vm(kvm, &memory)?;
        let vcpus = create_vcpus(kvm, &vm, &cpus, entry)?;
        let tsc_khz = vcpus[0].get_tsc_khz().map_err(KvmError::ioctl("KVM_GET_TSC_KHZ"))?;
        let descriptors = vcpus.iter().map(AsRawFd::as_raw_fd).collect();
        let machine = Arc::new(KvmMachine {
            hub: Hub::new(vcpus.len()),
            tids: vcpus.iter().map(|_| AtomicI32::new(0)).collect(),
            vcpus: vcpus.into_iter().map(Mutex::new).collect(),
            vm,
            memory,
            devices: Devices::new(&config.ports),
        });
        let mut this = Self {
            machine,
            threads: Vec::new(),
            ports: config.ports.len(),
            vcpus: descriptors,
            tsc_khz,
            paused: None,
            exited: None,
        };
        this.start()?;
        Ok(this)
    }

    /// Starts a thread for each vCPU, and lets them go when all are there.
    fn start(&mut self) -> Result<(), Error> {
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
            // A kick that found a thread with its signals on would be the end of this process.
            let thread =
                signal::while_blocked(|| thread.spawn(move || vcpu::run(&machine, index, &filter)));
            match thread {
                Ok(thread) => self.threads.push(thread),
                Err(error) => {
                    // Those that were never started leave, too.
                    (index..count).for_each(|_| self.machine.hub.leave());
                    self.end();
                    return Err(thread_error("start", index)(error.to_string()).into());
                }
            }
        }
        self.wait_parked("start the vCPUs")?;
        if self.machine.hub.live() < count {
            return Err(self
                .end()
                .unwrap_or(KvmError::Thread {
                    operation: "keep",
                    cpu: 0,
                    reason: "it ended before the guest began".to_owned(),
                })
                .into());
        }
        self.machine.hub.want(VcpuCommand::Run);
        Ok(())
    }

    fn wait_parked(&self, command: &'static str) -> Result<(), Error> {
        match self.machine.hub.wait_parked(Instant::now() + PAUSE_TIMEOUT) {
            true => Ok(()),
            false => Err(Error::Timeout { command, seconds: PAUSE_TIMEOUT.as_secs() }),
        }
    }

    fn moment(&self) -> Result<Moment, Error> {
        Ok(Moment::now(&self.machine.vm).map_err(KvmError::ioctl("KVM_GET_CLOCK"))?)
    }

    fn want(&self, wanted: VcpuCommand) {
        self.machine.hub.want(wanted);
        self.threads.iter().for_each(signal::kick);
    }

    /// Stops all threads and waits for them; returns the first error of one.
    fn end(&mut self) -> Option<KvmError> {
        self.want(VcpuCommand::Stop);
        let mut failed = None;
        for thread in self.threads.drain(..) {
            // A thread that panicked has told the hub.
            if let Ok(Err(error)) = thread.join() {
                failed.get_or_insert(error);
            }
        }
        failed
    }
}

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
        // SAFETY: the region is one live mapping of that size, which `memory` owns; the VM and the
        // memory end up in one `KvmMachine`, which drops the VM first, after all of its vCPUs, whose
        // threads hold it.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(KvmError::ioctl("KVM_SET_USER_MEMORY_REGION"))?;
    }
    vm.set_identity_map_address(KVM_IDENTITY_MAP)
        .map_err(KvmError::ioctl("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(KVM_TSS as usize).map_err(KvmError::ioctl("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(KvmError::ioctl("KVM_CREATE_IRQCHIP"))?;
    Ok(vm)
}

fn create_vcpus(kvm: &Kvm, vm: &VmFd, cpus: &Cpus, entry: u64) -> Result<Vec<VcpuFd>, KvmError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::ioctl("KVM_GET_SUPPORTED_CPUID"))?;
    let msrs = Msrs::from_entries(&regs::msrs()).expect("a handful of MSRs fits");
    let mut vcpus = Vec::new();
    for (index, cpu) in cpus.list.iter().enumerate() {
        // KVM takes the vCPU's number for its APIC ID.
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
                Some(HubEvent::Finish) => self.want(VcpuCommand::Finish),
                Some(HubEvent::Exited(reason)) => {
                    self.end();
                    self.exited = Some(reason);
                }
                None => return Ok(Event::Deadline),
            }
        }
    }

    fn send(&mut self, port: usize, bytes: &[u8]) -> Result<(), Error> {
        if port >= self.ports {
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
            self.want(VcpuCommand::Pause);
            let paused = self.wait_parked("pause").and_then(|()| self.moment());
            // A machine that is not paused runs.
            self.paused = Some(paused.inspect_err(|_| self.machine.hub.want(VcpuCommand::Run))?);
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), Error> {
        if self.threads.is_empty() {
            return Err(Error::Gone { operation: "resume" });
        }
        if let Some(paused) = self.paused {
            // The guest's time goes on where it stopped, and the counters with it: all are set back
            // by the same amount.
            let clock = paused.clock();
            self.machine.vm.set_clock(&clock).map_err(KvmError::ioctl("KVM_SET_CLOCK"))?;
            let ahead = self.moment()?.ahead_since(&paused, self.tsc_khz);
            for vcpu in &self.vcpus {
                // An old KVM cannot: its guests have to live with counters that ran on.
                let _ = tsc::set_back(vcpu, ahead);
            }
            self.paused = None;
            self.machine.hub.want(VcpuCommand::Run);
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
            return Err(Error::Gone { operation: "tell its run delays" });
        }
        let tids = self.machine.tids.iter().map(|tid| tid.load(Ordering::Acquire));
        tids.map(schedstat::run_delay).collect()
    }

    fn stop(&mut self) -> Result<(), Error> {
        self.machine.hub.end(ExitReason::Stopped);
        self.end();
        Ok(())
    }
}

impl Drop for KvmVm {
    fn drop(&mut self) {
        self.end();
    }
}
