//! Fetches a kernel from the Debian archive into a directory of the cache.
//!
//! The directory `kernels-1/debian-trixie/<release>_<package version>` holds `vmlinuz`, `config`,
//! `lib/modules/<release>`, the unpacked `vmlinux` and the record `kernel.json`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use ktstr_core::record::ImageId;
use serde::{Deserialize, Serialize};

use super::apt::{Package, Suite};
use super::bootable::{Kernel, Provenance};
use super::cache::{self, Cache};
use super::catalog::KnownKernel;
use super::image::{self, Facts};
use super::release::is_release;
use super::spec::KernelSpec;
use super::units::{megabytes, seconds};
use super::versions::Versions;
use crate::notice::notice;

/// Raised when the layout of these entries changes.
const KIND: &str = "kernels-1";
pub(super) const RECORD: &str = "kernel.json";

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    facts: Facts,
    /// Length of the file to boot; it differs if the entry was damaged by a power failure.
    boot_len: u64,
    provenance: Provenance,
}

pub(super) fn versions<'a>(cache: &'a Cache, known: &KnownKernel) -> Versions<'a> {
    Versions::new(cache, format!("{KIND}/{}", known.name.replace(':', "-")))
}

pub(super) fn cached(cache: &Cache, known: &'static KnownKernel) -> Result<Option<Kernel>> {
    versions(cache, known).current()?.map(|dir| load(known, &dir)).transpose()
}

/// Fetches the newest version and makes it current. The previous version stays for running tests.
///
/// Without `refresh`, returns the version that another process fetched in the meantime, if any.
pub(super) fn fetch(cache: &Cache, known: &'static KnownKernel, refresh: bool) -> Result<Kernel> {
    let context = || {
        format!(
            "failed to fetch the kernel {}; without a network or apt, set KTSTR_KERNEL to the path of \
             a kernel or to `host`, or KTSTR_CACHE_DIR to a copy of a filled cache",
            known.name
        )
    };
    // The lock on the package lists excludes other fetchers of the suite.
    let mut suite = Suite::open(cache, &known.suite, refresh).with_context(context)?;
    if !refresh && let Some(kernel) = cached(cache, known)? {
        return Ok(kernel);
    }
    let dir = suite
        .with_fresh_lists(|suite| {
            let (release, packages) = find_packages(suite, known)?;
            let version = format!("{release}_{}", plain(&packages[0].version));
            let versions = versions(cache, known);
            let dir =
                versions.build(&version, |dir| build(suite, known, &release, &packages, dir))?;
            versions.set_current(&version)?;
            Ok(dir)
        })
        .with_context(context)?;
    load(known, &dir)
}

fn load(known: &'static KnownKernel, dir: &Path) -> Result<Kernel> {
    let record = || -> Result<Record> {
        let record: Record = serde_json::from_slice(&fs::read(dir.join(RECORD))?)?;
        let boot = record.facts.boot(&dir.join("vmlinuz"), &dir.join("vmlinux")).path;
        let len = fs::metadata(&boot)?.len();
        ensure!(len == record.boot_len, "`{}` has the wrong length", boot.display());
        Ok(record)
    };
    let record = record().with_context(|| {
        format!("the cached kernel `{}` is damaged; remove that directory", dir.display())
    })?;
    let image = dir.join("vmlinuz");
    let package = record.provenance.packages.first();
    Ok(Kernel {
        id: ImageId::PackageSha256(
            package.map(|package| package.sha256.clone()).unwrap_or_default(),
        ),
        spec: KernelSpec::Known(known),
        boot: record.facts.boot(&image, &dir.join("vmlinux")),
        modules: Some(dir.join("lib/modules").join(&record.facts.release)),
        config: Some(dir.join("config")),
        version: record.facts.release,
        image,
        provenance: Some(record.provenance),
    })
}

/// Follows the metapackage to the packages of one release, the image package first.
///
/// Since 7.2 the image package is empty and depends on linux-binary, linux-modules and linux-base packages of the
/// same release.
fn find_packages(suite: &Suite, known: &KnownKernel) -> Result<(String, Vec<Package>)> {
    let (_, depends) = suite.show(&known.metapackage)?;
    let release = release_of(&depends).with_context(|| {
        format!("`{}` does not depend on a kernel image, only on {depends:?}", known.metapackage)
    })?;
    let mut names = vec![format!("linux-image-{release}")];
    let mut packages = Vec::new();
    while let Some(name) = names.get(packages.len()).cloned() {
        let (package, depends) = suite.show(&name)?;
        packages.push(package);
        for dependency in depends {
            let is_ours = dependency.starts_with("linux-")
                && dependency.ends_with(&format!("-{release}"))
                && !names.contains(&dependency);
            if is_ours {
                names.push(dependency);
            }
        }
    }
    Ok((release, packages))
}

fn release_of(depends: &[String]) -> Option<String> {
    let releases = depends.iter().filter_map(|name| name.strip_prefix("linux-image-"));
    let mut releases = releases.filter(|release| is_release(release));
    releases.next().map(str::to_owned)
}

/// Replaces the characters of a version that the name of an entry must not contain.
fn plain(version: &str) -> String {
    version.replace(|c: char| !c.is_ascii_alphanumeric() && !".+~-".contains(c), "_")
}

fn build(
    suite: &Suite,
    known: &KnownKernel,
    release: &str,
    packages: &[Package],
    dir: &Path,
) -> Result<()> {
    let started = Instant::now();
    let size = packages.iter().map(|package| package.size).sum();
    notice(&format!(
        "fetching kernel {} ({}, {}) from {} ...",
        known.name,
        packages[0].name,
        megabytes(size),
        suite.host()
    ));
    let root = dir.join("root");
    fs::create_dir_all(&root)?;
    suite.unpack(packages, &root)?;
    keep_parts(&root, release, dir)?;
    let facts = image::inspect(&dir.join("vmlinuz"), &dir.join("vmlinux"))?;
    ensure!(
        facts.release == release,
        "the image of {release} contains the release {}",
        facts.release
    );
    let boot = facts.boot(&dir.join("vmlinuz"), &dir.join("vmlinux"));
    let boot_len = fs::metadata(&boot.path)?.len();
    if let Some(why) = &boot.note {
        notice(&format!("kernel {} boots from its compressed image: {why}", known.name));
    }
    let fetched_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mirror = suite.host().to_owned();
    let provenance = Provenance { fetched_at, mirror, packages: packages.to_vec() };
    let record = Record { facts, boot_len, provenance };
    fs::write(dir.join(RECORD), serde_json::to_vec_pretty(&record)?)?;
    notice(&format!("fetched kernel {} in {}", known.name, seconds(started.elapsed())));
    Ok(())
}

/// Moves image, config and modules out of the unpacked packages, and removes the rest.
fn keep_parts(root: &Path, release: &str, dir: &Path) -> Result<()> {
    // The packages use merged /usr since trixie; image and config moved with 7.2.
    let modules = [format!("lib/modules/{release}"), format!("usr/lib/modules/{release}")];
    let [vmlinuz, config] = ["vmlinuz", "config"].map(|part| {
        let moved = modules.iter().map(|dir| format!("{dir}/{part}"));
        moved.chain([format!("boot/{part}-{release}")]).collect::<Vec<_>>()
    });
    take("image", root, &vmlinuz, &dir.join("vmlinuz"))?;
    take("config", root, &config, &dir.join("config"))?;
    fs::create_dir_all(dir.join("lib/modules"))?;
    let kept = dir.join("lib/modules").join(release);
    take("modules", root, &modules, &kept)?;
    ensure!(kept.join("kernel").is_dir(), "the packages of {release} contain no modules");
    cache::remove(&kept.join("System.map"))?;
    cache::remove(root)
}

fn take(what: &str, root: &Path, names: &[String], to: &Path) -> Result<()> {
    let found: Option<PathBuf> =
        names.iter().map(|name| root.join(name)).find(|path| path.exists());
    let found = found.with_context(|| {
        format!("the unpacked packages contain no {what}: none of {}", names.join(", "))
    })?;
    fs::rename(&found, to).with_context(|| format!("failed to move `{}`", found.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_of_finds_the_image_package() {
        for (depends, want) in [
            (&["linux-image-6.12.107+deb13-cloud-amd64"][..], Some("6.12.107+deb13-cloud-amd64")),
            (&["linux-base-cloud-amd64", "linux-image-7.2.13-cloud"], Some("7.2.13-cloud")),
            (&["linux-image-cloud-amd64"], None),
            (&[], None),
        ] {
            let depends: Vec<_> = depends.iter().map(|name| name.to_string()).collect();
            assert_eq!(release_of(&depends).as_deref(), want);
        }
        assert_eq!(plain("1:7.2.13-1~a/b"), "1_7.2.13-1~a_b");
    }

    #[test]
    fn keep_parts_knows_both_layouts() -> Result<()> {
        let layouts = [
            ["boot/vmlinuz-6.1", "boot/config-6.1", "lib/modules/6.1/kernel/a.ko"],
            [
                "usr/lib/modules/6.1/vmlinuz",
                "usr/lib/modules/6.1/config",
                "usr/lib/modules/6.1/kernel/a.ko",
            ],
        ];
        for files in layouts {
            let dir = tempfile::tempdir()?;
            let root = dir.path().join("root");
            for file in files.iter().chain(&["usr/share/doc/linux/changelog"]) {
                let path = root.join(file);
                fs::create_dir_all(path.parent().unwrap())?;
                fs::write(path, file)?;
            }
            keep_parts(&root, "6.1", dir.path())?;
            for part in ["vmlinuz", "config", "lib/modules/6.1/kernel/a.ko"] {
                assert!(dir.path().join(part).is_file(), "{part} of {files:?}");
            }
            assert!(!root.exists());
            let error = keep_parts(&root, "6.1", dir.path()).unwrap_err().to_string();
            assert!(error.contains("no image") && error.contains("boot/vmlinuz-6.1"), "{error}");
        }
        Ok(())
    }
}
