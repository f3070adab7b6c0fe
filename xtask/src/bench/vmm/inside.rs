//! Runs inside the nested machine: boots guests and measures them from outside.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ktstr::provision::{Cache, Kernel, kernel};

use super::process::Process;
use super::table::{Column, Row};
use super::{BOOT, INITRAMFS};

const MEMORY_MIB: u64 = 256;

/// What all guests get, in the order of this engine, which adds the first three words itself; then
/// what the runner gives its guests.
const ENGINE_WORDS: &str = "console=ttyS0 no_timer_check reboot=acpi";
const CMDLINE: &str = "panic=-1 printk.time=1 loglevel=7 cryptomgr.notests \
                       initcall_blacklist=jent_mod_init";

/// The first line of a kernel, its last one, and the first one of user space.
const FIRST_LINE: &str = "Linux version";
const INIT: &str = "Run /init as init process";
const HELLO: &str = "hello from user space";

/// KVM's names of its counters.
const COUNTERS: [(Row, &str); 4] = [
    (Row::Exits, "exits"),
    (Row::IoExits, "io_exits"),
    (Row::MmioExits, "mmio_exits"),
    (Row::PageFaults, "pf_taken"),
];

/// Interval at which QEMU's counters are read for its first exit, which takes a hundred times as long.
const POLL: Duration = Duration::from_millis(20);

/// Arguments that `bench vmm` passes on.
#[derive(Debug, clap::Args)]
pub(crate) struct Inside {
    #[arg(long)]
    rounds: u32,
    #[arg(long)]
    kernel: Vec<String>,
    #[arg(long)]
    cpus: Vec<u32>,
    #[arg(last = true)]
    qemu: Vec<String>,
}

impl Inside {
    /// Prints what it measures, as [`Table`](super::Table) reads it.
    pub(crate) fn run(&self) -> Result<()> {
        let cache = Cache::from_env()?;
        for round in 1..=self.rounds {
            for spec in &self.kernel {
                let kernel = kernel::resolve(&cache, Some(spec))?;
                for cpus in &self.cpus {
                    for column in Column::ALL {
                        let began = Instant::now();
                        let values = self.measure(column, &kernel, *cpus).with_context(|| {
                            format!("{column}, {spec}, {cpus} CPUs, round {round}")
                        })?;
                        for (row, value) in values {
                            println!("{round} {spec} {cpus} {column:?} {row:?} {value}");
                        }
                        let took = began.elapsed();
                        eprintln!("round {round}: {spec}, {cpus} CPUs, {column}: {took:.1?}");
                    }
                }
            }
        }
        Ok(())
    }

    fn command(&self, column: Column, kernel: &Kernel, cpus: u32) -> Command {
        let machine = match column {
            Column::Engine | Column::EngineNokaslr => {
                let mut command = Command::new(BOOT);
                command.arg(&kernel.boot.path).arg(INITRAMFS).arg(MEMORY_MIB.to_string());
                command.args([&format!("1n1l{cpus}c1t"), CMDLINE]).env("FREEZE_AT", HELLO);
                if column == Column::EngineNokaslr {
                    command.arg("nokaslr").env("NOKASLR", "1");
                }
                return command;
            }
            // Stock kernels see several CPUs by ACPI only, and without a clock they try ports
            // for one for as long as all the rest takes.
            Column::Microvm => "microvm,acpi=on,rtc=on,pit=off,pic=off",
            Column::Q35 => "q35",
        };
        let mut command = Command::new(&self.qemu[0]);
        command
            .args(&self.qemu[1..])
            .args(["-M", machine, "-accel", "kvm", "-cpu", "host", "-smp", &cpus.to_string()])
            .args(["-m", &MEMORY_MIB.to_string(), "-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio", "-kernel"])
            .arg(&kernel.boot.path)
            .args(["-initrd", INITRAMFS, "-append", &format!("{ENGINE_WORDS} {CMDLINE}")]);
        command
    }

    fn measure(&self, column: Column, kernel: &Kernel, cpus: u32) -> Result<Vec<(Row, f64)>> {
        let mut command = self.command(column, kernel, cpus);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let began = Instant::now();
        let mut child = command.spawn().context("cannot start the VMM")?;
        let watched = watch(column, &mut child, began);
        // It may have ended already.
        let _ = child.kill();
        child.wait()?;
        watched
    }
}

fn watch(column: Column, child: &mut Child, began: Instant) -> Result<Vec<(Row, f64)>> {
    let process = Process { id: child.id() };
    let stdout = BufReader::new(child.stdout.take().context("it was piped")?);
    let stderr = BufReader::new(child.stderr.take().context("it was piped")?);
    let has_ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stderr = scope.spawn(|| {
            let lines = stderr.lines().map_while(Result::ok);
            lines.map(|line| (millis(began.elapsed()), line)).collect::<Vec<_>>()
        });
        let first_run = scope.spawn(|| match column.is_qemu() {
            true => wait_for_first_exit(process, began, &has_ended),
            false => None,
        });
        let seen = read_console(stdout, process, began);
        if column.is_qemu() || seen.is_err() {
            let _ = child.kill();
        }
        // The engine's program ends when it has frozen its guest often enough.
        child.wait()?;
        has_ended.store(true, Ordering::Relaxed);
        let stderr = stderr.join().expect("it does not panic");
        let said = || stderr.iter().map(|(_, line)| line.as_str()).collect::<Vec<_>>().join("\n");
        let mut values = seen.with_context(said)?;
        match first_run.join().expect("it does not panic") {
            Some((wall, cpu)) => {
                values.extend([(Row::FirstRun, wall), (Row::CpuFirstRun, cpu)]);
            }
            None => values.extend(program_lines(&stderr).with_context(said)?),
        }
        Ok(values)
    })
}

/// Reads the console until the line of user space.
fn read_console(
    console: impl BufRead,
    process: Process,
    began: Instant,
) -> Result<Vec<(Row, f64)>> {
    let mut values = Vec::new();
    let mut tail = Vec::new();
    for line in console.split(b'\n') {
        let line = line?;
        let elapsed = millis(began.elapsed());
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains(FIRST_LINE) {
            values.push((Row::FirstLine, elapsed));
        } else if line.contains(INIT) {
            let cpu = millis(process.cpu_time()?);
            values.extend([(Row::Init, elapsed), (Row::CpuInit, cpu)]);
            for (row, counter) in COUNTERS {
                values.push((row, process.counter(counter)? as f64));
            }
            let rss = process.rss_beside(MEMORY_MIB << 10)?;
            values.push((Row::Rss, rss as f64 / 1024.0));
        } else if line.contains(HELLO) {
            values.push((Row::Hello, elapsed));
            return Ok(values);
        }
        tail.push(line);
    }
    let from = tail.len().saturating_sub(10);
    bail!("the guest ended early:\n{}", tail[from..].join("\n"))
}

/// Returns wall and CPU time in milliseconds of the process at its first exit from the guest.
fn wait_for_first_exit(
    process: Process,
    began: Instant,
    has_ended: &AtomicBool,
) -> Option<(f64, f64)> {
    while !has_ended.load(Ordering::Relaxed) {
        if process.counter("exits").is_ok_and(|exits| exits > 0) {
            return Some((millis(began.elapsed()), millis(process.cpu_time().ok()?)));
        }
        std::thread::sleep(POLL);
    }
    None
}

/// Parses the lines of the engine's program: `booted: 12.3 ms, CPU 10.1 ms`, `frozen: 0.4 ms, ..`.
fn program_lines(lines: &[(f64, String)]) -> Result<Vec<(Row, f64)>> {
    let find = |name: &str| {
        let found = lines.iter().find_map(|(at, line)| Some((*at, line.strip_prefix(name)?)));
        found.with_context(|| format!("its output has no line `{name}`"))
    };
    let number = |text: &str| -> Result<f64> {
        let number = text.trim().split(' ').next().unwrap_or_default();
        number.parse().with_context(|| format!("`{text}` does not begin with a number"))
    };
    let (first_run, booted) = find("booted:")?;
    let (_, cpu) = booted.split_once("CPU").context("no CPU time")?;
    let (_, frozen) = find("frozen:")?;
    Ok(vec![
        (Row::FirstRun, first_run),
        (Row::CpuFirstRun, number(cpu)?),
        (Row::Freeze, number(frozen)?),
    ])
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
