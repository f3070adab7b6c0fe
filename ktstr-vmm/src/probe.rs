//! Whether this host's KVM can run a kernel, told in milliseconds.
//!
//! That `/dev/kvm` opens and makes machines proves little: KVM modules exist that emulate much of
//! what a booting kernel does, a thousand times slower than a CPU. So the probe runs a short loop
//! in a machine of its own and takes the time.
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

/// Turns of the loop: microseconds on hardware, a tenth of a millisecond on hardware that is itself
/// emulated, a few milliseconds where KVM emulates every instruction.
const TURNS: u16 = 4_000;
/// Seven times the slowest good KVM met, a third of the fastest bad one.
const LIMIT: Duration = Duration::from_micros(700);
/// How often a KVM that was too slow is tried again: one that is emulated itself, on a busy host, may
/// be so several times in a row.
const RETRIES: u32 = 4;
const CODE: GuestAddress = GuestAddress(0x1000);
const MEMORY: usize = 0x2000;

/// A KVM that runs guest code at the speed of a CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmFacts {
    /// Its kernel module, such as `kvm_amd`, if it shows one.
    pub module: Option<String>,
    /// CPU time of the probe's loop.
    pub loop_time: Duration,
}

/// Why KVM cannot serve, and what a person can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// There is no `/dev/kvm`.
    #[error(
        "there is no /dev/kvm: load kvm_intel or kvm_amd, and switch on virtualization in the \
         firmware or, on a virtual host, nested virtualization"
    )]
    Missing,
    /// `/dev/kvm` is not for this user.
    #[error(
        "/dev/kvm is not open to this user: join its group (`sudo usermod -aG kvm $USER`, then \
         log in again), or give it to all with the udev rule `KERNEL==\"kvm\", MODE=\"0666\"`"
    )]
    Denied,
    /// `/dev/kvm` speaks another language.
    #[error("the KVM here has API version {0}, not {KVM_API_VERSION}")]
    ApiVersion(i32),
    /// A step of the probe failed.
    #[error("{} failed to {operation}: {source}", Named(module))]
    Failed {
        /// The kernel module, if it shows one.
        module: Option<String>,
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The guest's code ended otherwise than it does on a CPU.
    #[error("{} cannot run a loop of real-mode code: {exit}", Named(module))]
    Broken {
        /// The kernel module, if it shows one.
        module: Option<String>,
        /// The exit KVM reported.
        exit: String,
    },
    /// It runs guest code, but much slower than a CPU would.
    #[error(
        "{} is too slow: {TURNS} loop turns took {:.1} ms, hardware takes microseconds",
        Named(module), loop_time.as_secs_f64() * 1e3
    )]
    Slow {
        /// The kernel module, if it shows one.
        module: Option<String>,
        /// CPU time of the probe's loop.
        loop_time: Duration,
    },
}

/// Opens `/dev/kvm` and has it run a short loop.
///
/// # Errors
///
/// The reason why KVM cannot run a kernel here.
pub fn kvm() -> Result<KvmFacts, Unusable> {
    open().map(|(_, facts)| facts)
}

/// The same, and keeps what was opened.
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
        // Something else, such as a host page fault, may have cost the run its time.
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
        // Without its module, a node made beforehand is there and leads nowhere.
        Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => Unusable::Missing,
        Some(Errno::ACCESS | Errno::PERM) => Unusable::Denied,
        _ => Unusable::Failed { module: module(), operation: "open /dev/kvm", source },
    }
}

/// The module behind `/dev/kvm`: `kvm_intel`, `kvm_amd` or a stranger.
fn module() -> Option<String> {
    let entries = fs::read_dir("/sys/module").ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with("kvm_")).min()
}

/// Runs the loop in a machine of its own; returns the CPU time it took, which other processes'
/// load does not lengthen.
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
    // SAFETY: the region is the whole of `memory`, a live mapping of that size which outlives `vm`
    // and its vCPU.
    unsafe { vm.set_user_memory_region(region) }.map_err(failed("give memory to a VM"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("create a vCPU"))?;
    let mut sregs = vcpu.get_sregs().map_err(failed("read vCPU registers"))?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs).map_err(failed("set vCPU registers"))?;
    // The first, short run pays for what only the first one costs: page tables, caches.
    let mut time = Duration::ZERO;
    for turns in [1, TURNS] {
        let regs =
            kvm_regs { rip: CODE.raw_value(), rcx: turns.into(), rflags: 2, ..Default::default() };
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

/// Memory with `turn: dec cx; jnz turn; hlt` in 16-bit code.
fn guest_memory() -> io::Result<GuestMemoryMmap> {
    let code = [0x49, 0x75, 0xfd, 0xf4];
    let memory: GuestMemoryMmap =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).map_err(io::Error::other)?;
    memory.write_slice(&code, CODE).map_err(io::Error::other)?;
    Ok(memory)
}

/// CPU time of this thread, its guests included.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).expect("CPU time is not negative")
}

/// Names a KVM by its module.
struct Named<'a>(&'a Option<String>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(module) => write!(f, "the KVM here ({module})"),
            None => write!(f, "the KVM here"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_kvm_is_named_with_its_time() {
        let slow = judge(Some("kvm_pvm".into()), Duration::from_micros(2700)).unwrap_err();
        assert_eq!(
            slow.to_string(),
            "the KVM here (kvm_pvm) is too slow: 4000 loop turns took 2.7 ms, hardware takes microseconds"
        );
        assert!(judge(None, Duration::from_micros(100)).is_ok());
    }

    #[test]
    fn opening_fails_with_advice() {
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

    /// What this host has is not known here, but an answer must come soon.
    #[test]
    fn the_answer_comes_quickly() {
        let start = cpu_time();
        let answer = kvm();
        assert!(cpu_time() - start < Duration::from_secs(2), "{answer:?}");
    }
}
