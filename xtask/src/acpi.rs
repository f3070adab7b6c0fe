//! `cargo xtask acpi`: checks the ACPI tables of the KVM engine with Intel's compiler.
//!
//! Each table is disassembled and compiled again. A difference, or a complaint of the compiler, fails the
//! task.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use ktstr::provision::{Cache, tool};
use ktstr::topology::{Llcs, Topology};
use ktstr_vmm::kvm::acpi_tables;

/// Arguments of the check.
#[derive(Debug, clap::Args)]
pub(crate) struct Acpi {
    /// Keep tables and sources in this directory
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// Nodes, last-level caches, cores of each, threads of each, and memory in MiB: one CPU; all
/// dimensions; IDs with gaps and memory on both sides of the hole; as many CPUs as there can be.
const MACHINES: [([u32; 4], u32); 5] = [
    ([1, 1, 1, 1], 64),
    ([2, 4, 4, 2], 2048),
    ([3, 6, 3, 2], 5000),
    ([1, 1, 255, 1], 512),
    ([64, 64, 1, 2], 8192),
];

/// The bytes that the compiler replaces: its own name and version (creator ID and revision), and the
/// checksum.
const STAMPED: [usize; 9] = [9, 28, 29, 30, 31, 32, 33, 34, 35];

impl Acpi {
    pub(crate) fn run(&self) -> Result<()> {
        let iasl = tool::resolve(&Cache::from_env()?, "acpica-tools", "iasl")?;
        let scratch = tempfile::tempdir()?;
        let directory = self.keep.as_deref().unwrap_or(scratch.path());
        for (topology, memory_mib) in MACHINES {
            let name = topology.map(|count| count.to_string()).join("-");
            let directory = directory.join(&name);
            fs::create_dir_all(&directory)?;
            let [numa_nodes, llcs, cores, threads_per_core] = topology;
            let llcs = Llcs::even(llcs, cores);
            let topology = Topology { numa_nodes, llcs, threads_per_core };
            let block = acpi_tables(&topology, memory_mib)?;
            let mut checked = Vec::new();
            for table in split(&block)? {
                let signature = String::from_utf8_lossy(&table[..4]).into_owned();
                check(&iasl, &directory, &signature, table)
                    .with_context(|| format!("{signature} of {name}"))?;
                checked.push(format!("{signature} {}", table.len()));
            }
            println!("{name}, {memory_mib} MiB, {} bytes: {}", block.len(), checked.join(", "));
        }
        Ok(())
    }
}

/// Splits a block into its tables. Each begins at a multiple of 16 with four letters and its length.
fn split(block: &[u8]) -> Result<Vec<&[u8]>> {
    const RSDP: usize = 36;
    let mut tables = Vec::new();
    let mut offset = RSDP.next_multiple_of(16);
    while offset < block.len() {
        let length: [u8; 4] = block[offset + 4..][..4].try_into()?;
        let end = offset + u32::from_le_bytes(length) as usize;
        tables.push(block.get(offset..end).context("a table ends after the block")?);
        offset = end.next_multiple_of(16);
    }
    ensure!(tables.len() == 6, "{} tables instead of 6", tables.len());
    Ok(tables)
}

/// Disassembles `table` and compiles the source, which must give the same bytes without a complaint.
fn check(iasl: &[OsString], directory: &Path, name: &str, table: &[u8]) -> Result<()> {
    fs::write(directory.join(format!("{name}.dat")), table)?;
    let output = run(iasl, directory, &["-d", &format!("{name}.dat")])?;
    ensure!(
        !output.contains("Warning") && !output.contains("Error"),
        "iasl complains about the table:\n{output}"
    );
    let output = run(iasl, directory, &[&format!("{name}.dsl")])?;
    ensure!(
        output.contains(" 0 Errors, 0 Warnings, 0 Remarks"),
        "iasl complains about its own source:\n{output}"
    );
    let again = fs::read(directory.join(format!("{name}.aml")))?;
    let mut differences = again.iter().zip(table).enumerate().filter(|(_, (new, old))| new != old);
    let stray = differences.find(|(offset, _)| !STAMPED.contains(offset));
    ensure!(
        again.len() == table.len() && stray.is_none(),
        "compiled again it has {} bytes instead of {}, and differs at {stray:?}",
        again.len(),
        table.len()
    );
    Ok(())
}

fn run(iasl: &[OsString], directory: &Path, arguments: &[&str]) -> Result<String> {
    let (program, leading) = iasl.split_first().context("the command line of iasl is empty")?;
    let output =
        Command::new(program).args(leading).args(arguments).current_dir(directory).output()?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("`iasl {}` ended with {}:\n{text}", arguments.join(" "), output.status);
    }
    Ok(text.into_owned())
}
