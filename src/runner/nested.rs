//! A machine that has a KVM: for what needs one, on a host whose own cannot run a kernel.
//!
//! QEMU emulates AMD's hardware virtualization, so the stock module `kvm_amd` works in its guest
//! and `/dev/kvm` there is a real one, if a slow one. Programs of this host run in that machine
//! with their libraries, and find kernels in a cache of their own; there is no network.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ktstr_core::topology::Topology;
pub use ktstr_core::wire::Stream;
use ktstr_core::wire::{Order, ShellOrder};

use super::initramfs::{Contents, MODULES};
use super::shell::{self, Userland};
use super::{Limits, Live, Prepared, Program, Wanted};
use crate::provision::{Cache, KernelSpec, kernel};
use crate::report;

/// `KTSTR_CACHE_DIR` in the machine.
const CACHE: &str = "/cache";

/// The machine's kernel, whose modules are known to run on the emulated CPU.
const KERNEL: &str = "debian:trixie";

/// Two CPUs, which in QEMU's AMD machines share no cache.
const TOPOLOGY: Topology = Topology { llcs: 2, cores_per_llc: 1, ..Topology::DEFAULT };

/// Enough for two guests of a gigabyte beside all that is unpacked.
const MEMORY_MIB: u32 = 4096;

/// A machine with `/dev/kvm`, two CPUs, a shell and the usual tools in `/bin`.
#[derive(Debug, Clone, Default)]
pub struct Outer {
    /// The kernels that ktstr finds in there; only those known by name.
    pub kernels: Vec<KernelSpec>,
    /// More programs, with the libraries they need: where on this host, where in the machine.
    /// Over `/tmp` and `/run` it mounts empty file systems.
    pub programs: Vec<(PathBuf, String)>,
    /// Other files, alike. They keep their permissions.
    pub files: Vec<(PathBuf, String)>,
}

impl Outer {
    /// Boots the machine, runs `argv` in it and returns its exit status, 128 and the number for a
    /// signal. `hear` gets its output as it comes. Its standard input is empty.
    ///
    /// Needs a `main` that begins with [`init_if_guest`](super::init_if_guest).
    ///
    /// # Errors
    ///
    /// If the machine cannot be prepared, or ends before the program does: the error then shows
    /// the end of its console. If the program takes longer than `timeout`, or `hear` fails.
    pub fn run(
        &self,
        argv: &[String],
        env: &[(String, String)],
        timeout: Duration,
        hear: &mut dyn FnMut(Stream, &[u8]) -> Result<()>,
    ) -> Result<u8> {
        let prepared = Prepared::new(&Wanted {
            program: Program::this_program()?,
            kernel: Some(KERNEL),
            topology: TOPOLOGY,
            memory_mib: MEMORY_MIB,
            kaslr: true,
            contents: self.contents()?,
            nests: true,
        })?;
        let memory_mib = prepared.config.memory_mib;
        let own = [("HOME", "/"), ("KTSTR_CACHE_DIR", CACHE)];
        let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let order = Order::Shell(ShellOrder {
            argv: argv.to_vec(),
            env: own.into_iter().chain(env.iter().cloned()).collect(),
            terminal: None,
            topology: TOPOLOGY,
            memory_mib,
        });
        let began = Instant::now();
        report::notice(&format!("booting a machine with KVM, {memory_mib} MiB ..."));
        let mut watch = Watch { started: None, timeout, hear, broken: None };
        let limits = Limits { duration: None, watchdog: shell::WATCHDOG };
        let outcome = prepared.run(order, limits, &mut |live| watch.attend(began, &live));
        match watch.broken {
            Some(error) => Err(error),
            None => shell::status(&outcome),
        }
    }

    fn contents(&self) -> Result<Contents> {
        let cache = Cache::from_env()?;
        let mut contents = Contents::from(Userland::of_host()?);
        contents.modules.push("kvm_amd");
        // In front: of two files with one name, the first is taken.
        contents.programs.splice(0..0, self.programs.iter().cloned());
        contents.files.extend(self.files.iter().cloned());
        for spec in &self.kernels {
            let kernel = kernel::resolve_spec(&cache, spec)?;
            let files = kernel.cached_files(&cache, &MODULES)?;
            contents
                .files
                .extend(files.into_iter().map(|(path, name)| (path, format!("{CACHE}/{name}"))));
        }
        Ok(contents)
    }
}

/// Attends to a program that runs.
struct Watch<'a> {
    /// When the machine was ready for it.
    started: Option<Instant>,
    timeout: Duration,
    hear: &'a mut dyn FnMut(Stream, &[u8]) -> Result<()>,
    broken: Option<anyhow::Error>,
}

impl Watch<'_> {
    fn attend(&mut self, booting_since: Instant, live: &Live<'_>) -> Option<Order> {
        let is_first = self.started.is_none();
        let started = *self.started.get_or_insert_with(Instant::now);
        if is_first {
            report::notice(&format!("ready after {:.1?}", started - booting_since));
        }
        if self.broken.is_none() {
            self.broken = self.pass_on(started, live).err();
        }
        match self.broken {
            Some(_) => Some(Order::Kill),
            None => is_first.then(|| Order::Input(Vec::new())),
        }
    }

    fn pass_on(&mut self, started: Instant, live: &Live<'_>) -> Result<()> {
        if let Live::Output(stream, bytes) = live {
            (self.hear)(*stream, bytes).context("cannot pass on what the program says")?;
        }
        ensure!(started.elapsed() < self.timeout, "not finished after {:.0?}", self.timeout);
        Ok(())
    }
}
