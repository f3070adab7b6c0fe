//! `cargo xtask fuzz`: runs the fuzz targets of `fuzz/`, with the inputs that earlier runs found.
//!
//! The stable compiler builds them: flags enable LLVM's coverage pass.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// The targets, those that take the longest to cover first.
const TARGETS: [&str; 13] = [
    "image",
    "session",
    "virtqueue",
    "registers",
    "saved",
    "wire",
    "elf",
    "packages",
    "guest_memory",
    "qmp",
    "cmdline",
    "acpi",
    "printk",
];
/// Build scripts are not instrumented if the target is named.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Flags for the coverage that libFuzzer needs, as `cargo fuzz` passes them.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// An input that takes longer is a finding; all take a few milliseconds.
const INPUT_SECONDS: u32 = 10;
/// A target that takes more is a finding; all take a few dozen MiB.
const MEMORY_MIB: u32 = 1024;
const POLL: Duration = Duration::from_millis(100);

/// Arguments of the fuzzers.
#[derive(Debug, clap::Args)]
pub(crate) struct Fuzz {
    /// Targets to fuzz; all if none is given
    #[arg(value_parser = TARGETS)]
    target: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

/// Statistics of a run of one target.
#[derive(Debug, PartialEq, Eq)]
struct Figures {
    executions: u64,
    covered: u64,
    edges: u64,
}

impl Fuzz {
    /// Runs as many targets at a time as there are CPUs, and ends with the first finding.
    pub(crate) fn run(&self) -> Result<()> {
        let names: Vec<_> =
            TARGETS.into_iter().filter(|name| self.target.is_empty() || self.names(name)).collect();
        let directory = target_directory().join("fuzz");
        build(&directory, &names)?;
        let (waiting, is_over) = (Mutex::new(names.into_iter()), AtomicBool::new(false));
        let next = || waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).next();
        let work = || {
            while let Some(name) = next()
                && !is_over.load(Ordering::SeqCst)
            {
                if let Err(error) = fuzz(&directory, name, self.seconds, &is_over) {
                    is_over.store(true, Ordering::SeqCst);
                    return Err(error);
                }
            }
            Ok(())
        };
        thread::scope(|scope| {
            let cpus = thread::available_parallelism().map_or(1, usize::from);
            let threads: Vec<_> = (0..cpus).map(|_| scope.spawn(work)).collect();
            let results =
                threads.into_iter().map(|thread| thread.join().expect("no thread panics"));
            results.collect::<Vec<_>>().into_iter().collect()
        })
    }

    fn names(&self, name: &str) -> bool {
        self.target.iter().any(|target| target == name)
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the repository")
}

fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn build(directory: &Path, names: &[&str]) -> Result<()> {
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    cargo
        .args(["build", "--quiet", "--release", "--target", TRIPLE, "--manifest-path"])
        .arg(root().join("fuzz/Cargo.toml"))
        .arg("--target-dir")
        .arg(directory)
        .args(names.iter().flat_map(|name| ["--bin", name]))
        .env("RUSTFLAGS", FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    let status = cargo.status().context("cannot run cargo")?;
    ensure!(status.success(), "the fuzz targets cannot be built");
    Ok(())
}

/// Runs one target until its time is up, or until `is_over`.
fn fuzz(directory: &Path, name: &str, seconds: u32, is_over: &AtomicBool) -> Result<()> {
    let program = directory.join(TRIPLE).join("release").join(name);
    let (found, log) = (directory.join("corpus").join(name), directory.join(format!("{name}.log")));
    let findings = directory.join("findings").join(name);
    for directory in [&found, &findings] {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    let mut child = Command::new(&program)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg("-print_final_stats=1")
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .args([&found, &root().join("fuzz/corpus").join(name)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let Some(is_clean) = wait(&mut child, is_over)? else { return Ok(()) };
    let text = String::from_utf8_lossy(
        &fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?,
    )
    .into_owned();
    if !is_clean {
        bail!("{name}: {}", finding(&text, &program, &log));
    }
    let Figures { executions, covered, edges } =
        figures(&text).with_context(|| format!("{} has no statistics", log.display()))?;
    println!("{name}: {executions} executions, {covered} of {edges} edges covered, nothing found");
    Ok(())
}

/// Waits for the program. Returns whether it succeeded, `None` if it was killed because the run is over.
fn wait(child: &mut Child, is_over: &AtomicBool) -> Result<Option<bool>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if is_over.load(Ordering::SeqCst) {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

/// Formats what libFuzzer found, and the command that reproduces it.
fn finding(text: &str, program: &Path, log: &Path) -> String {
    let input = text.lines().find_map(|line| Some(line.split_once("Test unit written to ")?.1));
    let why: Vec<_> = text
        .lines()
        .skip_while(|line| !line.contains("panicked at") && !line.contains("ERROR: libFuzzer"))
        .take(3)
        .collect();
    match input {
        Some(input) => format!(
            "{}\ninput: {input}\nreproduce with:\n  {} {input}",
            why.join("\n"),
            program.display()
        ),
        None => format!("it printed no reason; see {}", log.display()),
    }
}

/// Parses libFuzzer's statistics.
fn figures(text: &str) -> Option<Figures> {
    let after = |line: &str, word: &str| -> Option<u64> {
        line.split_once(word)?.1.split_whitespace().next()?.trim_matches(['(', ')']).parse().ok()
    };
    let last = |word: &str| text.lines().rev().find_map(|line| after(line, word));
    Some(Figures {
        executions: last("stat::number_of_executed_units:")?,
        covered: last(" cov: ")?,
        edges: last("INFO: Loaded 1 modules")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_come_from_the_end() {
        let text = "INFO: Loaded 1 modules   (1514 inline 8-bit counters): 1514 [0x5, 0x6), \n\
                    #2 INITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 30Mb\n\
                    #477195 DONE   cov: 345 ft: 567 corp: 8/9b\n\
                    stat::number_of_executed_units: 477195\n";
        let want = Figures { executions: 477_195, covered: 345, edges: 1514 };
        assert_eq!(figures(text), Some(want));
        assert_eq!(figures("INFO: Seed: 1\n"), None);
    }

    #[test]
    fn finding_has_the_command_to_reproduce_it() {
        let text = "#5 NEW cov: 1\n\
                    thread '<unnamed>' panicked at src/a.rs:1:2:\n\
                    attempt to add with overflow\n\
                    note: run with `RUST_BACKTRACE=1`\n\
                    artifact_prefix='f/'; Test unit written to f/crash-1\n";
        let text = finding(text, Path::new("bin/acpi"), Path::new("acpi.log"));
        assert!(text.contains("attempt to add with overflow"), "{text}");
        assert!(text.ends_with("reproduce with:\n  bin/acpi f/crash-1"), "{text}");
        assert!(finding("", Path::new("a"), Path::new("a.log")).contains("see a.log"));
    }
}
