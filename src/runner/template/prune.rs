//! Removes old templates, and the least recently used ones if all together take too much space.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};

use super::layout::{DIRECTORY, FACTS, MAX_AGE, USES};
use crate::provision::cache::{self, Cache};
use crate::provision::disk_usage;

/// The variable with the most space that all templates may take.
const VARIABLE: &str = "KTSTR_CACHE_MAX";

const DEFAULT_MAX: u64 = 8 << 30;

/// The space that the templates of a cache take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplateUsage {
    /// How many there are.
    pub count: usize,
    /// Bytes on disk.
    pub bytes: u64,
    /// The most bytes that they may take.
    pub limit: u64,
}

/// Returns the space that the templates of the cache take: guests that were booted and saved, from which others are
/// forked.
///
/// # Errors
///
/// If `KTSTR_CACHE_MAX` is not a size.
pub fn usage(cache: &Cache) -> Result<TemplateUsage> {
    let entries = entries(cache);
    let bytes = entries.iter().map(|entry| entry.bytes).sum();
    Ok(TemplateUsage { count: entries.len(), bytes, limit: limit()? })
}

/// Returns the most bytes that all templates may take.
///
/// # Errors
///
/// If `KTSTR_CACHE_MAX` is not a size.
pub(in crate::runner) fn limit() -> Result<u64> {
    parse(std::env::var_os(VARIABLE).as_deref())
}

fn parse(value: Option<&OsStr>) -> Result<u64> {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(DEFAULT_MAX) };
    let text = value.to_string_lossy();
    let size = [("GiB", 30), ("MiB", 20)].into_iter().find_map(|(unit, shift)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(1 << shift)
    });
    match size {
        Some(size) => Ok(size),
        None => bail!("{VARIABLE}={text}: expected a size such as 8GiB or 512MiB"),
    }
}

/// The size and the age of a template.
#[derive(Debug)]
struct Entry {
    /// Its name in the cache.
    name: String,
    bytes: u64,
    /// When it was last used.
    used: SystemTime,
    is_old: bool,
}

/// Lists the templates, the most recently used ones first.
fn entries(cache: &Cache) -> Vec<Entry> {
    let Ok(directory) = fs::read_dir(cache.entry(DIRECTORY)) else { return Vec::new() };
    let mut entries: Vec<_> = directory
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            // An incomplete template has neither file, and counts as old.
            let saved = modified(&path.join(FACTS));
            Some(Entry {
                name: format!("{DIRECTORY}/{}", entry.file_name().to_str()?),
                bytes: disk_usage(&path),
                used: modified(&path.join(USES)).unwrap_or(SystemTime::UNIX_EPOCH),
                is_old: saved.is_none_or(|saved| age(saved) >= MAX_AGE),
            })
        })
        .collect();
    entries.sort_by_key(|entry| std::cmp::Reverse(entry.used));
    entries
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::symlink_metadata(path).ok()?.modified().ok()
}

fn age(time: SystemTime) -> Duration {
    time.elapsed().unwrap_or_default()
}

/// Removes old templates, those beyond `limit` bytes, and the unfinished ones of processes that were killed. Keeps
/// those that a test uses or saves.
pub(super) fn prune(cache: &Cache, limit: u64) {
    let mut kept = 0;
    for entry in entries(cache) {
        if (entry.is_old || kept + entry.bytes > limit)
            && removes(cache, &entry.name, &cache.entry(&entry.name))
        {
            tracing::debug!("removed `{}`, {} bytes", entry.name, entry.bytes);
        } else {
            kept += entry.bytes;
        }
    }
    let Ok(unfinished) = fs::read_dir(cache.entry("tmp")) else { return };
    for entry in unfinished.flatten() {
        // The name of an unfinished entry's directory is that of the entry, with `,` instead of `/`.
        let name = entry.file_name();
        if let Some(("templates", name)) = name.to_str().and_then(|name| name.split_once(',')) {
            removes(cache, &format!("{DIRECTORY}/{name}"), &entry.path());
        }
    }
}

/// Removes a file or directory of the template `name`, unless a test holds its lock. Returns whether it was removed.
fn removes(cache: &Cache, name: &str, path: &Path) -> bool {
    match cache.try_lock(name) {
        Ok(Some(_lock)) => cache::remove(path).is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache"));
        (dir, cache)
    }

    /// Adds a template of 100 KB with these times since it was saved and last used.
    fn add(cache: &Cache, name: &str, saved: Duration, used: Duration) {
        let path = cache.entry(&format!("{DIRECTORY}/{name}"));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("machine"), vec![1; 100 << 10]).unwrap();
        for (file, age) in [(FACTS, saved), (USES, used)] {
            let file = File::create(path.join(file)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
    }

    fn names(cache: &Cache) -> Vec<String> {
        let mut names: Vec<_> = entries(cache).into_iter().map(|entry| entry.name).collect();
        names.sort();
        names
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn parse_takes_a_size_with_its_unit() {
        let parse = |value: &str| parse(Some(OsStr::new(value)));
        assert_eq!(super::parse(None).unwrap(), 8 << 30);
        assert_eq!(parse("").unwrap(), 8 << 30);
        assert_eq!(parse("2GiB").unwrap(), 2 << 30);
        assert_eq!(parse("0MiB").unwrap(), 0);
        for value in ["8", "8 GiB", "-1GiB", "1.5GiB", "8GB", "GiB", "99999999999999GiB"] {
            let error = parse(value).unwrap_err().to_string();
            let want = format!("KTSTR_CACHE_MAX={value}: expected a size such as 8GiB or 512MiB");
            assert_eq!(error, want);
        }
    }

    #[test]
    fn prune_removes_the_least_recently_used_beyond_the_limit() {
        let (_dir, cache) = cache();
        for (name, minutes) in [("a", 3), ("b", 1), ("c", 2)] {
            add(&cache, name, 9 * MINUTE, minutes * MINUTE);
        }
        let TemplateUsage { count, bytes, .. } = usage(&cache).unwrap();
        assert_eq!(count, 3);
        prune(&cache, bytes);
        assert_eq!(names(&cache), ["templates/a", "templates/b", "templates/c"]);
        prune(&cache, bytes - 1);
        assert_eq!(names(&cache), ["templates/b", "templates/c"]);
        prune(&cache, 0);
        assert_eq!(names(&cache), [""; 0]);
    }

    #[test]
    fn prune_removes_old_and_incomplete_ones() {
        let (_dir, cache) = cache();
        add(&cache, "new", MAX_AGE - MINUTE, MAX_AGE - MINUTE);
        add(&cache, "old", MAX_AGE, MINUTE);
        fs::create_dir(cache.entry("templates/incomplete")).unwrap();
        prune(&cache, u64::MAX);
        assert_eq!(names(&cache), ["templates/new"]);
    }

    #[test]
    fn prune_keeps_what_is_locked() {
        let (_dir, cache) = cache();
        for name in ["shared", "exclusive", "unlocked"] {
            add(&cache, name, MINUTE, MINUTE);
            fs::create_dir_all(cache.entry(&format!("tmp/templates,{name}/new"))).unwrap();
        }
        fs::create_dir(cache.entry("tmp/initramfs,unlocked")).unwrap();
        let _shared = cache.lock_shared("templates/shared").unwrap();
        let _exclusive = cache.try_lock("templates/exclusive").unwrap().unwrap();
        prune(&cache, 0);
        assert_eq!(names(&cache), ["templates/exclusive", "templates/shared"]);
        let unfinished = fs::read_dir(cache.entry("tmp")).unwrap();
        let mut unfinished: Vec<_> =
            unfinished.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        unfinished.sort();
        assert_eq!(unfinished, ["initramfs,unlocked", "templates,exclusive", "templates,shared"]);
    }
}
