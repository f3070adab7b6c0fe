//! `cargo xtask bench vmm`: compares the KVM engine with QEMU's machines, all on the KVM of one machine.
//!
//! That machine is one of [`runner::nested`](ktstr::runner::nested), wherever this runs, so that
//! every measurement has the same KVM. All VMMs get the same kernel file, initramfs and command
//! line, and take turns; what drifts, drifts for all of them.

mod carry;
mod inside;
pub(super) mod process;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ktstr::provision::{Cache, KernelSpec, qemu};
use ktstr::runner::bare_initramfs;
use ktstr::runner::nested::{Outer, Stream};
use serde_json::Value;

pub(crate) use inside::Inside;
use table::Table;

/// Where the program of the engine is in the machine.
const BOOT: &str = "/bench/boot";
/// Where the initramfs of all guests is in there.
const INITRAMFS: &str = "/bench/initramfs";

/// Arguments of the benchmark.
#[derive(Debug, clap::Args)]
pub(crate) struct Vmm {
    /// Rounds; in each, every VMM boots every kernel with every number of CPUs.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Kernels to boot, of those known by name; debian:trixie and debian:sid if none is given.
    #[arg(long)]
    kernel: Vec<KernelSpec>,
    /// Numbers of CPUs; 1 and 4 if none is given.
    #[arg(long)]
    cpus: Vec<u32>,
    /// Seconds after which it is given up.
    #[arg(long, default_value_t = 7200)]
    timeout: u64,
}

impl Vmm {
    pub(crate) fn run(self) -> Result<()> {
        let mut kernels = self.kernel;
        if kernels.is_empty() {
            kernels = ["debian:trixie", "debian:sid"]
                .map(str::parse)
                .into_iter()
                .collect::<Result<_, _>>()?;
        }
        let cpus = if self.cpus.is_empty() { vec![1, 4] } else { self.cpus };
        let boot = build("boot", &[])?;
        let hello = build("hello", &["-C", "target-feature=+crt-static"])?;
        let folder = tempfile::tempdir()?;
        let initramfs = folder.path().join("initramfs");
        fs::write(&initramfs, bare_initramfs(&hello)?)?;
        let qemu = qemu::resolve(&Cache::from_env()?)?;
        let mut outer = Outer {
            kernels,
            programs: vec![(boot, BOOT.to_owned())],
            files: vec![(initramfs, INITRAMFS.to_owned())],
        };
        carry::qemu(&qemu, &mut outer)?;
        // PID 1 of the machine is this program.
        let mut argv = ["/proc/1/exe", "bench", "vmm-inside"].map(str::to_owned).to_vec();
        argv.push(format!("--rounds={}", self.rounds));
        argv.extend(outer.kernels.iter().map(|kernel| format!("--kernel={kernel}")));
        argv.extend(cpus.iter().map(|cpus| format!("--cpus={cpus}")));
        argv.push("--".to_owned());
        for word in &qemu.argv {
            argv.push(word.to_str().context("QEMU's command line is not UTF-8")?.to_owned());
        }
        let (mut said, mut table) = (Vec::new(), Table::default());
        let timeout = Duration::from_secs(self.timeout);
        let ended = outer.run(&argv, &[], timeout, &mut |stream, bytes| match stream {
            Stream::Stdout => {
                said.extend_from_slice(bytes);
                Ok(())
            }
            Stream::Stderr => {
                eprint!("{}", String::from_utf8_lossy(bytes));
                Ok(())
            }
        });
        // Print what was measured before a failure.
        for line in String::from_utf8_lossy(&said).lines() {
            table.add(line).with_context(|| format!("cannot parse the machine's line `{line}`"))?;
        }
        println!("QEMU {}, {} rounds", qemu.version, self.rounds);
        print!("{table}");
        ensure!(ended? == 0, "the measurement failed");
        Ok(())
    }
}

/// Builds an example of the engine's crate for release; returns its file.
fn build(example: &str, rustc_options: &[&str]) -> Result<PathBuf> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["rustc", "--release", "--package", "ktstr-vmm", "--example", example])
        .args(["--message-format=json-render-diagnostics", "--"])
        .args(rustc_options)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "the example `{example}` does not build");
    let messages = String::from_utf8(output.stdout).context("cargo's messages are not UTF-8")?;
    let executable = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        Some(Path::new(message["executable"].as_str()?).to_owned())
    });
    executable.with_context(|| {
        format!("cargo's messages contain no executable of the example `{example}`")
    })
}
