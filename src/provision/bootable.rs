//! A kernel on this machine, and what is known of it.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::apt::Package;
use super::spec::KernelSpec;

/// A kernel on this machine, complete enough to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// What was asked for.
    pub spec: KernelSpec,
    /// The release, as `uname -r` prints it in the guest.
    pub version: String,
    /// The file that was given or fetched.
    pub image: PathBuf,
    /// The file to boot.
    pub boot: Boot,
    /// The folder of its modules: `lib/modules/<version>`, or the tree they were built in.
    pub modules: Option<PathBuf>,
    /// The configuration it was built with.
    pub config: Option<PathBuf>,
    /// Where a fetched kernel came from.
    pub provenance: Option<Provenance>,
}

/// What a VMM loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// The file.
    pub path: PathBuf,
    /// How to load it.
    pub format: BootFormat,
    /// Why it is not an ELF file with a PVH entry, where it is not.
    pub note: Option<String>,
}

/// The two forms of an x86 kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootFormat {
    /// An uncompressed vmlinux.
    Elf,
    /// An image that unpacks itself, by the x86 boot protocol.
    BzImage,
}

/// Where a fetched kernel came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Seconds since 1970.
    pub fetched_at: u64,
    /// Host name of the mirror.
    pub mirror: String,
    /// The packages, that of the image first.
    pub packages: Vec<Package>,
}

impl Kernel {
    /// SHA-256 of the package the image came from, as apt verified it. Given files are not hashed.
    pub fn sha256(&self) -> Option<&str> {
        Some(&self.provenance.as_ref()?.packages.first()?.sha256)
    }

    /// Whether `CONFIG_<option>` is built in, or `None` if the configuration is not known.
    pub fn has_option(&self, option: &str) -> Option<bool> {
        let config = fs::read_to_string(self.config.as_ref()?).ok()?;
        Some(config.lines().any(|line| {
            line.strip_prefix("CONFIG_").and_then(|line| line.strip_prefix(option)) == Some("=y")
        }))
    }
}
