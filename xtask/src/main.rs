//! Tasks of the project itself; `cargo xtask --help` lists them.

#![forbid(unsafe_code)]

mod acpi;
mod bench;
mod fuzz;
mod mutate;
mod nested;
mod soak;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks of the project itself.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Check the ACPI tables of the KVM engine with Intel's compiler
    Acpi(acpi::Acpi),
    /// Run a benchmark
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Fuzz the code that reads bytes of guests and of files
    Fuzz(fuzz::Fuzz),
    /// Load damaged kernels and initramfs files
    Mutate(mutate::Mutate),
    /// Run the suite, or a program, in a machine that has a KVM
    Nested(nested::Nested),
    /// Run all tests many times in a row, optionally under load
    Soak(soak::Soak),
}

fn main() -> anyhow::Result<ExitCode> {
    ktstr::runner::init_if_guest();
    match Arguments::parse().task {
        Task::Acpi(acpi) => acpi.run()?,
        Task::Bench(bench) => bench.run()?,
        Task::Fuzz(fuzz) => fuzz.run()?,
        Task::Mutate(mutate) => mutate.run()?,
        Task::Nested(nested) => return nested.run(),
        Task::Soak(soak) => soak.run()?,
    }
    Ok(ExitCode::SUCCESS)
}
