//! `cargo xtask mutate`: damaged kernels and initramfs files for what loads them. Each has to be
//! refused with an error, or taken, in little time and little memory.
//!
//! A mutation is made of a seed and its number only, so each can be had again.

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

/// The CPU time that a single file may take.
const SLOWEST: Duration = Duration::from_secs(2);
/// What takes so long will not end at all.
const HANG: Duration = Duration::from_secs(60);
/// What all of it may take; an image of the largest size that is unpacked takes half of it.
const MEMORY_MIB: u64 = 1024;

/// Arguments of the mutations.
#[derive(Debug, clap::Args)]
pub(crate) struct Mutate {
    /// How many files to damage.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// The number of the first one: with `--count 1`, the only one.
    #[arg(long, default_value_t = 0)]
    first: u32,
    /// What they are made of.
    #[arg(long, default_value_t = 1)]
    seed: u32,
}

/// What became of one file.
#[derive(Debug)]
struct Outcome {
    number: u32,
    probe: Probe,
    /// What kind of file it was.
    file: &'static str,
    /// An error's kind, or that it was taken; nothing after a panic.
    verdict: Option<&'static str>,
    /// CPU time that it took.
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
        ensure!(*took <= SLOWEST, "number {number} took longer than {SLOWEST:?}");
        Ok(())
    }

    /// Damages the files on another thread, to notice if it hangs.
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
                    bail!("number {number} has taken {HANG:?} and goes on")
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

/// Damages a file, gives it to its probe, and makes it whole again. The file's times are new ones
/// then, so nobody recalls what was found in it before.
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

/// CPU time of this thread: how long a file takes, however busy the host is.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).expect("CPU time is not negative")
}

fn check(outcomes: &[Outcome]) -> Result<()> {
    for Outcome { number, probe, file, verdict, .. } in outcomes {
        ensure!(verdict.is_some(), "number {number}, {probe:?} of a {file}, made it panic");
    }
    let peak = peak_mib()?;
    ensure!(peak <= MEMORY_MIB, "it took {peak} MiB of memory, of at most {MEMORY_MIB}");
    Ok(())
}

/// The most memory that this process ever had.
fn peak_mib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("no /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("VmHWM is no number")?;
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
