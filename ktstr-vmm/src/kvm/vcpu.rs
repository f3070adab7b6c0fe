//! The thread of one vCPU: runs the guest, and does what the guest's exits ask for.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};

use kvm_bindings::kvm_msi;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use seccompiler::BpfProgram;
use vm_memory::GuestMemoryMmap;

use super::device::{Board, Devices, Msi, Power};
use super::error::Error;
use super::hub::{Hub, VcpuCommand};
use super::memory::Memory;
use super::{pio, seccomp, signal};
use crate::engine::{ExitReason, Registers};

/// How often the devices are served after the guest's end. A guest that stands still has at most
/// some MiB in its queues, of which one turn takes a quarter, unless the caller has less room; one
/// that has made up more of it shall not be handed over for ever.
const LAST_TURNS: u32 = 1024;

/// What all threads of a machine share.
#[derive(Debug)]
pub(super) struct KvmMachine {
    // In the order in which they are to be dropped: KVM before the memory it uses. Each vCPU is its
    // thread's for as long as that runs, but is closed here: a confined thread cannot close it.
    pub(super) vcpus: Vec<Mutex<VcpuFd>>,
    /// Their threads' numbers; 0 before a thread has begun.
    pub(super) tids: Vec<AtomicI32>,
    pub(super) vm: VmFd,
    pub(super) memory: Memory,
    pub(super) devices: Devices,
    pub(super) hub: Hub,
}

impl Board for KvmMachine {
    fn memory(&self) -> &GuestMemoryMmap {
        self.memory.mmap()
    }

    fn signal_msi(&self, msi: Msi) {
        let msi = kvm_msi {
            address_lo: msi.address as u32,
            address_hi: (msi.address >> 32) as u32,
            data: msi.data,
            ..kvm_msi::default()
        };
        // KVM refuses what the guest programmed wrongly; the interrupt is then nobody's.
        let _ = self.vm.signal_msi(msi);
    }

    fn set_irq(&self, irq: u32, is_active: bool) {
        let _ = self.vm.set_irq_line(irq, is_active);
    }

    fn console(&self, bytes: &[u8]) {
        self.hub.console(bytes);
    }

    fn port_room(&self) -> usize {
        self.hub.port_room()
    }

    fn port(&self, port: usize, bytes: Vec<u8>) {
        self.hub.port(port, bytes);
    }
}

/// Tells the caller when the thread ends, however it does.
struct Leave<'a>(&'a Hub, usize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(died(format!("the thread of vCPU {} panicked", self.1), String::new()));
        }
        self.0.leave();
    }
}

/// The thread of a vCPU: waits to be let go, runs the guest until it ends or is stopped.
pub(super) fn run(machine: &KvmMachine, index: usize, filter: &BpfProgram) -> Result<(), Error> {
    let _leave = Leave(&machine.hub, index);
    machine.tids[index].store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Release);
    let fd = &mut *machine.vcpus[index].lock().unwrap_or_else(PoisonError::into_inner);
    let failed = |operation, reason: String| Error::Thread { operation, cpu: index, reason };
    signal::let_kick_through(fd)
        .map_err(|error| failed("set the signal mask of", error.to_string()))?;
    seccomp::confine(filter).map_err(|error| failed("confine", error.to_string()))?;
    Vcpu { index, fd, machine }.guest();
    Ok(())
}

/// One CPU and its thread's view of the machine.
#[derive(Debug)]
struct Vcpu<'a> {
    index: usize,
    fd: &'a mut VcpuFd,
    machine: &'a KvmMachine,
}

impl Vcpu<'_> {
    fn guest(&mut self) {
        let machine = self.machine;
        let mut is_running = self.attend();
        while is_running {
            if machine.devices.wants_service() {
                machine.devices.service(machine);
                is_running = self.attend();
                continue;
            }
            let end = match self.fd.run() {
                Ok(VcpuExit::IoOut(port, _)) => self.write_port(port),
                Ok(VcpuExit::IoIn(port, _)) => {
                    for data in pio::accesses(self.fd) {
                        machine.devices.pio_read(port, data);
                    }
                    None
                }
                Ok(VcpuExit::MmioWrite(gpa, data)) => {
                    machine.devices.mmio_write(gpa, data, machine);
                    None
                }
                Ok(VcpuExit::MmioRead(gpa, data)) => {
                    machine.devices.mmio_read(gpa, data);
                    None
                }
                // A triple fault, the last resort of a kernel that wants a reset.
                Ok(VcpuExit::Shutdown) => Some(ExitReason::Reset),
                Ok(exit) => {
                    let exit = format!("KVM gave up on vCPU {}: {exit:?}", self.index);
                    Some(died(exit, self.details()))
                }
                Err(error) => match io::Error::from_raw_os_error(error.errno()).kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {
                        is_running = self.attend();
                        None
                    }
                    _ => {
                        let status = format!("KVM_RUN of vCPU {} failed: {error}", self.index);
                        Some(died(status, self.details()))
                    }
                },
            };
            if let Some(reason) = end {
                machine.hub.end(reason);
                self.hand_over();
                return;
            }
        }
    }

    fn write_port(&mut self, port: u16) -> Option<ExitReason> {
        let (devices, machine) = (&self.machine.devices, self.machine);
        let power =
            pio::accesses(self.fd).find_map(|data| devices.pio_write(port, data, machine))?;
        Some(match power {
            Power::Off => ExitReason::PowerOff,
            Power::Reset => ExitReason::Reset,
        })
    }

    /// Does what the caller wants; false if that is to leave.
    fn attend(&mut self) -> bool {
        signal::take_kicks();
        loop {
            match self.machine.hub.wanted() {
                VcpuCommand::Run => break,
                VcpuCommand::Finish | VcpuCommand::Stop => return false,
                VcpuCommand::Pause => {
                    let registers = self.registers();
                    self.machine.hub.park(self.index, registers);
                    // Tells the guest's watchdogs that it was not its fault. A guest that has no
                    // clock of KVM's yet has no watchdogs either.
                    let _ = self.fd.kvmclock_ctrl();
                }
            }
        }
        // It may be the caller who made room, and kicked the first CPU to use it.
        if self.index == 0 && self.machine.devices.wants_room() {
            self.machine.devices.service(self.machine);
        }
        true
    }

    /// Hands over what the guest wrote before its end, as the caller takes it.
    fn hand_over(&self) {
        let KvmMachine { devices, hub, .. } = self.machine;
        // The others could add to it for ever.
        if !hub.wait_alone() {
            return;
        }
        for _ in 0..LAST_TURNS {
            let is_more = devices.service(self.machine);
            let goes_on = match is_more || devices.is_drained() {
                true => is_more && hub.wanted() != VcpuCommand::Stop,
                false => hub.wait_for_room(),
            };
            if !goes_on {
                return;
            }
        }
    }

    fn registers(&self) -> Registers {
        match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => Registers {
                rip: regs.rip,
                rsp: regs.rsp,
                rflags: regs.rflags,
                cr0: sregs.cr0,
                cr2: sregs.cr2,
                cr3: sregs.cr3,
                cr4: sregs.cr4,
                efer: sregs.efer,
                gs_base: sregs.gs.base,
            },
            _ => Registers::default(),
        }
    }

    fn details(&self) -> String {
        format!("{:x?}", self.registers())
    }
}

fn died(status: String, stderr: String) -> ExitReason {
    ExitReason::EngineDied { status, stderr }
}
