//! `cargo xtask bench boot`: where the time of a run goes, kernel by kernel.
//!
//! Each round runs, one after the other, a test with a cold initramfs, the same test warm, and the
//! yardstick: `qemu-system-x86_64 -accel tcg -M q35` with the bzImage, the same initramfs and no
//! option but a console. Rounds alternate and medians are compared, because the speed of a machine drifts.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ktstr::__private::{MachineSpec, TestEntry};
use ktstr::prelude::*;
use ktstr::provision::{self, Cache};
use ktstr::runner::{self, Program};
use ktstr::topology::{Llcs, Topology};

/// Arguments of the benchmark.
#[derive(Debug, clap::Args)]
pub(crate) struct Boot {
    /// Rounds per kernel.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Kernels to boot, as in `KTSTR_KERNEL`; all that are known by name if none is given.
    #[arg(long)]
    kernel: Vec<String>,
}

#[ktstr::__private::linkme::distributed_slice(ktstr::__private::TESTS)]
#[linkme(crate = ktstr::__private::linkme)]
static ENTRY: TestEntry = TestEntry {
    name: "bench_boot",
    module_path: module_path!(),
    machine: MachineSpec {
        topology: Topology { llcs: Llcs::even(1, 1), ..Topology::DEFAULT },
        ..MachineSpec::DEFAULT
    },
    body: |_| Ok(AssertResult::pass()),
    ..TestEntry::DEFAULT
};

/// What one round took, in the order of the table.
const ROWS: [&str; 9] = [
    "prepare, cold initramfs",
    "prepare, warm",
    "exec to first kernel line",
    "exec to /init",
    "exec to test body",
    "body end to verdict",
    "yardstick: exec to first kernel line",
    "yardstick: exec to /init",
    "ratio: exec to test body / yardstick's /init",
];

impl Boot {
    pub(crate) fn run(&self) -> Result<()> {
        let cache = Cache::from_env()?;
        let mut kernels = self.kernel.clone();
        if kernels.is_empty() {
            kernels = provision::kernel::list(&cache)?
                .iter()
                .map(|status| status.known.name.to_owned())
                .collect();
        }
        for spec in kernels {
            let rounds =
                (0..self.rounds).map(|_| round(&cache, &spec)).collect::<Result<Vec<_>>>()?;
            let (engine, reason) = runner::engine()?;
            println!("\n{spec} on {engine}, {} rounds, 1 CPU, 256 MiB ({reason})", self.rounds);
            println!("{:<46} {:>9} {:>9} {:>9}", "", "min", "median", "max");
            for (row, name) in ROWS.iter().enumerate() {
                let mut values: Vec<f64> = rounds.iter().map(|round| round[row]).collect();
                values.sort_by(f64::total_cmp);
                let (min, median, max) =
                    (values[0], values[values.len() / 2], values[values.len() - 1]);
                let unit = if name.starts_with("ratio") { "" } else { " ms" };
                println!("{name:<46} {min:>9.2} {median:>9.2} {max:>9.2}{unit}");
            }
        }
        Ok(())
    }
}

fn round(cache: &Cache, spec: &str) -> Result<[f64; ROWS.len()]> {
    let kernel = provision::kernel::resolve(cache, Some(spec))?;
    let entry = TestEntry {
        machine: MachineSpec { kernel: Some(spec.to_owned().into()), ..ENTRY.machine.clone() },
        ..ENTRY.clone()
    };
    // A copy of the program has a new identity, so its initramfs is built.
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("program");
    std::fs::copy(std::env::current_exe()?, &copy)?;
    let program = Program { path: copy, arguments: Vec::new() };
    let cold = pass(&entry, program.clone())?;
    let warm = pass(&entry, program)?;
    let (first_line, init) = plain_boot(cache, &kernel.image, &warm)?;
    let timings = warm.timings;
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let reached = |phase: Option<Duration>| phase.map(ms).context("a phase was not reached");
    let body = reached(timings.boot)? + reached(timings.ready)?;
    Ok([
        ms(cold.timings.prepare),
        ms(timings.prepare),
        reached(timings.first_line)?,
        reached(timings.init)?,
        body,
        ms(timings.teardown),
        ms(first_line),
        ms(init),
        body / ms(init),
    ])
}

fn pass(entry: &TestEntry, program: Program) -> Result<VmResult> {
    let result = runner::run_in_vm(entry, program)?;
    ensure!(
        result.end == RunEnd::Verdict(AssertResult::pass()),
        "the run did not pass: {}",
        result.end
    );
    Ok(result)
}

/// Boots the same kernel and initramfs under a plain QEMU, until the kernel runs `/init`.
fn plain_boot(
    cache: &Cache,
    image: &std::path::Path,
    warm: &VmResult,
) -> Result<(Duration, Duration)> {
    let qemu = provision::qemu::resolve(cache)?;
    let (program, leading) = qemu.argv.split_first().context("QEMU has no program")?;
    let began = Instant::now();
    let mut child = Command::new(program)
        .args(leading)
        .args(["-accel", "tcg", "-M", "q35", "-m", "256", "-nographic", "-no-reboot", "-kernel"])
        .arg(image)
        .arg("-initrd")
        .arg(&warm.machine.as_ref().context("the run had no machine")?.initramfs)
        .args(["-append", "console=ttyS0 panic=-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the plain QEMU")?;
    let mut console = child.stdout.take().context("it was piped")?;
    let (mut text, mut first_line, mut buffer) = (Vec::new(), None, [0; 4096]);
    let init = loop {
        let count = console.read(&mut buffer)?;
        text.extend_from_slice(&buffer[..count]);
        let contains = |words: &[u8]| text.windows(words.len()).any(|window| window == words);
        if first_line.is_none() && contains(b"Linux version") {
            first_line = Some(began.elapsed());
        }
        if contains(b"Run /init as init process") {
            break Ok(began.elapsed());
        }
        if count == 0 {
            break Err(anyhow::anyhow!("the plain QEMU ended before /init"));
        }
    };
    child.kill()?;
    child.wait()?;
    Ok((first_line.context("the kernel of the plain QEMU printed nothing")?, init?))
}
