//! Chooses the engine, with the reason.

use std::sync::OnceLock;

use anyhow::{Result, bail};
use ktstr_core::machine::Timing;
use ktstr_vmm::Engine;
use ktstr_vmm::kvm::Kvm;
use ktstr_vmm::qemu::Qemu;

use crate::provision::{self, cache::Cache};

/// An engine, and the reason for choosing it.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) engine: Box<dyn Engine>,
    /// The value of `KTSTR_ENGINE` that selects it.
    pub(crate) name: &'static str,
    pub(crate) reason: String,
    /// The source of its program.
    pub(crate) origin: String,
}

impl Choice {
    /// Returns whether software emulates the guest's CPUs.
    pub(crate) fn is_emulated(&self) -> bool {
        self.engine.timing() == Timing::Emulated
    }
}

/// Returns the engine of this process: that of `KTSTR_ENGINE`, or the best that works on this host.
///
/// Probes the host once.
pub(crate) fn choose(cache: &Cache) -> Result<&'static Choice> {
    static CHOICE: Once = Once::new();
    once(&CHOICE, || decide(cache))
}

/// Returns the engine that gives guests `/dev/kvm`. `KTSTR_ENGINE` does not affect it.
pub(crate) fn nesting(cache: &Cache) -> Result<&'static Choice> {
    static CHOICE: Once = Once::new();
    once(&CHOICE, || {
        let program = provision::qemu::resolve(cache)?;
        let engine = Qemu::new(program.argv, program.version).with_nested_virtualization();
        let reason = "it emulates hardware virtualization".to_owned();
        Ok(Choice { engine: Box::new(engine), name: "qemu", reason, origin: program.note })
    })
}

type Once = OnceLock<Result<Choice, String>>;

fn once(choice: &'static Once, decide: impl FnOnce() -> Result<Choice>) -> Result<&'static Choice> {
    match choice.get_or_init(|| decide().map_err(|error| format!("{error:#}"))) {
        Ok(choice) => Ok(choice),
        Err(error) => bail!("{error}"),
    }
}

fn decide(cache: &Cache) -> Result<Choice> {
    let wanted = std::env::var_os("KTSTR_ENGINE").unwrap_or_default();
    // A value that is not UTF-8 is not the name of an engine either.
    match &*wanted.to_string_lossy() {
        "kvm" => match Kvm::open() {
            Ok(kvm) => Ok(on_kvm(kvm, "KTSTR_ENGINE=kvm".to_owned())),
            Err(unusable) => bail!(
                "KTSTR_ENGINE=kvm, but KVM is not usable: {unusable}; unset KTSTR_ENGINE to emulate the \
                 CPUs with QEMU"
            ),
        },
        "qemu" => on_qemu(cache, "KTSTR_ENGINE=qemu".to_owned()),
        "" | "auto" => match Kvm::open() {
            Ok(kvm) => Ok(on_kvm(kvm, "it runs a loop at the speed of a CPU".to_owned())),
            Err(unusable) => on_qemu(cache, unusable.to_string()),
        },
        other => bail!(
            "unknown engine in KTSTR_ENGINE={other}: the engines are `auto`, `kvm` and `qemu`"
        ),
    }
}

fn on_kvm(kvm: Kvm, reason: String) -> Choice {
    Choice { engine: Box::new(kvm), name: "kvm", reason, origin: "/dev/kvm".to_owned() }
}

fn on_qemu(cache: &Cache, reason: String) -> Result<Choice> {
    let program = provision::qemu::resolve(cache)?;
    let engine = Box::new(Qemu::new(program.argv, program.version));
    Ok(Choice { engine, name: "qemu", reason, origin: program.note })
}
