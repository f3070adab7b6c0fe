//! How fast a body's output reaches the host, in the build that users have: run by
//! `cargo xtask bench output`.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::Instant;

use ktstr::prelude::*;

const MB: usize = 1_000_000;

/// Writes `total` bytes by pieces of `piece`, and returns the rate in MB/s. The queues on the way hold
/// about 1 MB, which counts as written.
fn rate(piece: usize, total: usize) -> Result<f64> {
    let mut line = vec![b'y'; piece - 1];
    line.push(b'\n');
    // Not `stdout()`, which looks for line breaks: this is about the way from the pipe on.
    let mut stdout = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let began = Instant::now();
    for _ in 0..total / piece {
        stdout.write_all(&line)?;
    }
    Ok(total as f64 / MB as f64 / began.elapsed().as_secs_f64())
}

#[ktstr_test(duration_s = 60, post_vm = print_rates, ignore = "a benchmark")]
fn bulk_output(_ctx: &Ctx) -> Result<AssertResult> {
    let mut verdict = AssertResult::pass();
    for (name, piece, total) in [
        ("MB/s in pieces of 64 KiB", 64 << 10, 64 * MB),
        ("MB/s in pieces of 4 KiB", 4 << 10, 32 * MB),
        ("MB/s in lines of 100 bytes", 100, 4 * MB),
    ] {
        verdict.note_value(name, format!("{:.1}", rate(piece, total)?));
    }
    Ok(verdict)
}

/// Prints the notes past libtest, which would show a hundred megabytes of output with them.
fn print_rates(result: &VmResult) -> Result<()> {
    let RunEnd::Verdict(verdict) = &result.end else { bail!("{}", result.end) };
    let mut stderr = std::io::stderr().lock();
    for note in &verdict.notes {
        writeln!(stderr, "{note}")?;
    }
    for (cpu, stolen) in result.stolen.iter().enumerate() {
        writeln!(
            stderr,
            "the host kept CPU {cpu} from running for {:.0} % of the time",
            stolen * 100.0
        )?;
    }
    Ok(())
}
