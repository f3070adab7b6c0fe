//! `cargo xtask soak`: runs all tests repeatedly, to find those that fail rarely.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Arguments of the soak.
#[derive(Debug, clap::Args)]
pub(crate) struct Soak {
    /// Number of consecutive runs that have to pass on each kernel
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Number of threads that use up CPU time meanwhile, to stand for a busy host
    #[arg(long, default_value_t = 0)]
    load: u32,
    /// Kernels to run on, as in `KTSTR_KERNEL`; the default kernel if none is given
    #[arg(long)]
    kernel: Vec<String>,
    /// Arguments of `cargo test`, instead of `--workspace`
    #[arg(last = true)]
    arguments: Vec<String>,
}

impl Soak {
    /// Runs the tests until a run fails; the error contains that run's whole output.
    pub(crate) fn run(&self) -> Result<()> {
        let mut kernels = self.kernel.clone();
        if kernels.is_empty() {
            kernels.push(ktstr::provision::KernelSpec::default_kernel().to_string());
        }
        // Build first: under load it would take several times longer.
        self.test(&kernels[0], &["--no-run"])?;
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..self.load {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let result = self.repeat(&kernels);
            is_over.store(true, Ordering::Relaxed);
            result
        })
    }

    fn repeat(&self, kernels: &[String]) -> Result<()> {
        for run in 1..=self.runs {
            for kernel in kernels {
                let began = Instant::now();
                // One run shows all tests that fail in it.
                let output = self.test(kernel, &["--no-fail-fast"])?;
                let text = String::from_utf8_lossy(&output.stdout);
                if !output.status.success() {
                    let errors = String::from_utf8_lossy(&output.stderr);
                    bail!("run {run} on {kernel} failed\n{text}\n{errors}");
                }
                let (runs, passed) = (self.runs, passed(&text));
                println!("run {run} of {runs} on {kernel}: {passed} in {:.0?}", began.elapsed());
            }
        }
        Ok(())
    }

    fn test(&self, kernel: &str, more: &[&str]) -> Result<Output> {
        let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
        cargo.arg("test").args(more).env("KTSTR_KERNEL", kernel);
        match &*self.arguments {
            [] => cargo.arg("--workspace"),
            arguments => cargo.args(arguments),
        };
        cargo.output().context("failed to run cargo")
    }
}

/// Adds up the passed tests that libtest counts for each binary.
fn passed(text: &str) -> String {
    let counts = text.lines().filter_map(|line| line.strip_prefix("test result: ok. "));
    let sum: u32 = counts.filter_map(|line| line.split(' ').next()?.parse::<u32>().ok()).sum();
    format!("{sum} passed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_adds_up_all_binaries() {
        let text =
            "test result: ok. 3 passed; 0 failed\nnoise\ntest result: ok. 40 passed; 0 failed\n";
        assert_eq!(passed(text), "43 passed");
    }
}
