//! Coverage: what runs only in the guest counts on the host.
//!
//! Built with `RUSTFLAGS=-Cinstrument-coverage`; other builds have nothing to count.

use std::fs;
use std::path::Path;
use std::process::Command;

use ktstr::prelude::*;

/// The number of the body's calls of [`count`], which no other counter has.
const CALLS: u64 = 123_457;

#[inline(never)]
fn count(number: u64) -> u64 {
    std::hint::black_box(number)
}

#[ktstr_test(cores = 1, ignore = "run by body_counts_on_the_host")]
fn counts(_: &Ctx) -> Result<AssertResult> {
    let sum: u64 = (0..CALLS).map(count).sum();
    ensure!(sum == CALLS * (CALLS - 1) / 2);
    Ok(AssertResult::pass())
}

#[test]
#[ignore = "needs a build with RUSTFLAGS=-Cinstrument-coverage"]
fn body_counts_on_the_host() -> Result<()> {
    // Two runs of one pattern that names no process: neither may take the place of the other.
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("coverage");
    let _ = fs::remove_dir_all(&dir);
    for run in 1..=2 {
        let output = Command::new(std::env::current_exe()?)
            .args(["--exact", "counts", "--include-ignored"])
            .env("LLVM_PROFILE_FILE", dir.join("run.profraw"))
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success() && text.contains("1 passed"), "{text}");
        let entries = fs::read_dir(&dir)?.map(|entry| Ok(fs::read(entry?.path())?));
        let profiles = entries.collect::<Result<Vec<_>>>()?;
        // Source: LLVM, `INSTR_PROF_RAW_MAGIC_64`.
        ensure!(profiles.iter().all(|profile| profile.starts_with(b"\x81rforpl\xff")));
        let counted = profiles.iter().filter(|profile| has_counter(profile, CALLS)).count();
        ensure!((profiles.len(), counted) == (1 + run, run), "{counted} of {}", profiles.len());
    }
    Ok(())
}

/// Returns whether one of the counters, which are 64-bit words of the profile, has this value.
fn has_counter(profile: &[u8], value: u64) -> bool {
    profile.as_chunks::<8>().0.iter().any(|word| u64::from_le_bytes(*word) == value)
}
