//! Identifies machines: guests with the same key have the same state after the boot.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::{Context, Result};
use ktstr_core::machine::MachineSpec;
use ktstr_vmm::VmConfig;
use serde_json::json;

use crate::provision;
use crate::runner::engine::Choice;

/// The version of the format. It changes with the meaning of the files of a template.
const FORMAT: u32 = 1;

/// The properties of a CPU that guests of KVM depend on.
///
/// Source: Linux 6.12, arch/x86/kernel/cpu/proc.c.
const CPU_FACTS: [&str; 7] =
    ["vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags"];

/// Returns everything that the state of a booted machine depends on, as text. The path of the initramfs, which is in
/// the cache, identifies its content.
///
/// # Errors
///
/// If the kernel image or a fact of the host cannot be read.
pub(in crate::runner) fn key(
    choice: &Choice,
    config: &VmConfig,
    spec: &MachineSpec,
) -> Result<String> {
    let VmConfig { kernel, initramfs, cmdline, kaslr, topology: _, memory_mib: _, ports } = config;
    let image =
        fs::metadata(kernel).with_context(|| format!("cannot find {}", kernel.display()))?;
    let key = json!({
        "format": FORMAT,
        "engine": [choice.name, &choice.engine.describe(), &choice.origin],
        "kernel": [kernel.to_string_lossy(), provision::identity(&image)],
        "initramfs": initramfs.to_string_lossy(),
        "cmdline": cmdline,
        "kaslr": kaslr,
        // Has the topology and the memory.
        "machine": spec,
        "ports": ports,
        "host": host()?,
    });
    Ok(key.to_string())
}

/// Returns the facts of this host: its kernel, its boot ID, because saved machines are valid until a reboot, and its
/// CPU.
fn host() -> Result<Vec<String>> {
    let read =
        |path: &str| fs::read_to_string(path).with_context(|| format!("failed to read {path}"));
    let mut facts = vec![
        read("/proc/sys/kernel/osrelease")?,
        read("/proc/sys/kernel/version")?,
        read("/proc/sys/kernel/random/boot_id")?,
    ];
    facts.extend(cpu_facts(&read("/proc/cpuinfo")?));
    Ok(facts)
}

/// Returns the facts of the first CPU.
fn cpu_facts(cpuinfo: &str) -> Vec<String> {
    let first = cpuinfo.lines().take_while(|line| !line.trim().is_empty());
    let facts = first.filter(|line| {
        line.split_once(':').is_some_and(|(name, _)| CPU_FACTS.contains(&name.trim()))
    });
    facts.map(str::to_owned).collect()
}

/// Hashes a key for the name of its template.
pub(super) fn hash(key: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use ktstr_core::machine::Timing;
    use ktstr_vmm::{Engine, Error, Vm};

    use super::*;

    #[derive(Debug)]
    struct NamedEngine(&'static str);

    impl Engine for NamedEngine {
        fn describe(&self) -> String {
            self.0.to_owned()
        }

        fn timing(&self) -> Timing {
            Timing::Emulated
        }

        fn boot(&self, _: &VmConfig) -> Result<Box<dyn Vm>, Error> {
            Err(Error::Unsupported { operation: "boot" })
        }
    }

    fn choice(name: &'static str, version: &'static str, origin: &str) -> Choice {
        let (engine, reason) = (Box::new(NamedEngine(version)), String::new());
        Choice { engine, name, reason, origin: origin.to_owned() }
    }

    #[test]
    fn key_changes_with_all_that_a_machine_depends_on() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel");
        fs::write(&kernel, "a kernel").unwrap();
        let spec = MachineSpec::DEFAULT;
        let config = VmConfig {
            kernel: kernel.clone(),
            initramfs: "/cache/initramfs/1.cpio".into(),
            cmdline: "panic=-1".to_owned(),
            kaslr: true,
            topology: spec.topology,
            memory_mib: spec.memory_mib,
            ports: vec!["wire".to_owned()],
        };
        let changed = |change: fn(&mut VmConfig)| {
            let mut config = config.clone();
            change(&mut config);
            config
        };
        let qemu = || choice("qemu", "QEMU 11", "a package");
        let plain = key(&qemu(), &config, &spec).unwrap();
        assert_eq!(key(&qemu(), &config, &spec).unwrap(), plain);
        let more_memory = MachineSpec { memory_mib: 512, ..spec.clone() };
        let mut keys = vec![
            key(&choice("kvm", "QEMU 11", "a package"), &config, &spec).unwrap(),
            key(&choice("qemu", "QEMU 12", "a package"), &config, &spec).unwrap(),
            key(&choice("qemu", "QEMU 11", "/bin/qemu"), &config, &spec).unwrap(),
            key(&qemu(), &config, &more_memory).unwrap(),
            key(&qemu(), &changed(|config| config.initramfs.push("2")), &spec).unwrap(),
            key(&qemu(), &changed(|config| config.cmdline.push('2')), &spec).unwrap(),
            key(&qemu(), &changed(|config| config.kaslr = false), &spec).unwrap(),
            key(&qemu(), &changed(|config| config.ports.push("2".to_owned())), &spec).unwrap(),
        ];
        // The same path, but another kernel.
        fs::write(&kernel, "another kernel").unwrap();
        keys.push(key(&qemu(), &config, &spec).unwrap());
        keys.push(plain);
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key), "{key}");
        }
        assert!(key(&qemu(), &changed(|config| config.kernel.push("2")), &spec).is_err());
    }

    #[test]
    fn cpu_facts_are_those_of_the_first_cpu_that_guests_see() {
        let cpu = "processor\t: 0\nmodel name\t: a CPU\nmicrocode\t: 0x1\ncpu MHz\t\t: 2100\n";
        let facts = cpu_facts(&format!("{cpu}\n{}", cpu.replace("0x1", "0x2")));
        assert_eq!(facts, ["model name\t: a CPU", "microcode\t: 0x1"]);
    }

    #[test]
    fn host_identifies_its_boot() {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert!(host().unwrap().contains(&boot));
    }
}
