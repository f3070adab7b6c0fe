//! The list of kernels that can be fetched by name: `kernels/kernels.toml`.

use std::sync::LazyLock;

use serde::Deserialize;

const TEXT: &str = include_str!("../../kernels/kernels.toml");

static CATALOG: LazyLock<Catalog> =
    LazyLock::new(|| toml::from_str(TEXT).expect("kernels.toml is checked by a unit test"));

/// A kernel that is fetched by its name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownKernel {
    /// The name that tests use: `debian:trixie`.
    pub name: String,
    /// Suite of the Debian archive.
    pub suite: String,
    /// Package that depends on the newest image of the suite.
    pub metapackage: String,
    /// Upstream series when this list was written; a rolling suite has newer ones later.
    pub series: String,
    /// Whether the package's configuration has `CONFIG_SCHED_CLASS_EXT`.
    pub sched_ext: bool,
    /// Further advice for users.
    pub note: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalog {
    default: String,
    kernel: Vec<KnownKernel>,
}

/// Returns all kernels with a name, in the order of the file.
pub(super) fn all() -> &'static [KnownKernel] {
    &CATALOG.kernel
}

pub(super) fn find(name: &str) -> Option<&'static KnownKernel> {
    all().iter().find(|known| known.name == name)
}

/// Returns the kernel of tests without the key `kernel`.
pub(super) fn default() -> &'static KnownKernel {
    find(&CATALOG.default).expect("kernels.toml is checked by a unit test")
}

impl KnownKernel {
    /// Returns whether this is the kernel of tests without the key `kernel`.
    pub fn is_default(&self) -> bool {
        self.name == CATALOG.default
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn catalog_is_consistent() {
        assert!(default().is_default());
        for known in all() {
            assert_eq!(find(&known.name), Some(known), "two kernels share a name");
            assert!(known.name.contains(':') && !known.name.contains('/'), "{}", known.name);
        }
    }
}
