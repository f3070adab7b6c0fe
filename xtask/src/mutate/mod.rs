//! `cargo xtask mutate`: gives damaged kernels and initramfs files to the code that loads them. Each must
//! be refused with an error, or accepted, within bounds of time and memory.
//!
//! A mutation is determined by a seed and its number, so each can be reproduced.

mod damage;
mod probe;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::time::{ClockId, clock_gettime};

use damage::Random;
use probe::{Probe, Probes};

/// The most CPU time for a single file.
const SLOWEST: Duration = Duration::from_secs(2);
/// Time after which a file counts as a hang.
const HANG: Duration = Duration::from_secs(60);
/// What all of it may take; an image of the largest size that is unpacked takes half of it.
const MEMORY_MIB: u64 = 1024;

/// Arguments of the mutations.
#[derive(Debug, clap::Args)]
pub(crate) struct Mutate {
    /// Number of files to damage
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Number of the first file; with `--count 1`, of the only one
    #[arg(long, default_value_t = 0)]
    first: u32,
    /// Seed of the damage
    #[arg(long, default_value_t = 1)]
    seed: u32,
}

/// The result for one file.
#[derive(Debug)]
struct Outcome {
    number: u32,
    probe: Probe,
    /// The kind of file.
    file: &'static str,
    /// The kind of error, or that it was accepted; `None` after a panic.
    verdict: Option<&'static str>,
    /// The CPU time.
    took: Duration,
}

impl Mutate {
    /// Fails if a file makes anything panic, hang, take too long or too much memory.
    pub(crate) fn run(&self) -> Result<()> {
        let outcomes = self.outcomes()?;
        let mut counts = BTreeMap::<_, u32>::new();
        for Outcome { probe, file, verdict, .. } in &outcomes {
            let line = format!("{probe:?} of a {file}: {}", verdict.unwrap_or("PANICKED"));
            *counts.entry(line).or_default() += 1;
        }
        for (line, count) in counts {
            println!("{count:5}  {line}");
        }
        let slowest = outcomes.iter().max_by_key(|outcome| outcome.took).context("no file")?;
        let Outcome { number, probe, file, took, .. } = slowest;
        println!(
            "{} files; the slowest took {took:.2?} (number {number}, {probe:?} of a {file}); \
             {} MiB of memory",
            outcomes.len(),
            peak_mib()?
        );
        check(&outcomes)?;
        ensure!(*took <= SLOWEST, "number {number} took {took:?} of CPU time (limit {SLOWEST:?})");
        Ok(())
    }

    /// Damages and loads the files on another thread, so that a hang is noticed.
    fn outcomes(&self) -> Result<Vec<Outcome>> {
        let mut probes = Probes::new()?;
        let (sender, receiver) = mpsc::sync_channel(0);
        let numbers = self.first..self.first.saturating_add(self.count);
        let seed = self.seed;
        let range = numbers.clone();
        let worker = thread::spawn(move || work(&mut probes, seed, range, &sender));
        let mut outcomes = Vec::new();
        for number in numbers {
            match receiver.recv_timeout(HANG) {
                Ok(outcome) => outcomes.push(outcome),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("number {number} has not ended after {HANG:?}")
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        worker.join().expect("panics are caught")?;
        Ok(outcomes)
    }
}

fn work(
    probes: &mut Probes,
    seed: u32,
    numbers: std::ops::Range<u32>,
    sender: &SyncSender<Outcome>,
) -> Result<()> {
    for number in numbers {
        let outcome = give(probes, seed, number)?;
        if sender.send(outcome).is_err() {
            break;
        }
    }
    Ok(())
}

/// Damages a file, gives it to its probe, and makes it whole again. This changes the
/// file's times, so that no cache holds results of the file before.
fn give(probes: &mut Probes, seed: u32, number: u32) -> Result<Outcome> {
    let mut random = Random::new(u64::from(seed) << 32 | u64::from(number));
    let (probe, index) = Probes::pick(number);
    let (file, victim) = probes.victim(index);
    let undo = victim.damage(&mut random)?;
    let began = cpu_time();
    let verdict = catch_unwind(AssertUnwindSafe(|| probes.run(probe, index))).ok();
    let took = cpu_time() - began;
    probes.victim(index).1.restore(undo)?;
    Ok(Outcome { number, probe, file, verdict, took })
}

/// Returns the CPU time of this thread, which does not depend on the load of the host.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).expect("CPU time is not negative")
}

fn check(outcomes: &[Outcome]) -> Result<()> {
    for Outcome { number, probe, file, verdict, .. } in outcomes {
        ensure!(verdict.is_some(), "number {number}, {probe:?} of a {file}, panicked");
    }
    let peak = peak_mib()?;
    ensure!(peak <= MEMORY_MIB, "peak memory {peak} MiB (limit {MEMORY_MIB} MiB)");
    Ok(())
}

/// Returns the peak memory of this process in MiB.
fn peak_mib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("no /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("VmHWM is not a number")?;
    Ok(kib >> 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_are_refused_or_taken() {
        let outcomes = Mutate { count: 60, first: 0, seed: 1 }.outcomes().unwrap();
        assert_eq!(outcomes.len(), 60);
        check(&outcomes).unwrap();
    }

    #[test]
    fn whole_files_are_taken() {
        let probes = Probes::new().unwrap();
        for number in [0, 3, 5, 6, 8, 9] {
            let (probe, index) = Probes::pick(number);
            assert_eq!(probes.run(probe, index), "taken", "{probe:?}");
        }
    }
}
