//! The type of a kernel on this machine.

use std::fs;
use std::path::PathBuf;

use ktstr_core::record::ImageId;
use serde::{Deserialize, Serialize};

use super::apt::Package;
use super::spec::KernelSpec;

/// A kernel on this machine with everything that is needed to boot it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The request that it fulfils.
    pub spec: KernelSpec,
    /// The release, as `uname -r` prints it in the guest.
    pub version: String,
    /// Identifies its image by a hash.
    pub id: ImageId,
    /// The image that was given or fetched.
    pub image: PathBuf,
    /// The file to boot.
    pub boot: Boot,
    /// The directory of its modules: `lib/modules/<version>`, or the tree in which they were built.
    pub modules: Option<PathBuf>,
    /// The configuration with which it was built.
    pub config: Option<PathBuf>,
    /// The origin of a fetched kernel.
    pub provenance: Option<Provenance>,
}

/// The file that a VMM loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// The file.
    pub path: PathBuf,
    /// How to load it.
    pub format: BootFormat,
    /// Why it is not an ELF file with a PVH entry, if it is not.
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

/// The origin of a fetched kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Seconds since 1970.
    pub fetched_at: u64,
    /// Host name of the mirror.
    pub mirror: String,
    /// The packages; the package of the image is the first.
    pub packages: Vec<Package>,
}

impl Kernel {
    /// Returns whether `CONFIG_<option>` is built in, or `None` if the configuration is not known.
    pub fn has_option(&self, option: &str) -> Option<bool> {
        let config = fs::read_to_string(self.config.as_ref()?).ok()?;
        Some(config.lines().any(|line| {
            line.strip_prefix("CONFIG_").and_then(|line| line.strip_prefix(option)) == Some("=y")
        }))
    }
}
