//! `cargo xtask soak`: the whole VM suite again and again, to find what fails once in a while.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Arguments of the soak.
#[derive(Debug, clap::Args)]
pub(crate) struct Soak {
    /// How many times in a row each kernel has to pass.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Kernels to run on, as in `KTSTR_KERNEL`; the default one if none is given.
    #[arg(long)]
    kernel: Vec<String>,
}

impl Soak {
    /// Ends with the first failure, whose output is shown in full.
    pub(crate) fn run(&self) -> Result<()> {
        let mut kernels = self.kernel.clone();
        if kernels.is_empty() {
            kernels.push(ktstr::provision::KernelSpec::default_kernel().to_string());
        }
        for run in 1..=self.runs {
            for kernel in &kernels {
                let began = Instant::now();
                let output =
                    Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
                        // The diagnostics take most of a minute to compile, and boot nothing.
                        .args(["test", "--package", "ktstr", "--"])
                        .args(["--skip", "diagnostics_match_snapshots"])
                        .env("KTSTR_KERNEL", kernel)
                        .output()
                        .context("cannot run cargo")?;
                let text = String::from_utf8_lossy(&output.stdout);
                if !output.status.success() {
                    bail!(
                        "run {run} on {kernel} failed\n{text}\n{}",
                        String::from_utf8_lossy(&output.stderr)
                    );
                }
                println!(
                    "run {run} of {} on {kernel}: {} in {:.0?}",
                    self.runs,
                    passed(&text),
                    began.elapsed()
                );
            }
        }
        Ok(())
    }
}

/// Adds up what libtest says of each binary.
fn passed(text: &str) -> String {
    let counts = text.lines().filter_map(|line| line.strip_prefix("test result: ok. "));
    let sum: u32 = counts.filter_map(|line| line.split(' ').next()?.parse::<u32>().ok()).sum();
    format!("{sum} passed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_all_binaries_are_added_up() {
        let text =
            "test result: ok. 3 passed; 0 failed\nnoise\ntest result: ok. 40 passed; 0 failed\n";
        assert_eq!(passed(text), "43 passed");
    }
}
