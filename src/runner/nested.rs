//! A machine that has a KVM: for what needs one, on a host whose own cannot run a kernel.
//!
//! QEMU emulates AMD's hardware virtualization, so the stock module `kvm_amd` works in its guest
//! and `/dev/kvm` there is a real one, if a slow one. Programs of this host run in that machine
//! with their libraries, and find kernels in a cache of their own; there is no network.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ktstr_core::topology::{Llcs, Topology};
pub use ktstr_core::wire::Stream;
use ktstr_core::wire::{Order, ShellOrder};

use super::initramfs::{GuestFiles, MODULES};
use super::shell::{self, Userland};
use super::{Live, Prepared, Program, RunLimits, Wanted};
use crate::notice::notice;
use crate::provision::{Cache, KernelSpec, find_program, kernel};

/// `KTSTR_CACHE_DIR` in the machine.
const CACHE: &str = "/cache";

/// The machine's kernel, whose modules are known to run on the emulated CPU.
const KERNEL: &str = "debian:trixie";

/// One CPU, with which guests live longer (docs/decisions/0006).
const TOPOLOGY: Topology = Topology { llcs: Llcs::even(1, 1), ..Topology::DEFAULT };

/// Enough for two guests of a gigabyte beside all that is unpacked.
const MEMORY_MIB: u32 = 4096;

/// A machine with `/dev/kvm`, one CPU, a shell and the usual tools in `/bin`.
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
        self.run_on(Program::this_program(), argv, env, timeout, hear)
    }

    /// Does so in a machine whose PID 1 is `init`.
    fn run_on(
        &self,
        init: Program,
        argv: &[String],
        env: &[(String, String)],
        timeout: Duration,
        hear: &mut dyn FnMut(Stream, &[u8]) -> Result<()>,
    ) -> Result<u8> {
        let prepared = Prepared::new(&Wanted {
            program: init,
            kernel: Some(KERNEL),
            topology: TOPOLOGY,
            memory_mib: MEMORY_MIB,
            kaslr: true,
            mitigations: false,
            env: &[],
            contents: self.contents()?,
            nests: true,
        })?;
        let memory_mib = prepared.config.memory_mib;
        let own = [("KTSTR_CACHE_DIR".to_owned(), CACHE.to_owned())];
        let env = own.iter().chain(env).map(|(name, value)| (name.into(), value.into()));
        let order = Order::Shell(ShellOrder {
            argv: argv.to_vec(),
            env: env.collect(),
            terminal: None,
            topology: TOPOLOGY,
            memory_mib,
        });
        let began = Instant::now();
        notice(&format!("booting a machine with KVM, {memory_mib} MiB ..."));
        let mut watch = Watch { started: None, timeout, hear, broken: None };
        let limits = RunLimits { duration: None, watchdog: shell::WATCHDOG };
        let outcome = prepared.run(order, limits, &mut |live| watch.attend(began, &live));
        match watch.broken {
            Some(error) => Err(error),
            None => shell::status(&outcome?).context("the machine with KVM failed"),
        }
    }

    fn contents(&self) -> Result<GuestFiles> {
        let cache = Cache::from_env()?;
        let mut contents = GuestFiles::from(Userland::of_host()?);
        contents.modules.push("kvm_amd");
        // Reads compressed modules; busybox has one, with other options.
        let xz = find_program("xz").map(|path| (path, "/bin/xz".to_owned()));
        // In front: of two files with one name, the first is taken.
        contents.programs.splice(0..0, self.programs.iter().cloned().chain(xz));
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
            notice(&format!("ready after {:.1?}", started - booting_since));
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_program_finds_kvm_its_kernel_and_its_files() {
        // Where everything runs on KVM, such as in this very machine, there may be no QEMU.
        if std::env::var("KTSTR_ENGINE").is_ok_and(|engine| engine == "kvm") {
            eprintln!("skipped: KTSTR_ENGINE=kvm");
            return;
        }
        let script = tempfile::NamedTempFile::new().unwrap();
        let commands = "#!/bin/sh\ncd $KTSTR_CACHE_DIR/kernels-1/*/ && test -s current || exit 1\n\
                        test -c /dev/kvm && echo \"$1\" && cat >&2 && exit 7\n";
        std::fs::write(script.path(), commands).unwrap();
        script.as_file().set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
        let outer = Outer {
            kernels: vec![KernelSpec::default_kernel()],
            files: vec![(script.path().to_owned(), "/checks/all".to_owned())],
            ..Outer::default()
        };
        let argv = ["/checks/all", "two words"].map(str::to_owned);
        let mut said = Vec::new();
        let mut hear = |stream, bytes: &[u8]| {
            said.push((stream, String::from_utf8_lossy(bytes).into_owned()));
            Ok(())
        };
        let init = Program::this_test_binary().unwrap();
        let status = outer.run_on(init, &argv, &[], Duration::from_secs(60), &mut hear).unwrap();
        assert_eq!((status, said), (7, vec![(Stream::Stdout, "two words\n".to_owned())]));
    }

    #[test]
    fn a_program_that_takes_too_long_is_killed() {
        let mut watch = Watch {
            started: None,
            timeout: Duration::ZERO,
            hear: &mut |_, _| Ok(()),
            broken: None,
        };
        assert_eq!(watch.attend(Instant::now(), &Live::Idle), Some(Order::Kill));
        let error = watch.broken.unwrap().to_string();
        assert!(error.contains("not finished after 0ns"), "{error}");
    }
}
