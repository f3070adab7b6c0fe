//! `cargo xtask acpi`: what Intel's ACPI compiler thinks of the tables of the KVM engine.
//!
//! Each table is taken apart into source and compiled again: what the compiler would not write, or
//! complains about, fails the task.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use ktstr::provision::{Cache, tool};
use ktstr_vmm::Topology;
use ktstr_vmm::kvm::acpi_tables;

/// Arguments of the check.
#[derive(Debug, clap::Args)]
pub(crate) struct Acpi {
    /// Keep tables and sources in this folder.
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

/// Where the compiler puts its own name and version, the creator ID and revision, and a checksum to
/// match them.
const STAMPED: [usize; 9] = [9, 28, 29, 30, 31, 32, 33, 34, 35];

impl Acpi {
    pub(crate) fn run(&self) -> Result<()> {
        let iasl = tool::resolve(&Cache::from_env()?, "acpica-tools", "iasl")?;
        let scratch = tempfile::tempdir()?;
        let folder = self.keep.as_deref().unwrap_or(scratch.path());
        for (topology, memory_mib) in MACHINES {
            let name = topology.map(|count| count.to_string()).join("-");
            let folder = folder.join(&name);
            fs::create_dir_all(&folder)?;
            let [numa_nodes, llcs, cores, threads_per_core] = topology;
            let llc_cores = vec![cores; llcs as usize];
            let topology = Topology { numa_nodes, llc_cores, threads_per_core };
            let block = acpi_tables(&topology, memory_mib)?;
            let mut checked = Vec::new();
            for table in split(&block)? {
                let signature = String::from_utf8_lossy(&table[..4]).into_owned();
                check(&iasl, &folder, &signature, table)
                    .with_context(|| format!("{signature} of {name}"))?;
                checked.push(format!("{signature} {}", table.len()));
            }
            println!("{name}, {memory_mib} MiB, {} bytes: {}", block.len(), checked.join(", "));
        }
        Ok(())
    }
}

/// Finds the tables in a block: each begins at a multiple of 16 with four letters and its length.
fn split(block: &[u8]) -> Result<Vec<&[u8]>> {
    const RSDP: usize = 36;
    let mut tables = Vec::new();
    let mut offset = RSDP.next_multiple_of(16);
    while offset < block.len() {
        let length: [u8; 4] = block[offset + 4..][..4].try_into()?;
        let end = offset + u32::from_le_bytes(length) as usize;
        tables.push(block.get(offset..end).context("a table ends behind the block")?);
        offset = end.next_multiple_of(16);
    }
    ensure!(tables.len() == 6, "there are {} tables", tables.len());
    Ok(tables)
}

/// Takes `table` apart and compiles the source, which must give the same bytes and no complaint.
fn check(iasl: &[OsString], folder: &Path, name: &str, table: &[u8]) -> Result<()> {
    fs::write(folder.join(format!("{name}.dat")), table)?;
    let said = run(iasl, folder, &["-d", &format!("{name}.dat")])?;
    ensure!(!said.contains("Warning") && !said.contains("Error"), "iasl says of it:\n{said}");
    let said = run(iasl, folder, &[&format!("{name}.dsl")])?;
    ensure!(
        said.contains(" 0 Errors, 0 Warnings, 0 Remarks"),
        "iasl says of the source it made itself:\n{said}"
    );
    let again = fs::read(folder.join(format!("{name}.aml")))?;
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

fn run(iasl: &[OsString], folder: &Path, arguments: &[&str]) -> Result<String> {
    let (program, leading) = iasl.split_first().context("iasl has no program")?;
    let output =
        Command::new(program).args(leading).args(arguments).current_dir(folder).output()?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("`iasl {}` ended with {}:\n{said}", arguments.join(" "), output.status);
    }
    Ok(said.into_owned())
}
