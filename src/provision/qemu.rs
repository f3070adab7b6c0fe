//! Finds or fetches a QEMU that is known to run guests correctly.
//!
//! QEMU before 11.0 does not: the multi-threaded TCG of 7.2 patches code under running CPUs and breaks cmpxchg16b,
//! which ends in oopses of a correct kernel, and 10.0 may abort when one CPU sets up PCI devices while another
//! writes to its APIC (docs/decisions/0002). The installed QEMU is used from 11.0 on. Otherwise one is fetched with
//! all its libraries and the dynamic loader; it runs on any x86-64 Linux, and nothing is installed.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::apt::{self, Package, Suite};
use super::cache::{self, Cache};
use super::image;
use super::tool;
use super::units::{megabytes, seconds};
use super::versions::Versions;
use crate::notice::notice;

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
const SUITE: &str = "trixie-backports";
const GOOD_SINCE: u32 = 11;
/// Raised when the layout of these entries changes, or fetched versions are not sufficient any more.
const KIND: &str = "qemu-2";
const RECORD: &str = "qemu.json";

/// How to run QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuProgram {
    /// The program and its first arguments.
    pub argv: Vec<OsString>,
    /// Its version: `11.1.3`.
    pub version: String,
    /// Its origin.
    pub origin: Origin,
    /// The reason for the choice, and warnings.
    pub note: String,
}

impl QemuProgram {
    /// Returns whether its version is known not to abort or to corrupt guests.
    pub fn is_known_good(&self) -> bool {
        is_good(&self.version)
    }
}

/// The origin of a QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Installed on the machine.
    System,
    /// Fetched into the cache.
    Fetched,
    /// Named by `KTSTR_QEMU`.
    Env,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: String,
    packages: Vec<Package>,
}

/// Finds QEMU: `KTSTR_QEMU`, else the installed one if its version is known-good, else a fetched one.
///
/// # Errors
///
/// If `KTSTR_QEMU` does not run, or no known-good QEMU is installed and none can be fetched.
pub fn resolve(cache: &Cache) -> Result<QemuProgram> {
    match find(cache)? {
        Ok(program) => Ok(program),
        Err(why) => fetch_as(cache, false, &why),
    }
}

/// Finds QEMU as [`resolve`] does, but does not fetch one: returns why that would be necessary.
pub fn find(cache: &Cache) -> Result<Result<QemuProgram, String>> {
    if let Some(path) = env::var_os("KTSTR_QEMU").filter(|path| !path.is_empty()) {
        return from_env(cache, Path::new(&path)).map(Ok);
    }
    let why = match apt::find_program(PROGRAM) {
        None => format!("no {PROGRAM} in PATH"),
        Some(path) => match version_of(cache, &path) {
            Ok(version) if is_good(&version) => {
                let note = format!("{} in PATH", path.display());
                return Ok(Ok(installed(path, version, Origin::System, note)));
            }
            Ok(version) => {
                let path = path.display();
                format!("{path}: {}", not_good(&version))
            }
            Err(error) => format!("{} does not run: {error:#}", path.display()),
        },
    };
    Ok(current(cache, &why)?.ok_or(why))
}

/// Fetches QEMU into the cache. With `refresh`, fetches the newest version again.
pub fn fetch(cache: &Cache, refresh: bool) -> Result<QemuProgram> {
    fetch_as(cache, refresh, "requested")
}

fn fetch_as(cache: &Cache, refresh: bool, why: &str) -> Result<QemuProgram> {
    let context = || {
        format!(
            "failed to fetch QEMU ({why}); install {PROGRAM} {GOOD_SINCE}.0 or later, or set \
             KTSTR_QEMU to use a QEMU of any version"
        )
    };
    let mut suite = Suite::open(cache, SUITE, refresh).with_context(context)?;
    if !refresh && let Some(program) = current(cache, why)? {
        return Ok(program);
    }
    suite.with_fresh_lists(|suite| fetch_from(cache, suite)).with_context(context)?;
    current(cache, why)?.context("QEMU was fetched, but it is not in the cache")
}

fn fetch_from(cache: &Cache, suite: &Suite) -> Result<()> {
    let (qemu, _) = suite.show(PACKAGE)?;
    // The part before the colon, the epoch, must not be in the name of a directory.
    let version = qemu.version.rsplit(':').next().unwrap_or_default();
    cache.check_exec()?;
    let versions = Versions::new(cache, KIND);
    versions.build(version, |dir| {
        let started = Instant::now();
        let packages = suite.closure(PACKAGE)?;
        notice(&format!(
            "fetching QEMU {version} ({} packages, {}) from {} ...",
            packages.len(),
            megabytes(packages.iter().map(|package| package.size).sum()),
            suite.host()
        ));
        let root = dir.join("root");
        fs::create_dir_all(&root)?;
        suite.unpack(&packages, &root)?;
        prune(&root)?;
        let version = probe(&command_line(dir))?;
        ensure!(is_good(&version), "{SUITE} of {} contains: {}", suite.host(), not_good(&version));
        let record = serde_json::to_vec_pretty(&Record { version, packages })?;
        fs::write(dir.join(RECORD), record)?;
        notice(&format!("fetched QEMU in {}", seconds(started.elapsed())));
        Ok(())
    })?;
    versions.set_current(version)
}

fn current(cache: &Cache, why: &str) -> Result<Option<QemuProgram>> {
    let Some(dir) = Versions::new(cache, KIND).current()? else { return Ok(None) };
    let record = || -> Result<Record> {
        let argv = command_line(&dir);
        ensure!(Path::new(&argv[0]).exists(), "the loader is missing");
        Ok(serde_json::from_slice(&fs::read(dir.join(RECORD))?)?)
    };
    let version = record()
        .with_context(|| {
            format!("the cached QEMU `{}` is damaged; remove that directory", dir.display())
        })?
        .version;
    cache.check_exec().context("the fetched QEMU cannot run")?;
    let note = format!("fetched from Debian {SUITE}: {why}");
    Ok(Some(QemuProgram { argv: command_line(&dir), version, origin: Origin::Fetched, note }))
}

/// Returns the command line of a fetched QEMU, with its own firmware files.
fn command_line(dir: &Path) -> Vec<OsString> {
    let root = dir.join("root");
    let mut argv = tool::command_line(&root, PROGRAM);
    for data in ["usr/share/qemu", "usr/share/seabios"] {
        argv.extend(["-L".into(), root.join(data).into_os_string()]);
    }
    argv
}

/// Removes the files that [`command_line`] does not use, about half of them.
fn prune(root: &Path) -> Result<()> {
    let keep: [(&str, &[&str]); 5] = [
        ("", &["usr"]),
        ("usr", &["bin", "lib", "lib64", "share"]),
        ("usr/bin", &[PROGRAM]),
        ("usr/lib", &["x86_64-linux-gnu"]),
        ("usr/share", &["qemu", "seabios"]),
    ];
    for (dir, names) in keep {
        let dir = root.join(dir);
        let context = || format!("the packages of QEMU do not contain `{}`", dir.display());
        for entry in dir.read_dir().with_context(context)? {
            let entry = entry?;
            if !names.iter().any(|name| entry.file_name() == *name) {
                cache::remove(&entry.path())?;
            }
        }
    }
    cache::remove(&root.join("usr/lib/x86_64-linux-gnu/gconv"))
}

fn from_env(cache: &Cache, path: &Path) -> Result<QemuProgram> {
    let path = match path.components().count() {
        // A name without a slash is searched in PATH, as a shell does.
        1 => path.to_str().and_then(apt::find_program).unwrap_or_else(|| path.to_owned()),
        _ => std::path::absolute(path)?,
    };
    let version = version_of(cache, &path)
        .with_context(|| format!("KTSTR_QEMU names `{}`, which does not run", path.display()))?;
    let mut note = "set by KTSTR_QEMU".to_owned();
    if !is_good(&version) {
        note += &format!("; {}", not_good(&version));
    }
    Ok(installed(path, version, Origin::Env, note))
}

fn installed(path: PathBuf, version: String, origin: Origin, note: String) -> QemuProgram {
    QemuProgram { argv: vec![path.into_os_string()], version, origin, note }
}

/// Returns the version of an installed QEMU. Runs the program once per state of its file.
fn version_of(cache: &Cache, path: &Path) -> Result<String> {
    let meta = fs::metadata(path).with_context(|| format!("no file `{}`", path.display()))?;
    let name = format!("{KIND}-versions/{}", image::identity(&meta));
    let run = || probe(&[path.as_os_str().to_owned()]);
    if !cache.entry(&name).exists() && cache.check_writable().is_err() {
        return run();
    }
    let record = cache.build_once(&name, |file| Ok(fs::write(file, run()?)?))?;
    Ok(fs::read_to_string(record)?)
}

fn probe(argv: &[OsString]) -> Result<String> {
    let output = apt::run(Command::new(&argv[0]).args(&argv[1..]).arg("--version"))?;
    parse_version(&output).with_context(|| format!("`--version` printed: {output}"))
}

/// Parses `QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)`.
fn parse_version(text: &str) -> Option<String> {
    let rest = text.trim_start().strip_prefix("QEMU emulator version ")?;
    rest.split_whitespace().next().map(str::to_owned)
}

fn is_good(version: &str) -> bool {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_some_and(|major| major >= GOOD_SINCE)
}

/// Returns the warning about a version that is not known-good.
fn not_good(version: &str) -> String {
    format!("QEMU {version} may abort or corrupt guests; {GOOD_SINCE}.0 or later is known-good")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn is_good_requires_version_11() {
        for (text, version, good) in [
            ("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds)\nCopyright", "11.1.3", true),
            ("QEMU emulator version 10.0.13 (Debian 1:10.0.13+ds)\nCopyright", "10.0.13", false),
            ("QEMU emulator version 7.2.22 (Debian)", "7.2.22", false),
            ("QEMU emulator version 9.2.50", "9.2.50", false),
            ("QEMU emulator version 11.0.0", "11.0.0", true),
        ] {
            assert_eq!(parse_version(text).as_deref(), Some(version));
            assert_eq!(is_good(version), good, "{version}");
        }
        assert_eq!(parse_version("bash: qemu: not found"), None);
        assert!(!is_good("unknown"));
    }

    #[test]
    fn asks_an_installed_program_once() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let cache = Cache::at(dir.path().join("cache"));
        let program = dir.path().join("qemu");
        let script = "#!/bin/sh\necho run >> \"$0.log\"\necho QEMU emulator version 7.2.1\n";
        fs::write(&program, script)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        for _ in 0..2 {
            let qemu = from_env(&cache, &program)?;
            assert_eq!((qemu.version.as_str(), qemu.origin), ("7.2.1", Origin::Env));
            assert!(qemu.note.contains("corrupt") && !qemu.is_known_good(), "{}", qemu.note);
        }
        assert_eq!(fs::read_to_string(dir.path().join("qemu.log"))?, "run\n");
        assert!(from_env(&cache, &dir.path().join("gone")).is_err());
        Ok(())
    }

    #[test]
    fn prune_keeps_the_files_of_the_command_line() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("root");
        let argv = command_line(dir.path());
        for index in [0, 3] {
            let path = Path::new(&argv[index]);
            fs::create_dir_all(path.parent().unwrap())?;
            fs::write(path, "")?;
        }
        for dir in ["usr/lib/x86_64-linux-gnu/gconv", "usr/share/qemu", "usr/share/doc", "etc"] {
            fs::create_dir_all(root.join(dir))?;
        }
        fs::create_dir_all(&argv[7])?;
        prune(&root)?;
        for index in [0, 2, 3, 5, 7] {
            assert!(Path::new(&argv[index]).exists(), "{:?}", argv[index]);
        }
        for gone in ["etc", "usr/share/doc", "usr/lib/x86_64-linux-gnu/gconv"] {
            assert!(!root.join(gone).exists(), "{gone}");
        }
        Ok(())
    }
}
