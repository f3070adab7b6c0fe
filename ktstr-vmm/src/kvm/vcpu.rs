//! The thread of one vCPU: runs the guest and handles its exits.
//!
//! The thread is in one of four states, which the owner changes by a [`VcpuCommand`] and a kick:
//!
//! ```text
//!             Run                    Pause
//!   parked --------> in the guest ----------> parked
//!     |                 |   \
//!     | Stop, Finish    |    \ the guest ends: flush the output (one vCPU, alone)
//!     v                 v     v
//!   ended             ended  ended
//! ```

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};

use kvm_bindings::kvm_msi;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use seccompiler::BpfProgram;
use vm_memory::GuestMemoryMmap;

use super::device::{Board, Devices, Msi, Power};
use super::hub::{Hub, VcpuCommand};
use super::memory::Memory;
use super::{pio, seccomp, signal};
use crate::engine::{ExitReason, Registers};
use crate::kvm_error::Error;
use crate::lock::lock;

/// How often the devices are served after the guest's end. A guest that stands still has at most
/// some MiB in its queues, of which one iteration takes a quarter, unless the owner has less room.
/// The limit is for a guest that has prepared more than that, for example rings that feed each
/// other.
const MAX_FLUSH_ITERATIONS: u32 = 1024;

/// The part of a machine that all its threads share.
#[derive(Debug)]
pub(super) struct KvmMachine {
    // The fields are dropped in this order: KVM before the memory that it uses. A vCPU belongs to
    // its thread while that runs, but is closed here, because a confined thread cannot close it.
    pub(super) vcpus: Vec<Mutex<VcpuFd>>,
    /// The thread IDs of the vCPUs; 0 before a thread has begun.
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
        // KVM refuses a message that the guest programmed wrongly. It is lost, as on hardware.
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

/// Records the end of a vCPU's thread in the hub, also when the thread panics.
struct LeaveGuard<'a> {
    hub: &'a Hub,
    cpu: usize,
}

impl Drop for LeaveGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let status = format!("the thread of vCPU {} panicked", self.cpu);
            self.hub.end(died(status, String::new()));
        }
        self.hub.leave(self.cpu);
    }
}

/// Runs a vCPU until the guest ends or the owner stops it; the body of the vCPU's thread.
pub(super) fn run(machine: &KvmMachine, index: usize, filter: &BpfProgram) -> Result<(), Error> {
    let _guard = LeaveGuard { hub: &machine.hub, cpu: index };
    machine.tids[index].store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Release);
    let fd = &mut *lock(&machine.vcpus[index]);
    let failed = |operation, reason: String| Error::Thread { operation, cpu: index, reason };
    signal::let_kick_through(fd)
        .map_err(|error| failed("set the signal mask of", error.to_string()))?;
    // From here on the thread cannot open, log or allocate descriptors: see `seccomp`.
    seccomp::confine(filter).map_err(|error| failed("confine", error.to_string()))?;
    Vcpu { index, fd, machine, is_unfinished: false }.run_guest();
    Ok(())
}

/// A vCPU with the machine that it belongs to.
#[derive(Debug)]
struct Vcpu<'a> {
    index: usize,
    fd: &'a mut VcpuFd,
    machine: &'a KvmMachine,
    /// The last exit was for an access that KVM finishes in the next `KVM_RUN`: until then the
    /// registers are those before it.
    is_unfinished: bool,
}

/// How a `KVM_RUN` ended.
#[derive(Debug)]
enum RunEnd {
    /// An exit, which was handled.
    Handled,
    /// A kick: the owner has a new command, or made room for output.
    Kicked,
    /// The guest has ended, or cannot continue.
    Ended(ExitReason),
}

impl Vcpu<'_> {
    /// Runs the guest and handles its exits, until it ends or the owner ends the thread.
    fn run_guest(&mut self) {
        let machine = self.machine;
        let mut is_running = self.follow_command();
        while is_running {
            // Work that an earlier exit left over. It is bounded, and the owner's command is looked
            // at in between, so a guest cannot keep its vCPU from being paused.
            if machine.devices.wants_service() {
                machine.devices.service(machine);
                is_running = self.follow_command();
                continue;
            }
            match self.run_once() {
                RunEnd::Handled => {}
                RunEnd::Kicked => is_running = self.follow_command(),
                RunEnd::Ended(reason) => {
                    self.end(reason);
                    return;
                }
            }
        }
    }

    fn end(&self, reason: ExitReason) {
        self.machine.hub.end(reason);
        self.flush_output();
    }

    /// Runs the guest until its next exit, and handles that.
    fn run_once(&mut self) -> RunEnd {
        let machine = self.machine;
        let exit = self.fd.run();
        self.is_unfinished = exit.is_ok();
        let end = match exit {
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
            // A triple fault: the last method by which a kernel resets the machine.
            Ok(VcpuExit::Shutdown) => Some(ExitReason::Reset),
            Ok(exit) => {
                let exit = format!("KVM cannot continue vCPU {}: {exit:?}", self.index);
                Some(died(exit, self.details()))
            }
            Err(error) => match io::Error::from_raw_os_error(error.errno()).kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => return RunEnd::Kicked,
                _ => {
                    let status = format!("KVM_RUN of vCPU {} failed: {error}", self.index);
                    Some(died(status, self.details()))
                }
            },
        };
        end.map_or(RunEnd::Handled, RunEnd::Ended)
    }

    /// Finishes the access of the last exit, without running the guest: a `KVM_RUN` with
    /// `immediate_exit` does that first. A `KVM_RUN` that a kick ended has done it, too: an access is
    /// unfinished only when the command changes while the devices are served after an exit. A string
    /// instruction can have up to a thousand more accesses before KVM looks at `immediate_exit`.
    ///
    /// Source: Linux 6.12, Documentation/virt/kvm/api.rst, 5 (`immediate_exit`, `KVM_EXIT_IO`).
    fn finish_access(&mut self) -> RunEnd {
        self.fd.set_kvm_immediate_exit(1);
        let mut end = RunEnd::Handled;
        while self.is_unfinished && matches!(end, RunEnd::Handled) {
            end = self.run_once();
        }
        self.fd.set_kvm_immediate_exit(0);
        end
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

    /// Parks while the owner's command is to pause. Returns whether to run the guest then.
    fn follow_command(&mut self) -> bool {
        // Before the command is read: a kick that comes later makes `KVM_RUN` return at once.
        signal::take_kicks();
        loop {
            match self.machine.hub.command() {
                VcpuCommand::Run => break,
                VcpuCommand::Finish | VcpuCommand::Stop => return false,
                VcpuCommand::Pause => {
                    if let RunEnd::Ended(reason) = self.finish_access() {
                        self.end(reason);
                        return false;
                    }
                    let registers = self.registers();
                    self.machine.hub.park(self.index, registers);
                    // Lets the guest's watchdogs ignore the pause. It fails for a guest that has
                    // not set up its KVM clock, which has no watchdogs yet either.
                    let _ = self.fd.kvmclock_ctrl();
                }
            }
        }
        // The kick may mean that the owner made room for output: it kicks the first vCPU then.
        if self.index == 0 && self.machine.devices.wants_room() {
            self.machine.devices.service(self.machine);
        }
        true
    }

    /// Hands the output that the guest wrote before its end to the owner, as the owner takes it.
    fn flush_output(&self) {
        let KvmMachine { devices, hub, .. } = self.machine;
        // Alone, because vCPUs that still run could add output without end.
        if !hub.wait_alone() {
            return;
        }
        for _ in 0..MAX_FLUSH_ITERATIONS {
            let is_more = devices.service(self.machine);
            let should_continue = if is_more || devices.is_drained() {
                is_more && hub.command() != VcpuCommand::Stop
            } else {
                hub.wait_for_room()
            };
            if !should_continue {
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
