//! Inspects a kernel image given by path: its release, its SHA-256, and the file to boot.
//!
//! The results are cached under the identity of the file, so that an image is read and unpacked once. The two newest
//! results of a path stay, because kernel developers rebuild the same image often.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::ReadCache;
use serde::{Deserialize, Serialize};

use super::bootable::{Boot, BootFormat};
use super::cache::Cache;
use super::decompress::{LIMIT, read_file};
use super::versions::Versions;
use super::{apt, release, vmlinux};

/// Raised when the layout of these entries changes.
const KIND: &str = "images-2";
const RECORD: &str = "image.json";
const VMLINUX: &str = "vmlinux";

/// The cached facts of an image.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    #[serde(deserialize_with = "release::deserialize")]
    pub(super) release: String,
    format: Format,
    /// Why QEMU cannot boot it as an ELF file.
    pub(super) why_not_elf: Option<String>,
}

/// What is cached of an image of the user.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    facts: Facts,
    sha256: String,
}

/// An image of the user.
#[derive(Debug)]
pub(super) struct Inspected {
    pub(super) release: String,
    /// The hash of its content, as `sha256sum` prints it.
    pub(super) sha256: String,
    pub(super) boot: Boot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Format {
    BzImage,
    Elf,
}

/// Reads `image`, and writes the vmlinux inside to the path `vmlinux` if it can be booted.
pub(super) fn inspect(image: &Path, vmlinux: &Path) -> Result<Facts> {
    let mut start = Vec::new();
    let mut open = || -> io::Result<File> {
        // Reading a pipe would block, and a device may be endless.
        if !fs::metadata(image)?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let mut file = File::open(image)?;
        file.by_ref().take(1024).read_to_end(&mut start)?;
        Ok(file)
    };
    let file = open().with_context(|| format!("failed to read `{}`", image.display()))?;
    if start.starts_with(b"\x7fELF") {
        return inspect_elf(file).with_context(|| format!("kernel image `{}`", image.display()));
    }
    if !vmlinux::is_bzimage(&start) {
        bail!("`{}` is neither a bzImage nor an ELF vmlinux for x86-64", image.display());
    }
    let image =
        read_file(image).with_context(|| format!("failed to read `{}`", image.display()))?;
    Ok(Facts {
        release: vmlinux::bzimage_release(&image)?,
        format: Format::BzImage,
        why_not_elf: unpack(&image, vmlinux)?,
    })
}

/// Inspects an image of the user, or returns the cached result for the same state of the file.
pub(super) fn inspect_cached(cache: &Cache, image: &Path) -> Result<Inspected> {
    let meta =
        fs::metadata(image).with_context(|| format!("kernel image `{}`", image.display()))?;
    let versions = Versions::new(cache, format!("{KIND}/{:016x}", hash(image)));
    let identity = identity(&meta);
    let dir = match versions.find(&identity)? {
        Some(dir) => dir,
        None => {
            let dir = versions.build(&identity, |dir| {
                fs::create_dir(dir)?;
                let facts = inspect(image, &dir.join(VMLINUX))?;
                let record = Record { facts, sha256: sha256(image)? };
                Ok(fs::write(dir.join(RECORD), serde_json::to_vec_pretty(&record)?)?)
            })?;
            versions.set_current(&identity)?;
            dir
        }
    };
    let path = dir.join(RECORD);
    let Record { facts, sha256 } = fs::read(&path)
        .map_err(anyhow::Error::from)
        .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
        .with_context(|| format!("`{}` is damaged; remove its directory", path.display()))?;
    let boot = facts.boot(image, &dir.join(VMLINUX));
    Ok(Inspected { release: facts.release, sha256, boot })
}

/// Returns the SHA-256 of a file. A library would take half a minute for a vmlinux with debug information, because
/// the crates of a test are compiled without optimization.
fn sha256(path: &Path) -> Result<String> {
    let output = apt::run(Command::new("sha256sum").arg("--").arg(path))?;
    // A leading backslash means that the name, which follows, is escaped.
    let hash = output.trim_start_matches('\\').get(..64).unwrap_or_default();
    if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        bail!("`sha256sum` printed no hash of `{}`: {output:?}", path.display());
    }
    Ok(hash.to_owned())
}

impl Facts {
    /// Returns the file to boot, given that the vmlinux of `image` was written to `vmlinux`.
    pub(super) fn boot(&self, image: &Path, vmlinux: &Path) -> Boot {
        let (path, format) = match (self.format, &self.why_not_elf) {
            (Format::Elf, _) => (image, BootFormat::Elf),
            (Format::BzImage, None) => (vmlinux, BootFormat::Elf),
            (Format::BzImage, Some(_)) => (image, BootFormat::BzImage),
        };
        Boot { path: path.to_owned(), format, note: self.why_not_elf.clone() }
    }
}

/// Returns the identity of one state of a file. The change time distinguishes rebuilt files of equal size.
pub(crate) fn identity(meta: &fs::Metadata) -> String {
    format!(
        "{:x}-{:x}-{:x}-{:x}.{:x}-{:x}.{:x}",
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec()
    )
}

/// Writes the vmlinux of an image to `path`; returns the reason if it cannot be booted.
fn unpack(image: &[u8], path: &Path) -> Result<Option<String>> {
    let elf = match vmlinux::from_bzimage(image) {
        Ok(elf) => elf,
        Err(error) => return Ok(Some(format!("{:#}", anyhow::Error::from(error)))),
    };
    if !vmlinux::has_pvh_entry(elf.as_slice()) {
        return Ok(Some("its vmlinux has no PVH entry (CONFIG_PVH)".to_owned()));
    }
    fs::write(path, elf).with_context(|| format!("failed to write `{}`", path.display()))?;
    Ok(None)
}

fn inspect_elf(file: File) -> Result<Facts> {
    // With debug information a vmlinux has half a gigabyte or more: read only the parts that are needed.
    let has_entry = vmlinux::has_pvh_entry(&ReadCache::new(&file));
    let why_not_elf =
        (!has_entry).then(|| "it has no PVH entry (CONFIG_PVH), which QEMU requires".to_owned());
    io::Seek::rewind(&mut &file)?;
    // The loaded part is at the beginning, debug information at the end.
    let release = find_banner(file.take(LIMIT as u64))?
        .context("not a kernel: this ELF file has no `Linux version` banner")?;
    Ok(Facts { release, format: Format::Elf, why_not_elf })
}

/// Finds the release in `Linux version 6.12.1-test (..`.
fn find_banner(mut file: impl Read) -> io::Result<Option<String>> {
    const BANNER: &[u8] = b"Linux version ";
    const LONGEST: usize = BANNER.len() + release::MAX_LEN + 1;
    let mut window = Vec::new();
    loop {
        let read = file.by_ref().take(1 << 20).read_to_end(&mut window)?;
        let mut rest = window.as_slice();
        while let Some(at) = find(rest, BANNER) {
            let text = &rest[at + BANNER.len()..];
            let end = text
                .iter()
                .take(release::MAX_LEN + 1)
                .position(|byte| matches!(byte, b' ' | 0 | b'\n'));
            // Format strings with the same text have a `%s` instead of the number.
            if let Some(release) = end.and_then(|end| std::str::from_utf8(&text[..end]).ok())
                && release::is_release(release)
            {
                return Ok(Some(release.to_owned()));
            }
            rest = text;
        }
        if read == 0 {
            return Ok(None);
        }
        // Keep the end, because a banner may continue in the next megabyte.
        window.drain(..window.len().saturating_sub(LONGEST));
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = haystack[from..].iter().position(|byte| *byte == needle[0]) {
        if haystack[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

fn hash(path: &Path) -> u64 {
    let path: PathBuf = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn sha256_hashes_files_of_any_name() -> Result<()> {
        let dir = tempfile::tempdir()?;
        for name in ["-b", "a\\\nb"] {
            fs::write(dir.path().join(name), "abc")?;
            // FIPS 180-2, B.1.
            let want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
            assert_eq!(sha256(&dir.path().join(name))?, want);
        }
        let error = sha256(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("`sha256sum --` failed"), "{error}");
        Ok(())
    }

    #[test]
    fn find_banner_returns_the_release() {
        let far = [&vec![b'L'; (1 << 20) - 9], b"Linux version 6.1.0-50 (gcc)".as_slice()].concat();
        for (file, want) in [
            (&b"xxLinux version 6.12.107+deb13 (debian"[..], Some("6.12.107+deb13")),
            (b"Linux version %s (%s)\0Linux version 7.2.13 (x", Some("7.2.13")),
            (far.as_slice(), Some("6.1.0-50")),
            (b"Linux version 6/../../x (me)", None),
            (b"Linux version ", None),
            (b"", None),
        ] {
            assert_eq!(find_banner(file).unwrap().as_deref(), want);
        }
    }

    #[test]
    fn inspect_cached_detects_changed_files() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let cache = Cache::at(dir.path().join("cache"));
        let image = dir.path().join("vmlinux");
        let mut hashes = BTreeSet::new();
        for release in ["6.1.0", "6.2.0"] {
            fs::write(&image, format!("\x7fELF..Linux version {release} (me)"))?;
            for _ in 0..2 {
                let Inspected { release: found, sha256, boot } = inspect_cached(&cache, &image)?;
                assert_eq!(found, release);
                hashes.insert(sha256);
                assert_eq!((boot.path, boot.format), (image.clone(), BootFormat::Elf));
                assert!(boot.note.is_some_and(|note| note.contains("PVH")));
            }
        }
        assert_eq!(hashes.len(), 2, "{hashes:?}");
        assert!(inspect_cached(&cache, Path::new("/dev/zero")).is_err());
        fs::write(&image, "#!/bin/sh")?;
        assert!(inspect_cached(&cache, &image).is_err());
        Ok(())
    }
}
