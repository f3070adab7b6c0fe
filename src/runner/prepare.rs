//! Prepares a machine: kernel, engine, initramfs, command line.

use std::ffi::OsString;
use std::fs::File;

use anyhow::{Context, Result, anyhow, ensure};
use ktstr_core::machine::{self, MachineSpec, Topology};
use ktstr_core::model::pid1;
use ktstr_core::record::{EngineFacts, KernelFacts, MachineFacts};
use ktstr_core::registry;
use ktstr_core::result::{InitFailure, RunEnd};
use ktstr_core::wire::{self, Request};
use ktstr_vmm::VmConfig;

use super::host_cpus::HostCpus;
use super::initramfs::{self, GuestFiles, Initramfs};
use super::program::Program;
use super::session::{self, Live, RunLimits};
use super::template::{self, Plan, Template};
use super::{console, engine, environment};
use crate::provision::{self, Cache, Kernel};

/// A machine to prepare.
#[derive(Debug)]
pub(crate) struct MachineRequest<'a> {
    pub(crate) program: Program,
    pub(crate) spec: &'a MachineSpec,
    /// The environment variables of the body.
    pub(crate) env: &'a [(OsString, OsString)],
    /// The files of the guest, in addition to its program.
    pub(crate) contents: GuestFiles,
    /// Whether the guest has `/dev/kvm`. Its CPUs then share no cache, it boots without the words of
    /// `KTSTR_KARGS`, and its initramfs is not cached.
    pub(crate) nests: bool,
    /// Whether its guest may be forked from one that was booted before.
    pub(crate) forks: bool,
}

/// A machine that is ready to boot.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) choice: &'static engine::Choice,
    pub(crate) kernel: Kernel,
    /// The request's machine with the chosen kernel, enough memory to boot, and the words of
    /// `KTSTR_KARGS`.
    pub(crate) spec: MachineSpec,
    pub(crate) config: VmConfig,
    pti_disabled: bool,
    /// Limits the number of guests that run at once.
    host_cpus: Option<HostCpus>,
    /// The arguments of PID 1.
    arguments: Vec<String>,
    /// The guest to fork, or to save for later tests.
    pub(super) template: Option<Template>,
    /// Keeps an initramfs without a name open.
    _initramfs: Option<File>,
}

impl Prepared {
    /// Finds kernel and engine, and builds the initramfs, or takes all three from the cache.
    pub(crate) fn new(request: &MachineRequest<'_>) -> Result<Self> {
        let host_cpus = HostCpus::from_env()?;
        let cache = Cache::from_env()?;
        let choice = if request.nests { engine::nesting(&cache) } else { engine::choose(&cache) }?;
        let kernel = provision::kernel::resolve(&cache, request.spec.kernel.as_deref())?;
        let engine = choice.engine.describe();
        tracing::info!("engine {engine}: {} ({})", choice.reason, choice.origin);
        tracing::info!("kernel {} {}", kernel.spec, kernel.version);
        let initramfs = Initramfs {
            init: &request.program.path,
            arguments: &request.program.arguments,
            kernel: &kernel,
            contents: &request.contents,
        };
        let unnamed = request.nests.then(|| initramfs.unnamed(cache.root())).transpose()?;
        let initramfs = match &unnamed {
            Some(file) => initramfs::path_of(file),
            None => initramfs.ensure(&cache)?,
        };
        let initramfs_bytes = std::fs::metadata(&initramfs)
            .with_context(|| format!("cannot find {}", initramfs.display()))?
            .len();
        let MachineSpec { topology, memory_mib, kaslr, mitigations, .. } = *request.spec;
        let env_kargs = if request.nests { String::new() } else { environment::kargs()? };
        let spec = MachineSpec {
            topology,
            memory_mib: memory_mib.max(needed_mib(&topology, initramfs_bytes)),
            kernel: Some(kernel.spec.to_string().into()),
            kaslr,
            mitigations,
            kargs: kargs(&request.spec.kargs, &env_kargs)?.into(),
        };
        check_min_stack(request.env, spec.memory_mib)?;
        // With page-table isolation, each system call flushes the emulated TLB: 20 us become 1 us.
        let pti_disabled = choice.is_emulated() && !mitigations;
        let config = VmConfig {
            kernel: kernel.boot.path.clone(),
            initramfs,
            cmdline: cmdline(request, &spec, pti_disabled)?,
            kaslr: spec.kaslr,
            topology,
            memory_mib: spec.memory_mib,
            ports: vec![wire::PORT.to_owned()],
        };
        // An initramfs outside of the cache is that of this process.
        let template = if request.forks && config.initramfs.starts_with(cache.root()) {
            let key = template::key(choice, &config, &spec)?;
            Some(Template::new(cache, key, template::limit()?))
        } else {
            None
        };
        let arguments = request.program.arguments.clone();
        Ok(Self {
            choice,
            kernel,
            spec,
            config,
            arguments,
            pti_disabled,
            host_cpus,
            template,
            _initramfs: unnamed,
        })
    }

    /// Boots the machine, or forks it, and lets it carry out `request`.
    ///
    /// Before a test, it waits until the host has enough free CPUs for the guest. A shell does not
    /// reserve any, because it may stay open for hours.
    ///
    /// # Errors
    ///
    /// If waiting for CPUs of the host fails.
    pub(crate) fn run(
        &self,
        request: Request,
        limits: RunLimits,
        live: &mut dyn FnMut(Live<'_>) -> Option<Request>,
    ) -> Result<session::RunOutcome> {
        let host_cpus = self.host_cpus.as_ref().filter(|_| matches!(request, Request::Run(_)));
        let nr_cpus = self.spec.topology.nr_cpus();
        // Before it takes CPUs: a test that waits for a template must not keep others from running.
        let (plan, template) =
            self.template.as_ref().map_or((Plan::Boot(None), None), Template::plan);
        let taken = host_cpus.map(|host_cpus| host_cpus.take(nr_cpus)).transpose()?;
        tracing::debug!("start {:?}", self.config);
        let mut outcome =
            session::run(&*self.choice.engine, &self.config, plan, request, limits, live);
        outcome.timings.template = template;
        outcome.timings.queue = taken.and_then(|taken| taken.waited);
        if let RunEnd::InitFailed(why) = &mut outcome.end
            && console::init_succeeded(&outcome.console)
        {
            let (arguments, registered) = (self.arguments.clone(), registry::names());
            *why = InitFailure::NoTestRun { arguments, registered };
        }
        tracing::debug!("{:?}", outcome.timings);
        Ok(outcome)
    }

    /// Returns the facts of the machine.
    pub(crate) fn machine(&self) -> MachineFacts {
        MachineFacts {
            engine: EngineFacts {
                name: self.choice.name.to_owned(),
                version: self.choice.engine.describe(),
                timing: self.choice.engine.timing(),
                reason: self.choice.reason.clone(),
            },
            kernel: KernelFacts {
                version: self.kernel.version.clone(),
                image: self.kernel.id.clone(),
            },
            spec: self.spec.clone(),
            cmdline: self.config.cmdline.clone(),
            pti_disabled: self.pti_disabled,
            initramfs: self.config.initramfs.clone(),
        }
    }
}

/// Returns the least memory with which the machine boots: that of a stock kernel, that of each CPU,
/// and the initramfs twice, because it exists packed and unpacked for a moment.
fn needed_mib(topology: &Topology, initramfs_bytes: u64) -> u32 {
    let initramfs_mib = u32::try_from(initramfs_bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX / 4);
    112 + 3 * topology.nr_cpus() + 2 * initramfs_mib
}

/// Returns the words of the spec and of `KTSTR_KARGS`, separated by single spaces.
///
/// # Errors
///
/// If a word could break the runner's own arguments.
fn kargs(of_spec: &str, of_env: &str) -> Result<String> {
    let both = format!("{of_spec} {of_env}");
    let words = both.split_whitespace().collect::<Vec<_>>().join(" ");
    machine::kargs::check(&words).map_err(|error| {
        let variable = environment::KTSTR_KARGS;
        anyhow!("invalid kernel arguments `{words}` (key `kargs` and {variable}): {error}")
    })?;
    Ok(words)
}

fn cmdline(request: &MachineRequest<'_>, spec: &MachineSpec, pti_disabled: bool) -> Result<String> {
    let mut words = vec![
        "panic=-1".to_owned(),
        "oops=panic".to_owned(),
        // Warnings and time stamps must reach the console, whatever the kernel's defaults.
        "printk.time=1".to_owned(),
        "loglevel=7".to_owned(),
        // They take a third of a stock kernel's boot under emulation, and no test needs them.
        "cryptomgr.notests".to_owned(),
        "initcall_blacklist=jent_mod_init".to_owned(),
    ];
    if request.nests {
        // Fewer timers, because each may make QEMU repeat an interrupt (docs/decisions/0006).
        words.extend(["highres=off", "nohz=off"].map(str::to_owned));
    }
    if !spec.kaslr {
        words.push("nokaslr".to_owned());
    }
    if pti_disabled {
        words.push("pti=off".to_owned());
    }
    // The kernel passes unknown parameters to PID 1 as environment variables.
    words.push(format!("{}=1", pid1::ENV));
    words.push(format!("LD_LIBRARY_PATH={}", initramfs::LIBRARIES));
    words.push("PATH=/bin:/sbin:/usr/bin:/usr/sbin".to_owned());
    words.extend(spec.kargs.split_whitespace().map(str::to_owned));
    Ok(words.join(" "))
}

/// The size of the stacks of Rust's threads, in bytes.
const MIN_STACK: &str = "RUST_MIN_STACK";

/// Fails if `RUST_MIN_STACK` among the variables of the body, unless Rust ignores its value, is too large for the
/// guest: its kernel refuses a mapping larger than its memory, and the body could not start.
fn check_min_stack(env: &[(OsString, OsString)], memory_mib: u32) -> Result<()> {
    let variable = env.iter().find(|(name, _)| name == MIN_STACK);
    let bytes = variable.and_then(|(_, value)| value.to_str()?.parse::<u64>().ok()).unwrap_or(0);
    ensure!(
        bytes <= u64::from(memory_mib) << 19,
        "{MIN_STACK} is {bytes} bytes, more than half of the guest's memory of {memory_mib} MiB: \
         lower it or raise `memory_mib`"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kargs_appends_the_variable_and_checks_both() {
        for (of_spec, of_env, want) in
            [("", "", ""), ("a=1  b", "", "a=1 b"), ("", " c", "c"), ("a", "c\n", "a c")]
        {
            assert_eq!(kargs(of_spec, of_env).unwrap(), want);
        }
        for (of_spec, of_env) in [("nr_cpus=1", ""), ("", "console=tty0")] {
            let error = kargs(of_spec, of_env).unwrap_err().to_string();
            assert!(error.contains("KTSTR_KARGS): remove `"), "{error}");
        }
    }

    #[test]
    fn check_min_stack_rejects_values_larger_than_the_guest() {
        let check = |value: &str| check_min_stack(&[(MIN_STACK.into(), value.into())], 256);
        for value in ["8388608", "134217728", "8 MiB", "\u{a0}1", "", "-1"] {
            check(value).unwrap();
        }
        check_min_stack(&[("RUST_LOG".into(), "134217729".into())], 256).unwrap();
        let error = check("134217729").unwrap_err().to_string();
        let want = "RUST_MIN_STACK is 134217729 bytes, more than half of the guest's memory of \
                    256 MiB: lower it or raise `memory_mib`";
        assert_eq!(error, want);
    }
}
