//! Finds, fetches and lists kernels.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ktstr_core::record::ImageId;

use super::bootable::Kernel;
use super::cache::Cache;
use super::catalog::{self, KnownKernel};
use super::image::{self, Inspected};
use super::spec::KernelSpec;
use super::{debian, units};

/// A kernel of the built-in list, and its state in the cache.
#[derive(Debug)]
pub struct KernelStatus {
    /// The entry of the list.
    pub known: &'static KnownKernel,
    /// The cached kernel, if it was fetched.
    pub cached: Option<Kernel>,
    /// Bytes on disk, older versions included.
    pub disk_usage: u64,
    /// Whether it has `CONFIG_SCHED_CLASS_EXT`, by the cached configuration, or else by the list.
    pub sched_ext: bool,
}

/// Resolves the kernel of a test: `requested` by its attribute, else the one in `KTSTR_KERNEL`, else the default
/// kernel. Fetches a known kernel that is not in the cache.
///
/// # Errors
///
/// If there is no such kernel, or it cannot be fetched. The message contains what was tried and what to do.
pub fn resolve(cache: &Cache, requested: Option<&str>) -> Result<Kernel> {
    let from_env = || {
        let value = env::var_os("KTSTR_KERNEL").filter(|value| !value.is_empty());
        value.map(|value| (value, "KTSTR_KERNEL"))
    };
    match requested.map(|text| (text.into(), "the test")).or_else(from_env) {
        Some((text, source)) => KernelSpec::try_from(&*text)
            .map_err(anyhow::Error::from)
            .and_then(|spec| resolve_spec(cache, &spec))
            .with_context(|| {
                format!("failed to find the kernel `{}` requested by {source}", text.display())
            }),
        None => resolve_spec(cache, &KernelSpec::default_kernel()),
    }
}

/// Resolves one spec. Fetches a known kernel that is not in the cache.
pub fn resolve_spec(cache: &Cache, spec: &KernelSpec) -> Result<Kernel> {
    match spec {
        KernelSpec::Known(known) => match debian::cached(cache, known)? {
            Some(kernel) => Ok(kernel),
            None => debian::fetch(cache, known, false),
        },
        KernelSpec::Path(path) => given(cache, spec, path),
        KernelSpec::Host => given(cache, spec, &host_image()?),
    }
}

/// Fetches a known kernel into the cache. With `refresh`, fetches the newest version again.
///
/// A replaced version stays on disk until the next replacement, because running tests may use it.
pub fn fetch(cache: &Cache, spec: &KernelSpec, refresh: bool) -> Result<Kernel> {
    match spec {
        KernelSpec::Known(known) if refresh => debian::fetch(cache, known, true),
        _ => resolve_spec(cache, spec),
    }
}

/// Lists the known kernels and their state in the cache. Does not use the network.
pub fn list(cache: &Cache) -> Result<Vec<KernelStatus>> {
    let status = |known: &'static KnownKernel| {
        let cached = debian::cached(cache, known)?;
        let sched_ext = cached.as_ref().and_then(|kernel| kernel.has_option("SCHED_CLASS_EXT"));
        Ok(KernelStatus {
            known,
            disk_usage: units::disk_usage(&debian::versions(cache, known).dir()),
            sched_ext: sched_ext.unwrap_or(known.sched_ext),
            cached,
        })
    };
    catalog::all().iter().map(status).collect()
}

/// Finds the kernel of a user's path: an image, or a kernel tree that was built.
fn given(cache: &Cache, spec: &KernelSpec, path: &Path) -> Result<Kernel> {
    let path = std::path::absolute(path)?;
    let meta = fs::metadata(&path)
        .with_context(|| format!("no kernel at `{}`{}", path.display(), neighbours(&path)))?;
    let image = if meta.is_dir() { image_in_tree(&path)? } else { path.clone() };
    let Inspected { release: version, sha256, boot } = image::inspect_cached(cache, &image)?;
    let (modules, config) =
        if meta.is_dir() { in_tree(&path) } else { installed(&image, &version) };
    let id = ImageId::File { path: image.clone(), sha256 };
    Ok(Kernel { spec: spec.clone(), version, id, image, boot, modules, config, provenance: None })
}

fn image_in_tree(tree: &Path) -> Result<PathBuf> {
    // The bzImage first: its vmlinux is copied to the cache, so that a rebuild during a test run
    // does not change a kernel under a running guest.
    let names = ["arch/x86/boot/bzImage", "vmlinux"];
    match names.map(|name| tree.join(name)).into_iter().find(|path| path.is_file()) {
        Some(image) => Ok(image),
        None => bail!(
            "`{}` contains neither {}; build the tree, or give the path of the image{}",
            tree.display(),
            names.join(" nor "),
            neighbours(&tree.join("."))
        ),
    }
}

fn in_tree(tree: &Path) -> (Option<PathBuf>, Option<PathBuf>) {
    let modules = tree.join("modules.order").is_file().then(|| tree.to_owned());
    (modules, Some(tree.join(".config")).filter(|path| path.is_file()))
}

/// Finds modules and config where distributions put them, relative to the image.
fn installed(image: &Path, release: &str) -> (Option<PathBuf>, Option<PathBuf>) {
    let dir = image.parent().unwrap_or(Path::new("/"));
    let root = dir.parent().unwrap_or(Path::new("/"));
    let modules = [
        dir.to_owned(),
        root.join("lib/modules").join(release),
        root.join("usr/lib/modules").join(release),
    ];
    let mut modules = modules.into_iter().filter(|path| path.ends_with(release));
    let modules = modules.find(|path| path.join("kernel").is_dir());
    let configs = [dir.join(format!("config-{release}")), dir.join("config")];
    let in_modules = modules.iter().map(|modules| modules.join("config"));
    let config = configs.into_iter().chain(in_modules).find(|path| path.is_file());
    (modules, config)
}

/// Finds the image of the running kernel.
fn host_image() -> Result<PathBuf> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let names = [format!("/boot/vmlinuz-{release}"), format!("/usr/lib/modules/{release}/vmlinuz")];
    let Some(path) = names.iter().map(Path::new).find(|path| path.exists()) else {
        let boot = neighbours(Path::new("/boot/vmlinuz"));
        bail!(
            "no image of the running kernel {release}: neither {} exists{boot}",
            names.join(" nor ")
        );
    };
    // Ubuntu makes it readable for root only.
    fs::File::open(path).with_context(|| {
        format!(
            "failed to open the kernel of the host; run `sudo chmod a+r {0}`, or copy `{0}` and set \
             KTSTR_KERNEL to the copy",
            path.display()
        )
    })?;
    Ok(path.to_owned())
}

/// Lists the files that exist in the nearest directory of `path`.
fn neighbours(path: &Path) -> String {
    let dir = path.ancestors().skip(1).find(|dir| dir.is_dir());
    let dir = dir.unwrap_or(Path::new("/"));
    let entries = dir.read_dir().into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let more = if names.len() > 12 { ", .." } else { "" };
    names.truncate(12);
    if names.is_empty() {
        return format!("; `{}` is empty", dir.display());
    }
    format!("; `{}` contains {}{more}", dir.display(), names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) -> Result<()> {
        fs::create_dir_all(path.parent().unwrap())?;
        Ok(fs::write(path, text)?)
    }

    #[test]
    fn resolve_spec_finds_the_parts_of_a_tree() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let cache = Cache::at(dir.path().join("cache"));
        let tree = dir.path().join("linux");
        fs::create_dir(&tree)?;
        let spec = KernelSpec::Path(tree.clone());
        let error = format!("{:#}", resolve_spec(&cache, &spec).unwrap_err());
        assert!(error.contains("arch/x86/boot/bzImage"), "{error}");
        write(&tree.join("vmlinux"), "\x7fELF Linux version 6.9.0-mine (me)")?;
        write(&tree.join(".config"), "CONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_MMIO=m\n")?;
        let kernel = resolve_spec(&cache, &spec)?;
        assert_eq!((kernel.version.as_str(), &kernel.modules), ("6.9.0-mine", &None));
        assert_eq!(kernel.has_option("VIRTIO_PCI"), Some(true));
        assert_eq!(kernel.has_option("VIRTIO_MMIO"), Some(false));
        assert!(matches!(kernel.id, ImageId::File { path, .. } if path == tree.join("vmlinux")));
        Ok(())
    }

    #[test]
    fn installed_finds_modules_and_config() -> Result<()> {
        for (image, modules, config) in [
            ("boot/vmlinuz-6.1", "lib/modules/6.1", "boot/config-6.1"),
            ("boot/vmlinuz-6.1", "usr/lib/modules/6.1", "usr/lib/modules/6.1/config"),
            ("usr/lib/modules/6.1/vmlinuz", "usr/lib/modules/6.1", "usr/lib/modules/6.1/config"),
        ] {
            let dir = tempfile::tempdir()?;
            write(&dir.path().join(modules).join("kernel/a.ko"), "")?;
            write(&dir.path().join(config), "")?;
            let want = (Some(dir.path().join(modules)), Some(dir.path().join(config)));
            assert_eq!(installed(&dir.path().join(image), "6.1"), want, "{image}");
            assert_eq!(installed(&dir.path().join(image), "6.2").0, None, "{image}");
        }
        Ok(())
    }

    #[test]
    fn resolve_lists_existing_files_for_a_missing_path() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let cache = Cache::at(dir.path().join("cache"));
        write(&dir.path().join("bzImage-6.1"), "")?;
        let path = dir.path().join("bzImage").display().to_string();
        let error = format!("{:#}", resolve(&cache, Some(&path)).unwrap_err());
        assert!(
            error.contains("requested by the test") && error.contains("bzImage-6.1"),
            "{error}"
        );
        Ok(())
    }

    #[test]
    fn list_accepts_a_missing_cache() -> Result<()> {
        let kernels = list(&Cache::at("/nonexistent/ktstr"))?;
        assert!(kernels.len() >= 3);
        assert!(kernels.iter().all(|kernel| kernel.cached.is_none() && kernel.disk_usage == 0));
        Ok(())
    }
}
