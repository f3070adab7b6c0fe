//! Names of kernels, as tests, `KTSTR_KERNEL` and command lines give them.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::catalog::{self, KnownKernel};

/// A kernel by name, by path, or the host's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelSpec {
    /// A kernel of the built-in list, fetched when first used: `debian:trixie`.
    Known(&'static KnownKernel),
    /// A bzImage, a vmlinux, or the directory of a built kernel tree. Its text always contains a `/`.
    Path(PathBuf),
    /// The running kernel of the host: `host`.
    Host,
}

/// A text that is neither the name of a kernel nor a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown kernel `{text}`; known kernels: {}; or give the path of another kernel with a slash, such as \
     ./{} or /path/to/linux",
    names(),
    if text.is_empty() { "bzImage" } else { text }
)]
pub struct SpecError {
    text: String,
}

impl KernelSpec {
    /// Returns the kernel of tests without the key `kernel`.
    pub fn default_kernel() -> Self {
        Self::Known(catalog::default())
    }
}

/// A path need not be UTF-8.
impl TryFrom<&OsStr> for KernelSpec {
    type Error = SpecError;

    fn try_from(text: &OsStr) -> Result<Self, SpecError> {
        match text.to_str() {
            Some(text) => text.parse(),
            None if text.as_bytes().contains(&b'/') => Ok(Self::Path(text.into())),
            None => Err(SpecError { text: text.to_string_lossy().into_owned() }),
        }
    }
}

impl FromStr for KernelSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        if let Some(known) = catalog::find(text) {
            return Ok(Self::Known(known));
        }
        match text {
            "host" => Ok(Self::Host),
            _ if text.contains('/') => Ok(Self::Path(Path::new(text).to_owned())),
            _ => Err(SpecError { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for KernelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(known) => f.write_str(&known.name),
            Self::Path(path) => path.display().fmt(f),
            Self::Host => f.write_str("host"),
        }
    }
}

fn names() -> String {
    let mut names: Vec<_> = catalog::all().iter().map(|known| known.name.as_str()).collect();
    names.push("host");
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_parses_and_prints_every_form() {
        for text in ["debian:bookworm", "debian:trixie", "debian:sid", "host", "/boot/vmlinuz"] {
            assert_eq!(text.parse::<KernelSpec>().unwrap().to_string(), text);
        }
        assert_eq!("./bzImage".parse(), Ok(KernelSpec::Path("./bzImage".into())));
        assert!(matches!("debian:sid".parse(), Ok(KernelSpec::Known(known)) if known.sched_ext));
    }

    #[test]
    fn spec_accepts_paths_that_are_not_utf8() {
        let spec = |bytes| KernelSpec::try_from(OsStr::from_bytes(bytes));
        let path = OsStr::from_bytes(b"/boot/\xff").into();
        assert_eq!(spec(b"/boot/\xff"), Ok(KernelSpec::Path(path)));
        assert_eq!(spec(b"host"), Ok(KernelSpec::Host));
        assert!(spec(b"\xff").unwrap_err().to_string().contains("unknown kernel `\u{fffd}`"));
    }

    #[test]
    fn spec_error_lists_known_kernels() {
        for text in ["bzImage", "debian:stretch", "", "6.12"] {
            let error = text.parse::<KernelSpec>().unwrap_err().to_string();
            for part in ["debian:bookworm", "host", "./", text] {
                assert!(error.contains(part), "{part} is not in: {error}");
            }
        }
    }
}
