//! Finds out whether this host's KVM can run a kernel, in milliseconds.
//!
//! That `/dev/kvm` opens and creates VMs is not enough: some KVM modules emulate much of what a
//! booting kernel does, a thousand times slower than a CPU. So the probe runs a short loop in a VM
//! of its own and measures its CPU time.
//!
//! Source: Linux 6.12, virt/kvm/api.rst.

use std::fmt;
use std::fs;
use std::io;
use std::time::Duration;

use kvm_bindings::{KVM_API_VERSION, kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Iterations of the loop. They take microseconds on hardware, 0.1 ms on hardware that is emulated
/// itself, and a few milliseconds where KVM emulates every instruction.
const ITERATIONS: u16 = 4_000;
/// The longest time of a usable KVM: seven times that of the slowest usable one that was measured,
/// a third of that of the fastest unusable one.
const LIMIT: Duration = Duration::from_micros(700);
/// How often a KVM that was too slow is tried again. On a busy host, one that is emulated itself
/// may be too slow several times in a row.
const RETRIES: u32 = 4;
const CODE: GuestAddress = GuestAddress(0x1000);
const MEMORY: usize = 0x2000;

/// A KVM that runs guest code at the speed of a CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmFacts {
    /// The name of its kernel module, such as `kvm_amd`, if there is one.
    pub module: Option<String>,
    /// The CPU time of the probe's loop.
    pub loop_time: Duration,
}

/// Why KVM is not usable, and how to fix it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// `/dev/kvm` does not exist.
    #[error(
        "/dev/kvm does not exist: load kvm_intel or kvm_amd, and enable virtualization in the \
         firmware or, on a virtual host, nested virtualization"
    )]
    Missing,
    /// The user may not open `/dev/kvm`.
    #[error(
        "permission denied on /dev/kvm: join its group (`sudo usermod -aG kvm $USER`, then \
         log in again), or open it to all users with the udev rule `KERNEL==\"kvm\", MODE=\"0666\"`"
    )]
    Denied,
    /// `/dev/kvm` has another API version.
    #[error("KVM has API version {0} (required: {KVM_API_VERSION})")]
    ApiVersion(i32),
    /// A step of the probe failed.
    #[error("{} failed to {operation}: {source}", Named(module))]
    Failed {
        /// The name of the kernel module, if there is one.
        module: Option<String>,
        /// The step.
        operation: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The guest's code ended with another exit than on hardware.
    #[error("{} cannot run a loop of real-mode code: {exit}", Named(module))]
    Broken {
        /// The name of the kernel module, if there is one.
        module: Option<String>,
        /// The exit that KVM reported.
        exit: String,
    },
    /// KVM runs guest code, but much slower than a CPU.
    #[error(
        "{} is too slow: {ITERATIONS} loop iterations took {:.1} ms (limit {:.1} ms)",
        Named(module), loop_time.as_secs_f64() * 1e3, LIMIT.as_secs_f64() * 1e3
    )]
    Slow {
        /// The name of the kernel module, if there is one.
        module: Option<String>,
        /// The CPU time of the probe's loop.
        loop_time: Duration,
    },
}

/// Opens `/dev/kvm` and runs a short loop with it.
///
/// # Errors
///
/// Why KVM cannot run a kernel on this host.
pub fn kvm() -> Result<KvmFacts, Unusable> {
    open().map(|(_, facts)| facts)
}

/// Probes KVM like [`kvm`], and also returns its descriptor.
pub(crate) fn open() -> Result<(Kvm, KvmFacts), Unusable> {
    let kvm = Kvm::new().map_err(|errno| open_error(errno.into()))?;
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION as i32 {
        return Err(Unusable::ApiVersion(version));
    }
    let module = module();
    let mut loop_time = run_loop(&kvm, &module)?;
    for _ in 0..RETRIES {
        if loop_time <= LIMIT {
            break;
        }
        // Another cause, such as a page fault of the host, may have lengthened the run.
        loop_time = loop_time.min(run_loop(&kvm, &module)?);
    }
    judge(module, loop_time).map(|facts| (kvm, facts))
}

fn judge(module: Option<String>, loop_time: Duration) -> Result<KvmFacts, Unusable> {
    if loop_time > LIMIT {
        Err(Unusable::Slow { module, loop_time })
    } else {
        Ok(KvmFacts { module, loop_time })
    }
}

fn open_error(source: io::Error) -> Unusable {
    match Errno::from_io_error(&source) {
        // Without its module, a device node that was created by hand leads to no driver.
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => Unusable::Missing,
        Some(Errno::ACCESS | Errno::PERM) => Unusable::Denied,
        _ => Unusable::Failed { module: module(), operation: "open /dev/kvm", source },
    }
}

/// Returns the module of `/dev/kvm`: `kvm_intel`, `kvm_amd` or another one.
fn module() -> Option<String> {
    let entries = fs::read_dir("/sys/module").ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with("kvm_")).min()
}

/// Runs the loop in a VM of its own. Returns its CPU time, which the load of other processes does
/// not lengthen.
fn run_loop(kvm: &Kvm, module: &Option<String>) -> Result<Duration, Unusable> {
    let failed = |operation| {
        move |errno: kvm_ioctls::Error| {
            let source = io::Error::from_raw_os_error(errno.errno());
            Unusable::Failed { module: module.clone(), operation, source }
        }
    };
    // Declared first, so dropped last.
    let memory = guest_memory().map_err(|source| {
        let module = module.clone();
        Unusable::Failed { module, operation: "map memory for a guest", source }
    })?;
    let vm = kvm.create_vm().map_err(failed("create a VM"))?;
    let host = memory.get_host_address(GuestAddress(0)).expect("memory starts at 0");
    let region = kvm_userspace_memory_region {
        memory_size: MEMORY as u64,
        userspace_addr: host as u64,
        ..Default::default()
    };
    // SAFETY: the region is the whole of `memory`, a live mapping of that size that outlives `vm`
    // and its vCPU.
    unsafe { vm.set_user_memory_region(region) }.map_err(failed("give memory to a VM"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("create a vCPU"))?;
    let mut sregs = vcpu.get_sregs().map_err(failed("read vCPU registers"))?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs).map_err(failed("set vCPU registers"))?;
    // The first, short run takes the costs that occur only once: page tables, caches.
    let mut time = Duration::ZERO;
    for iterations in [1, ITERATIONS] {
        let regs = kvm_regs {
            rip: CODE.raw_value(),
            rcx: iterations.into(),
            rflags: 2,
            ..Default::default()
        };
        vcpu.set_regs(&regs).map_err(failed("set vCPU registers"))?;
        let start = cpu_time();
        match vcpu.run().map_err(failed("run a vCPU"))? {
            VcpuExit::Hlt => time = cpu_time().saturating_sub(start),
            exit => {
                let exit = format!("{exit:?}");
                return Err(Unusable::Broken { module: module.clone(), exit });
            }
        }
    }
    Ok(time)
}

/// Creates memory with `loop: dec cx; jnz loop; hlt` in 16-bit code.
fn guest_memory() -> io::Result<GuestMemoryMmap> {
    let code = [0x49, 0x75, 0xfd, 0xf4];
    let memory: GuestMemoryMmap =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).map_err(io::Error::other)?;
    memory.write_slice(&code, CODE).map_err(io::Error::other)?;
    Ok(memory)
}

/// Returns the CPU time of this thread, including its guests.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).expect("CPU time is not negative")
}

/// Displays a KVM with the name of its module.
struct Named<'a>(&'a Option<String>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(module) => write!(f, "KVM ({module})"),
            None => write!(f, "KVM"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judge_reports_the_time_of_a_slow_kvm() {
        let slow = judge(Some("kvm_pvm".into()), Duration::from_micros(2700)).unwrap_err();
        assert_eq!(
            slow.to_string(),
            "KVM (kvm_pvm) is too slow: 4000 loop iterations took 2.7 ms (limit 0.7 ms)"
        );
        assert!(judge(None, Duration::from_micros(100)).is_ok());
    }

    #[test]
    fn open_error_gives_advice() {
        for (errno, want) in [
            (Errno::NOENT, "load kvm_intel or kvm_amd"),
            (Errno::NODEV, "load kvm_intel or kvm_amd"),
            (Errno::ACCESS, "usermod -aG kvm"),
            (Errno::PERM, "udev rule"),
            (Errno::BUSY, "failed to open /dev/kvm"),
        ] {
            let text = open_error(errno.into()).to_string();
            assert!(text.contains(want), "{errno}: {text}");
        }
    }

    /// The result depends on the host, but must be available quickly.
    #[test]
    fn kvm_returns_quickly() {
        let start = cpu_time();
        let answer = kvm();
        assert!(cpu_time() - start < Duration::from_secs(2), "{answer:?}");
    }
}
