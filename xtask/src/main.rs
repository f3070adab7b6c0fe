//! Tasks of the project itself: `cargo xtask bench boot`, `cargo xtask soak`.

#![forbid(unsafe_code)]

mod bench;
mod soak;

use clap::{Parser, Subcommand};

/// Tasks of the project itself.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Measures.
    #[command(subcommand)]
    Bench(Bench),
    /// Runs the VM suite many times in a row.
    Soak(soak::Soak),
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// How long each phase of a run takes, beside a plain QEMU with the same kernel and initramfs.
    Boot(bench::Boot),
}

fn main() -> anyhow::Result<()> {
    ktstr::runner::init_if_guest();
    match Arguments::parse().task {
        Task::Bench(Bench::Boot(boot)) => boot.run(),
        Task::Soak(soak) => soak.run(),
    }
}
