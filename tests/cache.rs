//! A cache that one user has filled and another uses, and one that cannot be written or run from.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use ktstr::prelude::*;
use ktstr::provision::Cache;
use rustix::mount::{MountFlags, mount, mount_remount};

/// Names the cache of [`reads_the_cache_of_root`].
const CACHE: &str = "KTSTR_TEST_CACHE";

fn fill(root: &Path) -> Result<Cache> {
    let cache = Cache::at(root);
    cache.write("kernel/current", b"6.12")?;
    cache.build_once("kernel/6.12", |entry| {
        fs::create_dir(entry)?;
        Ok(fs::write(entry.join("vmlinux"), "image")?)
    })?;
    Ok(cache)
}

/// Fails unless a full cache that cannot be written can be read, and only read.
fn ensure_only_reading_works(cache: &Cache) -> Result<()> {
    ensure!(fs::read(cache.entry("kernel/current"))? == b"6.12");
    let entry = cache.build_once("kernel/6.12", |_| bail!("it was built again"))?;
    ensure!(fs::read(entry.join("vmlinux"))? == b"image");
    drop(cache.lock("kernel/6.12")?);
    let missing = cache.build_once("kernel/7.2", |_| bail!("it was built"));
    let error = format!("{:#}", missing.err().context("an entry was made")?);
    for part in ["kernel/7.2` is missing", "no permission to write", "set KTSTR_CACHE_DIR"] {
        ensure!(error.contains(part), "{part:?} is missing in: {error}");
    }
    Ok(())
}

#[test]
#[ignore = "only for the test below"]
fn reads_the_cache_of_root() -> Result<()> {
    ensure!(!rustix::process::geteuid().is_root(), "this is root");
    let cache = Cache::at(std::env::var_os(CACHE).context("no cache")?);
    ensure_only_reading_works(&cache)?;
    // A user that can open the lock can also hold it forever.
    let opened = fs::File::open(cache.entry("locks/kernel,6.12"));
    ensure!(opened.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied));
    Ok(())
}

#[ktstr_test(cores = 1)]
fn cache_of_root_serves_another_user(_: &Ctx) -> Result<AssertResult> {
    let cache = fill(Path::new("/tmp/cache"))?;
    let output = Command::new("/proc/self/exe")
        .args(["--exact", "reads_the_cache_of_root", "--include-ignored"])
        .env(CACHE, cache.root())
        .uid(65534)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1)]
fn cache_of_another_user_does_not_serve_root(_: &Ctx) -> Result<AssertResult> {
    let cache = fill(Path::new("/tmp/cache"))?;
    for path in [cache.root().to_owned(), cache.entry("kernel"), cache.entry("kernel/6.12")] {
        std::os::unix::fs::chown(&path, Some(65534), None)?;
        let used = cache.build_once("kernel/6.12", |_| bail!("it was built again"));
        let error = format!("{:#}", used.err().context("files of another user were used")?);
        for part in ["belongs to user 65534", "set KTSTR_CACHE_DIR"] {
            ensure!(error.contains(part), "{part:?} is missing in: {error}");
        }
        std::os::unix::fs::chown(&path, Some(0), None)?;
    }
    cache.build_once("kernel/6.12", |_| bail!("it was built again"))?;
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1)]
fn cache_on_a_read_only_file_system_serves(_: &Ctx) -> Result<AssertResult> {
    let folder = Path::new("/tmp/mounted");
    fs::create_dir(folder)?;
    mount("cache", folder, "tmpfs", MountFlags::empty(), None)?;
    let cache = fill(&folder.join("cache"))?;
    cache.check_writable()?;
    mount_remount(folder, MountFlags::RDONLY, "")?;
    let error = format!("{:#}", cache.check_writable().err().context("it can be written")?);
    ensure!(error.contains("/tmp/mounted/cache") && error.contains("os error 30"), "{error}");
    ensure_only_reading_works(&cache)?;
    Ok(AssertResult::pass())
}

#[ktstr_test(cores = 1)]
fn cache_on_a_noexec_file_system_is_named(_: &Ctx) -> Result<AssertResult> {
    let folder = Path::new("/tmp/mounted");
    fs::create_dir(folder)?;
    mount("cache", folder, "tmpfs", MountFlags::empty(), None)?;
    let cache = fill(&folder.join("cache"))?;
    cache.check_exec()?;
    mount_remount(folder, MountFlags::NOEXEC, "")?;
    let error = cache.check_exec().err().context("programs can be run")?.to_string();
    ensure!(error.contains("/tmp/mounted/cache") && error.contains("`noexec`"), "{error}");
    Ok(AssertResult::pass())
}
