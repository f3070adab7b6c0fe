//! Hostile guests: a few bytes of code in an ELF file, booted through the public API.

use std::fs;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ktstr_core::machine::{Llcs, Topology};
use ktstr_vmm::kvm::Kvm;
use ktstr_vmm::{Engine, Event, ExitReason, Vm, VmConfig};
use tempfile::TempDir;

use crate::code::Code;

/// The address of the first instruction.
pub(crate) const CODE: u32 = 0x100_0000;
/// Bytes of memory of each machine.
pub(crate) const MEMORY: u32 = 64 << 20;
/// The timeout of any step, on the slowest host.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A guest that is not booted yet.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    pub(crate) code: Code,
    /// Other contents of memory: addresses and bytes.
    pub(crate) data: Vec<(u32, Vec<u8>)>,
    /// The number of CPUs besides the first.
    pub(crate) others: u32,
}

impl Guest {
    pub(crate) fn new(write: impl FnOnce(&mut Code) -> &mut Code) -> Self {
        let mut guest = Self::default();
        write(&mut guest.code);
        guest
    }

    /// Returns a `vmlinux` with a segment for the code and one for each piece of data.
    fn elf(&self) -> Vec<u8> {
        let code = (CODE, &self.code.0);
        let segments: Vec<_> =
            std::iter::once(code).chain(self.data.iter().map(|(at, data)| (*at, data))).collect();
        let mut offset = 64 + 56 * segments.len();
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        // An executable for x86-64; no sections.
        elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        for field in [u64::from(CODE), 64, 0] {
            elf.extend(field.to_le_bytes());
        }
        elf.extend([0; 4]);
        for field in [64, 56, segments.len() as u16, 64, 0, 0] {
            elf.extend(field.to_le_bytes());
        }
        for (at, bytes) in &segments {
            // PT_LOAD; read, write, execute.
            elf.extend([1, 0, 0, 0, 7, 0, 0, 0]);
            let (at, len) = (u64::from(*at), bytes.len() as u64);
            for field in [offset as u64, at, at, len, len, 1] {
                elf.extend(field.to_le_bytes());
            }
            offset += bytes.len();
        }
        segments.iter().for_each(|(_, bytes)| elf.extend(*bytes));
        elf
    }

    pub(crate) fn boot(&self) -> Machine {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let (kernel, initramfs) = (dir.path().join("kernel"), dir.path().join("initramfs"));
        fs::write(&kernel, self.elf()).unwrap();
        fs::write(&initramfs, "").unwrap();
        let kvm = engine();
        let resources = Resources::now();
        let config = VmConfig {
            kernel,
            initramfs,
            cmdline: String::new(),
            kaslr: true,
            topology: Topology { llcs: Llcs::even(1, 1 + self.others), ..Topology::DEFAULT },
            memory_mib: MEMORY >> 20,
            ports: vec!["a".to_owned(), "b".to_owned()],
        };
        let vm = Some(kvm.boot(&config).unwrap());
        Machine { vm, config, resources, _dir: dir, _alone: alone }
    }
}

/// Returns the engine of all machines.
pub(crate) fn engine() -> &'static Kvm {
    static KVM: LazyLock<Kvm> = LazyLock::new(|| Kvm::open().unwrap());
    &KVM
}

/// A machine that must leave no resources behind when it is dropped, whatever its guest did.
#[derive(Debug)]
pub(crate) struct Machine {
    vm: Option<Box<dyn Vm>>,
    pub(crate) config: VmConfig,
    resources: Resources,
    _dir: TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// The output of a machine, and why it exited.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) reason: ExitReason,
    pub(crate) console: Vec<u8>,
    pub(crate) port_bytes: usize,
}

impl Machine {
    pub(crate) fn vm(&mut self) -> &mut dyn Vm {
        &mut **self.vm.as_mut().expect("the machine exists until it is dropped")
    }

    /// Runs an action, which must finish soon.
    pub(crate) fn promptly<T>(&mut self, action: impl FnOnce(&mut dyn Vm) -> T) -> T {
        let began = Instant::now();
        let result = action(self.vm());
        let took = began.elapsed();
        assert!(took < SOON / 2, "it took {took:?}");
        result
    }

    /// Runs until the guest ends, at most for `limit`.
    pub(crate) fn run(&mut self, limit: Duration) -> End {
        let mut end = End { reason: ExitReason::Stopped, console: Vec::new(), port_bytes: 0 };
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            match self.vm().next_event(deadline).unwrap() {
                Event::Console(bytes) => end.console.extend(bytes),
                Event::Port { bytes, .. } => end.port_bytes += bytes.len(),
                Event::Exited(reason) => return End { reason, ..end },
                Event::Deadline => {}
            }
        }
        let what = self.vm().pause().map(|()| self.vm().registers(0));
        panic!("the guest still runs: {what:x?}");
    }

    /// Runs the guest for a moment and discards its output.
    pub(crate) fn watch(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            let event = self.vm().next_event(deadline).unwrap();
            assert!(!matches!(event, Event::Exited(_)), "{event:?}");
        }
    }

    /// Runs the guest until it has counted something at `at`, however slow this host is.
    pub(crate) fn watch_count(&mut self, at: u32) {
        let deadline = Instant::now() + SOON;
        while self.read32(at) == 0 {
            assert!(Instant::now() < deadline, "nothing was counted at {at:#x}");
            self.watch(Duration::from_millis(50));
        }
    }

    /// Pauses, resumes and stops a guest that is busy.
    pub(crate) fn check_controllable(mut self) {
        for _ in 0..3 {
            self.watch(Duration::from_millis(300));
            self.promptly(|vm| vm.pause().unwrap());
            self.vm().registers(0).unwrap();
            self.promptly(|vm| vm.resume().unwrap());
        }
        self.watch(Duration::from_millis(300));
        self.promptly(|vm| vm.stop().unwrap());
        assert_eq!(self.run(SOON).reason, ExitReason::Stopped);
    }

    pub(crate) fn read<const N: usize>(&mut self, at: u32) -> [u8; N] {
        let mut bytes = [0; N];
        self.vm().read_memory(at.into(), &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn read32(&mut self, at: u32) -> u32 {
        u32::from_le_bytes(self.read(at))
    }

    /// Returns how much the memory of this process has grown since before the machine.
    pub(crate) fn growth(&self) -> u64 {
        Resources::now().memory.saturating_sub(self.resources.memory)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let began = Instant::now();
        self.vm = None;
        let took = began.elapsed();
        if !std::thread::panicking() {
            assert!(took < SOON / 2, "dropping it took {took:?}");
            let now = Resources::now();
            assert_eq!((now.vcpus, now.files), (0, self.resources.files));
        }
    }
}

/// The resources of this process that a machine uses.
#[derive(Debug)]
struct Resources {
    vcpus: usize,
    files: usize,
    /// Bytes of anonymous memory, including that of guests.
    memory: u64,
}

impl Resources {
    fn now() -> Self {
        let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
        let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let kib: u64 = anonymous.trim().trim_end_matches(" kB").parse().unwrap();
        Self {
            vcpus: names.filter(|name| name.starts_with("vcpu")).count(),
            files: fs::read_dir("/proc/self/fd").unwrap().count(),
            memory: kib << 10,
        }
    }
}
