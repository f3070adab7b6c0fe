//! Tasks of the project itself: `cargo xtask bench boot`.

mod bench;

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
    }
}
