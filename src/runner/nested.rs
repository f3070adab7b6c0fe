//! Boots a machine with `/dev/kvm`, for hosts without a usable KVM.
//!
//! QEMU emulates AMD's hardware virtualization, so the stock module `kvm_amd` works in its guest, slowly.
//! Programs of this host run in that machine with their libraries, and with a cache of kernels. The machine
//! has no network.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ktstr_core::machine::{Llcs, MachineSpec, Topology};
pub use ktstr_core::wire::Stream;
use ktstr_core::wire::{Request, ShellRequest};

use super::initramfs::{GuestFiles, MODULES};
use super::shell::{self, Userland};
use super::{Live, MachineRequest, Prepared, Program, RunLimits};
use crate::notice::notice;
use crate::provision::{Cache, KernelSpec, find_program, kernel};

/// `KTSTR_CACHE_DIR` in the machine.
const CACHE: &str = "/cache";

/// The machine.
const MACHINE: MachineSpec = MachineSpec {
    // Its modules are known to work on the emulated CPU.
    kernel: Some(Cow::Borrowed("debian:trixie")),
    // With more CPUs, guests of this machine crash more often (docs/decisions/0006).
    topology: Topology { llcs: Llcs::even(1, 1), ..Topology::DEFAULT },
    // Enough for the unpacked files and two guests of one gigabyte.
    memory_mib: 4096,
    ..MachineSpec::DEFAULT
};

/// A machine with `/dev/kvm`, one CPU, a shell and the usual tools in `/bin`.
#[derive(Debug, Clone, Default)]
pub struct Outer {
    /// The kernels in the cache of the machine; only those known by name.
    pub kernels: Vec<KernelSpec>,
    /// More programs: path on this host, path in the machine. Their libraries are added. The machine mounts empty
    /// file systems over `/tmp` and `/run`.
    pub programs: Vec<(PathBuf, String)>,
    /// Other files, with their permissions: path on this host, path in the machine.
    pub files: Vec<(PathBuf, String)>,
}

impl Outer {
    /// Boots the machine, runs `argv` in it and returns the exit status, or 128 plus the number of a signal.
    /// `on_output` receives the output as it arrives. Standard input is empty.
    ///
    /// Needs a `main` that begins with [`init_if_guest`](super::init_if_guest).
    ///
    /// # Errors
    ///
    /// If the machine cannot be prepared, or ends before the program (the error then shows the end of the
    /// console); if the program takes longer than `timeout`; if `on_output` fails.
    pub fn run(
        &self,
        argv: &[String],
        env: &[(String, String)],
        timeout: Duration,
        on_output: &mut dyn FnMut(Stream, &[u8]) -> Result<()>,
    ) -> Result<u8> {
        self.run_on(Program::this_program(), argv, env, timeout, on_output)
    }

    /// Runs `argv` in a machine with the PID 1 `init`.
    fn run_on(
        &self,
        init: Program,
        argv: &[String],
        env: &[(String, String)],
        timeout: Duration,
        on_output: &mut dyn FnMut(Stream, &[u8]) -> Result<()>,
    ) -> Result<u8> {
        let prepared = Prepared::new(&MachineRequest {
            program: init,
            spec: &MACHINE,
            env: &[],
            contents: self.contents()?,
            nests: true,
            forks: false,
        })?;
        // The cache is in the memory of the machine.
        let own = [("KTSTR_CACHE_DIR", CACHE), ("KTSTR_CACHE_MAX", "512MiB")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let env = own.iter().chain(env).map(|(name, value)| (name.into(), value.into()));
        let request = Request::Shell(ShellRequest {
            argv: argv.to_vec(),
            env: env.collect(),
            terminal: None,
            machine: prepared.spec.clone(),
        });
        let began = Instant::now();
        notice(&format!("booting a machine with KVM, {} MiB ...", prepared.spec.memory_mib));
        let mut supervisor = Supervisor { started: None, timeout, on_output, error: None };
        let limits = RunLimits { duration: None, watchdog: shell::WATCHDOG };
        let outcome = prepared.run(request, limits, &mut |live| supervisor.handle(began, &live));
        match supervisor.error {
            Some(error) => Err(error),
            None => shell::status(&outcome?).context("the machine with KVM failed"),
        }
    }

    fn contents(&self) -> Result<GuestFiles> {
        let cache = Cache::from_env()?;
        let mut contents = GuestFiles::from(Userland::of_host()?);
        contents.modules.push("kvm_amd");
        // For compressed modules; the xz of busybox has other options.
        let xz = find_program("xz").map(|path| (path, "/bin/xz".to_owned()));
        // In front, because the first of two files with one name counts.
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

/// Supervises the program in the machine.
struct Supervisor<'a> {
    /// When the program started.
    started: Option<Instant>,
    timeout: Duration,
    on_output: &'a mut dyn FnMut(Stream, &[u8]) -> Result<()>,
    error: Option<anyhow::Error>,
}

impl Supervisor<'_> {
    fn handle(&mut self, booting_since: Instant, live: &Live<'_>) -> Option<Request> {
        let is_first = self.started.is_none();
        let started = *self.started.get_or_insert_with(Instant::now);
        if is_first {
            notice(&format!("ready after {:.1?}", started - booting_since));
        }
        if self.error.is_none() {
            self.error = self.pass_on(started, live).err();
        }
        match self.error {
            Some(_) => Some(Request::Kill),
            None => is_first.then(|| Request::Input(Vec::new())),
        }
    }

    fn pass_on(&mut self, started: Instant, live: &Live<'_>) -> Result<()> {
        if let Live::Output(stream, bytes) = live {
            (self.on_output)(*stream, bytes)
                .context("failed to pass on the output of the program")?;
        }
        ensure!(started.elapsed() < self.timeout, "program timed out after {:.0?}", self.timeout);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn run_provides_kvm_kernel_and_files() {
        // A host that runs everything on KVM, such as this very machine, may lack QEMU.
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
        let mut output = Vec::new();
        let mut on_output = |stream, bytes: &[u8]| {
            output.push((stream, String::from_utf8_lossy(bytes).into_owned()));
            Ok(())
        };
        let init = Program::this_test_binary().unwrap();
        let status =
            outer.run_on(init, &argv, &[], Duration::from_secs(60), &mut on_output).unwrap();
        assert_eq!((status, output), (7, vec![(Stream::Stdout, "two words\n".to_owned())]));
    }

    #[test]
    fn handle_kills_a_program_after_the_timeout() {
        let mut supervisor = Supervisor {
            started: None,
            timeout: Duration::ZERO,
            on_output: &mut |_, _| Ok(()),
            error: None,
        };
        assert_eq!(supervisor.handle(Instant::now(), &Live::Idle), Some(Request::Kill));
        let error = supervisor.error.unwrap().to_string();
        assert!(error.contains("program timed out after 0ns"), "{error}");
    }
}
