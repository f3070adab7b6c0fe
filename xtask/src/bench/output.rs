//! `cargo xtask bench output`: how fast a body's output reaches the host.
//!
//! Measured in `tests/outside`, because users do not have the profiles of this workspace: what takes
//! their output is built without optimization.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Arguments of the benchmark.
#[derive(Debug, clap::Args)]
pub(crate) struct Output {
    /// The kernel to boot, as in `KTSTR_KERNEL`.
    #[arg(long)]
    kernel: Option<String>,
}

impl Output {
    /// Runs the benchmark of the outside crate, which prints its rates.
    pub(crate) fn run(&self) -> Result<()> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/outside");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["test", "--test", "output", "--", "--ignored"]);
        cargo.current_dir(folder).envs(self.kernel.iter().map(|kernel| ("KTSTR_KERNEL", kernel)));
        let status = cargo.status().context("failed to run cargo")?;
        ensure!(status.success(), "the benchmark failed");
        Ok(())
    }
}
